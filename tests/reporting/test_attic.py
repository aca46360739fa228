"""What a rerun is about to replace is kept, once, and only if it is not of today."""

import pytest
from small_world import PARTS, World

from peregrine import places
from peregrine.config import fingerprint
from peregrine.errors import UserError
from peregrine.reporting.attic import keep_older

CODE = {"pretrain": "now"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two rows of three seeds; `CODE` is today's, by step."""
    CODE.clear()
    monkeypatch.setattr(fingerprint, "fingerprint", lambda step, method=None: CODE.get(step, "now"))
    monkeypatch.setattr(fingerprint, "parts", lambda step, method=None: PARTS)
    return World(tmp_path)


def kept(world, seeds=(0, 1, 2)):
    run = world.project.of("toy")["small"].id
    return run, keep_older(world.project, world.results, [(run, seed) for seed in seeds])


def test_what_is_of_today_is_not_kept(world):
    assert kept(world)[1] == []
    assert not (world.results / "attic").exists()


@pytest.mark.parametrize("step", ["pretrain", "evaluate", "extract"])
def test_results_of_older_code_are_kept_whole_and_outlive_a_rerun(world, step):
    run = world.project.of("toy")["small"].id
    own = places.own_folder(world.results, run, 1)
    (own / "resume").mkdir(exist_ok=True)
    for name in ("resume/lock", "corrected/features.safetensors", ".tmp-1-history.csv"):
        (own / name).write_bytes(b"not kept")
    before = {
        path.relative_to(own): path.read_bytes()
        for path in own.rglob("*")
        if path.is_file() and path.read_bytes() != b"not kept"
    }
    assert len(before) > 6
    CODE[step] = "of tomorrow"
    place = world.results / "attic" / run / "seed-1" / "1"
    assert kept(world, [1]) == (run, [place])
    assert kept(world, [1, 1])[1] == []  # a rerun that was killed before it began
    for name in before:
        (own / name).unlink()  # as Snakemake does
        (own / name).write_bytes(b"another")
    found = {p.relative_to(place): p.read_bytes() for p in place.rglob("*") if p.is_file()}
    assert found == before


def test_results_of_data_that_are_prepared_again_are_kept(world):
    """Before `prepare` nobody knows whether the images change; afterwards Snakemake has deleted."""
    small = world.project.of("toy")["small"]
    (places.own_folder(world.results, small.id, 1) / "outcome.json").unlink()
    seeds = [(small.id, seed) for seed in range(3)]
    assert keep_older(world.project, world.results, seeds, {"another"}) == []
    found = keep_older(world.project, world.results, seeds, {small.run.dataset.name})
    assert [place.parent.name for place in found] == ["seed-0", "seed-2"]


def test_a_second_change_is_a_second_folder(world):
    CODE["pretrain"] = "of tomorrow"
    run, (first,) = kept(world, [0])
    outcome = places.own_folder(world.results, run, 0) / "outcome.json"
    text = outcome.read_bytes()
    outcome.unlink()
    outcome.write_bytes(text)  # made again
    assert kept(world, [0])[1] == [first.with_name("2")]


def test_damaged_and_missing_results_are_not_kept(world):
    CODE["pretrain"] = "of tomorrow"
    run = world.project.of("toy")["small"].id
    (places.own_folder(world.results, run, 0) / "manifest.json").write_text("{")
    (places.own_folder(world.results, run, 1) / "outcome.json").unlink()
    assert [place.parent.name for place in kept(world)[1]] == ["seed-2"]


def test_without_links_files_are_copied(world, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links on this file system")

    monkeypatch.setattr(places.os, "link", refuse)
    CODE["pretrain"] = "of tomorrow"
    run, (place,) = kept(world, [0])
    own = places.own_folder(world.results, run, 0)
    assert (place / "outcome.json").read_bytes() == (own / "outcome.json").read_bytes()
    assert not (place / "outcome.json").samefile(own / "outcome.json")


def test_an_attic_that_cannot_be_written_is_a_line(world):
    CODE["pretrain"] = "of tomorrow"
    (world.results / "attic").write_text("no folder")
    with pytest.raises(UserError, match="cannot be kept in"):
        kept(world, [0])
