"""A seed that was trained in one place completes a study in another, by the command line."""

import re
import shutil

import yaml

from peregrine import files
from peregrine.config.load import load
from peregrine.reporting.noise import FLOOR, PAIRS, Floor, Pair
from peregrine.reporting.published import read_csv


def test_a_trained_seed_travels(cli, tiny_config, tmp_path):
    results, path = tmp_path / "results", tmp_path / "runs.tar.xz"
    runs = sorted(load(tiny_config).runs())
    options = [word for seed in (0, 1) for word in ("--seed", str(seed))]
    for run in runs:
        for step in ("pretrain", "extract", "evaluate", "diagnose"):
            code, _, error = cli(step, "--run", run, *options)
            assert code == 0, error
    assert cli("collect", "one")[0] == 0
    folder = results / "tiny" / "one"
    before = {name: (folder / name).read_bytes() for name in ("metrics.csv", "claims.json")}

    code, out, _ = cli("bundle", path)
    assert code == 0 and f"{path}: {2 * len(runs)} seeds, " in out
    assert float(re.search(r"([\d.]+) a seed", out)[1]) < 1  # MiB
    shutil.rmtree(results / "runs")
    code, out, _ = cli("adopt", path)
    assert code == 0 and out.count(": adopted") == 2 * len(runs)
    assert cli("collect", "one")[0] == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    code, out, _ = cli("status")
    assert "4 seeds: 2 done, 2 failed" in out  # one of the two runs ends in NaN

    # A training of its own replaces what was adopted.
    code, out, error = cli("pretrain", "--run", runs[0], "--seed", "0")
    assert code == 0, error
    attic = results / "attic" / runs[0] / "seed-0" / "1"
    assert str(attic) in out and (attic / "outcome.json").is_file()


def test_nothing_to_pack_is_a_line(cli, tmp_path):
    code, _, error = cli("bundle", tmp_path / "b.tar.xz")
    assert code == 2 and "scale tiny has nothing finished to pack" in error
    assert not (tmp_path / "b.tar.xz").exists()
    code, _, error = cli("adopt", tmp_path / "b.tar.xz")
    assert (code, error) == (2, f"peregrine: error: {tmp_path / 'b.tar.xz'} does not exist\n")


def test_a_training_repeated_with_the_same_circumstances_differs_by_nothing(
    cli, tiny_config, tmp_path
):
    """The way of docs/run-it.md to a replicate: another results folder, a bundle, a name."""
    again = tmp_path / "again"
    shutil.copytree(tiny_config, again)
    settings = yaml.safe_load((again / "config.yaml").read_text())
    settings["results"] = str(tmp_path / "results-again")
    (again / "config.yaml").write_text(yaml.safe_dump(settings))
    shutil.copytree(tmp_path / "results" / "data", tmp_path / "results-again" / "data")
    run = load(tiny_config).of("one")["first"].id
    for config in (tiny_config, again):
        for step in ("pretrain", "extract", "evaluate", "diagnose"):
            code, _, error = cli(step, "--run", run, "--seed", 0, config=("--config", config))
            assert code == 0, error
    assert cli("collect", "one")[0] == 0
    path, folder = tmp_path / "again.tar.xz", tmp_path / "results" / "tiny" / "one"
    assert not (folder / PAIRS).exists()
    assert cli("bundle", path, config=("--config", again))[0] == 0
    code, out, error = cli("adopt", "--replicate", "repeat-1", path)
    assert (code, out) == (0, f"{run}, seed 0: adopted as replicate repeat-1\n"), error
    assert cli("collect", "one")[0] == 0
    pairs = read_csv(folder / PAIRS, Pair._fields)
    assert len(pairs) > 20
    found = {(pair["state"], pair["differs"], float(pair["difference"])) for pair in pairs}
    assert found == {("identical", "", 0.0)}
    assert {float(line["largest"]) for line in read_csv(folder / FLOOR, Floor._fields)} == {0}
    assert {PAIRS, FLOOR} < set(files.read_json(folder / "collected.json")["files"])

    code, _, error = cli("adopt", "--replicate", "../x", path)
    assert (code, error.count("\n")) == (2, 1) and "--replicate '../x': a name has" in error
