"""From YAML files to resolved runs: study, then scale, then nothing else.

A study is written once, for paper scale; a scale only lays values over it. Later wins: study
defaults < rows that the row is like < the row < scale.run < scale.studies[study].run <
scale.studies[study].row[row].
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peregrine.config.check import check_study
from peregrine.config.detection import DetectionFile, Planned, check_backbone, plan
from peregrine.config.expand import expand
from peregrine.config.identity import run_id
from peregrine.config.models import Config, Protocol, Run, Scale, StudyOverlay
from peregrine.config.options import method_options
from peregrine.config.reading import check_name, known_names, merge, read_yaml, validate
from peregrine.config.scales import multiplied, read_scale, scales_like
from peregrine.config.study import Study
from peregrine.errors import UserError
from peregrine.methods.registry import METHODS


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

    def id_of(self, name: str) -> str:
        """The id of a run that is named by its id or, as on the command line, by STUDY/ROW.

        Raises:
            UserError: no row of this scale is called so.
        """
        if name in self.runs():
            return name
        study, slash, row = name.partition("/")
        if slash:
            self.study(study)
            rows = self.of(study)
            if row in rows:
                return rows[row].id
            raise UserError(
                f"--run {name}: scale {self.scale.name} runs no row '{row}' of study {study};"
                f" {known_names(row, rows)}"
            )
        rows = [f"{cell.study}/{cell.row}" for cell in self.cells if cell.row == name]
        if rows:
            raise UserError(f"--run {name}: a row is named with its study: {' or '.join(rows)}")
        raise UserError(
            f"run '{name}' is none of the {len(self.runs())} runs of scale {self.scale.name};"
            " `status` lists their rows and ids, and --run takes an id or STUDY/ROW"
        )

    def check_seeds(self, run: str, seeds: Iterable[int]) -> None:
        """Raises UserError for a run or a seed that the scale does not have."""
        self.run(run)
        for seed in seeds:
            if seed not in self.scale.seeds:
                raise UserError(f"--seed {seed}: scale {self.scale.name} has {self.scale.seeds}")

    def study(self, name: str) -> Study:
        """A configured study by name."""
        if name not in self.studies:
            known = ", ".join(self.studies)
            raise UserError(
                f"study '{name}' is not in config.yaml, or not at scale {self.scale.name}: {known}"
            )
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
            raise UserError(f"{scale_path}: no study '{name}'; {known_names(name, known)}")
    presets = read_yaml(folder / "presets.yaml")
    protocols = read_yaml(folder / "protocols.yaml")
    if scale.protocol not in protocols:
        raise UserError(f"{scale_path}: protocol '{scale.protocol}' is not in protocols.yaml")
    protocol = validate(Protocol, protocols[scale.protocol], f"protocols.yaml: {scale.protocol}")
    variations = tuple(scales_like(scale_path))
    studies: dict[str, Study] = {}
    cells: list[Cell] = []
    for name in config.studies:
        if name in scale.studies and scale.studies[name].rows == ():
            continue
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


def read_study(path: Path) -> Study:
    """A study with its families written out (see `expand`) and every name in it checked."""
    data = read_yaml(path)
    try:
        data = expand(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    study = validate(Study, data, str(path))
    check_name(study.name, path)
    check_study(study)
    return study


def resolve(study: Study, scale: Scale, presets: Mapping[str, Any]) -> list[Cell]:
    """The runs of a study at a scale, each fully spelled out and checked.

    Raises:
        UserError: a row that does not exist, or a run that does not validate.
    """
    overlay = scale.studies.get(study.name, StudyOverlay())
    known = {name for name, row in study.rows.items() if not row.only or scale.name in row.only}
    all_rows = tuple(name for name in study.rows if name in known)
    wanted = all_rows if overlay.rows is None else overlay.rows
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
        if scale.times:
            data = multiplied(run.model_dump(mode="json"), scale.times, where)
            run = build_run([data], where)
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
        raise UserError(f"{where}: method '{name}' is unknown; {known_names(name, METHODS)}")
    method = {key: value for key, value in given.items() if key != "name"}
    options = validate(method_options(name), method, f"{where}: method {name}")
    data["method"] = {"name": name, **options.model_dump(mode="json")}
    return validate(Run, data, where)


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
        hint = known_names(str(name), map(str, table))
        raise UserError(f"{where}: {kind} preset '{name}' is not in presets.yaml; {hint}")
    if kind == "methods" and not isinstance(table[name], Mapping):
        raise UserError(f"presets.yaml: methods.{name} must be a mapping of options")
    return table[name]


def schema() -> dict:
    """JSON schema of config.yaml for Snakemake, generated from the models."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


__all__ = [
    "Cell",
    "Project",
    "load",
    "merge",
    "read_study",
    "read_yaml",
    "resolve",
    "schema",
]
