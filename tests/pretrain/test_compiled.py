"""Compiled backbones: when, in place, and the same training but for rounding."""

import shutil

import pytest
import torch

from peregrine.config.machine import compile_choice
from peregrine.errors import UserError
from peregrine.files import read_json, read_tensors
from peregrine.pretrain import compiled
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.compiled import WORTH, compile_training
from peregrine.pretrain.loop import pretrain
from peregrine.pretrain.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="there is no g++ or clang++"
)


class Net(torch.nn.Module):
    """Says whether its passes are compiled; [n] -> [n]."""

    def forward(self, x):
        return x + 1


class Two(torch.nn.Module):
    """A backbone, a moving average of it, and a head of another type."""

    def __init__(self):
        super().__init__()
        self.backbone, self.slow, self.head = Net(), Net(), torch.nn.ReLU()


@pytest.fixture
def fake(monkeypatch):
    """torch.compile as a function that marks its results, on a machine that has what it needs."""
    calls = []

    def fake_compile(function, **options):
        calls.append(options)
        return lambda x: function(x) + 100

    monkeypatch.setattr(torch, "compile", fake_compile)
    monkeypatch.setattr(compiled, "_lacking", lambda device: "")
    monkeypatch.delenv("PEREGRINE_COMPILE", raising=False)
    return calls


@pytest.mark.parametrize(
    ("device", "steps", "choice", "expected"),
    [
        (CUDA, WORTH, "", True),
        (CUDA, WORTH - 1, "", False),  # too short to pay for a minute of compiling
        (CUDA, WORTH, "0", False),
        (CUDA, 1, "1", True),
        (CPU, WORTH, "", False),
        (CPU, 1, "1", True),
        (CUDA, 0, "1", False),  # the untrained net
    ],
)
def test_what_is_compiled_and_when(device, steps, choice, expected, fake, monkeypatch):
    monkeypatch.setenv("PEREGRINE_COMPILE", choice)
    method = Two()
    assert compile_training(method, device, steps) is expected
    assert len(fake) == 2 * expected
    x = torch.zeros(())
    trained = 101 if expected else 1
    assert [float(each(x)) for each in (method.backbone, method.slow)] == [trained] * 2
    assert method.head(x) == 0
    method.eval()
    assert [float(each(x)) for each in (method.backbone, method.slow)] == [1, 1]


def test_one_line_says_why_nothing_is_compiled(monkeypatch, capsys):
    def broken(function):
        def call(x):
            raise RuntimeError(
                "backend='inductor' raised:\nInvalidCxxCompiler: No working compiler"
            )

        return call

    monkeypatch.setenv("PEREGRINE_COMPILE", "1")
    monkeypatch.setattr(torch, "compile", broken)
    method = Two()
    assert not compile_training(method, CPU, 5)
    assert method.backbone(torch.zeros(())) == 1
    assert capsys.readouterr().out == (
        "the backbone is not compiled, training goes on without:"
        " backend='inductor' raised: InvalidCxxCompiler: No working compiler\n"
    )


@pytest.mark.parametrize("value", ["yes", "2", "-1"])
def test_a_wrong_choice_is_one_line(value, monkeypatch):
    monkeypatch.setenv("PEREGRINE_COMPILE", value)
    with pytest.raises(UserError, match=rf"^PEREGRINE_COMPILE is '{value}'; set it to 0 .* or 1"):
        compile_choice()


@needs_compiler
@pytest.mark.parametrize(
    ("backbone", "method", "tolerance"),
    [({"width": 8}, "two_branch", 1e-4), ({"name": "resnet18"}, "falcon", 5e-3)],
    ids=["resnet8", "resnet18"],
)
def test_twenty_compiled_steps_are_the_eager_ones_but_for_rounding(
    backbone, method, tolerance, tiny_run, tiny_data, monkeypatch
):
    """Mean losses of 5 epochs of 4 steps, relative. ResNet-18 normalises 24 images of 1 px at the
    end, which enlarges a difference in rounding at every step, so its steps are small here: at ten
    times the rate the two are 2 % apart. ResNet-8 has a moving average."""
    torch.compiler.reset()
    found = {}
    run = tiny_run(
        method,
        backbone=backbone,
        epochs=5,
        optimizer={"lr": 1e-2 if method == "two_branch" else 1e-4},
    )
    for choice in ("0", "1"):
        monkeypatch.setenv("PEREGRINE_COMPILE", choice)
        trainer = Trainer(run, 0, tiny_data, CPU)
        assert trainer.compiled is (choice == "1")
        at, found[choice] = Position("", 0, "", {}), []
        names = [*trainer.method.state_dict()]
        for at.epoch in range(run.epochs):
            sums: dict[str, torch.Tensor] = {}
            for _ in trainer.epoch(at, sums):
                pass
            found[choice].append(float(sums["loss"]) / trainer.steps)
        assert [*trainer.method.state_dict()] == names
    assert found["1"] == pytest.approx(found["0"], rel=tolerance)
    assert max(found["0"]) > (1 + 4 * tolerance) * min(found["0"])  # and losses do change


@needs_compiler
def test_the_manifest_says_so_and_weights_keep_their_names(
    tiny_run, tiny_data, tmp_path, monkeypatch
):
    names = {}
    for choice in ("0", "1"):
        monkeypatch.setenv("PEREGRINE_COMPILE", choice)
        folder = tmp_path / choice
        pretrain(tiny_run("two_branch", epochs=1), 0, tiny_data, folder, CPU)
        assert read_json(folder / "manifest.json")["compiled"] is (choice == "1")
        for name in ("backbone", "method"):
            names[choice, name] = set(read_tensors(folder / f"{name}.safetensors")[0])
    for name in ("backbone", "method"):
        assert names["0", name] == names["1", name]
