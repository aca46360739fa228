"""The code fingerprint: what makes results stale, and what must not."""

import ast
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peregrine.config import fingerprint as under_test
from peregrine.config.fingerprint import fingerprint, of_data, parts

STEPS = ("pretrain", "extract", "evaluate", "diagnose")
OF_METHODS = {"pretrain", "extract"}
CACHES = (
    under_test.imports,
    under_test._tree,
    under_test.module_digest,
    under_test._modules,
)

SNIPPET = r'''
"""Module docstring."""
import a.b as c
from d import *
X: int = 1
"""Attribute docstring."""
async def f(a, /, b: "int" = 0x10, *c, d, e=None, **g) -> None:
    """Function docstring."""
    async with h() as i, j:
        await k
    return f"{a!r:>{b}} {a:{b}{d}} {c=} {{}}" "tail" f"" u"é🫨", rb"\x00"
class A(B, metaclass=C):
    x = y = lambda *z: (1e-9, 1j, 10**30, ..., True, None, not -z[1:, ::2])
    def __init__(self):
        global q
        del q, self.w
@decorate
def g():
    try:
        yield {**m, 1: {n for n in o if p}}
    except* (E, F) as e:
        raise e from None
    else:
        yield from [r, *s]
    finally:
        assert (t := u), "v"
match w:
    case {"k": [1, *_], **rest} | A(x=None) if rest:
        pass
    case _:
        while x < y <= z: break
        else: x += 1 if y else 2
'''
# The same on Python 3.11.2, 3.12.1 and 3.13.0.
DIGEST = "057ece365042e43831f21aa828b3641510210e69320e153bbe55b683f5778192"

ELSEWHERE = """
import ast, hashlib, sys
path, source = sys.argv[1:]
tree = ast.parse(open(path, encoding="utf-8").read())
tree.body = [n for n in tree.body if "peregrine" not in (getattr(n, "module", "") or "")]
names = {"__file__": path}
exec(compile(tree, path, "exec"), names)
print(hashlib.sha256(names["serialise"](ast.parse(source)).encode()).hexdigest())
"""


def test_a_stored_digest_holds_here():
    text = under_test.serialise(ast.parse(SNIPPET))
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


def test_the_same_digest_on_every_python():
    """On this one and on every other supported one that answers."""
    names = {shutil.which(f"python3.{minor}") for minor in (11, 12, 13)} - {None}
    digests = {}
    for python in {sys.executable, *names}:
        done = subprocess.run(
            [python, "-X", "utf8", "-c", ELSEWHERE, under_test.__file__, SNIPPET],
            capture_output=True,
            text=True,
        )
        if done.returncode == 0 or python == sys.executable or "Traceback" in done.stderr:
            digests[python] = done.stdout.strip() or done.stderr
    assert digests == dict.fromkeys(digests, DIGEST)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the sources that the fingerprint is taken of; `tree(path)` is a file of it."""
    shutil.copytree(under_test.SOURCE / "peregrine", tmp_path / "peregrine")
    monkeypatch.setattr(under_test, "SOURCE", tmp_path)
    yield lambda path: tmp_path / "peregrine" / path
    forget()


def forget():
    for each in CACHES:
        each.cache_clear()


def everything():
    forget()
    methods = ("falcon", "two_branch")
    keys = [(step, method) for step in OF_METHODS for method in methods]
    keys += [(step, None) for step in STEPS if step not in OF_METHODS]
    data = {("prepare", name): of_data(name) for name in ("digits", "cifar10")}
    return {key: fingerprint(*key) for key in keys} | data


def stale_after(change):
    before = everything()
    change()
    after = everything()
    return {key for key in before if before[key] != after[key]}


def rewrite(path: Path, transform):
    tree = transform(ast.parse(path.read_text()))
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)))


class OtherWords(ast.NodeTransformer):
    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = "Other words."
        return node


def test_comments_docstrings_and_formatting_do_not_count(tree):
    def change():
        for path in tree("").rglob("*.py"):
            before = path.read_text()
            rewrite(path, OtherWords().visit)  # this drops comments and formatting too
            path.write_text("# a comment\n\n" + path.read_text())
            assert path.read_text() != before

    assert stale_after(change) == set()


class OtherLoss(ast.NodeTransformer):
    def visit_FunctionDef(self, node):
        if node.name == "falcon_loss":
            node.body.insert(1, ast.parse("beta = 2 * beta").body[0])
        return node


def test_the_loss_of_a_method_makes_its_own_runs_stale(tree):
    before = parts("pretrain", "falcon")
    stale = stale_after(lambda: rewrite(tree("methods/falcon.py"), OtherLoss().visit))
    assert stale == {("pretrain", "falcon"), ("extract", "falcon")}
    after = parts("pretrain", "falcon")
    assert {name for name in before if before[name] != after[name]} == {"peregrine.methods.falcon"}


def append(path: Path, code="\n\nADDED = 1\n"):
    path.write_text((path.read_text() if path.exists() else "") + code)


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        ("pretrain/optim.py", {("pretrain", "falcon"), ("pretrain", "two_branch")}),
        ("evaluation/features.py", {("extract", "falcon"), ("extract", "two_branch")}),
        (
            "methods/feature_augmentation.py",
            {(s, m) for s in OF_METHODS for m in ("falcon", "two_branch")},
        ),
        ("nets/heads.py", {(s, "two_branch") for s in OF_METHODS}),
        ("nets/backbones.py", {(s, m) for s in OF_METHODS for m in ("falcon", "two_branch")}),
        ("evaluation/knn.py", {("evaluate", None)}),
        ("diagnostics/diagnose.py", {("diagnose", None)}),
        ("data/sources.py", set()),
        ("data/acquire.py", {("prepare", "digits"), ("prepare", "cifar10")}),
        ("data/cifar.py", {("prepare", "cifar10")}),
        ("data/raw.py", {("prepare", "digits"), ("prepare", "cifar10")}),
        ("config/models.py", set()),
        ("cli/runs.py", set()),
        ("methods/__init__.py", set()),
    ],
)
def test_what_a_change_makes_stale(tree, path, stale):
    assert stale_after(lambda: append(tree(path))) == stale


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("SOURCES: dict[str, Source] = {", "SOURCES: dict[str, Source] = {'new': None,", set()),
        ("DIGITS_TRAIN = 1197", "DIGITS_TRAIN = 1198", {"digits"}),
        ("255 / 16", "255 / 15", {"digits"}),
        ("cifar.NAMES_10.split()", "cifar.NAMES_10.split()[::-1]", {"cifar10"}),
        ("title, licence: for", "title and licence: for", set()),
        ('RED = "SHA-256', 'RED = "SHA-1', {"cifar10"}),
        ("    licence: str", "    licence: str = ''", {"digits", "cifar10"}),
    ],
)
def test_the_registry_of_data_counts_entry_by_entry(tree, old, new, stale):
    def change():
        text = tree("data/sources.py").read_text()
        assert text.count(old) == 1
        tree("data/sources.py").write_text(text.replace(old, new))

    assert stale_after(change) == {("prepare", name) for name in stale}


def test_a_new_method_makes_nothing_stale(tree):
    def change():
        append(tree("methods/new.py"), "from peregrine.methods.base import Method\n")
        append(tree("methods/registry.py"), 'METHODS["new"] = "peregrine.methods.new:New"\n')

    assert stale_after(change) == set()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("f(a, '')", "f(a)"),
        ("f(None)", "f()"),
        ("x = 1", "x = True"),
        ("x = 1", "x = 1.0"),
        ("x = '1'", "x = 1"),
        ("x = a - b", "x = b - a"),
        ("x = a < b", "x = a <= b"),
        ("def f(*, a, b=1): g()", "def f(*, a=1, b): g()"),
        ("if a:\n b()\nelse:\n c()", "if a:\n b()\n c()"),
        ("x = ['a']", "x = ['b']"),
        ("f'{a}{b}'", "f'{b}{a}'"),
        ("return_ = f'{a!r}'", "return_ = f'{a}'"),
    ],
)
def test_different_code_is_different(one, other):
    assert under_test.serialise(ast.parse(one)) != under_test.serialise(ast.parse(other))
