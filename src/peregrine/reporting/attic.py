"""Results of older code, protocol or data are kept in the attic before a rerun replaces them.

Symptom: after a changed loss was rerun, nobody can say what it was before. Cause: Snakemake deletes
the outputs of a job before it starts. Protocol: the workflow calls this before its first job, with
the seeds that it is about to touch, and `pretrain` before it trains.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from peregrine.config.load import Project
from peregrine.errors import UserError
from peregrine.places import keep, own_folder
from peregrine.reporting.records import read_seed


def keep_older(
    project: Project,
    results: Path,
    seeds: Iterable[tuple[str, int]],
    renewed: Collection[str] = (),
) -> list[Path]:
    """Keep each (run, seed) that is finished, but not of today's code, protocol and data.

    Args:
        renewed: data sets that are about to be prepared again. Whether the images will be others is
            known only when it is too late, so results of them are kept as well.

    Returns:
        The places in the attic; none for what is there already, or damaged.

    Raises:
        UserError: the attic cannot be written.
    """
    older = [each for each in sorted(set(seeds)) if _older(project, results, *each, renewed)]
    return [place for place in (keep(results, *each) for each in older) if place]


def _older(project: Project, results: Path, run: str, seed: int, renewed: Collection[str]) -> bool:
    place = own_folder(results, run, seed)
    for cell in (each for each in project.cells if each.id == run):
        try:
            found, facts, _ = read_seed(place, cell, seed, project)
        except UserError:
            return False
        if facts and cell.run.dataset.name in renewed:
            return True
        if found.status == "stale" or "older code" in found.detail:
            return True
    return False
