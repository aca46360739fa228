"""Code fingerprint of a step for one run: what has to change for its results to be stale.

Snakemake does not see modules that a command imports, so every rule passes this digest as a
parameter. It covers the syntax trees of the step's module and of everything of peregrine that it
imports, plus the module of the run's method, which the registry only names. Comments, docstrings
and formatting do not count. Left out: the command line, the configuration (its values are in the
run's own hash), the registries of methods and of data sets with their loaders (data have sums;
`of_data` alone covers a data set's own entry) and package files, so one new method or data set
makes nothing stale.

The serialisation is our own because `ast.dump` differs between Python versions.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

from peregrine.config.options import method_target

SOURCE = Path(__file__).parents[2]
LEFT_OUT = (
    "peregrine.cli",
    "peregrine.config",
    "peregrine.data.acquire",
    "peregrine.data.download",
    "peregrine.data.sources",
    "peregrine.methods.registry",
)
REGISTRY = "peregrine.data.sources"
# Step -> the modules that its command calls.
ENTRY_MODULES = {
    "prepare": ("peregrine.data.prepare", "peregrine.data.acquire"),
    "pretrain": ("peregrine.pretrain.loop",),
    "extract": ("peregrine.evaluation.features",),
    "evaluate": ("peregrine.evaluation.evaluate",),
    "diagnose": ("peregrine.diagnostics.diagnose",),
    "robustness": ("peregrine.evaluation.robustness",),
    "detect": ("peregrine.evaluation.detection",),
    "collect": ("peregrine.reporting.collect", "peregrine.reporting.figures"),
    "report": ("peregrine.reporting.report",),
    "theory": ("peregrine.theory.study",),
    "theory_report": ("peregrine.reporting.theory",),
}


def fingerprint(step: str, method: str | None = None) -> str:
    """Hex digest of the code that a step runs for a method."""
    return hashlib.sha256(_modules(step, method).encode()).hexdigest()[:16]


@cache
def _modules(step: str, method: str | None) -> str:
    """A line for each module of a step. Cached: `status` asks for every file of every seed."""
    modules = ENTRY_MODULES[step] + ((method_target(method)[0],) if method else ())
    return "".join(f"{module} {module_digest(module)}\n" for module in sorted(closure(modules)))


def of_data(name: str) -> str:
    """Fingerprint of `prepare` for one data set: its entry of SOURCES and what that refers to."""
    tree = _tree(REGISTRY)
    defined: dict[str, ast.stmt] = {}
    for node in tree.body:
        for each in _names(node):
            defined[each] = node
    todo: list[ast.AST] = [_entry(tree, name)]
    used: dict[str, ast.AST] = {"": todo[0]}
    while todo:
        for node in ast.walk(todo.pop()):
            if isinstance(node, ast.Name) and node.id in defined and node.id not in used:
                used[node.id] = defined[node.id]
                todo.append(defined[node.id])
    taken = [found for node in used.values() for found in _imported(node)]
    digest = hashlib.sha256()
    for module in sorted(closure((*ENTRY_MODULES["prepare"], *filter(_counts, taken)))):
        digest.update(f"{module} {module_digest(module)}\n".encode())
    for key in sorted(used):
        digest.update(f"{key} {serialise(used[key])}\n".encode())
    return digest.hexdigest()[:16]


def _entry(tree: ast.Module, name: str) -> ast.AST:
    """What SOURCES holds under `name`; all of it where it holds no such key."""
    for node in tree.body:
        if "SOURCES" in _names(node) and isinstance(node, ast.AnnAssign):
            for key, value in zip(node.value.keys, node.value.values):
                if isinstance(key, ast.Constant) and key.value == name:
                    return value
            return node
    raise TypeError(f"{REGISTRY} has no SOURCES")


def _names(node: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def parts(step: str, method: str | None = None) -> dict[str, str]:
    """Digest per module, to say which ones differ from those of an older result."""
    modules = ENTRY_MODULES[step] + ((method_target(method)[0],) if method else ())
    return {module: module_digest(module) for module in sorted(closure(modules))}


def closure(modules: tuple[str, ...]) -> set[str]:
    """The modules of peregrine reached from `modules` by import statements, wherever they stand."""
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += imports(module)
    return found


@cache
def imports(module: str) -> tuple[str, ...]:
    names = {name for node in ast.walk(_tree(module)) for name in _imported(node)}
    return tuple(sorted(filter(_counts, names)))


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _counts(name: str) -> bool:
    left_out = any(name == out or name.startswith(out + ".") for out in LEFT_OUT)
    return name.startswith("peregrine.") and not left_out and _path(name).is_file()


def _path(module: str) -> Path:
    return SOURCE.joinpath(*module.split(".")).with_suffix(".py")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


@cache
def module_digest(module: str) -> str:
    return hashlib.sha256(serialise(_tree(module)).encode()).hexdigest()[:16]


def serialise(node: object) -> str:
    """Text of a syntax tree: node types and non-empty fields, without docstrings and contexts."""
    if isinstance(node, ast.expr_context):
        return ""
    if isinstance(node, ast.AST):
        fields = []
        for name in sorted(node._fields):
            value = getattr(node, name, None)
            if isinstance(value, list):
                value = [item for item in value if not _without_effect(node, item)]
            text = serialise(value)
            if text:
                fields.append(f"{name}={text}")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(serialise(item) for item in node)}]" if node else ""
    if node is None:
        return ""
    return ascii(node)  # repr depends on the Unicode tables of the Python version


def _without_effect(parent: ast.AST, item: object) -> bool:
    """A docstring, those of attributes included, or an empty piece of an f-string.

    Python 3.12.1 has such a piece in f"{x:{width}}", 3.11 and 3.13 have none.
    """
    if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant):
        return isinstance(item.value.value, str)
    piece = isinstance(parent, ast.JoinedStr) and isinstance(item, ast.Constant)
    return piece and item.value == ""
