"""Frozen features -> collapse diagnostics of one protocol: numbers with ceilings, and spectra."""

from pathlib import Path

from peregrine.config.models import Protocol
from peregrine.diagnostics.collapse import collapse_report, spectrum
from peregrine.files import sha256, write_csv
from peregrine.frozen import read_features, write_result


def diagnose(folder: Path, reading: str, name: str, protocol: Protocol) -> None:
    """Write {reading}/collapse-{name}.json and spectrum.csv (layer, index, value) on test images.

    Singular values are those of the centred matrix, 9 digits. A run that ended in NaN has none.
    """
    arrays, facts = read_features(folder, reading)
    codes = int(facts["codes"]) or None
    report, rows = {}, []
    if facts["status"] != "nan":
        layers = {layer: arrays[f"test_{layer}"] for layer in ("features", "embeddings")}
        report = collapse_report(
            layers["features"],
            layers["embeddings"],
            arrays.get("test_codes"),
            arrays.get("test_usage"),
            codes if "test_codes" in arrays else None,
            arrays["test_labels"],
        )
        for layer, x in layers.items():
            rows += [(layer, i, f"{value:.9g}") for i, value in enumerate(spectrum(x))]
    path = folder / reading / "spectrum.csv"
    write_csv(path, ("layer", "index", "value"), rows)
    report["spectrum_sha256"] = sha256(path)
    write_result(folder, reading, "collapse", (name, protocol), facts, report)
