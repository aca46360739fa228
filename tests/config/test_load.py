"""Configuration: what is refused, in which order layers win, what a run is made of."""

import json

import pytest
import yaml

from peregrine.config.identity import run_id
from peregrine.config.load import build_run, load, merge, read_yaml, schema
from peregrine.errors import UserError


@pytest.fixture
def edit(tiny_config):
    """`edit("scales/tiny.yaml", "a.b", value)` sets a key of a file of the tiny configuration."""

    def change(name, key, value):
        path = tiny_config / name
        data = here = yaml.safe_load(path.read_text())
        *folders, last = key.split("/")
        for part in folders:
            here = here.setdefault(part, {})
        here[last] = value
        path.write_text(yaml.safe_dump(data))
        return tiny_config

    return change


def refusal(folder, **overrides):
    with pytest.raises(UserError) as error:
        load(folder, **overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def epochs(folder, row="first"):
    return load(folder).of("one")[row].run.epochs


STUDY, SCALE = "studies/one.yaml", "scales/tiny.yaml"


@pytest.mark.parametrize(
    ("file", "key", "value", "words"),
    [
        ("config.yaml", "scal", "tiny", ["config.yaml", "'scal'", "did you mean 'scale'?"]),
        (SCALE, "sedes", [0], ["tiny.yaml", "'sedes'", "did you mean 'seeds'?"]),
        (SCALE, "studies/one/rwos", ["first"], ["tiny.yaml", "'studies.one.rwos'", "'rows'?"]),
        (STUDY, "rows/first/lable", "x", ["one.yaml", "'rows.first.lable'", "'label'?"]),
        (STUDY, "rows/first/run/epoch", 1, ["one.yaml", "tiny.yaml", "row first", "'epochs'?"]),
        (STUDY, "rows/first/run/method/code", 1, ["method falcon", "'code'", "'codes'?"]),
        (STUDY, "defaults/views", [{}, {"blurr": 1}], ["'views.1.blurr'", "'blur'?"]),
        (STUDY, "defaults/optimizer/weight_deacy", 0, ["'optimizer.weight_d", "'weight_decay'?"]),
        (STUDY, "rows/first/xyzzy", 1, ["'rows.first.xyzzy'", "label, like, only, over, run"]),
        ("protocols.yaml", "standard/knn", 1, ["protocols.yaml: standard", "'knn_k'?"]),
        # wrong types and values
        ("config.yaml", "studies", "one", ["config.yaml: studies"]),
        ("config.yaml", "studies", ["one", "one"], ["config.yaml", "twice"]),
        (SCALE, "seeds", [], ["tiny.yaml: seeds"]),
        (SCALE, "seeds", [0, 0], ["tiny.yaml", "different"]),
        (SCALE, "seeds", [True], ["tiny.yaml: seeds"]),
        (STUDY, "defaults/epochs", "many", ["row first", "epochs", "integer"]),
        (STUDY, "defaults/epochs", True, ["row first", "epochs", "true"]),
        (STUDY, "defaults/epochs", -1, ["row first", "epochs"]),
        (STUDY, "defaults/optimizer/lr", float("nan"), ["row first", "optimizer.lr"]),
        (STUDY, "defaults/optimizer", None, ["row first", "optimizer"]),
        (STUDY, "defaults/precision", "auto", ["precision", "'float32' or 'bfloat16'"]),
        (STUDY, "defaults/views", [{"crop_scale": [1.0, 0.5]}], ["views.0", "smaller one first"]),
        (STUDY, "rows/first", None, ["one.yaml: rows.first"]),
        (STUDY, "rows/first/run", {1: 2}, ["one.yaml: rows.first.run"]),
        (STUDY, "defaults/method", "falcon", ["row first", "method.name is missing"]),
        (STUDY, "defaults/method", {}, ["row first", "method.name is missing", "falcon"]),
        (STUDY, "defaults/method", {"name": "falcn"}, ["row first", "'falcn'", "'falcon'?"]),
        (STUDY, "rows/first/run/method", {1: 2}, ["row first", "method falcon"]),
        # names that mean nothing
        (SCALE, "studies/one/rows", ["frist"], ["tiny", "one", "'frist'", "first, nan"]),
        (SCALE, "studies/one/row/frist", {"epochs": 1}, ["tiny", "one", "'frist'", "first, nan"]),
        (SCALE, "studies/oen", {}, ["tiny.yaml", "'oen'", "did you mean 'one'?"]),
        (SCALE, "protocol", "other", ["tiny.yaml", "'other'", "protocols.yaml"]),
        (SCALE, "name", "other", ["tiny.yaml", "'other'", "'tiny'"]),
        (STUDY, "name", "other", ["one.yaml", "'other'", "'one'"]),
        (STUDY, "defaults/views", "digts", ["row first", "'digts'", "there are: none"]),
        (STUDY, "defaults/method/preset", ["x"], ["row first", "methods preset"]),
        ("presets.yaml", "methods", None, ["presets.yaml", "methods must be a mapping"]),
        ("protocols.yaml", "standard", True, ["protocols.yaml: standard"]),
    ],
)
def test_refused_in_one_line(edit, file, key, value, words):
    if file == "presets.yaml":
        edit(STUDY, "defaults/method", {"preset": "any"})
    message = refusal(edit(file, key, value))
    for word in words:
        assert word in message


def test_preset_of_the_wrong_shape_is_refused(edit):
    edit("presets.yaml", "methods/odd", "text")
    assert "methods.odd" in refusal(edit(STUDY, "defaults/method", {"preset": "odd"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scale: tiny\nstudies: [one]\nscale: other\n", ["'scale' stands twice"]),
        ("scale: !!python/object/apply:os.getcwd []\n", ["line 1", "python/object"]),
        ("scale: !secret x\n", ["line 1", "secret"]),
        ("- scale\n", ["expected a mapping"]),
        ("1: scale\n", ["expected a mapping"]),
        ("", ["expected a mapping"]),
        ("scale: [tiny\nstudies: x\n", ["line"]),
        ("scale: &a [*a]\n", ["line 1", "recursive"]),
        ("scale: {[1]: 2}\n", ["config.yaml"]),
    ],
)
def test_yaml_that_is_no_configuration(tiny_config, text, words):
    (tiny_config / "config.yaml").write_text(text)
    message = refusal(tiny_config)
    for word in ["config.yaml", *words]:
        assert word in message


def test_a_nested_key_that_stands_twice(tiny_config):
    path = tiny_config / SCALE
    path.write_text(path.read_text() + "run: {epochs: 1, batch_size: 24, epochs: 2}\n")
    message = refusal(tiny_config)
    assert "tiny.yaml" in message
    assert "'epochs' stands twice" in message


def test_a_missing_file_says_what_there_is(tiny_config):
    assert refusal(tiny_config, scale="papr").endswith("papr.yaml does not exist; there are: tiny")
    (tiny_config / STUDY).rename(tiny_config / "studies/two.yaml")
    assert refusal(tiny_config).endswith("one.yaml does not exist; there are: two")
    assert "there are: none" in refusal(tiny_config / "nowhere")
    (tiny_config / "config.yaml").write_bytes(b"scale: \xff\n")
    assert "config.yaml cannot be read" in refusal(tiny_config)


def test_later_layers_win(edit):
    for number, (file, key) in enumerate(
        [
            (STUDY, "defaults/epochs"),
            (STUDY, "rows/first/run/epochs"),
            (SCALE, "run/epochs"),
            (SCALE, "studies/one/run/epochs"),
            (SCALE, "studies/one/row/first/epochs"),
        ],
        start=11,
    ):
        folder = edit(file, key, number)
        assert epochs(folder) == number
    assert epochs(folder, "nan") == 14  # the last layer lies over row `first` alone
    run = load(folder).of("one")["first"].run
    assert (run.batch_size, run.optimizer.lr) == (24, 0.05)  # other keys are kept


def test_a_method_of_another_name_starts_afresh():
    old = {"method": {"name": "falcon", "codes": 64, "embedding": 8}, "epochs": 1}
    same = merge(old, {"method": {"name": "falcon", "codes": 32}})
    assert same["method"] == {"name": "falcon", "codes": 32, "embedding": 8}
    other = merge(old, {"method": {"name": "two_branch", "queue": 5}})
    assert other == {"method": {"name": "two_branch", "queue": 5}, "epochs": 1}
    assert old["method"]["codes"] == 64
    same["method"]["codes"] = 1
    assert old["method"]["codes"] == 64


def test_presets_expand_and_are_overlaid(edit):
    edit("presets.yaml", "views/pair", [{"count": 2, "size": 8, "hue": 0.25}])
    edit("presets.yaml", "methods/small", {"name": "falcon", "codes": 32, "norm": "tanh"})
    edit(STUDY, "defaults/views", "pair")
    folder = edit(STUDY, "rows/first/run/method", {"preset": "small", "codes": 16})
    run = load(folder).of("one")["first"].run
    assert (run.views[0].hue, run.views[0].size) == (0.25, 8)
    assert (run.method["codes"], run.method["norm"]) == (16, "tanh")
    assert run.method["embedding"] == 8  # of the study's defaults, below the preset
    edit("presets.yaml", "methods/small", {"name": "falcon", "codes": 32})
    assert load(folder).of("one")["first"].run.method["norm"] == "l2"


def test_rows_of_a_scale(edit):
    edit(STUDY, "rows/big", {"label": "big", "only": ["paper"]})
    folder = edit(SCALE, "description", "")
    assert list(load(folder).of("one")) == ["first", "nan"]
    folder = edit(SCALE, "studies/one/rows", ["nan"])
    assert list(load(folder).of("one")) == ["nan"]
    assert "no row 'big'" in refusal(edit(SCALE, "studies/one/rows", ["big"]))


def test_a_scale_leaves_a_study_out(edit):
    folder = edit(SCALE, "studies/one/rows", [])
    project = load(folder)
    assert project.studies == {} and project.cells == ()
    with pytest.raises(UserError, match="'one' is not in config.yaml, or not at scale tiny"):
        project.study("one")


def test_extra_evaluations_are_of_the_rows_that_are_run(edit):
    """Detection has no data here and is dropped; see test_detection.py."""
    asked = {"robustness": ["first", "nan"], "detection": ["nan"]}
    folder = edit(STUDY, "evaluations", asked)

    def found():
        return {row: cell.evaluations for row, cell in load(folder).of("one").items()}

    assert found() == {"first": ("robustness",), "nan": ("robustness",)}
    edit(SCALE, "studies/one/rows", ["first"])
    assert found() == {"first": ("robustness",)}
    edit(SCALE, "studies/one/evaluations", {"robustness": []})
    assert found() == {"first": ()}
    edit(SCALE, "studies/one/evaluations", {"detection": ["first"]})
    assert found() == {"first": ("robustness",)}
    assert "no row 'x'" in refusal(edit(SCALE, "studies/one/evaluations", {"detection": ["x"]}))
    message = refusal(edit(SCALE, "studies/one/evaluations", {"robustness": ["nan"]}))
    assert "studies.one.evaluations.robustness: row 'nan' is not run here" in message
    edit(SCALE, "studies/one/evaluations", {})
    message = refusal(edit(STUDY, "evaluations", {"detection": ["fist"]}))
    assert "evaluations: detection: there is no row 'fist'; did you mean 'first'?" in message
    assert "speed" in refusal(edit(STUDY, "evaluations", {"speed": ["first"]}))


def test_unknown_names_of_a_project(tiny_config):
    project = load(tiny_config)
    for ask in (project.run, project.study):
        with pytest.raises(UserError, match="'nothing'"):
            ask("nothing")
    run = project.of("one")["first"]
    assert project.run(run.id) == run.run
    assert run.id == run_id(run.run)


def test_a_run_is_named_by_its_row_or_its_id(pytestconfig):
    project = load(pytestconfig.rootpath / "config", scale="demo")
    for cell in project.cells:
        assert project.id_of(f"{cell.study}/{cell.row}") == project.id_of(cell.id) == cell.id
    assert len({project.id_of(f"{study}/untrained") for study in project.studies}) == 2
    with pytest.raises(UserError, match="falcon/untrained or feature_augmentation/untrained$"):
        project.id_of("untrained")
    with pytest.raises(UserError, match="did you mean 'barlow-twins'"):
        project.id_of("falcon/barlow-twin")


def test_run_yaml_gives_the_run_back(tiny_run, tmp_path):
    """What `pretrain` writes beside the weights and `extract` reads."""
    run = tiny_run("two_branch", optimizer={"lr": 1e-5, "weight_decay": 1e-20})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert build_run([read_yaml(path)], "x") == run


def test_shipped_configuration_resolves(pytestconfig):
    project = load(pytestconfig.rootpath / "config")
    assert {cell.study for cell in project.cells} == set(project.config.studies)
    for cell in project.cells:
        assert cell.id.startswith(f"{cell.run.dataset.name}-{cell.run.backbone.name}x")


def test_the_schema_file_is_current(pytestconfig):
    path = pytestconfig.rootpath / "workflow/schemas/config.schema.json"
    assert json.loads(path.read_text()) == schema(), f"python -m peregrine schema > {path}"
    assert schema()["additionalProperties"] is False
