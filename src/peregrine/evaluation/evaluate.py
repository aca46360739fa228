"""Frozen features -> linear, kNN and clustering results of one protocol, as JSON files."""

from pathlib import Path

import numpy as np

from peregrine.config.models import Protocol
from peregrine.evaluation.clustering import cluster_scores, kmeans_clusters
from peregrine.evaluation.knn import knn_classify
from peregrine.evaluation.linear import few_label_probe, label_share_probe, linear_probe
from peregrine.frozen import UNMEASURED, read_features, write_result


def evaluate(folder: Path, reading: str, name: str, protocol: Protocol) -> None:
    """Write {reading}/{linear,knn,clustering}-{name}.json of a seed folder.

    In the released reading only the clustering, by the codes alone. A run that ended in NaN, and a
    method that does not have the reading, has no features; its files say so and hold no number.
    """
    arrays, facts = read_features(folder, reading)
    measured = facts["status"] not in UNMEASURED
    if reading == "released":
        result = {"codes": _codes(arrays, protocol)} if measured else {}
        write_result(folder, reading, "clustering", (name, protocol), facts, result)
        return
    results: dict[str, dict] = {"linear": {}, "knn": {}, "clustering": {}}
    if measured:
        results["linear"] = _linear(arrays, protocol)
        results["knn"] = knn_classify(
            *_splits(arrays),
            k=protocol.knn_k,
            temperature=protocol.knn_temperature,
            streamed_above=protocol.streamed_above,
        )
        results["clustering"] = _clustering(arrays, protocol)
    for kind, result in results.items():
        write_result(folder, reading, kind, (name, protocol), facts, result)


def _splits(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    keys = ("train_features", "train_labels", "test_features", "test_labels")
    return tuple(arrays[key] for key in keys)


def _linear(arrays: dict[str, np.ndarray], protocol: Protocol) -> dict:
    common = {
        "c_grid": protocol.linear_c_grid,
        "split_seed": protocol.split_seed,
        "max_iter": protocol.linear_max_iter,
        "streamed_above": protocol.streamed_above,
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
