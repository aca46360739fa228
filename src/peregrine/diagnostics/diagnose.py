"""Frozen features -> collapse diagnostics of one protocol: numbers with ceilings, and spectra."""

from pathlib import Path

from peregrine.diagnostics.collapse import collapse_report, spectrum
from peregrine.files import read_tensors, write_csv, write_json


def diagnose(folder: Path, reading: str, name: str) -> None:
    """Write {reading}/collapse-{name}.json and spectrum.csv (layer, index, value) on test images.

    Singular values are those of the centred matrix, 9 digits. A run that ended in NaN has none.
    """
    arrays, facts = read_tensors(folder / reading / "features.safetensors")
    codes = int(facts["codes"]) or None
    facts = {key: facts[key] for key in ("run", "seed", "status", "data")} | {"protocol": name}
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
    write_json(folder / reading / f"collapse-{name}.json", {**facts, **report})
    write_csv(folder / reading / "spectrum.csv", ("layer", "index", "value"), rows)
