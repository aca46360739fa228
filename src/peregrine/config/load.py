"""From YAML files to resolved runs: study, then scale, then nothing else.

A study is written once, for paper scale; a scale only lays values over it. Later wins: study
defaults < rows that the row is like < the row < scale.run < scale.studies[study].run <
scale.studies[study].row[row].
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from peregrine.config.check import check_study
from peregrine.config.detection import DetectionFile, Planned, check_backbone, plan
from peregrine.config.expand import expand
from peregrine.config.identity import run_id
from peregrine.config.models import Config, Model, Protocol, Run, Scale, StudyOverlay
from peregrine.config.options import method_options
from peregrine.config.study import Study
from peregrine.errors import UserError
from peregrine.methods.registry import METHODS

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise UserError(f"line {node.start_mark.line + 1}: key '{twice.pop()}' stands twice")
    return dict(zip(keys, [loader.construct_object(v, deep=True) for _, v in node.value]))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> dict:
    """A YAML mapping, by the safe loader.

    Raises:
        UserError: missing, unreadable, not YAML, not a mapping, or with a key twice.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist; there are: {', '.join(near) or 'none'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: {line}{problem}") from None
    except (UserError, ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{path}: expected a mapping of names to values at the top")
    return data


def validate(model: type[M], data: Any, where: str) -> M:
    """Checked model; the first problem becomes one line that names place, key and remedy."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top)"
        if first["type"] == "extra_forbidden":
            names = _fields_at(model, first["loc"][:-1])
            close = difflib.get_close_matches(str(first["loc"][-1]), names, 1, 0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
            raise UserError(f"{where}: unknown key '{key}'; {hint}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {key}: {message[0].lower()}{message[1:]}") from None


def _fields_at(model: type[BaseModel], path: tuple) -> list[str]:
    """Field names of the model that stands at `path` (through tuples and dicts of models)."""
    for part in path:
        if not isinstance(part, str) or part not in model.model_fields:
            continue
        stack = [model.model_fields[part].annotation]
        while stack:
            kind = stack.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
                break
            stack.extend(getattr(kind, "__args__", ()))
    return sorted(model.model_fields)


OWN_OPTIONS = ("method", "backbone", "optimizer")
"""Parts of a run whose options belong to their `name`, so another name brings none along."""


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key, later wins; another name of OWN_OPTIONS starts afresh."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = out.get(key)
            if isinstance(value, Mapping) and isinstance(old, Mapping):
                renamed = key in OWN_OPTIONS and value.get("name", old.get("name")) != old.get(
                    "name"
                )
                out[key] = merge(value) if renamed else merge(old, value)
            else:
                out[key] = merge(value) if isinstance(value, Mapping) else value
    return out


@dataclass(frozen=True)
class Cell:
    """A row of a study at a scale: the run behind it and what it is called."""

    study: str
    row: str
    label: str
    run: Run
    id: str
    evaluations: tuple[str, ...] = ()
    """Evaluations that the row has besides those of every row."""

    def option(self, path: str) -> float:
        """The number at a dotted path of the run, such as method.codes.

        Raises:
            UserError: there is none.
        """
        value: Any = self.run.model_dump(mode="json")
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"study {self.study}, row {self.row}: option '{path}' is not a number")
        return float(value)


@dataclass(frozen=True)
class Project:
    """Everything that the configuration says: one scale, its studies, and their runs."""

    config: Config
    scale: Scale
    protocol: Protocol
    studies: dict[str, Study]
    cells: tuple[Cell, ...]
    detection: Planned | None = None
    variations: tuple[str, ...] = ()
    """Scales that are like this one and say what differs, by name."""

    def runs(self) -> dict[str, Run]:
        """All runs by id; a run that several rows share stands once."""
        return {cell.id: cell.run for cell in self.cells}

    def run(self, run_id: str) -> Run:
        """The run of an id.

        Raises:
            UserError: no row of this scale has it.
        """
        runs = self.runs()
        if run_id not in runs:
            raise UserError(
                f"run '{run_id}' is none of the {len(runs)} runs of scale {self.scale.name}"
            )
        return runs[run_id]

    def check_seeds(self, run: str, seeds: Iterable[int]) -> None:
        """Raises UserError for a run or a seed that the scale does not have."""
        self.run(run)
        for seed in seeds:
            if seed not in self.scale.seeds:
                raise UserError(f"--seed {seed}: scale {self.scale.name} has {self.scale.seeds}")

    def study(self, name: str) -> Study:
        """A configured study by name."""
        if name not in self.studies:
            raise UserError(f"study '{name}' is not in config.yaml: {', '.join(self.studies)}")
        return self.studies[name]

    def of(self, study: str) -> dict[str, Cell]:
        """The rows of a study that are run at this scale, in the study's order."""
        return {cell.row: cell for cell in self.cells if cell.study == study}


def load_config(folder: Path = Path("config"), **overrides: Any) -> Config:
    """config.yaml with values given on the command line laid over it."""
    given = {key: value for key, value in overrides.items() if value is not None}
    path = folder / "config.yaml"
    return validate(Config, read_yaml(path) | given, str(path))


def load(folder: Path = Path("config"), **overrides: Any) -> Project:
    """Read config.yaml, the scale, the studies and the protocols, and resolve every run.

    Args:
        folder: the configuration folder.
        overrides: values of config.yaml given on the command line; None counts as not given.
    """
    config = load_config(folder, **overrides)
    scale_path = folder / "scales" / f"{config.scale}.yaml"
    scale = read_scale(scale_path)
    for name in scale.studies:
        if not (folder / "studies" / f"{name}.yaml").is_file():
            known = sorted(path.stem for path in (folder / "studies").glob("*.yaml"))
            raise UserError(f"{scale_path}: no study '{name}'; {_hint(name, known)}")
    presets = read_yaml(folder / "presets.yaml")
    protocols = read_yaml(folder / "protocols.yaml")
    if scale.protocol not in protocols:
        raise UserError(f"{scale_path}: protocol '{scale.protocol}' is not in protocols.yaml")
    protocol = validate(Protocol, protocols[scale.protocol], f"protocols.yaml: {scale.protocol}")
    variations = tuple(scales_like(scale_path))
    studies: dict[str, Study] = {}
    cells: list[Cell] = []
    for name in config.studies:
        study = read_study(folder / "studies" / f"{name}.yaml")
        if not variations:  # there is nothing that they could show
            shown = tuple(each for each in study.figures if each.kind != "sensitivity")
            study = study.model_copy(update={"figures": shown})
        studies[name] = study
        cells += resolve(studies[name], scale, presets)
    detection = _detection(folder, scale, config)
    cells = [_with_detection(cell, detection) for cell in cells]
    return Project(config, scale, protocol, studies, tuple(cells), detection, variations)


def _detection(folder: Path, scale: Scale, config: Config) -> Planned | None:
    if scale.detection is None and not config.detection_data:
        return None
    path = folder / "detection.yaml"
    return plan(validate(DetectionFile, read_yaml(path), str(path)), path, scale, config)


def _with_detection(cell: Cell, planned: Planned | None) -> Cell:
    """The row, which transfers to detection only where there are data for it."""
    if "detection" not in cell.evaluations:
        return cell
    if planned is None:
        others = tuple(kind for kind in cell.evaluations if kind != "detection")
        return replace(cell, evaluations=others)
    where = f"studies/{cell.study}.yaml, row {cell.row}"
    check_backbone(cell.run.backbone.name, planned.chosen.detection.head, where)
    return cell


def read_scale(path: Path) -> Scale:
    """A scale, laid over the one that it is like."""
    data = read_yaml(path)
    if isinstance(like := data.get("like"), str):
        base = path.with_name(f"{like}.yaml")
        if like == path.stem or not base.is_file():
            known = sorted(each.stem for each in path.parent.glob("*.yaml") if each != path)
            raise UserError(f"{path}: like: no other scale '{like}'; {_hint(like, known)}")
        below = read_yaml(base)
        if "like" in below:
            raise UserError(f"{path}: like: scale '{like}' is itself like another; name that one")
        data = merge(below, data)
    scale = validate(Scale, data, str(path))
    _check_name(scale.name, path)
    return scale


def scales_like(path: Path) -> Iterator[str]:
    """The names of the scales beside `path` that are like it, sorted."""
    for other in sorted(path.parent.glob("*.yaml")):
        if other != path and read_yaml(other).get("like") == path.stem:
            yield other.stem


def read_study(path: Path) -> Study:
    """A study with its families written out (see `expand`) and every name in it checked."""
    data = read_yaml(path)
    try:
        data = expand(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    study = validate(Study, data, str(path))
    _check_name(study.name, path)
    check_study(study)
    return study


def _check_name(name: str, path: Path) -> None:
    if name != path.stem:
        raise UserError(f"{path}: name is '{name}' but the file's is '{path.stem}'; make them one")


def _hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant by an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known) or 'none'}"


def resolve(study: Study, scale: Scale, presets: Mapping[str, Any]) -> list[Cell]:
    """The runs of a study at a scale, each fully spelled out and checked.

    Raises:
        UserError: a row that does not exist, or a run that does not validate.
    """
    overlay = scale.studies.get(study.name, StudyOverlay())
    known = {name for name, row in study.rows.items() if not row.only or scale.name in row.only}
    wanted = overlay.rows or tuple(name for name in study.rows if name in known)
    extra = {**study.evaluations, **overlay.evaluations}
    for row in (
        *wanted,
        *overlay.row,
        *(row for rows in overlay.evaluations.values() for row in rows),
    ):
        if row not in known:
            raise UserError(
                f"scale {scale.name}: study {study.name} has no row '{row}' here;"
                f" it has {', '.join(sorted(known))}"
            )
    for kind, rows in overlay.evaluations.items():
        for row in rows:
            if row not in wanted:
                raise UserError(
                    f"scale {scale.name}: studies.{study.name}.evaluations.{kind}: row '{row}' is"
                    " not run here; add it to rows or take it out"
                )
    cells = []
    for name in study.rows:
        if name not in wanted:
            continue
        row = study.rows[name]
        layers = (*study.layers(name), scale.run, overlay.run, overlay.row.get(name, {}))
        where = f"studies/{study.name}.yaml, row {name}, with scales/{scale.name}.yaml"
        run = build_run([_expand(layer, presets, where) for layer in layers], where)
        run = _multiplied(run, scale.times, where)
        more = tuple(kind for kind in sorted(extra) if name in extra[kind])
        cells.append(Cell(study.name, name, row.label, run, run_id(run), more))
    return cells


def build_run(layers: list[Mapping[str, Any]], where: str) -> Run:
    """One run from layers of plain values, method options checked and filled in."""
    data = merge(*layers)
    given = data.get("method")
    name = given.get("name") if isinstance(given, Mapping) else None
    if not isinstance(name, str):
        raise UserError(f"{where}: method.name is missing; there are: {', '.join(METHODS)}")
    if name not in METHODS:
        raise UserError(f"{where}: method '{name}' is unknown; {_hint(name, METHODS)}")
    method = {key: value for key, value in given.items() if key != "name"}
    options = validate(method_options(name), method, f"{where}: method {name}")
    data["method"] = {"name": name, **options.model_dump(mode="json")}
    return validate(Run, data, where)


def _multiplied(run: Run, times: Mapping[str, float], where: str) -> Run:
    """The run with factors on some of its numbers; whole ones have to stay whole."""
    if not times:
        return run
    data = run.model_dump(mode="json")
    for path, factor in times.items():
        *folders, last = path.split(".")
        place: Any = data
        for part in folders:
            place = place.get(part) if isinstance(place, dict) else None
        value = place.get(last) if isinstance(place, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{where}: times: option '{path}' is not a number")
        product = value * factor
        if isinstance(value, int):
            if product != int(product):
                raise UserError(f"{where}: times: {path} {value} times {factor:g} is not whole")
            product = int(product)
        place[last] = product
    return build_run([data], where)


def _expand(layer: Mapping[str, Any], presets: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Replace `views: NAME` and `method.preset: NAME` by what config/presets.yaml says."""
    out = dict(layer)
    if isinstance(out.get("views"), str):
        out["views"] = _preset(presets, "views", out["views"], where)
    method = out.get("method")
    if isinstance(method, Mapping) and "preset" in method:
        rest = {key: value for key, value in method.items() if key != "preset"}
        out["method"] = merge(_preset(presets, "methods", method["preset"], where), rest)
    return out


def _preset(presets: Mapping[str, Any], kind: str, name: Any, where: str) -> Any:
    table = presets.get(kind)
    if not isinstance(table, Mapping):
        raise UserError(f"presets.yaml: {kind} must be a mapping of names to presets")
    if not isinstance(name, str) or name not in table:
        hint = _hint(str(name), map(str, table))
        raise UserError(f"{where}: {kind} preset '{name}' is not in presets.yaml; {hint}")
    if kind == "methods" and not isinstance(table[name], Mapping):
        raise UserError(f"presets.yaml: methods.{name} must be a mapping of options")
    return table[name]


def schema() -> dict:
    """JSON schema of config.yaml for Snakemake, generated from the models."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


__all__ = [
    "Cell",
    "Model",
    "Project",
    "load",
    "merge",
    "read_study",
    "read_yaml",
    "resolve",
    "schema",
]
