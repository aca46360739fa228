"""Where the results of a seed are: made here, or adopted from a bundle. No torch.

    results/runs/RUN/seed-N/     what the steps on this machine have made
    results/adopted/RUN/seed-N/  what a bundle has brought; no step writes there
    results/attic/RUN/seed-N/    what was replaced, a numbered folder each, for the record
    results/replicates/NAME/RUN/seed-N/   the same seed trained elsewhere, for the noise floor

Results made here win. A replicate stands for no seed: the noise floor alone reads it. Snakemake
knows no rule for what is adopted, so it neither makes it again nor asks for what it was made of.
"""

import os
import shutil
from pathlib import Path

from peregrine.errors import UserError, refusal

ADOPTED = "adopted.json"
"""In an adopted folder: the bundle it came from, and the sums of its files."""

NOT_KEPT = ("resume", "features.safetensors")
"""Not for the attic: checkpoints of a finished run, and what is large and made again."""


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


def replicate_folder(results: Path, name: str, run: str, seed: int) -> Path:
    """Where a bundle has brought the seed under the name of a replicate."""
    return results / "replicates" / name / run / f"seed-{seed}"


def replicates(results: Path, run: str, seed: int) -> dict[str, Path]:
    """Name -> folder of every replicate of a seed, sorted by name."""
    found = sorted((results / "replicates").glob(f"*/{run}/seed-{seed}/{ADOPTED}"))
    return {path.parents[2].name: path.parent for path in found}


def is_adopted(folder: Path) -> bool:
    return (folder / ADOPTED).is_file()


def retire(results: Path, run: str, seed: int) -> Path | None:
    """Move the adopted results of a seed to the attic; the place there, None if there are none."""
    folder = adopted_folder(results, run, seed)
    if not is_adopted(folder):
        return None
    place = _next_in_attic(results, run, seed)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, place)
    except OSError as error:
        raise UserError(f"{folder} cannot be moved to {place}: {refusal(error)}") from None
    return place


def keep(results: Path, run: str, seed: int) -> Path | None:
    """Put the results made here into the attic too; the place there, None if they are in it.

    Files are linked, not copied: steps replace files and never write into them, so what is kept
    takes space only once it has been replaced.
    """
    folder, place = own_folder(results, run, seed), _next_in_attic(results, run, seed)
    found = [
        each.relative_to(folder)
        for each in sorted(folder.rglob("*"))
        if each.is_file() and not each.name.startswith(".tmp-")
    ]
    found = [name for name in found if not set(NOT_KEPT) & set(name.parts)]
    last = place.with_name(str(int(place.name) - 1))
    if all((last / n).exists() and (last / n).samefile(folder / n) for n in found):
        return None  # a rerun that was killed before it replaced anything
    hidden = place.with_name(f".tmp-{os.getpid()}")
    try:
        for name in found:
            (hidden / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(folder / name, hidden / name)
            except OSError:  # a file system without links
                shutil.copy2(folder / name, hidden / name)
        os.rename(hidden, place)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise UserError(f"{folder} cannot be kept in {place}: {refusal(error)}") from None
    return place


def _next_in_attic(results: Path, run: str, seed: int) -> Path:
    attic = results / "attic" / run / f"seed-{seed}"
    number = 1 + max((int(p.name) for p in attic.glob("*") if p.name.isdigit()), default=0)
    return attic / str(number)
