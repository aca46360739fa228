"""Two-view samples/s of our strong views with and without RandAugment, and of torchvision's.

    PYTHONPATH=src python benchmarks/randaugment.py [--batch 256] [--size 32] [--magnitude 27]
        [--device cpu] [--threads 1] [--seconds 3] [--cpu-time]

Strong views: MoCo v2's recipe, as config/presets.yaml has it, two views an image. torchvision runs
its v2 transforms image by image on Pillow images, as a data loader's worker does, without collating
them. Random uint8 images stand in for data: no operation's time depends on the pixels but for what
branches save on even images. Each figure is the median batch of the given seconds; with --cpu-time
of the process's own time, where others share the machine.
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


def rate(step, n: int, given: argparse.Namespace) -> float:
    """Samples/s of a step that makes the views of n images."""
    clock = time.process_time if given.cpu_time else time.perf_counter
    step()
    times: list[float] = []
    while len(times) < 5 or sum(times) < given.seconds:
        start = clock()
        step()
        if given.device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return n / statistics.median(times)


def peak(device: str) -> str:
    """Largest memory so far, of the process or of the GPU."""
    if device != "cpu":
        return f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB"
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:,.0f} MiB"


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
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    n, size, draws = given.batch, given.size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=draws)
    on_device = images.to(given.device)
    print(f"{given.device}, {given.threads} threads, batch {n}, {size} px, two views a sample;")
    print(f"{'CPU' if given.cpu_time else 'wall'} time, peak at start {peak(given.device)}")
    for operations in (0, OPERATIONS):
        ours = {"randaugment": operations, "magnitude": given.magnitude}
        spec = [ViewSpec(size=size, count=2, **STRONG, **ours)]

        def step(spec=spec):
            make_views(on_device, spec, draws, mean=[0.5] * 3, std=[0.25] * 3)

        found = rate(step, n, given)
        print(f"RandAugment x {operations}: {found:,.0f} samples/s, peak {peak(given.device)}")
    if given.device == "cpu":
        pictures = [F.to_pil_image(image) for image in images[:64]]
        for operations in (0, OPERATIONS):
            transform = torchvisions(size, given.magnitude, operations)

            def step(transform=transform):
                for picture in pictures:
                    transform(picture), transform(picture)

            found = rate(step, len(pictures), given)
            print(f"torchvision on Pillow, RandAugment x {operations}: {found:,.0f} samples/s")


if __name__ == "__main__":
    main()
