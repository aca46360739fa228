"""Frozen features of a trained run: computed once and read by every evaluation.

Two readings: the corrected one in eval mode, and what the released code of FALCON measures.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peregrine.config.check import READINGS
from peregrine.config.fingerprint import fingerprint
from peregrine.config.identity import run_id
from peregrine.config.load import build_run, read_yaml
from peregrine.config.models import Run
from peregrine.data.batches import SHARE, held
from peregrine.data.prepare import SPLITS, Prepared
from peregrine.data.views import largest_side, make_views
from peregrine.errors import UserError
from peregrine.files import TensorStream, read_tensors, sha256, streamed_tensors
from peregrine.frozen import (
    FEATURES,
    NOT_AVAILABLE,
    UNMEASURED,
    data_of,
    read_outcome,
    weights_of,
)
from peregrine.methods.base import Method, by_role
from peregrine.methods.build import build_method, load_state
from peregrine.pretrain.device import set_precision
from peregrine.streams import generator

BATCH = 512
RELEASED_BATCH = 64
"""Test images that the released code normalises together."""
SCORES = 2**25
"""Scores held at a time, 128 MiB: with more than 65,536 codes a batch has fewer images."""


def load_run(folder: Path) -> tuple[Run, dict]:
    """(run, outcome) of a seed folder, every file checked against the sums in outcome.json.

    Raises:
        UserError: a file is missing or changed, or belongs to another run.
    """
    outcome = read_outcome(folder)
    for name, expected in outcome["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is missing or changed; run pretrain again")
    run = build_run([read_yaml(folder / "run.yaml")], str(folder / "run.yaml"))
    if run_id(run) != outcome["run"]:
        raise UserError(f"{folder / 'run.yaml'} is not run {outcome['run']}; run pretrain again")
    return run, outcome


def trained_on(folder: Path, run: Run, outcome: dict, data: Prepared) -> None:
    """Refuse data that are not those of the training."""
    if outcome["data"] != data.sums:
        raise UserError(
            f"{folder} was trained on other data than {run.dataset.name} holds now;"
            " run pretrain again"
        )


def load_method(run: Run, outcome: dict, folder: Path, data: Prepared) -> Method:
    """The trained network of a seed folder, in eval mode on the CPU."""
    sizes = {"channels": len(data.mean), "train_images": len(data.labels["train"])}
    method = build_method(run, outcome["seed"], **sizes)
    backbone, _ = read_tensors(folder / "backbone.safetensors")
    rest, _ = read_tensors(folder / "method.safetensors")
    load_state(method, backbone, rest)
    return method.eval()


def extract(
    folder: Path,
    data: Prepared,
    device: torch.device,
    embedding_sample: int,
    view_sample: int = 1000,
    centre_share: float = SHARE,
) -> Path:
    """Write {folder}/{reading}/features.safetensors of both readings; returns the corrected one.

    Corrected, in eval mode: {split}_features float32 [n, f], {split}_labels int64 [n],
    {split}_embeddings float32 [m, d] (train: a fixed sample of `embedding_sample`, its labels in
    `sample_labels`), where the method has scores {split}_codes int64 [n] (argmax) and {split}_usage
    float64 [c] (mean softmax), and views_{features,embeddings} float32 [2, m, .] of two of the
    run's own views of `view_sample` fixed test images. Released (falcon.md, section 4): see
    `_released`; a method without that reading has no arrays and the status `n/a`. A run whose
    outcome is `nan` has no arrays in either, only that status in the metadata.

    Images are taken as they are, or where their sizes differ, as a central square of the size of
    the run's largest views that keeps `centre_share` of the short side. Features are written batch
    by batch, so that those of ImageNet need not fit into memory.
    """
    run, outcome = load_run(folder)
    trained_on(folder, run, outcome, data)
    facts = {
        "kind": "features",
        "run": outcome["run"],
        "seed": str(outcome["seed"]),
        "data": data_of(outcome),
        "weights": weights_of(outcome),
        "code": fingerprint("extract", run.method["name"]),
    }
    set_precision(device, "float32")
    method = load_method(run, outcome, folder, data).to(device)
    images = _Images(data, device, largest_side(run.views), centre_share)
    for reading in READINGS:
        status = outcome["status"] if reading in method.readings else NOT_AVAILABLE
        # What a killed extraction leaves is gigabytes of ImageNet, and nobody else looks for it.
        for leftover in (folder / reading).glob(f".tmp-*-{FEATURES}"):
            leftover.unlink(missing_ok=True)
        with streamed_tensors(folder / reading / FEATURES, **facts, status=status) as tensors:
            codes = 0
            if status not in UNMEASURED and reading == "released":
                codes = _released(tensors, copy.deepcopy(method).train(), images)
            elif status not in UNMEASURED:
                codes = _corrected(tensors, method, images, embedding_sample)
                _views(tensors, method, run, images, view_sample)
            tensors.metadata["codes"] = str(codes)
    return folder / "corrected" / FEATURES


class _Images:
    """The data set on its way to the network."""

    def __init__(self, data: Prepared, device: torch.device, size: int, share: float) -> None:
        self.data = data
        self.splits = {
            split: held(data.images[split], device, size, share, resident=False) for split in SPLITS
        }
        self.mean, self.sd = (
            torch.tensor(each, device=device).view(-1, 1, 1) for each in (data.mean, data.sd)
        )

    def normalised(self, split: str, batches: list[slice]) -> Iterator[Tensor]:
        """Images [m, c, h, w] of each batch with the data set's mean and sd taken out."""
        for part in batches:
            yield (self.splits[split].whole(part) - self.mean) / self.sd


def _corrected(
    tensors: TensorStream, method: Method, images: _Images, embedding_sample: int
) -> int:
    """Arrays of both splits; the number of codes."""
    codes = 0
    size = max(2, min(BATCH, SCORES // max(1, getattr(method.options, "codes", 1))))
    for split in SPLITS:
        n, labels = len(images.splits[split]), images.data.labels[split]
        kept = np.arange(n)
        if split == "train":
            kept = _sample(n, embedding_sample, generator(0, "evaluation/embedding sample"))
            tensors.rows("sample_labels", [labels[kept]])
        tensors.rows(f"{split}_labels", [labels])
        batches, seen = images.normalised(split, _batches(n, size)), _Seen(kept)
        tensors.rows(f"{split}_features", seen.features(method, batches, "corrected"))
        for name, array in seen.arrays().items():
            tensors.rows(f"{split}_{name}", [array])
        codes = len(seen.usage)
    return codes


def _released(tensors: TensorStream, network: Method, images: _Images) -> int:
    """test_embeddings, test_codes and test_labels; the number of coordinates of the argmax.

    As the released code sees them: without eval(), so that BatchNorm takes the statistics of each
    batch of 64 test images in their order, the smaller last one included. One image by itself has
    no statistics, and joins the batch before it. `network` is a copy: it counts the batches.
    """
    n = len(images.splits["test"])
    seen = _Seen(np.arange(n))
    for _ in seen.features(
        network, images.normalised("test", _batches(n, RELEASED_BATCH)), "released"
    ):
        pass
    arrays = seen.arrays()
    for name in ("embeddings", "codes"):
        tensors.rows(f"test_{name}", [arrays[name]])
    tensors.rows("test_labels", [images.data.labels["test"]])
    return len(seen.usage)


@torch.no_grad()
def _views(tensors: TensorStream, method: Method, run: Run, images: _Images, sample: int) -> None:
    """Features and embeddings [2, m, .] of two augmented views: the same images for every run."""
    test, data = images.splits["test"], images.data
    picks = _sample(len(test), sample, generator(0, "evaluation/view sample"))
    draws = generator(0, "evaluation/views")
    out: dict[str, list[np.ndarray]] = {"features": [], "embeddings": []}
    for part in _batches(len(picks), BATCH):
        batch = test.take(torch.from_numpy(picks[part]))
        views = by_role(make_views(batch, run.views, draws, mean=data.mean, std=data.sd))
        seen = [method.describe(view) for view in views[:2]]
        for name, parts in out.items():
            parts.append(np.stack([getattr(each, name).float().cpu().numpy() for each in seen]))
    for name, parts in out.items():
        tensors.rows(f"views_{name}", [np.concatenate(parts, axis=1)])


def _sample(n: int, most: int, draws: torch.Generator) -> np.ndarray:
    """A random sample of `most` of n indices, in order."""
    return torch.randperm(n, generator=draws)[:most].sort().values.numpy()


def _batches(n: int, size: int) -> list[slice]:
    """Consecutive slices of `size`, the last one smaller, but never of one."""
    starts = [start for start in range(0, n, size) if n - start > 1 or start == 0]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]


class _Seen:
    """What a network says of a split, batch by batch: features are handed on, the rest is kept.

    Attributes:
        usage: with scores, the sum of the soft assignments, float64 [c]; else empty.
    """

    def __init__(self, kept: np.ndarray) -> None:
        """`kept`: the images, in order, whose embeddings are kept."""
        self.usage = np.empty(0)
        self._kept, self._images = kept, 0
        self._embeddings: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []

    @torch.no_grad()
    def features(
        self, method: Method, batches: Iterator[Tensor], reading: str
    ) -> Iterator[np.ndarray]:
        """float32 [m, f] of each batch."""
        for images in batches:
            seen = method.describe(images, reading)
            first, last = np.searchsorted(self._kept, (self._images, self._images + len(images)))
            rows = torch.from_numpy(self._kept[first:last] - self._images)
            self._embeddings.append(seen.embeddings[rows.to(images.device)].float().cpu().numpy())
            self._images += len(images)
            if seen.scores is not None:
                scores = seen.scores.float()
                self._codes.append(scores.argmax(dim=1).cpu().numpy())
                usage = scores.softmax(dim=1).double().sum(dim=0).cpu().numpy()
                self.usage = self.usage + usage if len(self.usage) else usage
            yield seen.features.float().cpu().numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        """embeddings, and with scores codes and usage."""
        out = {"embeddings": np.concatenate(self._embeddings)}
        if self._codes:
            out |= {"codes": np.concatenate(self._codes), "usage": self.usage / self._images}
        return out


def forget_checkpoint(folder: Path) -> None:
    """Remove a run's checkpoints: its results have been used, nothing needs to resume any more."""
    for name in ("previous", "last"):
        (folder / "resume" / f"{name}.safetensors").unlink(missing_ok=True)
