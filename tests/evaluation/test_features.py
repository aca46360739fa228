"""Frozen features: in eval mode, of verified weights, what every evaluation reads."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
import yaml

from peregrine.data.prepare import Prepared
from peregrine.errors import UserError
from peregrine.evaluation.features import extract, load_method, load_run
from peregrine.files import read_json, read_tensors, sha256, write_json, write_text
from peregrine.frozen import joined, read_features
from peregrine.methods.build import build_method
from peregrine.pretrain.loop import pretrain

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["falcon", "two_branch"])
def trained(request, tiny_run, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    pretrain(tiny_run(request.param, epochs=2), 0, tiny_data, folder, CPU)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("corrected"))
    return tmp_path / "run"


def normalised(data: Prepared, split):
    images = torch.from_numpy(data.images[split]).float() / 255
    return (images - data.mean[0]) / data.sd[0]


def refused(folder):
    with pytest.raises(UserError) as error:
        load_run(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_features_are_those_of_each_image_alone(trained, tiny_data):
    """Eval mode: BatchNorm's running statistics, so the rest of the batch does not count."""
    path = extract(trained, tiny_data, CPU, 10_000)
    arrays, facts = read_tensors(path)
    assert (facts["status"], facts["data"]) == (
        "finished",
        joined(tiny_data.sums["train"], tiny_data.sums["test"]),
    )
    net = load_method(*load_run(trained), trained, tiny_data)
    assert not net.training
    for split in ("train", "test"):
        images = normalised(tiny_data, split)
        with torch.no_grad():
            alone = [net.describe(images[i : i + 1]) for i in range(5)]
        for i, seen in enumerate(alone):
            for layer in ("features", "embeddings"):
                expected = getattr(seen, layer)[0].numpy()
                np.testing.assert_allclose(arrays[f"{split}_{layer}"][i], expected, atol=1e-5)
        np.testing.assert_array_equal(arrays[f"{split}_labels"], tiny_data.labels[split])
        assert len(arrays[f"{split}_features"]) == len(images)
        assert arrays[f"{split}_features"].dtype == np.float32
    np.testing.assert_array_equal(arrays["sample_labels"], tiny_data.labels["train"])
    # The same net in training mode says something else, so the above can fail.
    with torch.no_grad():
        batch = net.train().describe(normalised(tiny_data, "test")).embeddings.numpy()
    assert np.abs(batch - arrays["test_embeddings"]).max() > 1e-2


def test_trained_weights_are_used(trained, tiny_data):
    net = load_method(*load_run(trained), trained, tiny_data)
    run, _ = load_run(trained)
    saved = read_tensors(trained / "backbone.safetensors")[0]
    for name, value in net.backbone.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), saved[name])
    fresh = build_method(run, 0, channels=1, train_images=96).backbone.state_dict()
    assert any((saved[name] != value.numpy()).any() for name, value in fresh.items())


def test_codes_and_usage_of_scores(trained, tiny_data):
    arrays, facts = read_tensors(extract(trained, tiny_data, CPU, 100))
    net = load_method(*load_run(trained), trained, tiny_data)
    if not hasattr(net, "head"):
        assert not {name for name in arrays if "codes" in name or "usage" in name}
        assert facts["codes"] == "0"
        return
    assert facts["codes"] == "64"
    signs = np.unpackbits(net.head.bits.numpy(), bitorder="little").reshape(8, 64) * 2.0 - 1
    scores = arrays["test_embeddings"].astype(float) @ signs / net.head.tau
    share = np.exp(scores - scores.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    np.testing.assert_array_equal(arrays["test_codes"], scores.argmax(1))
    np.testing.assert_allclose(arrays["test_usage"], share.mean(0), atol=1e-6)
    assert arrays["test_usage"].sum() == pytest.approx(1)


def test_a_fixed_sample_of_train_embeddings(trained, tiny_data):
    whole, _ = read_tensors(extract(trained, tiny_data, CPU, 96))
    path = extract(trained, tiny_data, CPU, 10)
    some, _ = read_tensors(path)
    before = path.read_bytes()
    assert some["train_embeddings"].shape == (10, 8)
    known = whole["train_embeddings"]
    rows = [np.flatnonzero((known == row).all(1)) for row in some["train_embeddings"]]
    rows = np.concatenate(rows)
    assert len(set(rows)) == 10
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(some["sample_labels"], tiny_data.labels["train"][rows])
    np.testing.assert_array_equal(some["train_features"], whole["train_features"])
    extract(trained, tiny_data, CPU, 10)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["backbone.safetensors", "method.safetensors", "run.yaml", "history.csv"]
)
def test_a_tampered_or_missing_file_is_refused(copy, name, tiny_data):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert name in refused(copy)
    with pytest.raises(UserError, match=name):
        extract(copy, tiny_data, CPU, 10)
    assert not (copy / "corrected/features.safetensors").exists()
    path.unlink()
    assert name in refused(copy)


def test_a_missing_or_changed_outcome_is_refused(copy):
    path = copy / "outcome.json"
    path.write_text(path.read_text().replace("finished", "Finished"))
    assert "was changed" in refused(copy)
    path.unlink()
    assert "does not exist" in refused(copy)


def test_a_configuration_of_another_run_is_refused(copy):
    """Even one that its own sums vouch for."""
    run = yaml.safe_load((copy / "run.yaml").read_text())
    write_text(copy / "run.yaml", yaml.safe_dump({**run, "epochs": 3}))
    outcome = read_json(copy / "outcome.json")
    outcome["files"]["run.yaml"] = sha256(copy / "run.yaml")
    write_json(copy / "outcome.json", outcome)
    assert f"is not run {outcome['run']}" in refused(copy)


def test_other_data_than_those_of_the_training_are_refused(copy, tiny_data):
    sums = {**tiny_data.sums, "train": "0" * 64}
    with pytest.raises(UserError, match="trained on other data"):
        extract(copy, dataclasses.replace(tiny_data, sums=sums), CPU, 10)
    assert not (copy / "corrected/features.safetensors").exists()


def test_a_run_that_ended_in_nan_has_no_features(tiny_run, tiny_data, tmp_path):
    pretrain(tiny_run(optimizer={"name": "sgd", "lr": 1e30}), 0, tiny_data, tmp_path, CPU)
    arrays, facts = read_tensors(extract(tmp_path, tiny_data, CPU, 10))
    assert arrays == {}
    assert facts["status"] == "nan"


def test_an_untrained_net_has_features(tiny_run, tiny_data, tmp_path):
    run = tiny_run(epochs=0)
    pretrain(run, 2, tiny_data, tmp_path, CPU)
    arrays, _ = read_tensors(extract(tmp_path, tiny_data, CPU, 10))
    net = build_method(run, 2, channels=1, train_images=96).eval()
    with torch.no_grad():
        expected = net.describe(normalised(tiny_data, "test")).features.numpy()
    np.testing.assert_allclose(arrays["test_features"], expected, atol=1e-6)


def test_the_head_of_an_untrained_net_is_normalised_by_the_training_images(
    tiny_run, tiny_data, tmp_path
):
    run = tiny_run("falcon", epochs=0)
    pretrain(run, 2, tiny_data, tmp_path, CPU)
    head = load_method(*load_run(tmp_path), tmp_path, tiny_data).head
    net = build_method(run, 2, channels=1, train_images=96).eval()
    with torch.no_grad():
        before = net.head.linear(net.backbone(normalised(tiny_data, "train"))).double()
    np.testing.assert_allclose(head.norm.running_mean, before.mean(0), atol=1e-5)
    np.testing.assert_allclose(head.norm.running_var, before.var(0), rtol=1e-4)
    assert head.norm.momentum == 0.1


def test_what_a_killed_extraction_left_is_removed(trained, tiny_data, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    leftover = tmp_path / "run" / "corrected" / ".tmp-1-features.safetensors"
    leftover.write_bytes(b"half")
    extract(tmp_path / "run", tiny_data, CPU, 40)
    assert not leftover.exists()


def test_features_of_older_weights_are_refused(trained, tiny_data, tmp_path):
    """Weights trained again under features that stayed."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    extract(folder, tiny_data, CPU, 10)
    assert read_features(folder, "corrected")[1]["kind"] == "features"
    outcome = read_json(folder / "outcome.json")
    outcome["files"]["backbone.safetensors"] = "0" * 64
    write_json(folder / "outcome.json", outcome)
    with pytest.raises(UserError, match="other weights"):
        read_features(folder, "corrected")
