"""Hours predicted from measured rates: by hand, and row by row on recorded ones."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from peregrine.config.load import load
from peregrine.config.models import BackboneSpec
from peregrine.config.resources import IMAGES
from peregrine.files import read_json, write_json
from peregrine.nets.flops import forward_flops
from peregrine.reporting.estimate import (
    FAR,
    Measured,
    Work,
    device_kind,
    evaluation_seconds,
    measurements,
    predict,
    train_images,
    work_of,
)

RECORD = Path(__file__).parents[2] / "benchmarks" / "recorded" / "estimate.json"


def work(width=8, batch=24, views=((8, 2),), precision="float32", **method):
    options = {"name": "falcon"} | method
    return Work(BackboneSpec(width=width), 1, views, batch, precision, options)


def flops(backbone, channels, side):
    return backbone.width * side**2


def test_a_shape_that_was_measured_keeps_its_rate_and_others_scale_with_operations():
    known = [Measured("cpu", work(), 400.0), Measured("cpu", work(batch=12), 100.0)]
    assert predict(work(), known, flops) == (pytest.approx(400), False)
    assert predict(work(batch=12), known, flops) == (pytest.approx(100), False)
    # Twice the width is twice the operations, a third view half as much again.
    assert predict(work(width=16), known, flops) == (pytest.approx(200), True)
    assert predict(work(views=((8, 3),)), known, flops) == (pytest.approx(400 / 1.5), True)
    # The batch of another width is nearer than another batch.
    assert predict(work(width=16, batch=12), known, flops) == (pytest.approx(50), True)


def test_the_nearest_options_count_and_several_nearest_their_geometric_mean():
    rates = {(16, "l2"): 900.0, (64, "l2"): 400.0, (256, "tanh"): 100.0}
    known = [Measured("cpu", work(codes=c, norm=norm), rate) for (c, norm), rate in rates.items()]
    assert predict(work(codes=64, norm="l2"), known, flops)[0] == pytest.approx(400)
    assert predict(work(codes=128, norm="tanh"), known, flops)[0] == pytest.approx(100)
    assert predict(work(codes=128, norm="l2"), known, flops)[0] == pytest.approx(600)
    other = Measured("cpu", Work(*work()[:5], {"name": "vicreg"}), 5.0)
    assert predict(other.work, [*known, other], flops)[0] == pytest.approx(5)


def test_compiled_trainings_come_first_where_both_were_measured():
    known = [Measured("cuda", work(), 100.0), Measured("cuda", work(), 300.0, compiled=True)]
    assert predict(work(), known, flops)[0] == pytest.approx(300)


def test_what_is_unlike_all_that_was_measured_is_not_predicted():
    known = [Measured("cpu", work(), 400.0)]
    assert predict(work(width=8 * FAR), known, flops)[0] == pytest.approx(400 / FAR)
    assert predict(work(width=8 * FAR + 8), known, flops) == (None, True)
    with pytest.raises(ValueError, match="no measurement"):
        predict(work(), [], flops)


def test_rows_of_the_demo_are_predicted_by_the_others():
    """Measured rates of 13 rows. FALCON as released with 4,096 codes has no row like it: it scores
    16 times the codes of the next, or twice as often."""
    results = read_json(RECORD)["results"]
    known = [
        Measured(
            "cpu",
            Work(
                BackboneSpec(**one["backbone"]),
                one["channels"],
                tuple(map(tuple, one["views"])),
                one["batch"],
                one["precision"],
                one["method"],
            ),
            one["samples_per_processor_second"],
            owner=name,
        )
        for name, one in results.items()
    ]
    seconds = predicted = 0.0
    errors = []
    for each in known:
        rate, guessed = predict(each.work, [o for o in known if o is not each], forward_flops)
        assert not guessed  # all have one shape
        errors.append(abs(rate / each.rate - 1))
        seconds, predicted = seconds + 1 / each.rate, predicted + 1 / rate
    assert len(errors) == 13
    assert predicted == pytest.approx(seconds, rel=0.2)
    assert statistics.median(errors) < 0.2
    assert sum(error < 0.2 for error in errors) >= 12


def test_operations_are_those_of_the_convolutions():
    """ResNet-8 of width w at 16 px: products at 256, 64 and 16 places, two operations each. Where a
    block pools, its second convolution has 16 taps and a quarter of the places."""
    w, c = 8, 1
    first = 256 * 9 * w * c + 64 * 16 * w * w + 64 * w * c  # the shortcut comes after pooling
    second = 64 * 9 * w * w + 16 * 16 * w * w
    rest = 16 * 9 * w * w * 4
    assert forward_flops(BackboneSpec(width=w), c, 16) == 2 * (first + second + rest)
    # 0.56 and 4.1 * 10^9 products: the CIFAR form of ResNet-18, and ResNet-50 as published.
    assert forward_flops(BackboneSpec(name="resnet18"), 3, 32) == pytest.approx(1.11e9, rel=0.01)
    large = BackboneSpec(name="resnet50", stem="imagenet")
    assert forward_flops(large, 3, 224) == pytest.approx(8.2e9, rel=0.02)


def test_images_of_a_subset(tiny_run, tmp_path, monkeypatch):
    def images(**dataset):
        return train_images(tiny_run(dataset=dataset), tmp_path)

    assert images(name="cifar10") == 50_000
    assert images(name="cifar10", train_per_class=100) == 1000
    assert images(name="cifar10", validation_per_class=500) == 45_000
    assert images(name="imagenet100") == 126_689
    with monkeypatch.context() as changed:
        changed.delitem(IMAGES, "cifar10")  # one that a user has added: SVHN's number
        assert images(name="cifar10") == 73_257
    (tmp_path / "data").mkdir()
    write_json(tmp_path / "data" / "cifar10.json", {"counts": {"train": 40}})
    assert images(name="cifar10") == 40


def test_status_says_hours_and_what_was_not_measured(cli, tiny_config, tmp_path):
    code, out, err = cli("status", "--estimate")
    assert (code, err) == (0, "")
    assert out.splitlines()[2:] == ["cpu: not measured", "", "cuda: not measured"]
    run = next(w for w in cli("status")[1].split() if w.startswith("digits-resnet8x8-falcon"))
    assert cli("pretrain", "--run", run, "--seed", "0", "--device", "cpu")[0] == 0
    (found,) = measurements(tmp_path / "results", tmp_path / "none")
    assert (found.owner, found.compiled) == (run, False)
    timing = (tmp_path / "results" / "runs" / run / "seed-0" / "timing.csv").read_text()
    rates = [float(line.split(",")[2]) for line in timing.splitlines()[1:]]
    assert found.rate == pytest.approx(sum(rates) / 2)  # the median of two epochs
    code, out, _ = cli("status", "--estimate", "--json")
    # Two runs of 2 epochs of digits' 1,197 images, two seeds each, in hours.
    expected = 2 * 2 * 2 * 1197 / found.rate / 3600
    (kind,) = text = json.loads(out)
    (study,) = text[kind]
    assert kind.endswith("1 thread")
    assert study["training"] == pytest.approx(expected)
    assert (study["seeds"], study["extrapolated"], study["unmeasured"]) == (4, 0, 2)
    assert "(evaluation of 2 runs not measured)" in cli("status", "--estimate")[1]


def test_a_rate_of_several_processes_is_of_another_kind_of_device():
    facts = {"device": "cuda H200", "threads": 1}
    assert device_kind({**facts, "processes": 1}) == device_kind(facts) == "cuda H200"
    assert device_kind({**facts, "processes": 4}) == "cuda H200, 4 processes"


@pytest.mark.parametrize("names", [("",), (".seed-0",), (".seed-0", ".seed-1"), ("", ".seed-0")])
def test_seconds_of_a_seed_whichever_seeds_are_evaluated(names, tiny_config, tmp_path):
    """Two seeds of 30 s each: one job of both takes 60 s."""
    project = load(tiny_config)
    run = next(iter(project.runs()))
    for step in ("extract", "evaluate"):
        folder = tmp_path / "benchmarks" / step
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{run}{name}.tsv").write_text(f"s\n{30 if name else 60}\n")
    if names[-1]:
        (folder / f"{run}.seed-9.tsv").write_text("cut")
    assert evaluation_seconds(project, tmp_path) == {"digits": pytest.approx(60)}


def test_status_alone_imports_no_torch(tiny_config):
    code = (
        "import sys; sys.argv = ['peregrine', 'status', '--config', sys.argv[1]]\n"
        "from peregrine.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_work_of_a_run_is_its_views_by_size(tiny_run):
    views = [{"size": 8}, {"size": 16, "count": 2}, {"size": 8, "count": 3, "role": "local"}]
    assert work_of(tiny_run(views=views)).views == ((16, 2), (8, 4))
