"""The step `collect`: whatever a study's runs have left so far becomes tables and verdicts.

Missing, failed, mixed, stale and older results are shown as such. Nothing here trains, and the
same results give the same bytes.
"""

import json
import os
from pathlib import Path
from typing import Any

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.load import Project
from peregrine.errors import UserError
from peregrine.reporting.claims import judge
from peregrine.reporting.figures import draw_figures
from peregrine.reporting.noise import write_noise
from peregrine.reporting.ordering import write_orderings
from peregrine.reporting.published import published_of
from peregrine.reporting.records import Evidence, Measurement, SeedRun, read_records
from peregrine.reporting.sensitivity import write_sensitivity
from peregrine.reporting.tables import TableCell, check_table, overlaid, table_cells


def collect(project: Project, study: str, results: Path, config: Path = Path("config")) -> Path:
    """Write metrics.csv, runs.csv, tables/, claims.json and figures/ of a study.

    Then collected.json, which holds the sums of all of them. Where there are replicates of its
    seeds, noise.csv and noise_floor.csv too; where scales are like this one, sensitivity.csv and
    sensitivity.json; where rows of a table have a published order, ordering.csv.

    Args:
        project: the configuration, at one scale.
        study: a name in it.
        results: the results folder; runs are read from runs/ in it.
        config: the configuration folder; published numbers are read from published/ in it.

    Returns:
        {results}/{scale}/{study}, where the files are.

    Raises:
        UserError: a result that is damaged, changed or of another run, or a study that names
            published cells that do not exist.
    """
    plan, scale = project.study(study), project.scale
    published = published_of(project.study(study), config)
    for table in plan.tables:
        check_table(plan, table, published)
    cells = project.of(study)
    records = read_records(project, study, results)
    changed = overlaid(project, plan, config)
    evidence = Evidence(
        plan, cells, records, published, scale.name, scale.protocol, changed, scale.looks
    )

    folder = results / scale.name / study
    written = [folder / "metrics.csv", folder / "runs.csv", folder / "claims.json"]
    files.write_csv(written[0], Measurement._fields, records.measurements)
    files.write_csv(written[1], SeedRun._fields, records.runs)
    claims = [judge(claim, evidence) for claim in plan.claims]
    files.write_text(written[2], json.dumps(claims, indent=1, sort_keys=True) + "\n")
    for table in plan.tables:
        path = folder / "tables" / f"{table.id}.csv"
        files.write_csv(path, TableCell._fields, table_cells(table, evidence))
        written.append(path)
    for path in (folder / "tables").glob("*.csv"):
        if path not in written:  # of a table that the study has no longer
            path.unlink()
    written += write_orderings(plan.tables, evidence, folder)
    written += write_noise(project, study, results, records, folder)
    written += write_sensitivity(project, plan, results, config, evidence)
    written += draw_figures(project, study, results)
    methods = sorted({cell.run.method["name"] for cell in cells.values()})
    record = folder / "collected.json"
    files.write_json(
        record,
        {
            "study": study,
            "scale": scale.name,
            "protocol": scale.protocol,
            "seeds": list(scale.seeds),
            "rows": {row: cell.id for row, cell in cells.items()},
            "code": {
                "collect": fingerprint.fingerprint("collect"),
                "pretrain": {name: fingerprint.fingerprint("pretrain", name) for name in methods},
            },
            "files": {path.relative_to(folder).as_posix(): files.sha256(path) for path in written},
        },
    )
    if any(map(_to_come, records.runs)):
        # Snakemake asks for no missing input of an output that is newer than those that are there:
        # a study that was collected by hand in between would count as done.
        os.utime(record, (1, 1))
    return folder


def _to_come(seed: SeedRun) -> bool:
    """Whether a seed is still to be trained or evaluated here."""
    return seed.status in ("missing", "incomplete") and "adopted" not in seed.detail.split("; ")


def read_collected(folder: Path) -> dict[str, Any]:
    """The record that `collect` left in `folder`, once every file it names has its sum.

    Raises:
        UserError: a file is missing or was changed since.
    """
    record = files.read_json(folder / "collected.json")
    for name, checksum in record["files"].items():
        if not (folder / name).is_file() or files.sha256(folder / name) != checksum:
            raise UserError(f"{folder / name} is missing or was changed; run collect again")
    return record
