"""Frozen features -> linear, kNN and clustering results of one protocol, as JSON files."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peregrine.config.models import Protocol
from peregrine.errors import UserError
from peregrine.evaluation.clustering import cluster_scores, kmeans_clusters
from peregrine.evaluation.knn import knn_classify
from peregrine.evaluation.linear import few_label_probe, label_share_probe, linear_probe
from peregrine.frozen import UNMEASURED, read_features, write_result

if TYPE_CHECKING:
    import torch


def evaluate(
    folder: Path,
    reading: str,
    name: str,
    protocol: Protocol,
    device: "torch.device | None" = None,
) -> None:
    """Write {reading}/{linear,knn,clustering}-{name}.json of a seed folder.

    In the released reading only the clustering, by the codes alone. A run that ended in NaN, and a
    method that does not have the reading, has no features; its files say so and hold no number.

    With a `device`, which the process must hold, probes and neighbours are computed there by torch
    whatever the number of images; "device" names it in their files. None leaves that to the
    protocol's `streamed_above`.
    """
    arrays, facts = read_features(folder, reading)
    blocks_above, place = protocol.streamed_above, {}
    if device is not None:
        from peregrine.pretrain.device import circumstances  # torch, only where needed

        place = {"device": circumstances(device)["device"]}
        blocks_above = 0
    measured = facts["status"] not in UNMEASURED
    if reading == "released":
        result = {"codes": _codes(arrays, protocol)} if measured else {}
        write_result(folder, reading, "clustering", (name, protocol), facts, result)
        return
    results: dict[str, dict] = {"linear": {}, "knn": {}, "clustering": {}}
    if measured:
        _enough_labels(arrays["train_labels"], folder, name, protocol)
        results["linear"] = place | _linear(arrays, protocol, blocks_above)
        results["knn"] = place | knn_classify(
            *_splits(arrays),
            k=protocol.knn_k,
            temperature=protocol.knn_temperature,
            streamed_above=blocks_above,
        )
        results["clustering"] = _clustering(arrays, protocol)
    for kind, result in results.items():
        write_result(folder, reading, kind, (name, protocol), facts, result)


def _enough_labels(labels: np.ndarray, folder: Path, name: str, protocol: Protocol) -> None:
    """Refuse what a small class or set cannot give: labels of every class, and some held out."""
    sizes = np.bincount(labels)
    classes = np.flatnonzero(sizes)
    rarest = classes[sizes[classes].argmin()]
    # As scikit-learn cuts; both parts must have room for every class.
    held = math.ceil(protocol.linear_validation_share * len(labels))
    problem = ""
    if sizes[rarest] < protocol.few_labels_per_class:
        problem = f"few_labels_per_class asks for {protocol.few_labels_per_class}"
    elif sizes[rarest] < 2:
        problem = "linear_validation_share takes one of at least 2"
    elif min(held, len(labels) - held) < len(classes):
        problem = (
            f"linear_validation_share cuts {len(labels)} images into {len(labels) - held} and"
            f" {held}, and there are {len(classes)} classes"
        )
    if problem:
        raise UserError(
            f"{folder}: class {rarest} has {sizes[rarest]} training images, but in protocols.yaml,"
            f" {name}, {problem}; change that, or give the run more images"
        )


def _splits(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    keys = ("train_features", "train_labels", "test_features", "test_labels")
    return tuple(arrays[key] for key in keys)


def _linear(arrays: dict[str, np.ndarray], protocol: Protocol, blocks_above: int) -> dict:
    common = {
        "c_grid": protocol.linear_c_grid,
        "split_seed": protocol.split_seed,
        "max_iter": protocol.linear_max_iter,
        "streamed_above": blocks_above,
    }
    splits, draws = _splits(arrays), protocol.few_label_draws
    share, labels = protocol.linear_validation_share, protocol.few_labels_per_class
    return {
        "all": linear_probe(*splits, validation_share=share, **common),
        "few": few_label_probe(*splits, labels_per_class=labels, draws=draws, **common),
    } | {
        f"labels-{100 * part:g}": label_share_probe(
            *splits, share=part, draws=protocol.label_share_draws, **common
        )
        for part in protocol.label_shares
    }


def _clustering(arrays: dict[str, np.ndarray], protocol: Protocol) -> dict:
    """Test set: k-means on features for every method, the codes where the method has scores."""
    clusters = kmeans_clusters(
        arrays["test_features"],
        k=len(np.unique(arrays["train_labels"])),
        restarts=protocol.kmeans_restarts,
        seed=protocol.split_seed,
    )
    return {
        "kmeans": _scores(arrays, clusters, protocol),
        "codes": _codes(arrays, protocol) if "test_codes" in arrays else None,
    }


def _codes(arrays: dict[str, np.ndarray], protocol: Protocol) -> dict:
    return _scores(arrays, arrays["test_codes"], protocol)


def _scores(arrays: dict[str, np.ndarray], assignment: np.ndarray, protocol: Protocol) -> dict:
    return cluster_scores(
        arrays["test_labels"],
        assignment,
        permutations=protocol.chance_permutations,
        seed=protocol.split_seed,
    )
