"""From a folder or the net to arrays: finding raw files, fetching missing ones, checking each.

The one place that decides whether a file counts as verified.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peregrine.config.models import SourceSpec
from peregrine.data.download import download
from peregrine.data.folders import listed
from peregrine.data.raw import RawFile, Split, digest, locate, read
from peregrine.data.sources import Source
from peregrine.errors import UserError
from peregrine.files import read_json


@dataclass(frozen=True)
class Acquired:
    """The splits of a data set, the digest of every raw file, and which are not the official."""

    splits: dict[str, Split]
    digests: dict[str, str]
    unverified: tuple[str, ...]


def acquire(name: str, origin: Source, spec: SourceSpec, store: Path) -> Acquired:
    """Find, fetch where missing, check and parse the raw files of a data set.

    Args:
        name: of the data set.
        origin: its entry of the registry.
        spec: where the files are, if not in `store`, and what is allowed.
        store: the folder of raw files; missing ones are fetched into a folder of their own there.

    Raises:
        UserError: a file is missing and cannot be fetched, is damaged, or is not the official one
            without `accept_unverified`.
    """
    place = _place(name, spec, store)
    missing = _missing(origin, locate(origin.raw, name, place))
    if missing:
        problem = _lacks(name, place, missing, spec)
        if problem:
            raise UserError(problem)
        for item in origin.raw.downloads:
            names = {form for file in missing for form in (file.name, f"{file.name}.gz")}
            if item.name in names or item.name == origin.raw.archive:
                remedy = f"put {item.name} into {store / name}, or name its folder by {_key(name)}"
                download(item, store / name, remedy)
    contents: dict[str, bytes] = {}
    for path, files in locate(origin.raw, name, place).items():
        contents |= read(origin.raw, path, files)
    digests, unverified = {}, []
    for file in origin.raw.files:
        digests[file.name] = digest(contents[file.name], file.digest)
        if digests[file.name] != file.digest:
            unverified.append(file.name)
    if unverified and not spec.accept_unverified:
        raise UserError(_not_official(name, unverified))
    ordered = {file.name: contents.pop(file.name) for file in origin.raw.files}
    return Acquired(origin.load(ordered), digests, tuple(unverified))


def images_of(
    name: str, origin: Source, spec: SourceSpec, store: Path
) -> tuple[dict[str, list[tuple[Path, int]]], tuple[str, ...]]:
    """((file, label) of all images by split, how splits differ from the official ones).

    Raises:
        UserError: folders are missing or wrong, or images without `accept_unverified`.
    """
    files = listed(name, origin.classes, _place(name, spec, store))
    counts = {split: len(found) for split, found in files.items()}
    unverified = tuple(
        f"{count:,} {split} images instead of {origin.folders.counts[split]:,}"
        for split, count in counts.items()
        if count != origin.folders.counts[split]
    )
    if unverified and not spec.accept_unverified:
        raise UserError(_incomplete(name, unverified))
    return files, unverified


def check(name: str, origin: Source, spec: SourceSpec, store: Path, data: Path) -> Iterator[str]:
    """What there is of a data set, line by line; nothing is written or fetched.

    Raises:
        UserError: after the last line, what is wrong and keeps the data from being used.
    """
    from peregrine.data.prepare import SPLITS, load

    path = data / f"{name}.safetensors"
    if path.exists() or path.with_suffix(".json").exists():
        prepared = load(path)
        record = read_json(path.with_suffix(".json"))
        counts = " and ".join(f"{record['counts'][split]:,} {split}" for split in SPLITS)
        shape = " x ".join(map(str, record["shape"]))
        yield f"{path}: {counts} images of {shape}, {len(record['classes'])} classes; sums fit"
        yield f"raw files: {record['verified']}"
        if prepared.unverified and not spec.accept_unverified:
            wrong = _incomplete if origin.folders else _not_official
            raise UserError(wrong(name, prepared.unverified))
        return
    if origin.folders:
        place = _place(name, spec, store)
        yield f"{name} is not prepared; its image folders are looked for in {place}"
        files = listed(name, origin.classes, place)
        for split, found in files.items():
            yield f"  {split}: {len(found):,} images of {len(origin.classes)} classes"
        images_of(name, origin, spec, store)
        return
    if not origin.raw.files:
        yield f"{name} is not prepared; its images are {origin.verified}"
        return
    place = _place(name, spec, store)
    yield f"{name} is not prepared; {len(origin.raw.files)} raw files are looked for in {place}"
    found = locate(origin.raw, name, place)
    problems = []
    for path, files in found.items():
        try:
            contents = read(origin.raw, path, files)
        except UserError as error:
            problems.append(str(error))
            yield f"  wrong: {error}"
            continue
        wrong = [f for f in files if digest(contents[f.name], f.digest) != f.digest]
        for file in files:
            state = "not the official file" if file in wrong else "verified"
            yield f"  {state}: {file.name} ({path})"
        if wrong and not spec.accept_unverified:
            problems.append(_not_official(name, [file.name for file in wrong]))
    missing = _missing(origin, found)
    for file in missing:
        yield f"  missing: {file.name}"
    if missing:
        problem = _lacks(name, place, missing, spec)
        problems += [problem] if problem else []
        if not problem:
            yield f"  `prepare {name}` would fetch what is missing into {store / name}"
    if problems:
        raise UserError(problems[0])


def _place(name: str, spec: SourceSpec, store: Path) -> Path:
    if spec.folder is None:
        return store
    try:
        place = Path(spec.folder).expanduser()
    except RuntimeError:
        raise UserError(f"{_key(name)}: {spec.folder}: nobody of that name is known here") from None
    if not place.is_dir():
        raise UserError(f"{_key(name)}: {place} is no folder; name one that has the raw files")
    return place


def _missing(origin: Source, found: dict[Path, list[RawFile]]) -> list[RawFile]:
    there = {file for files in found.values() for file in files}
    return [file for file in origin.raw.files if file not in there]


def _lacks(name: str, place: Path, missing: list[RawFile], spec: SourceSpec) -> str:
    """Why missing files are not fetched; empty if they may be."""
    names = ", ".join(file.name for file in missing)
    if spec.folder is not None:  # what a user names is never mixed with what the net has
        return f"{place} lacks {names}; put it there, or remove {_key(name)} to fetch it"
    if not spec.download:
        return (
            f"{place} lacks {names}; put it there, or remove {_key(name, 'download')} to fetch it"
        )
    return ""


def _not_official(name: str, files: tuple[str, ...] | list[str]) -> str:
    return (
        f"data set {name}: {', '.join(files)} is not the official file (its digest differs);"
        f" replace it, or set {_key(name, 'accept_unverified')} to true, which reports will say"
    )


def _incomplete(name: str, unverified: tuple[str, ...]) -> str:
    return (
        f"data set {name} is not the official one: {', '.join(unverified)}; complete it, or set"
        f" {_key(name, 'accept_unverified')} to true, which reports will say"
    )


def _key(name: str, field: str = "folder") -> str:
    return f"sources.{name}.{field} in config.yaml"
