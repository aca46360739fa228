"""Run ids: what changes them, what must not, and the published ones for ever."""

import json
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from peregrine.config import identity, load
from peregrine.config.identity import canonical, run_id
from peregrine.config.load import build_run
from peregrine.config.models import Run
from peregrine.config.options import method_options
from peregrine.errors import UserError
from peregrine.methods.registry import METHODS

FROZEN = Path(__file__).with_name("frozen_ids.json")
BASE = {"dataset": {"name": "digits"}, "views": [{}, {"role": "target"}]}
# Options that exclude one another need a start from which each of them can move.
STARTS = {
    "falcon": [{}, {"operator": "mask"}, {"dictionary": "kmeans"}],
    "swav": [{}, {"operator": "mask"}],
    "two_branch": [{}, {"criterion": "cosine", "placement": "parallel", "operator": "mask"}],
}


def plain(method="falcon", **options):
    return {**BASE, "method": {"name": method, **options}}


def test_canonical_form_leaves_neutral_values_out():
    run = build_run([plain(beta=2.0)], "x")
    assert canonical(run) == (
        '{"dataset":{"name":"digits"},"method":{"beta":2.0,"name":"falcon"},'
        '"views":[{},{"role":"target"}]}'
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_explicit_default_is_an_omitted_one(method):
    short = build_run([plain(method)], "x")
    spelled_out = short.model_dump(mode="json")
    assert len(json.dumps(spelled_out)) > 3 * len(canonical(short))
    assert run_id(build_run([spelled_out], "x")) == run_id(short)
    reordered = dict(reversed([*short.model_dump().items()]))
    assert run_id(build_run([reordered], "x")) == run_id(short)
    assert run_id(build_run([plain(method), {"epochs": "100", "batch_size": 256.0}], "x")) == (
        run_id(short)
    )


def test_an_id_is_a_slug_and_a_hash():
    """First ten hex digits of the SHA-256 of the canonical form, by sha256sum."""
    run = build_run([plain("two_branch"), {"backbone": {"width": 8}}], "x")
    assert canonical(run) == (
        '{"backbone":{"width":8},"dataset":{"name":"digits"},"method":{"name":"two_branch"},'
        '"views":[{},{"role":"target"}]}'
    )
    assert run_id(run) == "digits-resnet8x8-two-branch-f7b465dfac"


def others(annotation, value):
    """Values of a field's type that differ from `value`; some may not validate."""
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if each != value]
    if value is None:
        return [0.5, 5, [1, 2]]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value * 0.75 or 0.125, value + 0.25]
    if isinstance(value, tuple) and isinstance(value[0], float):
        return [[value[0] * 0.9, value[1]]]
    return []


def changes(model: BaseModel, path=()):
    """(path, other value) for every scalar field of a model and of the models in it."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from changes(value, (*path, name))
        elif isinstance(value, tuple) and isinstance(value[0], BaseModel):
            yield from changes(value[0], (*path, name, 0))
        elif not isinstance(value, dict):
            yield (*path, name), others(field.annotation, value)


def with_value(data, path, value):
    data = json.loads(json.dumps(data))
    here = data
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value
    return data


@pytest.mark.parametrize("method", METHODS)
def test_every_field_is_part_of_the_id(method):
    fields, reached = set(), set()
    starts = [(start, {}) for start in STARTS.get(method, [{}])]
    nets = [(starts[0][0], {"name": name}) for name in ("resnet18", "vit_small")]
    for start, backbone in [*starts, *nets]:
        run = build_run([plain(method, **start), {"backbone": backbone}], "x")
        ids = [run_id(run)]
        options = method_options(method)(**{k: v for k, v in run.method.items() if k != "name"})
        found = [(("method", *path), values) for path, values in changes(options)]
        for path, values in [*changes(run), *found]:
            fields.add(path)
            for value in values:
                try:
                    changed = build_run([with_value(run.model_dump(mode="json"), path, value)], "x")
                except UserError:
                    continue
                reached.add(path)
                ids.append(run_id(changed))
        assert len(set(ids)) == len(ids), "two configurations share an id"
    # Names of data sets are changed by the next test.
    assert fields - reached <= {("dataset", "name")}
    assert len(fields) > 30


def test_the_data_set_is_part_of_the_id():
    first = build_run([plain()], "x")
    second = build_run([plain(), {"dataset": {"name": "other"}}], "x")
    assert run_id(first).split("-")[-1] != run_id(second).split("-")[-1]


def test_a_new_neutral_option_of_a_method_renames_nothing(monkeypatch):
    before = run_id(build_run([plain()], "x"))
    changed = run_id(build_run([plain(codes=64)], "x"))

    class Options(method_options("falcon")):
        novelty: float = 0.0

    for module in (identity, load):
        monkeypatch.setattr(module, "method_options", lambda _: Options)
    assert run_id(build_run([plain()], "x")) == before
    assert run_id(build_run([plain(novelty=0.0)], "x")) == before
    assert run_id(build_run([plain(codes=64)], "x")) == changed
    assert run_id(build_run([plain(novelty=1.0)], "x")) != before


def test_a_new_neutral_field_of_a_run_renames_nothing():
    run = build_run([plain()], "x")

    class Later(Run):
        novelty: Literal["no", "yes"] = "no"

    assert run_id(Later(**run.model_dump())) == run_id(run)
    assert run_id(Later(**run.model_dump(), novelty="yes")) != run_id(run)


def test_frozen_ids_still_hold():
    """Both the short form and the spelled-out one: the latter also notices a changed default."""
    stored = json.loads(FROZEN.read_text())
    assert stored
    for entry in stored:
        for form in ("canonical", "configuration"):
            run = build_run([entry[form]], f"frozen {entry['id']}, {form}")
            assert run_id(run) == entry["id"]
            assert json.loads(canonical(run)) == entry["canonical"]
    assert len({entry["id"] for entry in stored}) == len(stored)


def test_every_demo_run_is_frozen(pytestconfig):
    stored = {entry["id"] for entry in json.loads(FROZEN.read_text())}
    project = load.load(pytestconfig.rootpath / "config", scale="demo")
    missing = set(project.runs()) - stored
    assert not missing, "run: PYTHONPATH=src python tests/config/freeze_ids.py"
