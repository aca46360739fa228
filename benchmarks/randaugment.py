"""Two-view samples/s of our strong views with and without RandAugment, and of torchvision's.

    PYTHONPATH=src python benchmarks/randaugment.py [--batch 256] [--size 32] [--magnitude 27]
        [--device cpu] [--threads 1] [--seconds 3]

Strong views: MoCo v2's recipe, as config/presets.yaml has it, two views an image. torchvision runs
its v2 transforms image by image on Pillow images, as a data loader's worker does, without collating
them. Random uint8 images stand in for data: no operation's time depends on the pixels but for what
branches save on even images. Each figure is the median batch of the given seconds.
"""

import argparse
import resource
import statistics
import sys
import time

import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from peregrine.config.models import ViewSpec
from peregrine.data.views import make_views

STRONG = {"crop_scale": (0.2, 1.0), "saturation": 0.4, "blur": 0.5}
OPERATIONS = 2


def rate(step, n: int, seconds: float, device: str) -> float:
    """Samples/s of a step that makes the views of n images."""
    times, end = [], time.perf_counter() + seconds
    step()
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return n / statistics.median(times)


def torchvisions(size: int, magnitude: int, operations: int) -> v2.Compose:
    """The same recipe of torchvision's transforms on a Pillow image."""
    kernel = max(3, 2 * round(0.05 * size) + 1)
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], 0.5),
            v2.RandAugment(operations, magnitude),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("batch", 256), ("size", 32), ("magnitude", 27), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    n, size, draws = given.batch, given.size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=draws)
    on_device = images.to(given.device)
    print(f"{given.device}, {given.threads} threads, batch {n}, {size} px, two views a sample")
    for operations in (0, OPERATIONS):
        ours = {"randaugment": operations, "magnitude": given.magnitude}
        spec = [ViewSpec(size=size, count=2, **STRONG, **ours)]

        def step(spec=spec):
            make_views(on_device, spec, draws, mean=[0.5] * 3, std=[0.25] * 3)

        found = rate(step, n, given.seconds, given.device)
        print(f"RandAugment x {operations}: {found:,.0f} samples/s")
    if given.device == "cpu":
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        print(f"peak of the process {peak:,.0f} MiB")
        pictures = [F.to_pil_image(image) for image in images[:64]]
        for operations in (0, OPERATIONS):
            transform = torchvisions(size, given.magnitude, operations)

            def step(transform=transform):
                for picture in pictures:
                    transform(picture), transform(picture)

            found = rate(step, len(pictures), given.seconds, given.device)
            print(f"torchvision on Pillow, RandAugment x {operations}: {found:,.0f} samples/s")
    else:
        print(f"peak of the device {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()
