"""A percent script becomes an executed notebook and a page that works without a network.

The kernel is always the running interpreter and leaves nothing behind: its specification, history
and connection files live in a temporary folder. What differs from run to run (times, versions,
random cell ids) is taken out, so equal inputs give equal bytes.
"""

import html
import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peregrine import files
from peregrine.errors import UserError

CELL_SECONDS = 600
"""Longest a cell may take. It computes means of a few hundred numbers; a hang must not wait on."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72em; margin: 2em auto;
  padding: 0 1.5em; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .7em; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
img { max-width: 100%; }
a { color: #0b5cad; }
pre { overflow-x: auto; padding: .7em 1em; background: #f6f7f8; border-radius: 4px;
  font: 12.5px/1.45 ui-monospace, monospace; }
.output { overflow-x: auto; } .output pre { background: none; padding: .3em 0; }
.prompt, .anchor-link { display: none; }
.supported { color: #00598c; } .contradicted { color: #b8420a; }
.mixed, .undecided { color: #8a6d00; } .verdict { white-space: nowrap; }
"""


def execute(
    script: Path,
    parameters: Mapping[str, Any],
    folder: Path,
    title: str,
    without: Collection[str] = (),
) -> tuple[bytes, bytes]:
    """(ipynb, html) of a jupytext percent script, run in `folder` with `parameters` injected.

    Args:
        without: tags of cells that are left out.

    Raises:
        UserError: a cell failed; the line names its error.
    """
    import jupytext
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    notebook = jupytext.read(script, fmt="py:percent")
    notebook.cells = [
        cell for cell in notebook.cells if not set(without) & set(cell.metadata.get("tags", ()))
    ]
    with tempfile.TemporaryDirectory() as scratch, _private_kernel(Path(scratch)):
        source, executed = Path(scratch, "source.ipynb"), Path(scratch, "executed.ipynb")
        nbformat.write(notebook, source)
        try:
            papermill.execute_notebook(
                str(source),
                str(executed),
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=str(folder),
                progress_bar=False,
                request_save_on_cell_execute=False,
                execution_timeout=CELL_SECONDS,
                config=_transport(Path(scratch)),
            )
        except PapermillExecutionError as error:
            reason = " ".join(f"{error.ename}: {error.evalue}".split())
            raise UserError(f"notebook {script.name}, cell {error.exec_count}: {reason}") from None
        notebook = nbformat.read(executed, as_version=4)
    _strip(notebook)
    return nbformat.writes(notebook).encode() + b"\n", _page(notebook, title).encode()


@contextmanager
def _private_kernel(scratch: Path) -> Iterator[None]:
    """A kernel `python3` that is this interpreter, whatever the user's own Jupyter knows."""
    # Quiet: being stopped at the end is nothing to report. What fails in a cell comes as a result.
    options = ["-f", "{connection_file}", "--log-level=CRITICAL"]
    command = [sys.executable, "-m", "ipykernel_launcher", *options]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    files.write_text(scratch / "kernels" / "python3" / "kernel.json", json.dumps(spec))
    ours = {
        "JUPYTER_PATH": str(scratch),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "JUPYTER_CONFIG_DIR": str(scratch / "config"),
        "JUPYTER_NO_CONFIG": "1",
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYTHONHASHSEED": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _transport(scratch: Path) -> Any:
    """Talk to the kernel through sockets in `scratch`: two reports at once share no port.

    Such a path must stay below 104 bytes; where the temporary folder is a long one, TCP it is.
    """
    from traitlets.config import Config

    sockets = str(scratch / "kernel")
    local = {"transport": "ipc", "ip": sockets}
    return Config({"KernelManager": local if len(sockets) < 100 else {"transport": "tcp"}})


def _strip(notebook: Any) -> None:
    """Take out what differs between two runs on equal inputs."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place:02d}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":  # warnings of libraries name temporary files
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]


def _page(notebook: Any, title: str) -> str:
    """The notebook as one HTML file; the plain template, since the others load scripts."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    body, _ = HTMLExporter(template_name="basic", embed_images=True).from_notebook_node(notebook)
    return page(title, body, HtmlFormatter(style="default").get_style_defs(".highlight"))


def page(title: str, body: str, extra_style: str = "") -> str:
    """A whole HTML page that loads nothing."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{extra_style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
