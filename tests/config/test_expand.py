"""Families of a study: what `for_each` and `like` write out, and what they refuse."""

import pytest
from pydantic import ValidationError

from peregrine.config.expand import expand
from peregrine.config.load import load, resolve
from peregrine.config.models import Scale
from peregrine.config.study import Study
from peregrine.errors import UserError

SCALE = Scale(name="any", description="", seeds=(0,))


def test_without_for_each_nothing_changes():
    data = {"a": [1, {"b": "{c} {x.y}"}, None], 3: True}
    assert expand(data) == data


def test_an_entry_is_written_out_under_its_own_key():
    row = {"for_each": {"c": [16, 256]}, "label": "c = {c}", "run": {"codes": "{c}", "on": True}}
    assert expand({"rows": {"first": {}, "c{c}": row}}) == {
        "rows": {
            "first": {},
            "c16": {"label": "c = 16", "run": {"codes": 16, "on": True}},
            "c256": {"label": "c = 256", "run": {"codes": 256, "on": True}},
        }
    }


def test_the_last_name_varies_fastest_and_values_have_parts():
    item = {
        "for_each": {
            "data": {"": {"label": "none", "rows": ["a", "b"]}, "-x": {"label": "X", "rows": []}},
            "beta": [0.5, 2],
        },
        "id": "t{data}-{beta}",
        "rows": "{data.rows}",
        "title": "{data.label}",
    }
    assert expand([item, "{beta}"]) == [
        {"id": "t-0.5", "rows": ["a", "b"], "title": "none"},
        {"id": "t-2", "rows": ["a", "b"], "title": "none"},
        {"id": "t-x-0.5", "rows": [], "title": "X"},
        {"id": "t-x-2", "rows": [], "title": "X"},
        "{beta}",  # outside of a copy braces mean nothing
    ]


def test_an_inner_for_each_sees_the_outer_names():
    inner = {"for_each": {"k": ["{c}", 9]}, "label": "{c}/{k}"}
    assert expand([{"for_each": {"c": [1, 2]}, "tests": [inner]}]) == [
        {"tests": [{"label": "1/1"}, {"label": "1/9"}]},
        {"tests": [{"label": "2/2"}, {"label": "2/9"}]},
    ]


def test_a_list_in_a_list_is_spliced():
    assert expand({"rows": ["a", ["b", ["c"]], [], "d"]}) == {"rows": ["a", "b", "c", "d"]}
    parts = {"for_each": {"net": {"x": {"own": ["b", "c"]}}}, "rows": ["a{net}", "{net.own}"]}
    assert expand([parts]) == [{"rows": ["ax", "b", "c"]}]


def test_each_copies_what_is_no_mapping():
    names = {"for_each": {"op": {"nn": {"over": "x"}, "mask": {"over": "y"}}}}
    assert expand(
        {"rows": ["a", names | {"each": "b-{op}"}], "{op}": names | {"each": "{op.over}"}}
    ) == {
        "rows": ["a", "b-nn", "b-mask"],
        "nn": "x",
        "mask": "y",
    }
    inner = {"for_each": {"k": [1, 2]}, "label": "{c}{k}"}
    assert expand([{"for_each": {"c": ["p"]}, "each": [inner, "{c}"]}]) == [
        {"label": "p1"},
        {"label": "p2"},
        "p",
    ]
    # Beside anything else `each` is a key like any other.
    assert expand([{"for_each": {"k": [1]}, "each": 3, "x": "{k}"}]) == [{"each": 3, "x": 1}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a{c}": {"for_each": {"c": [1]}, "x": "{b.label}"}}, "no 'b.label'; did you mean"),
        ([{"for_each": {"c": {"k": {"label": "K"}}}, "x": "{c.lable}"}], "'c.label'?"),
        ({"a": {"for_each": {"c": [1, 2]}}}, "key 'a' comes out twice of 'a'"),
        ({"a1": {}, "a{c}": {"for_each": {"c": [1]}}}, "key 'a1' comes out twice of 'a{c}'"),
        ([{"for_each": ["c"]}], "for_each: expected"),
        ([{"for_each": {"c": []}}], "for_each: expected"),
        ([{"for_each": {"c": 3}}], "for_each: expected"),
        ([{"for_each": {True: [1]}}], "for_each: expected"),  # YAML's `on:`
    ],
)
def test_refused(data, words):
    with pytest.raises(UserError) as error:
        expand(data)
    assert words in str(error.value) and "\n" not in str(error.value)


def study(**rows) -> Study:
    text = dict.fromkeys(("title", "paper", "summary"), "")
    parts = {key: [] for key in ("tables", "figures", "claims", "assumptions")}
    method = {"preset": "small"}
    defaults = {"dataset": {"name": "digits"}, "views": [{}], "method": method, "epochs": 3}
    return Study(name="one", **text, **parts, defaults=defaults, rows=rows)


PRESETS = {"methods": {"small": {"name": "falcon", "codes": 8}, "other": {"name": "gedi"}}}


def test_a_row_like_another_is_laid_over_it():
    rows = {
        "a": {"label": "A", "run": {"method": {"beta": 2.0}, "batch_size": 32}},
        "b": {"label": ", more", "like": "a", "run": {"method": {"codes": 4}, "epochs": 7}},
        "c": {"label": ", still", "like": "b", "run": {"method": {"preset": "other"}}},
        "d": {"label": "own", "like": "b"},
    }
    cells = {cell.row: cell for cell in resolve(study(**rows), SCALE, PRESETS)}
    assert [cell.label for cell in cells.values()] == ["A", "A, more", "A, more, still", "own"]
    a, b, c, d = (cell.run for cell in cells.values())
    assert (a.method["codes"], a.method["beta"], a.batch_size, a.epochs) == (8, 2.0, 32, 3)
    assert (b.method["codes"], b.method["beta"], b.batch_size, b.epochs) == (4, 2.0, 32, 7)
    # Another method starts afresh, the rest stays.
    assert (c.method["name"], c.method["beta"], c.batch_size, c.epochs) == ("gedi", 0.1, 32, 7)
    assert d == b and cells["d"].id == cells["b"].id


def test_a_row_is_like_an_earlier_one():
    for rows in ({"a": {"label": "A", "like": "b"}, "b": {"label": "B"}},
                 {"a": {"label": "A", "like": "a"}}):  # fmt: skip
        with pytest.raises(ValidationError, match="row a is like '[ab]', which must stand before"):
            study(**rows)


def test_the_place_of_a_mistake_is_named(tiny_config):
    path = tiny_config / "studies/one.yaml"
    rows = "rows: {first: {for_each: {c: [1]}, label: '{d}'}}\n"
    path.write_text(rows + path.read_text().replace("rows:", "old:"))
    with pytest.raises(UserError, match="one.yaml: for_each gives no 'd'; did you mean 'c'"):
        load(tiny_config)
