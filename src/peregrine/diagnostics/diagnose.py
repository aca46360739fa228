"""Frozen features -> collapse diagnostics of one protocol: numbers with ceilings, and spectra."""

from pathlib import Path
from typing import Any

import numpy as np

from peregrine.config.models import Protocol
from peregrine.diagnostics.collapse import collapse_report, spectrum
from peregrine.diagnostics.geometry import geometry_report
from peregrine.diagnostics.matrices import (
    correlation_picture,
    plane,
    shown,
    similarity_picture,
)
from peregrine.diagnostics.mixture import mixture_report, sampled
from peregrine.diagnostics.released import released_report, released_spectrum
from peregrine.files import sha256, write_csv, write_tensors
from peregrine.frozen import UNMEASURED, read_features, write_result

LAYERS = ("features", "embeddings")
MATRICES = "matrices.safetensors"


def diagnose(folder: Path, reading: str, name: str, protocol: Protocol) -> None:
    """Write {reading}/collapse-{name}.json and spectrum.csv (layer, index, value) on test images.

    Singular values are those of the centred matrix - in the released reading of the scaled one -
    with 9 digits. The corrected reading also has matrices.safetensors: embeddings_correlation
    [m, m], embeddings_similarity [k, k] and similarity_labels [k], and of a fixed sample of images
    map_points [s, 2], map_share [2], map_labels [s] and, with codes, map_codes [s]; three decimals.
    A run that ended in NaN, and a method that does not have the reading, has no numbers.
    """
    arrays, facts = read_features(folder, reading)
    report: dict[str, Any] = {}
    spectra: dict[str, np.ndarray] = {}
    pictures: dict[str, np.ndarray] = {}
    if facts["status"] not in UNMEASURED:
        if reading == "released":
            report, spectra = _released(arrays, int(facts["codes"]), protocol)
        else:
            report, spectra = _corrected(arrays, int(facts["codes"]) or None, protocol)
            pictures = _pictures(arrays, protocol)
    rows = [
        (layer, index, f"{value:.9g}")
        for layer, values in spectra.items()
        for index, value in enumerate(values)
    ]
    path = folder / reading / "spectrum.csv"
    write_csv(path, ("layer", "index", "value"), rows)
    report["spectrum_sha256"] = sha256(path)
    if reading == "corrected":
        path = folder / reading / MATRICES
        write_tensors(path, pictures, run=facts["run"], seed=facts["seed"])
        report["matrices_sha256"] = sha256(path)
    write_result(folder, reading, "collapse", (name, protocol), facts, report)


def _corrected(
    arrays: dict[str, np.ndarray], c: int | None, protocol: Protocol
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    codes, usage = arrays.get("test_codes"), arrays.get("test_usage")
    layers = {layer: arrays[f"test_{layer}"] for layer in LAYERS}
    spectra = {layer: spectrum(x) for layer, x in layers.items()}
    report = collapse_report(*layers.values(), codes, usage, c, arrays["test_labels"], spectra)
    for layer, x in layers.items():
        more = geometry_report(
            x,
            spectra[layer],
            labels=arrays["test_labels"],
            codes=codes,
            views=arrays.get(f"views_{layer}"),
        ) | mixture_report(
            x,
            protocol.mixture_components,
            sample=protocol.mixture_sample,
            seed=protocol.split_seed,
        )
        report |= {f"{layer}/{key}": value for key, value in more.items()}
    return report, spectra


def _released(
    arrays: dict[str, np.ndarray], c: int, protocol: Protocol
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    report = released_report(
        arrays["test_embeddings"],
        arrays["test_codes"],
        c,
        protocol.mixture_components,
        sample=protocol.mixture_sample,
        seed=protocol.split_seed,
    )
    return report, {"embeddings": released_spectrum(arrays["test_embeddings"])}


def _pictures(arrays: dict[str, np.ndarray], protocol: Protocol) -> dict[str, np.ndarray]:
    x, labels = arrays["test_embeddings"], arrays["test_labels"]
    codes = arrays.get("test_codes")
    picks = shown(labels, codes)
    sample = np.arange(len(x))[sampled(len(x), protocol.map_sample, protocol.split_seed)]
    points, share = plane(x, sample)
    return {
        "embeddings_correlation": correlation_picture(x),
        "embeddings_similarity": similarity_picture(x, picks),
        "similarity_labels": labels[picks],
        "map_points": points,
        "map_share": share,
        "map_labels": labels[sample],
    } | ({} if codes is None else {"map_codes": codes[sample]})
