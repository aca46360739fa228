"""Two-view samples/s: ours, torchvision's transforms on Pillow images, and kornia's batched chain.

    PYTHONPATH=src python benchmarks/views.py [--batches 256 64] [--threads 1 2] [--device cpu]
        [--repetitions 9] [--cpu-time] [--record benchmarks/recorded]

The recipe is `asymmetric` of config/presets.yaml, two views of 32 px. torchvision works image by
image, as a data loader's worker does, without collating; it has one thread whatever it is given, so
its rows stand with one thread only, v1 and v2 of its transforms. kornia is no dependency:
`pip install --no-deps kornia kornia-rs` in an environment of its own brings its row. All alternate
in one process, which keeps freed memory as training does; random uint8 images stand in for data, as
no operation's time depends on the pixels. Figures are medians, with quartiles, over repetitions.
--device cuda measures ours on a GPU, and which share of a training step the views take there.
--cpu-time counts the process's own seconds, for a machine that others use too.

The floor, of two views of one image of 3 x 32 x 32, on one core: the crop is 2 x 2 products of
32 x 32 x 96, 0.79 MFLOP. A pass over a view in float32 reads and writes 24 KB; colour jitter takes
about 29 of them (a blend 5, three times, and hue 14), of four views in five, all else about 7.
`floor` measures both rates and prints what products and 2 x 30 passes would take if every pass ran
like `add_` on 1 MB.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from record import processor
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from peregrine.config.load import read_yaml
from peregrine.config.models import ViewSpec
from peregrine.data.views import make_views
from peregrine.files import write_json
from peregrine.pretrain.device import keep_memory

PRESETS = Path(__file__).parents[1] / "config/presets.yaml"
MEAN, SD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
PILLOW_IMAGES = 64
"""Of a batch: what torchvision takes for an image does not depend on how many there are."""
PASSES, FLOP = 30, 2 * 2 * 2 * 32 * 32 * 96


def on_pillow(module, spec: ViewSpec) -> Callable:
    """torchvision's transforms, `module` v1 or v2, on a Pillow image."""
    colours = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    bicubic = v1.InterpolationMode.BICUBIC
    if module is v1:
        to_float = [v1.ToTensor()]
    else:
        to_float = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    steps = [
        module.RandomResizedCrop(
            spec.size, spec.crop_scale, spec.crop_ratio, interpolation=bicubic
        ),
        module.RandomHorizontalFlip(spec.flip),
        module.RandomApply([module.ColorJitter(*colours)], spec.jitter),
        module.RandomGrayscale(spec.grey),
    ]
    if spec.solarise:
        steps.append(module.RandomSolarize(255 * spec.solarise_threshold, spec.solarise))
    return module.Compose([*steps, *to_float, module.Normalize(MEAN, SD)])


def on_kornia(spec: ViewSpec) -> Callable:
    """kornia's augmentations on a float batch [n, 3, h, w]."""
    import kornia.augmentation as K

    colours = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    size = (spec.size, spec.size)
    steps = [
        K.RandomResizedCrop(size, spec.crop_scale, spec.crop_ratio, resample="bicubic"),
        K.RandomHorizontalFlip(p=spec.flip),
        K.ColorJitter(*colours, p=spec.jitter),
        K.RandomGrayscale(p=spec.grey),
    ]
    if spec.solarise:
        threshold = (spec.solarise_threshold, spec.solarise_threshold)
        steps.append(K.RandomSolarize(threshold, (0.0, 0.0), p=spec.solarise))
    return K.AugmentationSequential(*steps, K.Normalize(MEAN, SD), data_keys=["input"])


def sides(spec: list[ViewSpec], n: int, threads: int) -> dict[str, tuple[int, Callable]]:
    """By name (samples of a call, the call) of everything that is compared on a CPU."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=draws)
    out: dict[str, tuple[int, Callable]] = {
        "ours": (n, lambda: make_views(images, spec, draws, mean=MEAN, std=SD))
    }
    if threads == 1:
        pictures = [F.to_pil_image(image) for image in images[:PILLOW_IMAGES]]
        for name, module in (("torchvision v1", v1), ("torchvision v2", v2)):
            views = [on_pillow(module, each) for each in spec]
            out[name] = (
                len(pictures),
                lambda views=views: [view(each) for each in pictures for view in views],
            )
    try:
        views = [on_kornia(each) for each in spec]
    except ImportError:
        print("kornia is not installed: pip install --no-deps kornia kornia-rs; without its row")
    else:
        out["kornia"] = n, lambda: [view(images.float() / 255) for view in views]
    return out


def measured(
    calls: dict[str, tuple[int, Callable]], repetitions: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Samples/s of each, one figure a repetition, in turns; a turn is one call at least 0.1 s."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(-1, repetitions):  # the first is a warm-up
        for name, (samples, call) in calls.items():
            start, count = clock(), 0
            while count == 0 or clock() - start < 0.1:
                call()
                count += 1
            if repetition >= 0:
                rates[name].append(count * samples / (clock() - start))
    return rates


def floor(clock: Callable[[], float]) -> dict[str, float]:
    """What this core does with the operations that views are made of, and samples/s of these."""
    images, weights = torch.rand(85, 96, 32), torch.rand(85, 32, 32)

    def seconds(call: Callable) -> float:
        return min(_timed(call, clock) for _ in range(200))

    flops = images.numel() * 2 * 32 / seconds(lambda: torch.bmm(images, weights))
    gflop_peak = 2 * 1024**3 / min(_timed(lambda: _SQUARE @ _SQUARE, clock) for _ in range(5))
    a_pass = seconds(lambda: images.add_(1e-3)) / len(images)
    copy = 2 * 4 * images.numel() / seconds(lambda: images.clone())
    return {
        "product_flops": flops,
        "large_product_flops": gflop_peak,
        "copy_bytes_per_second": copy,
        "samples_per_second": 1 / (FLOP / flops + 2 * PASSES * a_pass),
    }


_SQUARE = torch.rand(1024, 1024)


def _timed(call: Callable, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def on_gpu(spec: list[ViewSpec], batches: list[int], repetitions: int) -> dict[str, dict]:
    """Two-view samples/s of ours on a GPU; their share of a step of SimCLR, ResNet-18, bf16."""
    from peregrine.config.load import build_run
    from peregrine.methods.base import Progress
    from peregrine.methods.build import build_method
    from peregrine.pretrain.accumulate import accumulate
    from peregrine.pretrain.device import autocast, set_precision

    device, draws = torch.device("cuda"), torch.Generator().manual_seed(0)
    set_precision(device, "bfloat16")
    presets = read_yaml(PRESETS)
    out = {}
    for n in batches:
        parts = {
            "dataset": {"name": "cifar10"},
            "backbone": {"name": "resnet18"},
            "method": presets["methods"]["simclr"],
            "views": presets["views"]["asymmetric"],
            "batch_size": n,
        }
        run = build_run([parts], "views.py")
        method = build_method(run, 0, channels=3, train_images=50_000).to(device).train()
        optimizer = torch.optim.SGD(method.parameters(), lr=1e-3, fused=True)
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8).to(device)

        def made(images=images):
            return make_views(images, spec, draws, mean=MEAN, std=SD)

        def step(made=made, method=method, optimizer=optimizer, run=run):
            optimizer.zero_grad(set_to_none=True)
            now = Progress(0, 0, 0, 100)
            cast = lambda: autocast(device, "bfloat16")  # noqa: E731
            accumulate(method, made(), now, run.accumulate, cast)
            optimizer.step()

        seconds = {}
        for name, call in (("views", made), ("step", step)):
            found = []
            for _ in range(repetitions + 1):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(20):
                    call()
                torch.cuda.synchronize()
                found.append((time.perf_counter() - start) / 20)
            seconds[name] = statistics.median(found[1:])
        share = seconds["views"] / seconds["step"]
        print(f"batch {n}: {n / seconds['views']:,.0f} two-view samples/s, {share:.1%} of a step")
        out[str(n)] = {"samples_per_second": n / seconds["views"], "share_of_step": share}
    return out


def hardware(threads: list[int], names: Sequence[str]) -> dict:
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    if given.repetitions < 2:
        parser.error("quartiles need at least two repetitions")
    clock = time.process_time if given.cpu_time else time.perf_counter
    spec = [ViewSpec(**each) for each in read_yaml(PRESETS)["views"]["asymmetric"]]
    facts = hardware(given.threads, ("torch", "torchvision", "pillow", "kornia")) | {
        "clock": "CPU" if given.cpu_time else "wall"
    }
    keep_memory()
    if given.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        results = on_gpu(spec, given.batches, given.repetitions)
    else:
        torch.set_num_threads(1)
        results = {"floor": floor(clock)}
        print("floor: " + ", ".join(f"{k} {v:,.0f}" for k, v in results["floor"].items()))
        for threads in given.threads:
            torch.set_num_threads(threads)
            for n in given.batches:
                rates = measured(sides(spec, n, threads), given.repetitions, clock)
                ours = statistics.median(rates["ours"])
                for name, found in rates.items():
                    low, median, high = statistics.quantiles(found, n=4)
                    print(
                        f"{threads} threads, batch {n:3}, {name:14}: {median:9,.0f} samples/s"
                        f" ({low:,.0f} to {high:,.0f}), ours {ours / median:.1f} times"
                    )
                results[f"{threads} threads, batch {n}"] = rates
    if given.record:
        name = "views.json" if given.device == "cpu" else "views-cuda.json"
        write_json(given.record / name, facts | {"samples_per_second": results})


if __name__ == "__main__":
    main()
