"""Both readings from the trained net to the files of evaluate and diagnose."""

import csv
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from peregrine.config.models import Protocol
from peregrine.data.views import make_views
from peregrine.diagnostics import geometry, mixture, released
from peregrine.diagnostics.collapse import spectrum
from peregrine.diagnostics.diagnose import diagnose
from peregrine.errors import UserError
from peregrine.evaluation import features
from peregrine.evaluation.evaluate import evaluate
from peregrine.evaluation.features import extract, load_method, load_run
from peregrine.files import read_json, read_tensors, sha256
from peregrine.pretrain.loop import pretrain
from peregrine.reporting.evaluations import numbers as flat
from peregrine.streams import generator

CPU = torch.device("cpu")
PROTOCOL = Protocol(
    linear_c_grid=(0.1,),
    linear_validation_share=0.25,
    linear_max_iter=50,
    few_labels_per_class=3,
    few_label_draws=1,
    label_shares=(0.25,),
    split_seed=0,
    knn_k=5,
    knn_temperature=0.07,
    kmeans_restarts=1,
    chance_permutations=3,
    embedding_sample=40,
    view_sample=12,
    mixture_components=(2, 10, 11),
    mixture_sample=30,
)
FILES = ("clustering-standard.json", "collapse-standard.json", "spectrum.csv")


def measured(run, data, folder, status="finished"):
    """The run trained, extracted, evaluated and diagnosed in `folder`."""
    assert pretrain(run, 0, data, folder, CPU)["status"] == status
    extract(folder, data, CPU, PROTOCOL.embedding_sample, PROTOCOL.view_sample)
    for reading in ("corrected", "released"):
        evaluate(folder, reading, "standard", PROTOCOL)
        diagnose(folder, reading, "standard", PROTOCOL)
    return folder


@pytest.fixture(scope="module")
def falcon(tiny_run, tiny_data, tmp_path_factory):
    return measured(tiny_run("falcon", epochs=2), tiny_data, tmp_path_factory.mktemp("falcon"))


@pytest.fixture(scope="module")
def two_branch(tiny_run, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_branch")
    return measured(tiny_run("two_branch", epochs=2), tiny_data, folder)


def mixture_entropy(x, k, seed):
    return mixture.mixture_entropies(x, [k], seed)[k]


def net(folder, data):
    return load_method(*load_run(folder), folder, data)


def normalised(data):
    return (torch.from_numpy(data.images["test"]).float() / 255 - data.mean[0]) / data.sd[0]


def arrays_of(folder, reading):
    return read_tensors(folder / reading / "features.safetensors")


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (130, 64, [(0, 64), (64, 128), (128, 130)]),
        (128, 64, [(0, 64), (64, 128)]),
        (129, 64, [(0, 64), (64, 129)]),  # one image has no batch statistics
        (65, 64, [(0, 65)]),
        (1, 64, [(0, 1)]),
    ],
)
def test_batches_cover_all_and_leave_no_image_alone(n, size, expected):
    assert [(part.start, part.stop) for part in features._batches(n, size)] == expected


def test_the_released_reading_has_the_statistics_of_each_batch(falcon, tiny_data, monkeypatch):
    monkeypatch.setattr(features, "RELEASED_BATCH", 10)
    extract(falcon, tiny_data, CPU, 40, 12)
    arrays, facts = arrays_of(falcon, "released")
    assert (facts["status"], facts["codes"]) == ("finished", "64")
    assert set(arrays) == {"test_embeddings", "test_codes", "test_labels"}
    images, network = normalised(tiny_data), net(falcon, tiny_data).train()
    with torch.no_grad():
        seen = [network.describe(images[i : i + 10]) for i in range(0, 32, 10)]
    expected = torch.cat([each.embeddings for each in seen]).numpy()
    np.testing.assert_allclose(arrays["test_embeddings"], expected, atol=1e-6)
    codes = torch.cat([each.scores for each in seen]).argmax(dim=1)
    np.testing.assert_array_equal(arrays["test_codes"], codes)
    np.testing.assert_array_equal(arrays["test_labels"], tiny_data.labels["test"])
    # BatchNorm over a batch: before the norm its mean is 0; in eval mode it is something else.
    assert np.abs(arrays["test_embeddings"] - arrays_of(falcon, "corrected")[0]["test_embeddings"]
                  ).max() > 1e-2  # fmt: skip
    monkeypatch.undo()
    extract(falcon, tiny_data, CPU, 40, 12)


def test_the_network_of_the_released_reading_is_thrown_away(falcon, tiny_data, monkeypatch):
    """In the other order, the corrected reading would see its running statistics."""
    path = falcon / "corrected" / "features.safetensors"
    before = path.read_bytes()
    monkeypatch.setattr(features, "READINGS", ("released", "corrected"))
    extract(falcon, tiny_data, CPU, 40, 12)
    assert path.read_bytes() == before


def test_views_are_the_runs_own_of_images_that_no_run_chooses(falcon, two_branch, tiny_data):
    arrays, _ = arrays_of(falcon, "corrected")
    draws = generator(0, "evaluation/view sample")
    picks = torch.randperm(32, generator=draws)[:12].sort().values
    images = torch.from_numpy(tiny_data.images["test"])[picks]
    run, _ = load_run(falcon)
    views = make_views(
        images, run.views, generator(0, "evaluation/views"), mean=tiny_data.mean, std=tiny_data.sd
    ).groups[0]
    assert arrays["views_embeddings"].shape == arrays["views_features"].shape == (2, 12, 8)
    for folder in (falcon, two_branch):
        arrays, _ = arrays_of(folder, "corrected")
        with torch.no_grad():
            seen = [net(folder, tiny_data).describe(view) for view in views.images]
        for side in (0, 1):
            for layer in ("features", "embeddings"):
                expected = getattr(seen[side], layer).numpy()
                np.testing.assert_allclose(arrays[f"views_{layer}"][side], expected, atol=1e-5)


def test_what_is_written_in_the_released_reading(falcon):
    arrays, _ = arrays_of(falcon, "released")
    codes, x = arrays["test_codes"], arrays["test_embeddings"].astype(float)
    found = read_json(falcon / "released/clustering-standard.json")
    nmi = normalized_mutual_info_score(arrays["test_labels"], codes)
    assert found["codes"]["nmi"] == pytest.approx(nmi)
    assert {"ami", "nmi_chance"} < set(found["codes"])
    assert "kmeans" not in found
    found = read_json(falcon / "released/collapse-standard.json")
    assert found["codes/occupied"] == len(np.unique(codes))
    assert found["embeddings/mixture_skipped"] == [11]
    scaled = (x - x.min()) / (x.max() - x.min())
    entropy = mixture_entropy(scaled[mixture.sampled(32, 30, 0)], 10, 0)
    expected = entropy + 2040 * released.PADDING
    assert found["embeddings/mixture_entropy_k10"] == pytest.approx(expected, rel=1e-9)
    lines = list(csv.DictReader((falcon / "released/spectrum.csv").open()))
    assert {line["layer"] for line in lines} == {"embeddings"}
    values = [float(line["value"]) for line in lines]
    np.testing.assert_allclose(values, np.linalg.svd(scaled, compute_uv=False) / 32**0.5, rtol=1e-6)
    assert found["spectrum_sha256"] == sha256(falcon / "released/spectrum.csv")
    assert not list((falcon / "released").glob("linear*"))


def test_what_is_written_in_the_corrected_reading(falcon, two_branch):
    for folder in (falcon, two_branch):
        arrays, _ = arrays_of(folder, "corrected")
        found = read_json(folder / "corrected/collapse-standard.json")
        for layer in ("features", "embeddings"):
            views = arrays[f"views_{layer}"]
            assert found[f"{layer}/alignment"] == geometry.alignment(*views)[0]
            assert f"{layer}/mixture_chance_k10" in found
            assert f"{layer}/mixture_entropy_k11" not in found
            assert found[f"{layer}/mixture_skipped"] == [11]
        lines = list(csv.DictReader((folder / "corrected/spectrum.csv").open()))
        values = [float(line["value"]) for line in lines if line["layer"] == "embeddings"]
        np.testing.assert_allclose(values, spectrum(arrays["test_embeddings"]), rtol=1e-8)
        path = folder / "corrected/matrices.safetensors"
        assert found["matrices_sha256"] == sha256(path)
        pictures, _ = read_tensors(path)
        expected = np.corrcoef(arrays["test_embeddings"].T)
        np.testing.assert_allclose(pictures["embeddings_correlation"], expected, atol=0.0006)
        assert pictures["embeddings_similarity"].shape == (20, 20)
        assert pictures["similarity_labels"].tolist() == [i for i in range(4) for _ in range(5)]
    assert "embeddings/code_contrast" not in found  # two_branch has no codes


def test_probes_with_a_share_of_the_labels_stand_beside_the_others(two_branch):
    found = read_json(two_branch / "corrected/linear-standard.json")
    assert found["all"]["n_train"] == 96 and found["all"]["streamed"] is False
    assert found["labels-25"]["n_train"] == 24
    assert 0 <= found["labels-25"]["accuracy"] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"few_labels_per_class": 97}, "standard, few_labels_per_class asks for 97; change that"),
        ({"linear_validation_share": 0.001}, "cuts 96 images into 95 and 1, and there are"),
        ({"linear_validation_share": 0.999}, "cuts 96 images into 0 and 96"),
    ],
)
def test_a_class_with_too_few_images_is_one_line(two_branch, change, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate(two_branch, "corrected", "standard", PROTOCOL.model_copy(update=change))
    assert "training images" in str(error.value) and "\n" not in str(error.value)


def test_evaluations_in_blocks_say_the_same(two_branch, tmp_path):
    shutil.copytree(two_branch, tmp_path / "run")
    in_blocks = PROTOCOL.model_copy(update={"streamed_above": 95})
    evaluate(tmp_path / "run", "corrected", "standard", in_blocks)
    for kind in ("linear", "knn", "clustering"):
        name = f"corrected/{kind}-standard.json"
        found, expected = read_json(tmp_path / "run" / name), read_json(two_branch / name)
        assert found.pop("provenance")["protocol"] != expected.pop("provenance")["protocol"]
        if kind == "linear":
            assert found["all"].pop("streamed") > expected["all"].pop("streamed")
        numbers = dict(flat("", expected))
        assert dict(flat("", found)) == pytest.approx(numbers)
        assert len(numbers) > 5


def test_a_device_that_was_asked_for_says_the_same_and_is_named(two_branch, tmp_path):
    shutil.copytree(two_branch, tmp_path / "run")
    evaluate(tmp_path / "run", "corrected", "standard", PROTOCOL, torch.device("cpu"))
    for kind in ("linear", "knn"):
        name = f"corrected/{kind}-standard.json"
        found, expected = read_json(tmp_path / "run" / name), read_json(two_branch / name)
        assert found.pop("device").startswith("cpu ")
        assert found["provenance"] == expected["provenance"]  # the protocol's digest too
        if kind == "linear":
            assert found["all"].pop("streamed") > expected["all"].pop("streamed")
        assert dict(flat("", found)) == pytest.approx(dict(flat("", expected)))


def test_a_method_without_the_released_reading_says_so(two_branch):
    arrays, facts = arrays_of(two_branch, "released")
    assert (arrays, facts["status"]) == ({}, "n/a")
    for name in FILES[:2]:
        found = read_json(two_branch / "released" / name)
        assert found["status"] == "n/a"
        assert not [key for key, value in found.items() if isinstance(value, float)]
        assert "codes" not in found
    assert (two_branch / "released/spectrum.csv").read_text() == "layer,index,value\n"


def test_a_run_that_ended_in_nan_says_so_in_both(tiny_run, tiny_data, tmp_path):
    run = tiny_run(optimizer={"name": "sgd", "lr": 1e30})
    measured(run, tiny_data, tmp_path, "nan")
    for reading in ("corrected", "released"):
        assert arrays_of(tmp_path, reading)[0] == {}
        for name in FILES[:2]:
            assert read_json(tmp_path / reading / name)["status"] == "nan"
    assert read_tensors(tmp_path / "corrected/matrices.safetensors")[0] == {}


def test_everything_is_the_same_bytes_again(falcon, tiny_data):
    paths = [p for r in ("corrected", "released") for p in (falcon / r).iterdir()]
    assert len(paths) == 11
    before = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    extract(falcon, tiny_data, CPU, PROTOCOL.embedding_sample, PROTOCOL.view_sample)
    for reading in ("corrected", "released"):
        evaluate(falcon, reading, "standard", PROTOCOL)
        diagnose(falcon, reading, "standard", PROTOCOL)
    assert {path: path.read_bytes() for path in paths} == before
