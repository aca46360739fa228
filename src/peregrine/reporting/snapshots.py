"""Published snapshots: what the bundles of a scale say, kept in the repository beside them.

    reports/published/SCALE/bundles/NAME.tar.xz  metrics of finished seeds: all else is made of them
    reports/published/SCALE/bundles/like/OTHER/NAME.tar.xz       of a scale that is like this one
    reports/published/SCALE/bundles/replicates/NAME/NAME.tar.xz  of seeds trained again elsewhere
    reports/published/SCALE/index.html, STUDY.pdf, STUDY.html   as `report` writes them
    reports/published/SCALE/STUDY/               claims, seeds, tables, figures, by `collect`
    reports/published/SCALE/manifest.json        sums of all files, digests, commands

The same bundles, configuration and code give the same bytes, whoever makes them, when and where:
results and reports share one folder, so that every path in a page is a relative one that holds
in the repository too, and of config.yaml only the list of studies counts. What follows from the
bundles and is long (notebooks, metrics.csv, the figures' SVG and numbers) is left out; its sums are
in the manifest, and `whole` keeps it elsewhere.
"""

import base64
import fnmatch
import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.detection import DetectionFile
from peregrine.config.load import Cell, Project, load, read_yaml, validate
from peregrine.config.resources import COMMANDS, RUN_STEPS
from peregrine.errors import UserError
from peregrine.places import ADOPTED, adopted_folder, is_adopted
from peregrine.reporting.bundles import adopt
from peregrine.reporting.collect import collect
from peregrine.reporting.records import read_seed
from peregrine.reporting.report import KINDS, index, report

BUNDLES, MANIFEST, END = "bundles", "manifest.json", ".tar.xz"

LARGEST = 8 * 10**6
"""Bytes of a whole snapshot with its bundles: a clone has all of it, for ever."""

KEPT = (
    "{study}.pdf",
    "{study}.html",
    "{study}/claims.json",
    "{study}/runs.csv",
    "{study}/sensitivity.json",
    "{study}/noise_floor.csv",
    "{study}/tables/*.csv",
    "{study}/figures/*.png",
)
"""What a snapshot has of a study; figures only if its report shows them."""

PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")


def scales(published: Path) -> list[str]:
    """The scales that have anything in reports/published/."""
    folders = [path for path in sorted(published.glob("*")) if path.is_dir()]
    return [folder.name for folder in folders if _files(folder, all_of_it=True)]


class Part(NamedTuple):
    """A bundle, the scale whose runs it has, and the name of the replicate that it is."""

    path: Path
    scale: str
    replicate: str | None


def parts_of(folder: Path) -> list[Part]:
    """The bundles of a snapshot, by name; those of other scales and replicates last.

    Raises:
        UserError: there is none of the scale, something else lies beside them, or they alone are
            too large.
    """
    place = folder / BUNDLES
    parts = []
    for path in sorted(place.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        match path.relative_to(place).parts:
            case (_,):
                part = Part(path, folder.name, None)
            case ("like", scale, _):
                part = Part(path, scale, None)
            case ("replicates", name, _):
                part = Part(path, folder.name, name)
            case _:
                raise UserError(f"{path} is out of place: see peregrine/reporting/snapshots.py")
        if not path.name.endswith(END) or not path.is_file():
            raise UserError(f"{path} is no bundle (NAME{END}); move it or delete it")
        parts.append(part)
    parts.sort(key=lambda part: (part.replicate is not None, part.scale != folder.name))
    if not parts or parts[0].scale != folder.name or parts[0].replicate is not None:
        raise UserError(
            f"{place} has no bundle; put one there:"
            f" python -m peregrine bundle --scale {folder.name} {place}/NAME{END}"
        )
    _check_size(folder, [part.path for part in parts])
    return parts


def make(config: Path, folder: Path, scratch: Path, whole: Path | None = None) -> Path:
    """Make the snapshot of the scale `folder.name` from the bundles in `folder`.

    Args:
        config: the configuration folder.
        folder: reports/published/SCALE; only its bundles are read, and nothing is written.
        scratch: an empty folder to work in.
        whole: also gets everything that `collect` and `report` have written.

    Returns:
        The folder in `scratch` that has all files of the snapshot but the bundles.

    Raises:
        UserError: a bundle that is damaged, has weights, has runs that the scale has not, or other
            results of a seed than another bundle; or a snapshot that is too large.
    """
    scale = folder.name
    project = load(config, scale=scale, detection_data={})
    parts = parts_of(folder)
    seeds = _adopt_all(config, project, scratch, parts)
    project = _finished(_with_detection(config, project, scratch), scratch)
    for study in project.studies:
        collect(project, study, scratch, config)
        report(project, study, scratch, scratch, config)
    made = scratch / scale
    if whole is not None:
        index(project, scratch, scratch)
        shutil.copytree(made, whole, dirs_exist_ok=True)
    index(project, scratch, scratch, kinds=("pdf", "html"))
    left_out = _leave_out(made, project)
    for study in project.studies:
        _refer_to_pictures(made, study)
    counts = {path.relative_to(folder / BUNDLES).as_posix(): n for path, n in seeds.items()}
    sums = {path.relative_to(folder / BUNDLES).as_posix(): files.sha256(path) for path in seeds}
    others = sorted({part.scale for part in parts} - {scale})
    _write_manifest(made, project, scratch, config, others, counts, sums, left_out)
    _check_size(folder, [*_files(made).values(), *seeds])
    return made


def _adopt_all(
    config: Path, project: Project, scratch: Path, parts: Sequence[Part]
) -> dict[Path, int]:
    """Take over all bundles into `scratch`; the number of seeds in each of them."""
    seeds: dict[Path, int] = {}
    sums = {files.sha256(part.path): part.path for part in parts}
    known = {project.scale.name: project}
    for path, scale, replicate in parts:
        if scale not in known:
            known[scale] = load(config, scale=scale, detection_data={})
            if known[scale].scale.like != project.scale.name:
                raise UserError(f"{path}: scale {scale} is not like {project.scale.name}; move it")
        try:
            seeds[path] = len(adopt(known[scale], scratch, path, replicate))
        except UserError as error:
            named = str(path) in str(error)
            raise UserError(str(error) if named else f"{path}: {error}") from None
        for record in sorted((scratch / "attic").rglob(ADOPTED)):
            other = sums[files.read_json(record)["bundle"]]
            run, seed = record.parts[-4:-2]
            raise UserError(
                f"{path} and {other} have different results of {run}, {seed}; delete one of the"
                " bundles, or pack it again without that run"
            )
    for record in sorted(scratch.rglob(ADOPTED)):
        found = files.read_json(record)
        if found["kind"] != "metrics":
            path = sums[found["bundle"]]
            raise UserError(
                f"{path} has weights; pack metrics alone:"
                f" python -m peregrine bundle --scale {project.scale.name} {path}"
            )
    return seeds


def _with_detection(config: Path, project: Project, results: Path) -> Project:
    """The project, which has transfer to detection where a bundle has brought some.

    Where this machine has its images (config.yaml) does not count.
    """
    if not any(results.glob("adopted/*/*/*/detection-*.json")):
        return project
    path = config / "detection.yaml"
    known = validate(DetectionFile, read_yaml(path), str(path)).data
    return load(config, scale=project.scale.name, detection_data=dict.fromkeys(known, "."))


def _finished(project: Project, results: Path) -> Project:
    """The project with the studies alone of which a seed has been adopted."""
    studies = {cell.study for cell, _, _ in _adopted(project, results)}
    return replace(
        project,
        studies={name: study for name, study in project.studies.items() if name in studies},
        cells=tuple(cell for cell in project.cells if cell.study in studies),
    )


def _adopted(project: Project, results: Path) -> Iterator[tuple[Cell, int, Path]]:
    """(cell, seed, folder) of every seed that a bundle has brought."""
    for cell in project.cells:
        for seed in project.scale.seeds:
            place = adopted_folder(results, cell.id, seed)
            if is_adopted(place):
                yield cell, seed, place


def _leave_out(made: Path, project: Project) -> dict[str, str]:
    """Delete what a snapshot does not keep of its studies; the sums of it."""
    gone: dict[str, str] = {}
    for study in project.studies:
        declared = files.read_json(made / f"{study}.json")["declared"]["figures"]
        shown = {figure["id"] for figure in declared}
        kept = [pattern.format(study=study) for pattern in KEPT]
        for name, path in _files(made).items():
            if name.partition("/")[0] not in (study, *(f"{study}.{end}" for end in KINDS)):
                continue
            figure = f"{study}/figures/" in name
            stays = any(fnmatch.fnmatchcase(name, pattern) for pattern in kept)
            if not stays or (figure and path.stem not in shown):
                gone[name] = files.sha256(path)
                path.unlink()
    return gone


def _refer_to_pictures(made: Path, study: str) -> None:
    """Let the page show the figures beside it, rather than have each a second time."""
    figures = sorted((made / study / "figures").glob("*.png"))
    names = {files.sha256(path): path.relative_to(made).as_posix() for path in figures}

    def name(found: re.Match) -> str:
        data = base64.b64decode(found[1])
        return names.get(hashlib.sha256(data).hexdigest(), found[0])

    page = made / f"{study}.html"
    files.write_text(page, PICTURE.sub(name, page.read_text(encoding="utf-8")))


def _write_manifest(
    made: Path,
    project: Project,
    results: Path,
    config: Path,
    others: Sequence[str],
    seeds: dict[str, int],
    sums: dict[str, str],
    left_out: dict[str, str],
) -> None:
    scale = project.scale.name
    runs: dict[str, Any] = {}
    for each in (project, *(load(config, scale=name, detection_data={}) for name in others)):
        runs |= {run: of for run, of in _runs(each, results).items() if run not in runs}
    used = [
        *(f"scales/{name}.yaml" for name in (scale, *sorted({*others, *project.variations}))),
        "presets.yaml",
        "protocols.yaml",
        *(["detection.yaml"] if project.detection else []),
        *(f"studies/{study}.yaml" for study in project.studies),
        *(f"published/{study}.csv" for study in project.studies),
    ]
    files.write_json(
        made / MANIFEST,
        {
            "scale": scale,
            "studies": list(project.studies),
            "commands": {
                "results": [
                    f"snakemake --config scale={name} --cores all" for name in (scale, *others)
                ],
                "bundle": f"python -m peregrine bundle --scale {scale}"
                f" reports/published/{scale}/{BUNDLES}/NAME{END}",
                "snapshot": f"make published SCALE={scale}",
                "check": f"make published SCALE={scale} CHECK=1",
                "whole": f"make published SCALE={scale} CHECK=1 WHOLE=FOLDER",
            },
            "runs": runs,
            "code": {
                "results": _codes(project, results),
                "snapshot": {step: fingerprint.fingerprint(step) for step in ("collect", "report")},
            },
            "config": {
                f"config/{name}": files.sha256(config / name)
                for name in used
                if (config / name).is_file()
            },
            "bundles": {
                name: {"sha256": sums[name], "seeds": count} for name, count in seeds.items()
            },
            "files": {name: files.sha256(path) for name, path in _files(made).items()},
            "left_out": left_out,
        },
    )


def _runs(project: Project, results: Path) -> dict[str, Any]:
    """Run -> its rows, its seeds, and the commands that make them one by one."""
    cells: dict[str, dict[str, Cell]] = {}
    seeds: dict[str, list[int]] = {}
    for cell, seed, _ in _adopted(project, results):
        cells.setdefault(cell.id, {})[f"{cell.study}/{cell.row}"] = cell
        if seed not in seeds.setdefault(cell.id, []):
            seeds[cell.id].append(seed)
    out = {}
    for run, rows in cells.items():
        extra = sorted({COMMANDS.get(e, e) for cell in rows.values() for e in cell.evaluations})
        options = f"--scale {project.scale.name} --run {run}"
        options += "".join(f" --seed {seed}" for seed in seeds[run])
        data = next(iter(rows.values())).run.dataset.name
        out[run] = {
            "rows": list(rows),
            "seeds": seeds[run],
            "commands": [
                f"python -m peregrine prepare {data}",
                *(f"python -m peregrine {step} {options}" for step in (*RUN_STEPS, *extra)),
            ],
        }
    return out


def _codes(project: Project, results: Path) -> dict[str, dict[str, list[str]]]:
    """Method -> step -> fingerprints of the code that its results were made by."""
    found: dict[str, dict[str, set[str]]] = {}
    for cell, seed, place in _adopted(project, results):
        _, facts, _ = read_seed(place, cell, seed, project)
        steps = found.setdefault(cell.run.method["name"], {})
        for name, code in (facts or {}).items():
            step, of, _ = name.partition(" code of ")
            if of or name == "code":
                steps.setdefault(step if of else "pretrain", set()).add(code)
    return {
        method: {step: sorted(codes) for step, codes in steps.items()}
        for method, steps in found.items()
    }


def differences(kept: Path, made: Path) -> list[str]:
    """A line for every file that is in one snapshot alone, or has other bytes; bundles aside."""
    old, new = _files(kept), _files(made)
    return [
        f"{'missing' if name not in old else 'foreign' if name not in new else 'differs'}: {name}"
        for name in sorted(old | new)
        if name not in old or name not in new or not _same(old[name], new[name])
    ]


def publish(kept: Path, made: Path) -> list[str]:
    """Make `kept` the snapshot `made`, bundles aside; a line for every file that was changed.

    The manifest is the last file that is written.
    """
    old, new = _files(kept), _files(made)
    lines = []
    for name in [name for name in old if name not in new]:
        old[name].unlink()
        lines.append(f"removed: {name}")
    for folder in sorted((p for p in kept.rglob("*") if p.is_dir()), reverse=True):
        if folder.name != BUNDLES and not any(folder.iterdir()):
            folder.rmdir()
    for name in sorted(new, key=lambda name: (name == MANIFEST, name)):
        if name not in old or not _same(old[name], new[name]):
            files.write_bytes(kept / name, new[name].read_bytes())
            lines.append(f"written: {name}")
    return lines


def _same(one: Path, other: Path) -> bool:
    return not one.is_symlink() and one.read_bytes() == other.read_bytes()


def _files(folder: Path, all_of_it: bool = False) -> dict[str, Path]:
    """Every file of a snapshot by its name in it, links too; `all_of_it`: and its bundles."""
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or not path.is_dir()) and path != folder / BUNDLES
    }
    return {n: p for n, p in found.items() if all_of_it or not n.startswith(f"{BUNDLES}/")}


def _check_size(folder: Path, paths: Sequence[Path]) -> None:
    """Raises UserError, with the largest files, where they are more than a snapshot may have."""
    sizes = {path: path.stat().st_size for path in paths}
    total = sum(sizes.values())
    if total <= LARGEST:
        return
    largest = sorted(paths, key=lambda path: (-sizes[path], path.name))[:5]
    named = ", ".join(f"{path.name} {sizes[path] / 1e6:.1f}" for path in largest)
    raise UserError(
        f"{folder} would have {total / 1e6:.1f} MB, which is more than"
        f" {LARGEST / 1e6:g}: {named}, ...; publish fewer rows of the scale, or raise LARGEST in"
        " peregrine/reporting/snapshots.py"
    )
