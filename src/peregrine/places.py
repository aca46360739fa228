"""Where the results of a seed are: made here, or adopted from a bundle. No torch.

    results/runs/RUN/seed-N/     what the steps on this machine have made
    results/adopted/RUN/seed-N/  what a bundle has brought; no step writes there
    results/attic/RUN/seed-N/    what has been replaced, a folder each, for the record

Results made here win. Snakemake knows no rule for what is adopted, so it neither makes it again
nor asks for what it was made of.
"""

import os
from pathlib import Path

from peregrine.errors import UserError, refusal

ADOPTED = "adopted.json"
"""In an adopted folder: the bundle it came from, and the sums of its files."""


def own_folder(results: Path, run: str, seed: int) -> Path:
    """Where the steps of this machine write."""
    return results / "runs" / run / f"seed-{seed}"


def adopted_folder(results: Path, run: str, seed: int) -> Path:
    return results / "adopted" / run / f"seed-{seed}"


def seed_folder(results: Path, run: str, seed: int) -> Path:
    """Where the results of a seed are read: its own folder, unless only an adopted one is there."""
    own, adopted = own_folder(results, run, seed), adopted_folder(results, run, seed)
    if not (own / "outcome.json").is_file() and is_adopted(adopted):
        return adopted
    return own


def is_adopted(folder: Path) -> bool:
    return (folder / ADOPTED).is_file()


def retire(results: Path, run: str, seed: int) -> Path | None:
    """Move the adopted results of a seed to the attic; the place there, None if there are none."""
    folder = adopted_folder(results, run, seed)
    if not is_adopted(folder):
        return None
    attic = results / "attic" / run / f"seed-{seed}"
    number = 1 + max((int(p.name) for p in attic.glob("*") if p.name.isdigit()), default=0)
    try:
        attic.mkdir(parents=True, exist_ok=True)
        os.rename(folder, attic / str(number))
    except OSError as error:
        raise UserError(f"{folder} cannot be moved to {attic}: {refusal(error)}") from None
    return attic / str(number)
