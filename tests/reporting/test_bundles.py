"""Bundles: packed and adopted they complete a study; anything wrong with them is refused."""

import io
import json
import lzma
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from small_world import World

from peregrine import files, places
from peregrine.errors import UserError
from peregrine.reporting.bundles import INDEX, WEIGHTS, adopt, bundle

SEEDS = 6  # two rows, three seeds


@pytest.fixture
def home(tmp_path, fixed_code):
    """Where the results were made."""
    world = World(tmp_path / "home")
    world.ready_to_pack()
    return world


@pytest.fixture
def away(tmp_path, fixed_code):
    """The same configuration without a result."""
    world = World(tmp_path / "away")
    shutil.rmtree(world.results)
    return world


@pytest.fixture
def packed(home, tmp_path):
    path = tmp_path / "all.tar.xz"
    assert bundle(home.project, home.results, path) == (SEEDS, [])
    return path


def members(path):
    with lzma.open(path) as plain, tarfile.open(fileobj=plain) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isreg()}


def rewrite(path, contents, index=None, header=None):
    """The archive with other contents; sums of bundle.json are made right unless it is given."""
    contents = dict(contents)
    old = json.loads(contents.pop(INDEX))
    entries = {n: {"size": len(d), "sha256": sum_of(d)} for n, d in contents.items()}
    text = json.dumps(index or old | {"files": entries}).encode()
    with lzma.open(path, "w") as squeezed, tarfile.open(fileobj=squeezed, mode="w") as archive:
        for name, data in {INDEX: text, **contents}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if header and name != INDEX:
                header(info)
            archive.addfile(info, io.BytesIO(data if info.isreg() else b""))


def sum_of(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_the_same_results_make_the_same_bytes(home, packed, tmp_path):
    again = tmp_path / "again.tar.xz"
    for path in home.results.rglob("*"):
        os.utime(path, (1, 1))
    bundle(home.project, home.results, again)
    assert again.read_bytes() == packed.read_bytes()


def test_a_bundle_of_metrics_has_no_weights_and_no_features(packed):
    names = {name.rpartition("/")[2] for name in members(packed)}
    assert not names & {*WEIGHTS, "features.safetensors"}
    assert {"outcome.json", "run.yaml", "history.csv", "linear-standard.json"} <= names


def test_an_adopted_study_has_the_tables_of_the_one_that_was_packed(home, away, packed):
    lines = adopt(away.project, away.results, packed)
    assert len(lines) == SEEDS and all(line.endswith(": adopted") for line in lines)
    for name in ("metrics.csv", "claims.json", "tables/main.csv"):
        assert (home.collect() / name).read_bytes() == (away.collect() / name).read_bytes()
    assert away.states("large") == [("finished", "adopted")] * 3


def test_weights_come_along_when_asked_for(home, away, tmp_path):
    path = tmp_path / "weights.tar.xz"
    bundle(home.project, home.results, path, [home.project.of("toy")["small"].id], weights=True)
    assert len(adopt(away.project, away.results, path)) == 3
    run = away.project.of("toy")["small"].id
    place = places.seed_folder(away.results, run, 0)
    assert all((place / name).is_file() for name in WEIGHTS)


def test_adopted_metrics_can_be_passed_on_but_not_their_weights(away, packed, tmp_path):
    adopt(away.project, away.results, packed)
    again = tmp_path / "again.tar.xz"
    assert bundle(away.project, away.results, again)[0] == SEEDS
    assert again.read_bytes() == packed.read_bytes()
    with pytest.raises(UserError, match="its weights are not here"):
        bundle(away.project, away.results, tmp_path / "w.tar.xz", weights=True)


def test_a_part_of_a_campaign_has_neither_adopted_seeds_nor_matrices_that_no_figure_shows(
    home, away, tmp_path
):
    run = home.project.of("toy")["small"].id
    for seed in range(3):
        for name in ("matrices.safetensors", "spectrum.csv"):
            files.write_text(home.folder("small", seed) / "corrected" / name, "m")
    part, rest = tmp_path / "part.tar.xz", tmp_path / "rest.tar.xz"

    def matrices_of(project):
        assert bundle(project, home.results, part, [run], slim=True)[0] == 3
        return [name for name in members(part) if "matrices" in name]

    def spectra():
        return sum(name.endswith("spectrum.csv") for name in members(part))

    assert matrices_of(home.project) == [] and spectra() == 3
    study, scale = home.project.studies["toy"], home.project.scale
    maps = (SimpleNamespace(kind="map", rows=["small"]),)
    drawn = replace(home.project, studies={"toy": study.model_copy(update={"figures": maps})})
    of_the_first = [f"{run}/seed-0/corrected/matrices.safetensors"]
    assert matrices_of(drawn) == of_the_first
    varied = replace(drawn, scale=scale.model_copy(update={"like": "other"}))
    assert matrices_of(varied) == [] and spectra() == 0
    second_look = varied.scale.model_copy(update={"looks": 2})
    assert matrices_of(replace(varied, scale=second_look)) == of_the_first
    assert spectra() == 3
    kinds = [name.rsplit("/", 1)[1] for name in members(part) if name != INDEX]
    assert kinds == sorted(kinds)
    # `away` has its own seeds of `large` alone, and adopts `small`.
    for seed in range(3):
        shutil.rmtree(away.folder("small", seed), ignore_errors=True)
    adopt(away.project, away.results, part)
    for seed in range(3):
        away.seed("large", seed, 0.7)
        run_yaml = home.folder("large", seed) / "run.yaml"
        files.write_text(away.folder("large", seed) / "run.yaml", run_yaml.read_text())
    count, others = bundle(away.project, away.results, rest, own=True)
    assert count == 3 and not any(run in name for name in members(rest))
    assert [line for line in others if line.startswith(run)] == [
        f"{run}, seed {seed}: missing" for seed in range(3)
    ]


def test_what_is_not_finished_is_named_and_left_out(home, tmp_path):
    home.drop("small", 1, "linear")
    home.ended("large", 2, "collapsed")  # a result
    count, others = bundle(home.project, home.results, tmp_path / "b.tar.xz")
    assert count == SEEDS - 1
    assert others == [f"{home.project.of('toy')['small'].id}, seed 1: incomplete"]


def test_adopted_twice_is_adopted_once(away, packed):
    adopt(away.project, away.results, packed)
    assert all(
        line.endswith("is here already") for line in adopt(away.project, away.results, packed)
    )
    assert not (away.results / "attic").exists()


def test_other_results_of_the_same_seed_send_the_old_ones_to_the_attic(home, away, packed):
    adopt(away.project, away.results, packed)
    home.seed("small", 1, 0.9)
    bundle(home.project, home.results, packed)
    run = home.project.of("toy")["small"].id
    said = adopt(away.project, away.results, packed)
    assert [line for line in said if "attic" in line] == [
        f"{run}, seed 1: adopted; what was here before is in"
        f" {away.results / 'attic' / run / 'seed-1' / '1'}"
    ]
    old = away.results / "attic" / run / "seed-1" / "1" / "corrected" / "linear-standard.json"
    assert files.read_json(old)["all"]["accuracy"] == 0.51
    new = places.seed_folder(away.results, run, 1) / "corrected" / "linear-standard.json"
    assert files.read_json(new)["all"]["accuracy"] == 0.9


def test_results_made_here_stay_and_win(home, packed):
    lines = adopt(home.project, home.results, packed)
    assert all(line.endswith("has results of its own here, which stay") for line in lines)
    run = home.project.of("toy")["small"].id
    assert places.seed_folder(home.results, run, 0) == home.folder("small", 0)


def test_a_file_changed_after_it_was_adopted_is_named(away, packed):
    adopt(away.project, away.results, packed)
    run = away.project.of("toy")["small"].id
    (places.adopted_folder(away.results, run, 0) / "timing.csv").write_text("epoch,seconds\n")
    with pytest.raises(UserError, match=r"timing\.csv is missing or was changed"):
        away.collect()


def first(contents, end):
    return min(name for name in contents if name.endswith(end))


def changed(name, data):
    return lambda contents: contents | {first(contents, name): data}


def stated(name, **entries):
    """The first file `name` with other entries and a right sum of its content."""

    def edit(contents):
        found = json.loads(contents[first(contents, name)])
        with TemporaryDirectory() as folder:
            files.write_json(Path(folder, name), found | entries)
            return changed(name, Path(folder, name).read_bytes())(contents)

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (changed("linear-standard.json", b"{}"), r"xz: \S+/linear-standard.json is damaged; copy"),
        (stated("linear-standard.json", all={"accuracy": 7.5}), "accuracy is 7.5, and a share"),
        (stated("linear-standard.json", all={"top": 10**400}), "linear/all is too large"),
        (stated("outcome.json", online_probe_accuracy="abc"), "lacks a usable entry"),
        (stated("outcome.json", online_probe_accuracy=[1]), "lacks a usable entry"),
        (stated("outcome.json", detail=["a"]), "lacks a usable entry"),
        (changed("run.yaml", b"a: [\n"), "run.yaml"),
        (changed("run.yaml", b"x" * (2**18 + 1)), "too large for a run"),
        (changed("history.csv", b"epoch\n"), "is missing or was changed"),
        (
            lambda c: {n: d for n, d in c.items() if not n.endswith("run.yaml")},
            "run.yaml is missing",
        ),
        (lambda c: {n: d for n, d in c.items() if "outcome" not in n}, "incomplete"),
        (lambda c: c | {"../../evil": b"x"}, "no file of a bundle"),
        (lambda c: c | {"/etc/evil": b"x"}, "no file of a bundle"),
        (lambda c: c | {"run/seed-0/corrected/../../evil": b"x"}, "no file of a bundle"),
        (lambda c: c | {"run/seed-0/.ssh": b"x"}, "no file of a bundle"),
        (lambda c: c | {"other-run/seed-0/run.yaml": b"x"}, "none of the 2 runs"),
    ],
)
def test_a_foreign_or_changed_bundle_is_refused_and_nothing_is_kept(away, packed, edit, said):
    rewrite(packed, edit(members(packed)))
    with pytest.raises(UserError, match=said):
        adopt(away.project, away.results, packed)
    assert not list((away.results / "adopted").rglob("*"))


def test_sums_sizes_and_kinds_of_members_are_checked(away, packed):
    contents = members(packed)
    index = json.loads(contents[INDEX])
    name = first(contents, "timing.csv")
    same_size = contents | {name: contents[name][::-1]}
    rewrite(packed, same_size, index)
    with pytest.raises(UserError, match=f"{name} was changed after it was packed"):
        adopt(away.project, away.results, packed)
    rewrite(packed, contents | {name: b"longer" * 9}, index)
    with pytest.raises(UserError, match="has another size"):
        adopt(away.project, away.results, packed)
    rewrite(packed, {n: d for n, d in contents.items() if n != name}, index)
    with pytest.raises(UserError, match=f"lacks {name}"):
        adopt(away.project, away.results, packed)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):

        def header(info, kind=kind):
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0

        rewrite(packed, contents, index, header)
        with pytest.raises(UserError, match="does not belong into it"):
            adopt(away.project, away.results, packed)
    assert not list((away.results / "adopted").rglob("*"))


def test_a_bomb_is_stopped_by_the_sizes_that_are_allowed(away, packed):
    contents = members(packed)
    name = first(contents, "timing.csv")
    index = json.loads(contents[INDEX])
    index["files"][name]["size"] = 2**40
    rewrite(packed, contents, index)
    with pytest.raises(UserError, match="no file of a bundle of metrics"):
        adopt(away.project, away.results, packed)


@pytest.mark.parametrize("data", [b"", b"not xz", lzma.compress(b""), lzma.compress(b"x" * 2000)])
def test_what_is_no_bundle_is_called_so(away, tmp_path, data):
    path = tmp_path / "b.tar.xz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"b\.tar\.xz is no (whole )?bundle"):
        adopt(away.project, away.results, path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_bundle_is_refused(away, packed, share):
    data = packed.read_bytes()
    packed.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="is no whole bundle|lacks"):
        adopt(away.project, away.results, packed)
    assert not list((away.results / "adopted").rglob("*"))


def test_seeds_that_differ_in_code_are_mixed_also_when_adopted(home, away, packed):
    adopt(away.project, away.results, packed)
    for seed in (1, 2):
        home.manifest("small", seed, code="then")
    path = packed.with_name("other.tar.xz")
    bundle(home.project, home.results, path, [home.project.of("toy")["small"].id])
    adopt(away.project, away.results, path)
    assert [status for status, _ in away.states("small")] == ["mixed"] * 3


def test_a_training_here_sends_what_was_adopted_to_the_attic(home, away, packed):
    adopt(away.project, away.results, packed)
    run = away.project.of("toy")["small"].id
    assert places.retire(away.results, run, 0) == away.results / "attic" / run / "seed-0" / "1"
    assert places.retire(away.results, run, 0) is None
    assert not places.is_adopted(places.seed_folder(away.results, run, 0))
    assert away.states("small")[0] == ("missing", "")
