"""The steps `report` and `index`: what `collect` found, as notebook, page and PDF.

A study's mapping (`peregrine.reporting.document`) is written first; the notebook recomputes from
it and from the collected files, and fails if a number differs; the PDF prints it. Nothing volatile
enters, so equal inputs give equal bytes.
"""

import html
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peregrine import files
from peregrine.config.load import Project
from peregrine.errors import UserError
from peregrine.reporting.document import document, prose, read_study, tally
from peregrine.reporting.notebook import execute, page
from peregrine.reporting.statistics import EPS

WORKFLOW = Path(__file__).parents[3] / "workflow"
NOTEBOOK = WORKFLOW / "notebooks" / "study.py"
TEMPLATE = WORKFLOW / "report" / "study.typ"


def report(
    project: Project, study: str, results: Path, reports: Path, config: Path = Path("config")
) -> None:
    """Write {study}.json, .ipynb, .html and .pdf of a study to {reports}/{scale}/.

    Args:
        project: the configuration, at one scale.
        study: a name in it.
        results: the results folder, where `collect` has been.
        reports: the reports folder.
        config: the configuration folder; published numbers are read from published/ in it.

    Raises:
        UserError: a collected file is missing or was changed, or the notebook found that a number
            of it does not follow from metrics.csv.
    """
    plan, scale = project.study(study), project.scale
    collected = read_study(results / scale.name / study)
    target = reports / scale.name
    data = document(project, plan, collected, config)
    files.write_json(target / f"{study}.json", data)
    parameters = {
        "folder": os.path.relpath(collected.folder, target),
        "declarations": f"{study}.json",
        "study": study,
        "scale": scale.name,
        "eps": EPS,
        "seeds": list(scale.seeds),
    }
    parts = {
        "ordering": collected.orders,
        "noise": collected.pairs,
        "no-noise": not collected.pairs,
        "sensitivity": "sensitivity" in data["printed"],
    }
    without = tuple(tag for tag, found in parts.items() if not found)
    notebook, html_page = execute(NOTEBOOK, parameters, target, plan.title, without)
    files.write_bytes(target / f"{study}.ipynb", notebook)
    files.write_bytes(target / f"{study}.html", html_page)
    pdf = compile_pdf(TEMPLATE, target / f"{study}.json", collected.folder / "figures")
    files.write_bytes(target / f"{study}.pdf", pdf)


def compile_pdf(template: Path, data: Path, figures: Path) -> bytes:
    """A Typst template on its data, compiled in a folder of its own with its own fonts only."""
    import pikepdf
    import typst

    with tempfile.TemporaryDirectory() as root:
        shutil.copy(template, Path(root, template.name))
        shutil.copy(template.with_name("house.typ"), Path(root, "house.typ"))
        shutil.copy(data, Path(root, "data.json"))
        if figures.is_dir():  # else the study has none
            shutil.copytree(figures, Path(root, "figures"))
        try:
            pdf = typst.compile(Path(root, template.name), root=root, ignore_system_fonts=True)
        except typst.TypstError as error:
            first = next(iter(str(error).splitlines()), "")
            raise UserError(f"{data}: no PDF ({first}); run collect again") from None
    # Typst leaves the tags that screen readers need uncompressed, a third of the bytes, and packs
    # drawings in haste.
    packed, generate = io.BytesIO(), pikepdf.ObjectStreamMode.generate
    pikepdf.settings.set_flate_compression_level(9)
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        opened.save(
            packed, object_stream_mode=generate, recompress_flate=True, deterministic_id=True
        )
    return packed.getvalue()


KINDS = {"pdf": "PDF", "html": "notebook as a page", "ipynb": "notebook", "json": "data"}
"""Endings of a report's files, and what they are."""


def index(project: Project, results: Path, reports: Path, kinds: Iterable[str] = KINDS) -> None:
    """Write {reports}/{scale}/index.html: every study's verdicts, with links to its reports.

    Args:
        kinds: endings of the files to which it links.

    Raises:
        UserError: a study has not been collected, or a file was changed since.
    """
    scale = project.scale
    body = [
        f"<h1>Peregrine at scale {_text(scale.name)}</h1>",
        f"<p>{_text(scale.description)}</p>",
    ]
    for name, study in project.studies.items():
        collected = read_study(results / scale.name / name)
        body += [
            f"<h2>{_text(study.title)}</h2>",
            f"<p>{_text(study.paper)}. {_links(name, kinds)}</p>",
            f"<p>{len(project.of(name))} runs; {_text(tally(collected.runs))}.</p>",
            _verdicts(collected.claims),
        ]
    theory = reports / scale.name / "theory.json"
    if project.config.theory and theory.is_file():  # else of before it was switched off
        body += _theory(files.read_json(theory)["printed"])
    text = page(f"Peregrine, {scale.name}", "\n".join(body))
    files.write_text(reports / scale.name / "index.html", text)


def _theory(printed: Mapping[str, Any]) -> list[str]:
    return [
        f"<h2>{_text(printed['title'])}</h2>",
        f"<p>{_text(printed['paper'])}. {_links('theory')}</p>",
        "<p>No runs: the loss is minimised over free assignments and embeddings.</p>",
        _verdicts(printed["claims"]),
    ]


def _links(name: str, kinds: Iterable[str] = KINDS) -> str:
    return " · ".join(f'<a href="{name}.{end}">{KINDS[end]}</a>' for end in kinds)


def _verdicts(claims: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(
        f"<tr><td>{_text(claim['id'])}</td><td>{_text(claim['statement'])}</td>"
        f'<td class="verdict {claim["verdict"].split()[0]}">{_text(claim["verdict"])}</td></tr>'
        for claim in claims
    )
    return f"<table><tr><th></th><th>claim</th><th>verdict</th></tr>{lines}</table>"


def _text(plain: str) -> str:
    return html.escape(prose(plain))
