"""The step `theory`: everything is minimised and measured, and written as long-form CSV."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from peregrine import files
from peregrine.config.fingerprint import fingerprint
from peregrine.config.theory import Sizes
from peregrine.theory.assignments import measure_assignments
from peregrine.theory.codes import measure_codes
from peregrine.theory.free_embeddings import Cosine, measure_embeddings

DIGITS = 6
"""Significant digits written. Fewer agree between machines: another order of summation can lead
the minimiser from the same random start into another local minimum."""

HEADERS = {
    "codes": ("f", "c", "metric", "value"),
    "assignments": ("prior", "n", "c", "beta", "start", "stage", "metric", "value"),
    "embeddings": ("stage", "norm", "prior", "n", "c", "f", "start", "metric", "value"),
    "cosines": ("norm", "prior", "start", "row", "column", "value"),
}


def theory(sizes: Sizes, folder: Path) -> Path:
    """Write codes, assignments, embeddings and cosines .csv and theory.json to `folder`.

    theory.json holds the sizes, the code fingerprint and the sums of the others.
    """
    cosines: list[Cosine] = []
    assignments = list(measure_assignments(sizes))
    lowest = {
        c: value
        for prior, _, c, beta, start, _, metric, value in assignments
        if (prior, beta, start, metric) == ("forward", 1.0, "lowest", "loss")
    }
    found = {
        "codes": measure_codes(sizes),
        "assignments": assignments,
        "embeddings": measure_embeddings(sizes, lowest, cosines),
        "cosines": cosines,  # filled by the line above, which is written first
    }
    sums = {}
    for name, lines in found.items():
        path = folder / f"{name}.csv"
        files.write_csv(path, HEADERS[name], _rounded(lines, 3 if name == "cosines" else DIGITS))
        sums[path.name] = files.sha256(path)
    files.write_json(
        folder / "theory.json",
        {
            "sizes": sizes.model_dump(mode="json"),
            "code": fingerprint("theory"),
            "digits": DIGITS,
            "files": sums,
        },
    )
    return folder


def _rounded(lines: Iterable[tuple], digits: int) -> Iterator[tuple]:
    for *keys, value in lines:
        yield *keys, float(f"{value:.{digits}g}")
