"""Rules of the house (docs/architecture.md), read off the syntax trees of src/peregrine."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/peregrine"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
# What a part may import besides itself, as docs/architecture.md says; OPEN is open to all.
BELOW = {
    "config": set(),
    "data": {"config"},
    "nets": {"config"},
    "methods": {"config", "data", "nets"},
    "pretrain": {"config", "data", "nets", "methods"},
    "frozen": {"config"},
    "diagnostics": {"config", "frozen"},
    "evaluation": {"config", "data", "nets", "methods", "pretrain", "diagnostics", "frozen"},
    "reporting": {"config", "data", "frozen"},
    "theory": {"config", "methods"},
    "doctor": {"config"},
}
OPEN = {"errors", "files", "places", "streams"}
# A table of names without torch, by which the configuration knows the methods.
EXCEPTION = "methods.registry"
NO_TORCH = (
    "config",
    "frozen",
    "diagnostics",
    "reporting",
    "errors",
    "files",
    "places",
    "doctor",
    "cli",
)


def imported(tree):
    """Full names of all that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "the code fingerprint does not follow relative imports"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(tree):
    """The modules of peregrine among them, without the package's name."""
    names = {name.removeprefix("peregrine.") for name in imported(tree) if "peregrine." in name}
    return names & set(MODULES)


def called(tree):
    """Dotted names of all that is called, with the call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    part, _, _ = name.partition(".")
    if part in ("cli", "__main__"):
        return
    for other in own(TREES[name]):
        above = other.partition(".")[0]
        if part in OPEN:
            assert other in OPEN, f"{name} imports {other}"
        elif above != part and other not in OPEN:
            allowed = above in BELOW[part] or (part == "config" and other == EXCEPTION)
            assert allowed, f"{name} imports {other}"


def test_the_table_of_the_documentation_says_the_same():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    said = {room: set(may.partition(", but ")[0].split(", ")) - {"none"} for room, may in rows}
    assert said.pop("cli") == {"any"} and said.pop("places") == set()
    assert said == BELOW
    open_to_all = re.search(r"^Every room may import (.*) as well", text, re.MULTILINE).group(1)
    assert set(re.findall(r"`(\w+)\.py`", open_to_all)) == OPEN


def test_every_part_is_known():
    parts = {name.partition(".")[0] for name in MODULES}
    assert parts <= set(BELOW) | OPEN | {"cli", "__main__"}
    assert "methods.falcon" in MODULES
    assert own(TREES["pretrain.trainer"]) > {"methods.base", "pretrain.checkpoint"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(NO_TORCH)])
def test_no_torch_and_nothing_that_imports_it(name):
    """Imports inside functions count too, except those of the command line."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        tree = TREES[module]
        if module.startswith("cli."):
            tree = ast.Module([node for node in tree.body if "Import" in type(node).__name__], [])
        roots = {each.partition(".")[0] for each in imported(tree)}
        assert not roots & {"torch", "torchvision"}, f"{name} imports torch by {module}"
        todo += own(tree)


def test_the_loop_knows_no_method_by_name():
    names = {name.partition(".")[2] for name in MODULES if name.startswith("methods.")}
    for name in MODULES:
        if name.startswith(("pretrain.", "evaluation.")):
            known = {each for each in own(TREES[name]) if each.startswith("methods.")}
            operators = {"methods.feature_augmentation"}  # functions of features, no method
            assert known <= {"methods.base", "methods.build"} | operators
    assert names > {"base", "build", "falcon"}


@pytest.mark.parametrize("name", MODULES)
def test_no_file_above_400_lines(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("name", MODULES)
def test_nothing_that_runs_code_from_files(name):
    tree = TREES[name]
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    assert not unsafe & {each.partition(".")[0] for each in imported(tree)}
    for function, call in called(tree):
        last = function.rpartition(".")[2]
        if function.startswith(("torch.", "np.", "numpy.")):
            assert last != "load", f"{function}: read_tensors is verified and safe"
            assert "allow_pickle" not in {keyword.arg for keyword in call.keywords}
        if function.startswith("yaml."):
            assert last in ("safe_dump", "dump", "load"), function
        if function == "yaml.load":
            assert name == "config.reading"
            assert ast.unparse(call.args[1]) == "_Loader"
        if function == "exec":
            assert name == "config.options"
        if last == "import_module":
            assert name == "config.options"
        assert function not in ("eval", "__import__", "os.system", "os.popen"), function
        assert "shell" not in {keyword.arg for keyword in call.keywords}


def test_the_yaml_loader_is_the_safe_one():
    classes = [n for n in TREES["config.reading"].body if isinstance(n, ast.ClassDef)]
    assert [ast.unparse(c.bases[0]) for c in classes if c.name == "_Loader"] == ["yaml.SafeLoader"]


def test_global_random_numbers_are_left_alone():
    """Every draw names its generator: a resumed run needs no saved state."""
    draws = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")
    for name, tree in TREES.items():
        for function, call in called(tree):
            if function in {f"torch.{draw}" for draw in draws}:
                assert "generator" in {k.arg for k in call.keywords}, f"{name}: {function}"
            if function == "torch.manual_seed":
                assert name == "streams"
            if re.fullmatch(r"np\.random\.\w+", function):
                assert function == "np.random.default_rng", f"{name}: {function}"
                assert call.args, f"{name}: a seed is missing"
        assert "random" not in set(imported(tree)), name


def test_no_path_of_one_machine():
    places = re.compile(r"/(home|root|work|Users|mnt|scratch)/|/tmp/|[A-Z]:\\\\")
    folders = ("src", "config", "workflow", "profiles", "tests", "docs", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    kinds = (".py", ".yaml", ".yml", ".smk", ".md", ".toml", ".csv", ".json", ".rst", ".typ", "")
    for path in files:
        skipped = path == Path(__file__) or path.name == ".git" or "cache" in str(path)
        if path.suffix in kinds and not skipped:
            found = places.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found}"
