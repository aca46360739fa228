"""CIFAR-10 and CIFAR-100 in their binary layout.

A record is one label byte (CIFAR-100: coarse, then fine) and 3,072 pixels: the red plane row by
row, then green, then blue (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from collections.abc import Mapping

import numpy as np

from peregrine.data.raw import Download, Raw, RawFile, Split
from peregrine.errors import UserError

PIXELS = (3, 32, 32)
COARSE = 20

NAMES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
NAMES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""

HOME = "https://www.cs.toronto.edu/~kriz/"
BATCHES = (
    *[f"data_batch_{number}.bin" for number in range(1, 6)],
    "test_batch.bin",
)
RAW_10 = Raw(
    files=tuple(
        RawFile(name, 30_730_000, f"sha256:{digest}")
        for name, digest in zip(
            BATCHES,
            (
                "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
                "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
            ),
            strict=True,
        )
    ),
    downloads=(
        Download(
            HOME + "cifar-10-binary.tar.gz",
            170_052_171,
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
)
RAW_100 = Raw(
    files=(
        RawFile(
            "train.bin",
            153_700_000,
            "sha256:f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        ),
        RawFile(
            "test.bin",
            30_740_000,
            "sha256:d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        ),
    ),
    downloads=(
        Download(
            HOME + "cifar-100-binary.tar.gz",
            168_513_733,
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
)


def load_cifar10(contents: Mapping[str, bytes]) -> dict[str, Split]:
    """data_batch_*.bin, in the order given, and test_batch.bin."""
    train = [_records(contents[name], 1) for name in contents if name != "test_batch.bin"]
    return {
        "train": _split(np.concatenate(train), 1),
        "test": _split(_records(contents["test_batch.bin"], 1), 1),
    }


def load_cifar100(contents: Mapping[str, bytes]) -> dict[str, Split]:
    """train.bin and test.bin; the classes are the 100 fine ones.

    Raises:
        UserError: a coarse label above 19, which no file of this layout has.
    """
    splits = {}
    for name in ("train", "test"):
        records = _records(contents[f"{name}.bin"], 2)
        if records[:, 0].max() >= COARSE:
            raise UserError(f"{name}.bin: coarse labels must lie in 0..{COARSE - 1}; replace it")
        splits[name] = _split(records, 2)
    return splits


def _records(content: bytes, labels: int) -> np.ndarray:
    return np.frombuffer(content, np.uint8).reshape(-1, labels + np.prod(PIXELS))


def _split(records: np.ndarray, labels: int) -> Split:
    images = np.ascontiguousarray(records[:, labels:]).reshape(-1, *PIXELS)
    return Split(images, records[:, labels - 1].astype(np.int64))
