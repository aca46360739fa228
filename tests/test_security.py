"""Nothing that a configuration says is run: not by a shell, and not by the scripts beside src/.

tests/test_house.py looks at src/, tests/reporting/test_bundles.py and tests/data/test_raw.py at
archives, tests/faults at what may be in any file.
"""

import ast
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from peregrine.config.load import load
from peregrine.config.models import Folder, Name
from peregrine.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path
    for folder in ("workflow", "tools", "benchmarks", ".ci")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
RULES = [ROOT / "workflow/Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]
PLAIN = {
    "threads",  # numbers
    "params.threads",
    "params.scale",  # a Name
    "params.seeds",  # numbers
    "wildcards.run",  # one of the ids, by wildcard_constraints; each is made of Names
    "wildcards.study",  # one of the studies, each a Name
    "wildcards.dataset",  # [a-z0-9_]+
}
"""What stands in a shell command without quotes."""
HOSTILE = [
    "a; touch b",
    "$(touch b)",
    "`touch b`",
    "a b",
    "a\nb",
    "a\n",
    "a'b",
    'a"b',
    "a|b",
    "a>b",
]
HOSTILE += ["a&b", "a*", "~a", "a{b}", "a\\b", "", "é"]


def test_rules_quote_all_but_numbers_and_names():
    found = set()
    for path in RULES:
        for command in re.findall(r"shell:\n((?:\s+\".*\"\n?)+)", path.read_text(encoding="utf-8")):
            found |= set(re.findall(r"\{([^{}]+)\}", command))
    assert {each for each in found if not each.endswith(":q")} == PLAIN
    assert {"log:q", "input.runs:q", "output.passed:q"} <= found


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_and_no_folder_means_anything_to_a_shell(text, pytestconfig):
    for kind in (Name, Folder):
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(text)
    for key in ("scale", "results", "reports"):
        with pytest.raises(UserError):
            load(pytestconfig.rootpath / "config", **{key: text})
    with pytest.raises(UserError):
        load(pytestconfig.rootpath / "config", studies=[text])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_run_nothing_from_files(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unsafe = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {getattr(node, "module", None) or "", *(each.name for each in node.names)}
            assert not unsafe & {each.partition(".")[0] for each in names}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "os.popen", "torch.load"), called
            assert not (called.startswith("yaml.") and called != "yaml.safe_load"), called
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert words.get("shell", "False") == "False", called
            assert "allow_pickle" not in words, called
