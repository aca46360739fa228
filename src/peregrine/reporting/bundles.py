"""Finished seeds packed to travel, and adopted where they arrive.

A bundle is a tar archive compressed by xz: bundle.json, then exactly the files that it names, with
their sizes and SHA-256 sums. A bundle of metrics has all that tables, figures and claims are made
from, so a study completes from it without a training; one of weights has the networks too. The same
results give the same bytes.

Nothing in a bundle is trusted: names, kinds, sizes and sums are checked before anything is kept,
every run must hash to its id, and every evaluation be of the weights that its outcome names.
"""

import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import Field

from peregrine import files
from peregrine.config.identity import run_id
from peregrine.config.load import Cell, Project, read_yaml, validate
from peregrine.config.models import Model, Run
from peregrine.errors import UserError, refusal
from peregrine.frozen import FEATURES
from peregrine.places import (
    ADOPTED,
    adopted_folder,
    is_adopted,
    own_folder,
    replicate_folder,
    retire,
    seed_folder,
)
from peregrine.reporting.evaluations import MATRICES
from peregrine.reporting.records import FAILED, read_seed

INDEX = "bundle.json"
RECORDS = ("outcome.json", "manifest.json", "run.yaml", "history.csv", "timing.csv")
WEIGHTS = ("backbone.safetensors", "method.safetensors")
PICTURED = ("matrices", "map")
"""Kinds of figures that show a seed's matrices."""
SPECTRA = ("corrected/spectrum.csv", "released/spectrum.csv")

SEED = r"(?P<run>[a-z0-9][a-z0-9_.+-]{0,150})/seed-(?P<seed>\d{1,9})"
NAME = re.compile(rf"{SEED}/(?:(?:corrected|released)/)?[A-Za-z0-9][A-Za-z0-9_.+-]{{0,100}}")
LARGEST = {"metrics": 64 * 2**20, "weights": 16 * 2**30}
"""Bytes of one file, by kind."""
MOST = 200_000
"""Files in a bundle."""
PIECE = 2**20
REPLICATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
"""Names of replicates: they are folders."""


class Entry(Model):
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Bundle(Model):
    """bundle.json: what the archive holds."""

    format: Literal[1] = 1
    kind: Literal["metrics", "weights"]
    files: dict[str, Entry] = Field(min_length=1, max_length=MOST)


def bundle(
    project: Project,
    results: Path,
    path: Path,
    runs: Iterable[str] = (),
    weights: bool = False,
    own: bool = False,
    slim: bool = False,
) -> tuple[int, list[str]]:
    """Pack every finished seed of the scale, or of `runs` alone, into `path`.

    A seed that collapsed or ended in NaN is finished too. What is adopted is packed as well, except
    that weights which did not come along cannot be.

    Args:
        own: leave out what is adopted: a bundle of one part of a campaign.
        slim: matrices, most of a seed's bytes, where a figure of the scale shows them alone: of a
            run's first finished seed. Of a variation, which another's report shows by its metrics,
            neither matrices nor spectra.

    Returns:
        (number of seeds packed, a line for each that was not).

    Raises:
        UserError: a run that the scale does not have, a damaged result, or nothing to pack.
    """
    wanted = list(runs)
    cells = {cell.id: cell for cell in project.cells}
    for run in wanted:
        project.run(run)
    packed: dict[str, Path] = {}
    # A scale that is like another and no further look at it is a variation.
    variation = project.scale.like is not None and project.scale.looks == 1
    pictured = _pictured(project) if slim and not variation else set()
    count, others = 0, []
    for run, cell in cells.items():
        if wanted and run not in wanted:
            continue
        for seed in project.scale.seeds:
            place = own_folder(results, run, seed) if own else seed_folder(results, run, seed)
            state = read_seed(place, cell, seed, project)[0]
            if state.status not in ("finished", "older code", *FAILED):
                others.append(f"{run}, seed {seed}: {state.status}")
                continue
            if state.status in FAILED and "not evaluated" in state.detail:
                others.append(f"{run}, seed {seed}: {state.status}, not evaluated yet")
                continue
            found = dict(_of_seed(place, weights))
            if slim and not (run in pictured and seed == _shown(results, run, project)):
                found.pop(MATRICES, None)
            if slim and variation:
                found = {name: file for name, file in found.items() if name not in SPECTRA}
            if weights and not set(WEIGHTS) <= set(found):
                others.append(f"{run}, seed {seed}: its weights are not here")
                continue
            packed |= {f"{run}/seed-{seed}/{name}": file for name, file in found.items()}
            count += 1
    if not packed:
        why = f" ({others[0]})" if others else ""
        raise UserError(f"scale {project.scale.name} has nothing finished to pack{why}")
    _write(path, packed, "weights" if weights else "metrics")
    return count, others


def _pictured(project: Project) -> set[str]:
    """The runs of which a figure shows matrices."""
    runs: set[str] = set()
    for name, study in project.studies.items():
        shown = {row for each in study.figures if each.kind in PICTURED for row in each.rows}
        runs |= {cell.id for row, cell in project.of(name).items() if row in shown}
    return runs


def _shown(results: Path, run: str, project: Project) -> int | None:
    """The first seed that has finished, here or adopted."""
    for seed in project.scale.seeds:
        path = seed_folder(results, run, seed) / "outcome.json"
        if path.is_file() and files.read_json(path).get("status") == "finished":
            return seed
    return None


def _of_seed(place: Path, weights: bool) -> Iterator[tuple[str, Path]]:
    for name in (*RECORDS, *(WEIGHTS if weights else ())):
        if (place / name).is_file():
            yield name, place / name
    for reading in ("corrected", "released"):
        # Features are never packed: large, and made again from the weights.
        for file in sorted((place / reading).glob("*")):
            if file.name != FEATURES and not file.name.startswith(".") and file.is_file():
                yield f"{reading}/{file.name}", file


def _write(path: Path, packed: dict[str, Path], kind: Literal["metrics", "weights"]) -> None:
    # Files of a kind lie side by side: a tenth less to store.
    names = sorted(packed, key=lambda name: (name.rsplit("/", 1)[1], name))
    entries = {
        n: Entry(size=packed[n].stat().st_size, sha256=files.sha256(packed[n])) for n in names
    }
    index = Bundle(kind=kind, files=entries).model_dump(mode="json")
    text = json.dumps(index, indent=1, sort_keys=True).encode() + b"\n"
    with (
        files.replaced(path) as stream,
        lzma.open(stream, "w") as squeezed,
        tarfile.open(fileobj=squeezed, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        archive.addfile(_header(INDEX, len(text)), io.BytesIO(text))
        for name in names:
            with packed[name].open("rb") as content:
                archive.addfile(_header(name, entries[name].size), content)


def _header(name: str, size: int) -> tarfile.TarInfo:
    """The same whoever packs when: no times, owners or rights."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header


def adopt(project: Project, results: Path, path: Path, replicate: str | None = None) -> list[str]:
    """Verify a bundle and take its seeds over into results/adopted/.

    A seed that has results of its own here keeps them. One that was adopted before and differs goes
    to the attic. Nothing is kept of a bundle in which one of these fails.

    Args:
        replicate: a name under which its seeds stand beside those of the study, in
            results/replicates/NAME/, and complete nothing.

    Returns:
        A line for each seed on what became of it.

    Raises:
        UserError: no bundle, a changed or foreign one, a run that no row of the scale has, or a
            name that is none or has another bundle's results of a seed already.
    """
    if replicate is not None and not REPLICATE.fullmatch(replicate):
        raise UserError(
            f"--replicate {replicate!r}: a name has up to 64 letters, digits, dots and dashes,"
            " and begins with a letter or a digit"
        )
    hidden = results / "adopted" / f".tmp-{os.getpid()}"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        try:
            index = _unpack(path, hidden)
            seeds = sorted({_seed_of(name) for name in index.files})
            for run, seed in seeds:
                try:
                    _check(project, hidden, path, index, run, seed)
                except UserError as error:
                    what = str(error).partition("; ")[0]
                    if str(hidden) not in what:
                        raise
                    # A bundle is not mended by a step that is run again.
                    what = what.replace(f"{hidden}/", f"{path}: ")
                    raise UserError(f"{what}; copy or make the bundle again") from None
            if replicate is not None:
                return _place_replicate(results, hidden, replicate, seeds)
            return [_place(results, hidden, run, seed) for run, seed in seeds]
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{error.filename or results}: {refusal(error)}") from None


def _unpack(path: Path, folder: Path) -> Bundle:
    """The files of a bundle in `folder`, each as long as bundle.json says and with its sum."""
    try:
        with path.open("rb") as stream, lzma.open(stream) as plain:
            with tarfile.open(fileobj=plain, mode="r|") as archive:
                members = iter(archive)
                index = _index(path, archive, next(members, None))
                missing = set(index.files)
                for member in members:
                    if member.name not in missing or not member.isreg():
                        raise UserError(f"{path}: {member.name!r} does not belong into it")
                    missing.remove(member.name)
                    _copy(path, archive.extractfile(member), member, index, folder)
            if len(plain.read(PIECE)) == PIECE:  # to the end, which has a sum of its own
                raise UserError(f"{path}: something stands behind its last file")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (lzma.LZMAError, tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path} is no whole bundle ({error}); copy or make it again") from None
    if missing:
        raise UserError(f"{path} lacks {min(missing)}; copy or make it again")
    return index


def _index(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo | None) -> Bundle:
    if member is None or member.name != INDEX or not member.isreg() or member.size > 2**26:
        raise UserError(f"{path} is no bundle: it does not begin with {INDEX}")
    try:
        data = json.loads(archive.extractfile(member).read())
    except (ValueError, RecursionError):
        raise UserError(f"{path}: its {INDEX} cannot be read; copy or make it again") from None
    index = validate(Bundle, data, f"{path}: {INDEX}")
    for name, entry in index.files.items():
        if not NAME.fullmatch(name) or entry.size > LARGEST[index.kind]:
            raise UserError(f"{path}: {name!r} is no file of a bundle of {index.kind}")
    return index


def _copy(
    path: Path, content: BinaryIO, member: tarfile.TarInfo, index: Bundle, folder: Path
) -> None:
    entry, digest = index.files[member.name], hashlib.sha256()
    if member.size != entry.size:
        raise UserError(f"{path}: {member.name} has another size than {INDEX} says")
    target = folder / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        while piece := content.read(PIECE):
            digest.update(piece)
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != entry.sha256:
        raise UserError(f"{path}: {member.name} was changed after it was packed")


def _seed_of(name: str) -> tuple[str, int]:
    found = NAME.fullmatch(name)
    return found["run"], int(found["seed"])


def _check(project: Project, hidden: Path, path: Path, index: Bundle, run: str, seed: int) -> None:
    """That a seed is what it says, and write adopted.json beside it."""
    folder = hidden / run / f"seed-{seed}"
    if seed not in project.scale.seeds:
        raise UserError(f"{path}: scale {project.scale.name} has no seed {seed}")
    known = project.run(run)
    where = f"{path}: {run}/seed-{seed}/run.yaml"
    entry = index.files.get(f"{run}/seed-{seed}/run.yaml")
    if entry is None or entry.size > 2**18:
        raise UserError(f"{where} is missing, or too large for a run")
    if run_id(validate(Run, read_yaml(folder / "run.yaml"), where)) != run:
        raise UserError(f"{path}: the run.yaml of {run}, seed {seed} is another run's")
    prefix = f"{run}/seed-{seed}/"
    inside = {
        n.removeprefix(prefix): e.sha256 for n, e in index.files.items() if n.startswith(prefix)
    }
    files.write_json(
        folder / ADOPTED,
        {"bundle": files.sha256(path), "kind": index.kind, "files": inside},
    )
    cell = Cell("bundle", run, run, known, run)
    state = read_seed(folder, cell, seed, project)[0]
    if state.status in ("missing", "incomplete", "stale"):
        raise UserError(f"{path}: {run}, seed {seed} is {state.status}: {state.detail}")


def _place(results: Path, hidden: Path, run: str, seed: int) -> str:
    name = f"{run}, seed {seed}"
    if (own_folder(results, run, seed) / "outcome.json").is_file():
        return f"{name}: has results of its own here, which stay"
    new, target = hidden / run / f"seed-{seed}", adopted_folder(results, run, seed)
    said = f"{name}: adopted"
    if is_adopted(target):
        if _same(new, target):
            return f"{name}: is here already"
        said = f"{name}: adopted; what was here before is in {retire(results, run, seed)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(new, target)
    return said


def _place_replicate(
    results: Path, hidden: Path, replicate: str, seeds: Iterable[tuple[str, int]]
) -> list[str]:
    """Nothing is replaced: who read a number of a replicate must find it under its name."""
    lines, moves = [], []
    for run, seed in seeds:
        new, target = hidden / run / f"seed-{seed}", replicate_folder(results, replicate, run, seed)
        here = is_adopted(target)
        if here and not _same(new, target):
            raise UserError(
                f"{target} has other results already; choose another name than '{replicate}',"
                " or delete that folder"
            )
        if not here:
            moves.append((new, target))
        said = "is here already" if here else "adopted"
        lines.append(f"{run}, seed {seed}: {said} as replicate {replicate}")
    for new, target in moves:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(new, target)
    return lines


def _same(new: Path, target: Path) -> bool:
    """Whether two adopted folders came with the same files."""
    return files.read_json(new / ADOPTED)["files"] == files.read_json(target / ADOPTED)["files"]
