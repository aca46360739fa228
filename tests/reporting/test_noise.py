"""The noise floor: replicates beside the seeds they repeat, counted nowhere else."""

import csv
import json
import math
import shutil
from dataclasses import replace

import pytest
from small_world import REPOSITORY as ROOT
from small_world import World

from peregrine import files, places
from peregrine.config.load import resolve
from peregrine.errors import UserError
from peregrine.reporting.bundles import adopt, bundle
from peregrine.reporting.collect import collect
from peregrine.reporting.document import document, read_study
from peregrine.reporting.noise import FLOOR, PAIRS, printed_noise
from peregrine.reporting.report import report
from peregrine.reporting.status import states


@pytest.fixture
def here(tmp_path, fixed_code):
    """Linear accuracy .50, .51, .52 of small and .70, .71, .72 of large; on one thread."""
    return world(tmp_path / "here", threads=1)


@pytest.fixture
def elsewhere(tmp_path, fixed_code):
    """The same numbers, trained again on two threads."""
    return world(tmp_path / "elsewhere", threads=2)


def world(root, threads):
    made = World(root)
    made.ready_to_pack(seconds=2.5 + threads)
    for row in ("small", "large"):
        for seed in range(3):
            made.manifest(row, seed, threads=threads)
    return made


def bring(there, here, name="threads-2", rows=("small", "large")):
    path = there.config / "packed.tar.xz"
    bundle(there.project, there.results, path, [there.project.of("toy")[row].id for row in rows])
    return adopt(here.project, here.results, path, name)


def moved(there, row, seed, accuracy):
    there.seed(row, seed, accuracy)
    there.manifest(row, seed, threads=2)


def lines(here, name):
    with (here.collect() / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def seeds(here):
    """(row, seed) -> (state, differs) of each pair."""
    return {
        (line["row"], int(line["seed"])): (line["state"], line["differs"])
        for line in lines(here, PAIRS)
    }


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_differences_and_the_floor_are_what_the_definitions_give(here, elsewhere):
    for row, seed, accuracy in (("small", 0, 0.503), ("small", 1, 0.506), ("large", 1, 0.722)):
        moved(elsewhere, row, seed, accuracy)
    bring(elsewhere, here)
    pairs = lines(here, PAIRS)
    linear = {
        (p["row"], int(p["seed"])): float(p["difference"])
        for p in pairs
        if p["metric"] == "linear/accuracy"
    }
    assert linear == pytest.approx(
        {
            **{("small", 0): 0.003, ("small", 1): -0.004, ("small", 2): 0},
            **{("large", 0): 0, ("large", 1): 0.012, ("large", 2): 0},
        },
        abs=1e-12,
    )
    for pair in pairs:
        assert float(pair["difference"]) == float(pair["other"]) - float(pair["value"])
    assert {p["differs"] for p in pairs} == {"threads: 1 here, 2 there"}
    assert {p["protocol"] for p in pairs if p["metric"] == "linear/accuracy"} == {"standard"}
    # Also what is no metric of the floor.
    assert {"collapse/features/rankme", "online_probe/accuracy"} < {p["metric"] for p in pairs}

    floor = {line["metric"]: line for line in lines(here, FLOOR) if line["of"] == "rows"}
    # No codes in this world.
    assert list(floor) == ["linear/accuracy", "few/accuracy", "knn/accuracy", "kmeans/ami"]
    one = floor["linear/accuracy"]
    rms = math.sqrt((9 + 16 + 144) / 6) * 1e-3
    assert float(one["rms"]) == pytest.approx(rms, abs=5e-7)
    assert (float(one["largest"]), one["pairs"], one["items"]) == (0.012, "6", "2")
    # Two rows of a, a + .01, a + .02: variance 1e-4 each.
    assert (float(one["seed_sd"]), one["seed_items"], one["seed_values"]) == (0.01, "2", "6")
    assert [float(floor["kmeans/ami"][key]) for key in ("rms", "largest", "seed_sd")] == [0, 0, 0]


def test_the_sd_is_of_the_rows_that_have_a_replicate(here, elsewhere):
    here.seed("large", 0, 0.1)
    here.manifest("large", 0, threads=1)
    bring(elsewhere, here, rows=["small"])
    line = lines(here, FLOOR)[0]
    assert (line["pairs"], line["items"], line["seed_sd"]) == ("3", "1", "0.01")


def test_a_contrast_moves_by_the_difference_of_its_rows(here, elsewhere):
    """large - small is .2 on every seed but .23 on the last, where large is .75."""
    here.seed("large", 2, 0.75)
    here.manifest("large", 2, threads=1)
    moved(elsewhere, "large", 2, 0.75)
    for row, seed, accuracy in (("small", 0, 0.503), ("large", 0, 0.703), ("large", 1, 0.722)):
        moved(elsewhere, row, seed, accuracy)
    bring(elsewhere, here)
    floor = lines(here, FLOOR)
    (one,) = [line for line in floor if line["of"] == "contrasts"]
    assert (one["metric"], one["pairs"], one["items"]) == ("linear/accuracy", "3", "1")
    # 0 where both rows move by .003, .012 where one moves alone, 0.
    assert float(one["rms"]) == pytest.approx(math.sqrt(144 / 3) * 1e-3, abs=5e-7)
    assert float(one["largest"]) == 0.012
    # .2, .2, .23: variance (.01^2 + .01^2 + .02^2) / 2.
    assert float(one["seed_sd"]) == pytest.approx(math.sqrt(3) / 100, abs=5e-7)
    assert (one["seed_items"], one["seed_values"]) == ("1", "3")
    said = printed(here)["read"][0]["text"]
    assert (
        "It moves a contrast of rows in the linear probe by 0.69 points (root mean square of 3"
        " pairs, 1 contrast), another seed by 2.45 points (3 seeds of 1 contrast): 28 % of that."
    ) in said


def test_a_replicate_of_one_row_has_no_contrast(here, elsewhere):
    moved(elsewhere, "small", 0, 0.503)
    bring(elsewhere, here, rows=["small"])
    assert {line["of"] for line in lines(here, FLOOR)} == {"rows"}
    assert "It has no seed of all rows of a contrast." in printed(here)["read"][0]["text"]


def test_a_contrast_asks_for_the_same_seed_of_all_its_rows(here, elsewhere):
    moved(elsewhere, "small", 0, 0.503)
    moved(elsewhere, "large", 1, 0.722)
    elsewhere.manifest("large", 0, code="then")
    elsewhere.manifest("large", 2, code="then")
    bring(elsewhere, here)
    (one,) = [line for line in lines(here, FLOOR) if line["of"] == "contrasts"]
    assert (one["pairs"], one["rms"], one["largest"]) == ("1", "0.012", "0.012")


def test_a_repeat_of_the_same_bytes_is_identical(here, elsewhere):
    bring(elsewhere, here)
    assert {state for state, _ in seeds(here).values()} == {"identical"}
    assert all(float(p["difference"]) == 0 for p in lines(here, PAIRS))
    [said] = printed(here)["read"]
    assert said["text"] == (
        "Threads: 1 here, 2 there. All 6 seeds are identical to ours to the last bit: weights,"
        " history and metrics."
    )


def test_equal_metrics_of_another_history_are_not_identical(here, elsewhere):
    folder = elsewhere.folder("small", 0)
    sums = elsewhere.weights("small", 0)
    files.write_text(folder / "history.csv", "epoch\n1\n")
    elsewhere.outcome(
        "small", 0, files=sums | {"history.csv": files.sha256(folder / "history.csv")}
    )
    bring(elsewhere, here)
    found = {place for place, (state, _) in seeds(here).items() if state == "moved"}
    assert found == {("small", 0)}
    assert "5 of 6 seeds are identical to ours." in printed(here)["read"][0]["text"]


def test_other_weights_with_equal_metrics_are_not_identical(here, elsewhere):
    elsewhere.outcome("small", 0, files=elsewhere.weights("small", 0, "moved"))
    for kind in ("linear", "knn", "clustering", "collapse"):
        elsewhere.edit("small", 0, kind, elsewhere.facts("small", 0, kind)["provenance"])
    bring(elsewhere, here)
    assert seeds(here)["small", 0][0] == "moved"
    assert seeds(here)["small", 1][0] == "identical"


def printed(here):
    folder = here.collect()
    study = here.project.study("toy")
    return document(here.project, study, read_study(folder), here.config)["printed"]["noise"]


def test_the_report_reads_the_numbers(here, elsewhere):
    moved(elsewhere, "small", 0, 0.503)
    bring(elsewhere, here, rows=["small"])
    shown = printed(here)
    # rms sqrt(9 / 3) = 1.73 thousandths; sd 1 point, sqrt 2 of it between two seeds.
    assert shown["rows"][0] == [
        *("threads-2", "linear probe", "3 (1 row)"),
        *("0.17 points", "0.30 points", "1.41 points", "1.00 points (3 seeds of 1 row)"),
    ]
    zero = "0.0000 (3 seeds of 1 row)"
    assert shown["rows"][-1][1:] == ["AMI of k-means", "3 (1 row)", *["0.0000"] * 3, zero]
    assert shown["read"][0]["text"] == (
        "Threads: 1 here, 2 there. It moves the linear probe by 0.17 points (root mean square of 3"
        " pairs, 1 row), another seed by 1.41 points (3 seeds of 1 row): 12 % of that. It has no"
        " seed of all rows of a contrast. 2 of 3 seeds are identical to ours."
    )


def test_rows_of_one_seed_have_no_sd():
    line = {"replicate": "gpu", "of": "rows", "metric": "linear/accuracy", "pairs": "1"}
    line |= {"items": "1", "rms": "0.004", "largest": "0.004"}
    line |= {"seed_items": "0", "seed_values": "0", "seed_sd": ""}
    pair = {"replicate": "gpu", "run": "r", "seed": "0", "label": "L", "state": "moved"}
    shown = printed_noise([pair | {"differs": ""}], [line], "mini")
    assert shown["rows"] == [
        ["gpu", "linear probe", "1 (1 row)", "0.40 points", "0.40 points", "\u2013", "\u2013"]
    ]
    assert shown["read"][0]["text"] == (
        "Manifests, which do not name the model of a CPU, record no difference. It moves the linear"
        " probe by 0.40 points (one pair, 1 row); no row of these has two seeds to hold that"
        " against. It has no seed of all rows of a contrast."
    )
    more = {"items": "2", "seed_items": "1", "seed_values": "3", "seed_sd": "0.01"}
    [row] = printed_noise([], [line | more], "mini")["rows"]
    assert row[-2:] == ["1.41 points", "1.00 points (3 seeds of 1 of 2 rows)"]
    [row] = printed_noise([], [line | more | {"of": "contrasts"}], "mini")["rows"]
    assert row[1:3] == ["linear probe, contrasts", "1 (2 contrasts)"]


def test_a_replicate_counts_nowhere_else(here, elsewhere):
    before = contents(here.collect())
    seen = states(here.project, ["toy"], here.results)
    moved(elsewhere, "small", 0, 0.9)
    bring(elsewhere, here)
    after = contents(here.collect())
    assert after.keys() - before.keys() == {PAIRS, FLOOR}
    assert [name for name in before if after[name] != before[name]] == ["collected.json"]
    assert states(here.project, ["toy"], here.results) == seen
    sums = [files.read_json(here.collect() / "collected.json")["files"][n] for n in (PAIRS, FLOOR)]
    assert sums == [files.sha256(here.collect() / name) for name in (PAIRS, FLOOR)]
    # And once it is gone, everything is as before.
    shutil.rmtree(here.results / "replicates")
    assert contents(here.collect()) == before


def test_a_replicate_completes_no_study(here, elsewhere):
    shutil.rmtree(here.folder("small", 0))
    bring(elsewhere, here)
    assert here.states("small")[0] == ("missing", "")
    assert [s.state for s in states(here.project, ["toy"], here.results)].count("missing") == 1
    assert seeds(here)["small", 0][0] == "not compared: the seed here is missing"
    assert (
        "Not compared: the seed here is missing: small, c = 16, seed 0."
        in (printed(here)["read"][0]["text"])
    )
    path = here.config / "again.tar.xz"
    assert bundle(here.project, here.results, path)[0] == 5


def test_other_code_or_data_is_no_replicate(here, elsewhere):
    elsewhere.manifest("small", 0, code="then")
    data = {"train": "other", "test": "def"}
    elsewhere.outcome("small", 1, data=data)
    elsewhere.manifest("small", 1, data=data)
    for kind in ("linear", "knn", "clustering", "collapse"):
        elsewhere.edit("small", 1, kind, elsewhere.facts("small", 1, kind)["provenance"])
    elsewhere.edit("small", 2, "linear", {"step": "then"})
    elsewhere.ended("large", 0, "collapsed")
    bring(elsewhere, here)
    found = {place: state for place, (state, _) in seeds(here).items()}
    assert found == {
        ("small", 0): "not compared: another code of pretrain",
        ("small", 1): "not compared: another data",
        ("small", 2): "not compared: another evaluate code of corrected/linear",
        ("large", 0): "not compared: ended as finished here, as collapsed there",
        ("large", 1): "identical",
        ("large", 2): "identical",
    }
    assert {line["pairs"] for line in lines(here, FLOOR)} == {"2"}


def test_a_seed_is_no_replicate_of_itself(here):
    """Else anybody's bundle would prove that training is deterministic."""
    bring(here, here, "again")
    why = "not compared: it is the training of this study itself"
    assert {state for state, _ in seeds(here).values()} == {why}
    assert lines(here, FLOOR) == []
    assert printed(here)["read"][0]["text"].startswith("No trained seed could be compared. Not")


def test_untrained_nets_are_compared_but_not_counted(here, elsewhere):
    def untrained(world):
        study = world.project.study("toy").model_dump(mode="json")
        study["rows"]["small"]["run"]["epochs"] = 0
        study = type(world.project.study("toy")).model_validate(study)
        cells = tuple(resolve(study, world.project.scale, {}))
        world.project = replace(world.project, studies={"toy": study}, cells=cells)
        for seed in range(3):
            world.seed("small", seed, 0.5)

    untrained(here)
    untrained(elsewhere)
    elsewhere.ready_to_pack(9)
    bring(elsewhere, here)
    assert seeds(here)["small", 0][0] == "untrained"
    assert {line["pairs"] for line in lines(here, FLOOR)} == {"3"}
    assert "Untrained nets are not counted." in printed(here)["read"][0]["text"]


def test_devices_come_first_and_what_one_manifest_lacks_is_named(here, elsewhere):
    facts = {"cuda": "13", "device": "cuda H200", "numpy": "2", "threads": 2, "attempts": 3}
    elsewhere.manifest("small", 0, **facts)
    bring(elsewhere, here)
    assert seeds(here)["small", 0][1] == (
        "device: cpu here, cuda H200 there; threads: 1 here, 2 there; cuda: none here, 13 there;"
        " numpy: none here, 2 there"
    )


def test_replicates_have_names_and_keep_what_they_have(here, elsewhere):
    name = here.project.of("toy")["small"].id
    assert bring(elsewhere, here, "gpu", ["small"]) == [
        f"{name}, seed {seed}: adopted as replicate gpu" for seed in range(3)
    ]
    said = [line.partition(": ")[2] for line in bring(elsewhere, here, "gpu")]
    assert (
        sorted(said) == ["adopted as replicate gpu"] * 3 + ["is here already as replicate gpu"] * 3
    )
    kept = contents(here.results / "replicates")
    assert all("here already" in line for line in bring(elsewhere, here, "gpu"))
    moved(elsewhere, "small", 1, 0.9)
    with pytest.raises(UserError, match=r"seed-1 has other results already; choose another name"):
        bring(elsewhere, here, "gpu")
    assert contents(here.results / "replicates") == kept
    bring(elsewhere, here, "gpu-2")
    assert {p["replicate"] for p in lines(here, PAIRS)} == {"gpu", "gpu-2"}
    assert list(places.replicates(here.results, name, 0)) == ["gpu", "gpu-2"]


@pytest.mark.parametrize("name", ["", "..", ".tmp-1", "a/b", "-a", "a b", "a\n", "x" * 65])
def test_a_name_that_is_none_is_refused(here, elsewhere, name):
    with pytest.raises(UserError, match="--replicate '.*': a name has up to 64 letters"):
        bring(elsewhere, here, name)
    assert not (here.results / "replicates").exists()


def test_a_damaged_replicate_is_named(here, elsewhere):
    bring(elsewhere, here)
    run = here.project.of("toy")["small"].id
    path = places.replicate_folder(here.results, "threads-2", run, 1) / "timing.csv"
    path.write_text("epoch,seconds\n1,1\n")
    with pytest.raises(UserError, match=r"timing\.csv is missing or was changed; rerun adopt"):
        here.collect()


def test_a_faulty_bundle_leaves_no_replicate(here, elsewhere):
    path = elsewhere.config / "packed.tar.xz"
    bundle(elsewhere.project, elsewhere.results, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is no whole bundle"):
        adopt(here.project, here.results, path, "gpu")
    assert not (here.results / "replicates").exists()


@pytest.fixture(scope="module")
def noisy(collected, tmp_path_factory):
    """(world, results) of the study with figures: c16 twice replicated, and a seed that is NaN.

    "gpu" adds .002, .004 and -.004 to the probe of c16; "01" has the same bytes; "both" is as "gpu"
    and has c256 and the untrained net besides, unmoved.
    """
    results = tmp_path_factory.mktemp("noisy") / "results"
    shutil.copytree(collected.results / "runs", results / "runs")
    for name, row, seed, change in [
        *(("gpu", "c16", seed, change) for seed, change in enumerate((0.002, 0.004, -0.004))),
        *(("01", "c16", seed, 0) for seed in range(3)),
        ("gpu", "c64", 2, 0),
        *(("both", "c16", seed, change) for seed, change in enumerate((0.002, 0.004, -0.004))),
        *(("both", "c256", seed, 0) for seed in (1, 2)),
        *(("both", "untrained", seed, 0) for seed in range(3)),
    ]:
        run = collected.project.of("toy")[row].id
        folder = places.replicate_folder(results, name, run, seed)
        shutil.copytree(results / "runs" / run / f"seed-{seed}", folder)
        path = folder / "corrected" / "linear-standard.json"
        if change:
            found = files.read_json(path)
            found["all"]["accuracy"] += change
            files.write_json(path, found)
        sums = {file: files.sha256(folder / file) for file in contents(folder)}
        files.write_json(folder / places.ADOPTED, {"bundle": "b", "kind": "metrics", "files": sums})
    collect(collected.project, "toy", results, collected.config)
    return collected, results


def reported(noisy, results, reports):
    world, _ = noisy
    report(world.project, "toy", results, reports, world.config)
    return {kind: (reports / "paper" / f"toy.{kind}").read_bytes() for kind in ("html", "pdf")}


def test_the_notebook_recomputes_the_floor_and_all_three_print_it(noisy, tmp_path):
    made = reported(noisy, noisy[1], tmp_path)
    page = made["html"].decode()
    # rms of 2, 4 and 4 thousandths: sqrt(36 / 3); seeds .899, .900, .901: sd .001.
    said = (
        "Manifests, which do not name the model of a CPU, record no difference. It moves the linear"
        " probe by 0.35 points (root mean square of 3 pairs, 1 row), another seed by 0.14 points"
        " (3 seeds of 1 row): 245 % of that. It has no seed of all rows of a contrast."
        " 1 of 4 seeds are identical to ours."
    )
    assert said in page and page.count('<h2 id="Noise-floor">') == 1
    assert "all 3 seeds are identical" in page.lower()
    data = json.loads((tmp_path / "paper" / "toy.json").read_text())["printed"]
    assert [each["name"] for each in data["noise"]["read"]] == ["01", "both", "gpu"]
    gpu = [line for line in data["noise"]["rows"] if line[0] == "gpu"]
    assert gpu[0][:3] == ["gpu", "linear probe", "3 (1 row)"]
    # Of c256, seeds 1 and 2 ended: the mean of c16 and c256 over the untrained net moves by .002
    # and -.002, c256 over it minus c16 over it by -.004 and .004: sqrt((4 + 4 + 16 + 16) / 4).
    both = [
        line[2:5] for line in data["noise"]["rows"] if line[0] == "both" and "contrasts" in line[1]
    ]
    assert both[0] == ["4 (2 contrasts)", "0.32 points", "0.40 points"]
    assert {PAIRS, FLOOR} < {name for name, _ in data["files"]}
    assert made["pdf"].startswith(b"%PDF")


def test_without_replicates_the_report_says_that_the_floor_is_unknown(collected, tmp_path):
    made = reported((collected, collected.results), collected.results, tmp_path)
    said = (
        "Not measured at scale paper: no run of this study was trained again with the same seed"
        " where only the machine differs. How that is done: docs/run-it.md, The noise floor."
    )
    page = made["html"].decode()
    assert said in page and page.count('<h2 id="Noise-floor">') == 1
    for name in ("toy.json", "toy.ipynb"):
        text = (tmp_path / "paper" / name).read_text()
        assert said in text and PAIRS not in text and "replicate" not in text
    assert "\n## The noise floor\n" in (ROOT / "docs" / "run-it.md").read_text()


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            FLOOR,
            "gpu,rows,linear/accuracy,3,1,0.003464",
            "gpu,rows,linear/accuracy,3,1,0.003468",
            "noise floor, gpu, linear/accuracy, rows: rms is 0.00346",
        ),
        (PAIRS, ",0.9,0.904,", ",0.901,0.905,", "but we measured 0.9"),
        (PAIRS, ",0.3,0.3,0.0", ",0.3,0.3,0.1", "difference is 0.0"),
        (FLOOR, "gpu,rows,kmeans", "cpu,rows,kmeans", "not cpu"),
        (FLOOR, "0.003162", "0.003163", "both, linear/accuracy, contrasts: rms is 0.003162"),
    ],
)
def test_the_notebook_stops_at_a_forged_floor(noisy, tmp_path, name, old, new, said):
    folder = tmp_path / "results" / "paper" / "toy"
    shutil.copytree(noisy[1] / "paper" / "toy", folder)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    record = files.read_json(folder / "collected.json")
    record["files"][name] = files.sha256(folder / name)
    files.write_json(folder / "collected.json", record)
    with pytest.raises(UserError, match="notebook study.py, cell .*AssertionError") as stopped:
        reported(noisy, tmp_path / "results", tmp_path / "reports")
    assert said in str(stopped.value)
