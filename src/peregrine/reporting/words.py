"""Words of the reports: names that readers know, and typography."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NO_BREAK = "\u00a0"
"""A space at which no line breaks."""

NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "svhn": "SVHN",
    "digits": "handwritten digits (scikit-learn)",
    "imagenet100": "ImageNet-100",
    "imagenet1k": "ImageNet-1k",
    "imagenette": "Imagenette",
    "resnet8": "ResNet-8",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vit_small": "ViT-S/16",
    "knn": "kNN",
    "kmeans": "k-means",
    "c": "C",
    "nan": "NaN",
}
"""What readers call things that the configuration writes in lower case."""


def named(text: str) -> str:
    """`text` with the words of NAMES in place of what the configuration writes."""
    return " ".join(NAMES.get(word, word) for word in text.split())


def prose(text: str, labels: Mapping[str, str] | None = None) -> str:
    """`text` with true dashes and transposes, and the labels of rows in place of their names."""
    for row, label in (labels or {}).items():
        if not label.startswith(row):  # 'untrained' reads well already, and is a word besides
            text = re.sub(rf"(?<![\w-]){re.escape(row)}(?![\w-])", label, text)
    return text.replace(" - ", " \u2013 ").replace("^T", "\u1d40")


def listed(names: Sequence[str], most: int = 6) -> str:
    """'a; b; c', of more than `most` + 1 names the first `most`: 'a; b; and 17 more rows'."""
    if len(names) <= most + 1:  # a single one is named, not counted
        return "; ".join(names)
    return "; ".join([*names[:most], f"and {len(names) - most} more rows"])


def fixed(number: float, decimals: int, *, signed: bool = False) -> str:
    """Fixed decimals with a true minus sign; what rounds to zero has no sign."""
    rounded = round(number, decimals) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{decimals}f}".replace("-", "\u2212")


def plain(value: Any) -> str:
    """A setting as text: numbers short, lists with commas."""
    if isinstance(value, list):
        return ", ".join(plain(each) for each in value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def seeds_lost(lost: Iterable[tuple[str, int]]) -> str:
    """'seeds 1, 2 missing, seed 3 collapsed', of (state, seed)."""
    seeds: dict[str, list[str]] = {}
    for state, seed in lost:
        seeds.setdefault(state, []).append(str(seed))
    return ", ".join(
        f"seed{'s' if len(each) > 1 else ''} {', '.join(each)} {state}"
        for state, each in seeds.items()
    )


def unit_of(test: Mapping[str, Any]) -> tuple[float, int, str]:
    """(factor, decimals, unit) of a test's numbers: accuracies in percent, all else as it is."""
    per = " per tenfold" if test["kind"] == "trend" else ""
    if test["metric"].endswith("accuracy"):
        level = test["kind"] in ("above", "below")
        return 100.0, 2, (" %" if level else " points") + per
    return 1.0, 3, per
