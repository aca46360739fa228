"""Words of the reports: names that readers know, and typography."""

import re
from collections.abc import Mapping

NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "svhn": "SVHN",
    "digits": "handwritten digits (scikit-learn)",
    "resnet8": "ResNet-8",
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
