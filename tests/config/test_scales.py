"""Scales that are like another: what they lay over it, and which of them are refused."""

import pytest
import yaml

from peregrine.config.load import load
from peregrine.errors import UserError

SCALE = "scales/tiny.yaml"


def edit(folder, name, **content):
    """Lay values over the top of a file."""
    path = folder / name
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | content))


def other_scale(folder, **content):
    content = {"name": "other", "description": "d", **content}
    (folder / "scales" / "other.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_scale_like_another_says_what_differs(tiny_config):
    run = {"batch_size": 12, "optimizer": {"lr": 0.1}}
    edit(tiny_config, SCALE, run=run, studies={"one": {"rows": ["first"]}})
    other_scale(tiny_config, like="tiny", seeds=[0], run={"optimizer": {"lr": 0.4}})
    project = load(tiny_config, scale="other")
    assert (project.scale.name, project.scale.seeds) == ("other", (0,))
    (cell,) = project.cells
    assert (cell.row, cell.run.batch_size, cell.run.optimizer.lr) == ("first", 12, 0.4)


def test_factors_come_after_all_else(tiny_config):
    lr = {"first": {"optimizer": {"lr": 0.1}}, "nan": {"optimizer": {"lr": 1e29}}}
    edit(tiny_config, SCALE, studies={"one": {"row": lr}})
    other_scale(
        tiny_config, like="tiny", times={"optimizer.lr": 2, "epochs": 1.5, "batch_size": 0.5}
    )
    first, nan = load(tiny_config, scale="other").cells
    assert (first.run.optimizer.lr, nan.run.optimizer.lr) == (0.2, 2e29)
    assert (first.run.epochs, first.run.batch_size) == (3, 12)
    plain = load(tiny_config, scale="tiny").cells[0].run
    assert first.run == plain.model_copy(
        update={
            "epochs": 3,
            "batch_size": 12,
            "optimizer": plain.optimizer.model_copy(update={"lr": 0.2}),
        }
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"like": "tiny", "times": {"epochs": 1e308}}, ["row first", "is not whole"]),
        ({"like": "a/b"}, ["other.yaml", "no other scale 'a/b'"]),
        ({"like": "tinny"}, ["other.yaml", "like", "'tinny'", "did you mean 'tiny'?"]),
        ({"like": "other"}, ["other.yaml", "no other scale 'other'"]),
        ({"like": "third"}, ["other.yaml", "'third' is itself like another"]),
        ({"like": "tiny", "times": {"epochs": 0.3}}, ["row first", "epochs 2 times 0.3", "whole"]),
        ({"like": "tiny", "times": {"views": 2}}, ["row first", "option 'views' is not a number"]),
        ({"like": "tiny", "times": {"batch": 2}}, ["row first", "option 'batch' is not a number"]),
        ({"like": "tiny", "times": {"epochs": 0}}, ["other.yaml", "times.epochs", "greater"]),
    ],
)
def test_a_scale_like_nothing_or_times_nonsense_is_refused(tiny_config, content, words):
    third = {"name": "third", "like": "tiny"}
    (tiny_config / "scales" / "third.yaml").write_text(yaml.safe_dump(third))
    with pytest.raises(UserError) as error:
        load(other_scale(tiny_config, **content), scale="other")
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_a_description_of_its_own_is_asked_for(tiny_config):
    (tiny_config / "scales" / "other.yaml").write_text("name: other\nlike: tiny\n")
    with pytest.raises(UserError, match="description is missing"):
        load(tiny_config, scale="other")


def test_a_file_that_is_no_scale_stops_no_other(tiny_config):
    (tiny_config / "scales" / "half.yaml").write_text("name: [")
    (tiny_config / "scales" / ".#tiny.yaml").symlink_to("nobody@nowhere")
    other_scale(tiny_config, like="tiny")
    assert load(tiny_config).variations == ("other",)


def test_a_further_look_is_no_variation(tiny_config):
    other_scale(tiny_config, like="tiny", seeds=[0, 1, 2], looks=2)
    assert load(tiny_config).variations == ()
    look, first = load(tiny_config, scale="other"), load(tiny_config)
    assert look.scale.looks == 2
    assert [cell.id for cell in look.cells] == [cell.id for cell in first.cells]  # same seeds serve


def test_a_factor_may_miss_a_whole_number_by_rounding(tiny_config):
    edit(tiny_config, SCALE, run={"epochs": 100})
    other_scale(tiny_config, like="tiny", times={"epochs": 1.1})
    assert load(tiny_config, scale="other").cells[0].run.epochs == 110
