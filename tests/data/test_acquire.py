"""Which raw files are used, what is fetched, what counts as verified; `prepare` by hand."""

import json

import numpy as np
import pytest
import yaml
from test_download import Server

from peregrine.config.models import SourceSpec
from peregrine.data import download
from peregrine.data.prepare import load, prepare
from peregrine.errors import UserError
from peregrine.files import read_json


@pytest.fixture
def served(tinies, monkeypatch):
    """A server that has the downloads of all tiny data sets."""
    import threading

    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        running.files = {}
        for tiny in tinies.values():
            running.files |= tiny.archive or tiny.files
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def swap_pixel(files, name):
    """The same files with one pixel of `name` changed, so of the same size and layout."""
    data = bytearray(files[name])
    data[-1] ^= 1
    return files | {name: bytes(data)}


def refusal(name, root, *words, **spec):
    with pytest.raises(UserError) as error:
        prepare(name, root / "data", SourceSpec(**spec))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert not (root / "data").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "svhn"])
def test_missing_files_are_fetched_once(tiny, served, tmp_path, name):
    wanted = tiny(name, served.base)
    data = load(prepare(name, tmp_path / "data"))
    np.testing.assert_array_equal(data.images["test"], wanted.images["test"])
    assert {path.name for path in (tmp_path / "raw" / name).iterdir()} == set(
        wanted.archive or wanted.files
    )
    requests = len(served.asked)
    assert requests == len(wanted.archive or wanted.files)
    prepare(name, tmp_path / "data")
    assert len(served.asked) == requests


def test_only_what_is_missing_is_fetched(tiny, served, tmp_path):
    wanted = tiny("svhn", served.base)
    wanted.write(tmp_path / "raw", {"test_32x32.mat": wanted.files["test_32x32.mat"]})
    prepare("svhn", tmp_path / "data")
    assert len(served.asked) == 1
    assert [path.name for path in (tmp_path / "raw/svhn").iterdir()] == ["train_32x32.mat"]


def test_a_named_folder_is_never_added_to(tiny, served, tmp_path):
    wanted = tiny("cifar10", served.base)
    place = wanted.write(tmp_path / "mine")
    prepare("cifar10", tmp_path / "first", SourceSpec(folder=str(place)))
    (place / "test_batch.bin").unlink()
    words = ("mine lacks test_batch.bin", "sources.cifar10.folder")
    refusal("cifar10", tmp_path, *words, folder=str(place))
    refusal("cifar10", tmp_path, "is no folder", folder=str(tmp_path / "nowhere"))
    assert served.asked == []


def test_nothing_is_fetched_where_that_is_forbidden(tiny, served, tmp_path):
    tiny("cifar100", served.base)
    words = ("raw lacks train.bin, test.bin", "sources.cifar100.download")
    refusal("cifar100", tmp_path, *words, download=False)
    assert served.asked == []
    assert not (tmp_path / "raw").exists()


def test_offline_the_line_says_where_the_file_goes(tiny, served, tmp_path):
    tiny("cifar10", served.base)
    served.files.clear()
    refusal("cifar10", tmp_path, f"{served.base}/cifar-10-binary.tar.gz", "404", "raw/cifar10")


def test_a_file_that_is_not_the_official_one_needs_permission(tiny, tmp_path):
    wanted = tiny("cifar10")
    wanted.write(tmp_path / "raw", swap_pixel(wanted.files, "test_batch.bin"))
    key = "sources.cifar10.accept_unverified"
    refusal("cifar10", tmp_path, "test_batch.bin is not the official file", key)
    path = prepare("cifar10", tmp_path / "data", SourceSpec(accept_unverified=True))
    assert load(path).unverified == ("test_batch.bin",)
    record = read_json(path.with_suffix(".json"))
    assert record["unverified"] == ["test_batch.bin"]
    assert "except test_batch.bin" in record["verified"]
    official = {file.name: file.digest for file in wanted.source.raw.files}
    assert [name for name in official if record["files"][name] != official[name]] == [
        "test_batch.bin"
    ]
    # Permission that nothing needs leaves no trace.
    wanted.write(tmp_path / "raw")
    path = prepare("cifar10", tmp_path / "data", SourceSpec(accept_unverified=True))
    assert load(path).unverified == ()
    assert "except" not in read_json(path.with_suffix(".json"))["verified"]


def test_permission_does_not_extend_to_sizes_and_labels(tiny, tmp_path):
    wanted = tiny("cifar10")
    for data, words in (
        (wanted.files["test_batch.bin"][:-1], "must have 30,730 bytes"),
        (b"\x0a" + wanted.files["test_batch.bin"][1:], "labels must lie in 0..9"),
    ):
        wanted.write(tmp_path / "raw", wanted.files | {"test_batch.bin": data})
        refusal("cifar10", tmp_path, words, accept_unverified=True)


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def configured(tiny_config):
    """Write `sources:` into the configuration; returns its results folder."""

    def write(**sources):
        path = tiny_config / "config.yaml"
        data = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(data | {"sources": sources}))
        return tiny_config.parent / "results"

    return write


def test_check_says_what_is_there_and_writes_nothing(cli, configured, tiny, tmp_path):
    wanted, results = tiny("cifar10"), configured(cifar10={"download": False})
    raw = wanted.write(results / "raw", swap_pixel(wanted.files, "data_batch_2.bin"))
    (raw / "data_batch_3.bin").write_bytes(b"short")
    (raw / "data_batch_4.bin").unlink()
    before = sorted(results.rglob("*"))
    code, out, err = cli("prepare", "cifar10", "--check")
    assert (code, err.count("\n")) == (2, 1)
    states = {line.split(":")[0].strip() for line in out.splitlines()[1:]}
    assert states == {"verified", "not the official file", "wrong", "missing"}
    for line in ("verified: data_batch_1.bin", "missing: data_batch_4.bin"):
        assert f"  {line}" in out
    assert "not the official file: data_batch_2.bin" in out
    assert sorted(results.rglob("*")) == before


def test_check_of_what_could_be_fetched(cli, configured, tiny):
    tiny("svhn")
    results = configured()
    code, out, _ = cli("prepare", "svhn", "--check")
    assert code == 0
    assert "missing: train_32x32.mat" in out
    assert f"would fetch what is missing into {results / 'raw/svhn'}" in out
    assert not (results / "raw").exists()
    configured(svhn={"download": False})
    assert cli("prepare", "svhn", "--check")[0] == 2


def test_check_of_a_prepared_data_set(cli, configured, tiny):
    wanted = tiny("fashion_mnist")
    results = configured(fashion_mnist={"accept_unverified": True})
    name = "train-images-idx3-ubyte"
    wanted.write(results / "raw", swap_pixel(wanted.files, name))
    assert cli("prepare", "fashion_mnist")[0] == 0
    code, out, _ = cli("prepare", "fashion_mnist", "--check")
    assert code == 0
    assert "40 train and 20 test images of 1 x 28 x 28, 10 classes; sums fit" in out
    assert f"except {name}" in out
    configured()  # the permission is withdrawn
    code, _, err = cli("prepare", "fashion_mnist", "--check")
    assert code == 2
    assert f"{name} is not the official file" in err
    path = results / "data/fashion_mnist.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, _, err = cli("prepare", "fashion_mnist", "--check")
    assert code == 2
    assert "run prepare again" in err


def test_check_of_digits_needs_no_files(cli, configured):
    results = configured()
    for path in (results / "data").iterdir():
        path.unlink()
    code, out, _ = cli("prepare", "digits", "--check")
    assert code == 0
    assert "scikit-learn" in out


def test_the_environment_names_a_common_folder(cli, configured, tiny, tmp_path, monkeypatch):
    wanted, results = tiny("cifar100"), configured()
    wanted.write(tmp_path / "shared/cifar-100-binary")
    monkeypatch.setenv("PEREGRINE_DATA", str(tmp_path / "shared"))
    assert cli("prepare", "cifar100")[0] == 0
    assert not (results / "raw").exists()
    monkeypatch.setenv("PEREGRINE_DATA", str(tmp_path / "nowhere"))
    configured(cifar100={"folder": str(tmp_path / "shared")})  # goes before the common folder
    assert cli("prepare", "cifar100")[0] == 0


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"cifar": {}}, ["'cifar'", "did you mean 'cifar10'"]),
        ({"cifar10": {"foldr": "x"}}, ["sources.cifar10.foldr", "did you mean 'folder'?"]),
        ({"cifar10": {"accept_unverified": "yes"}}, ["sources.cifar10.accept_unverified"]),
        ({"cifar10": {"accept_unverified": 1}}, ["sources.cifar10.accept_unverified"]),
        ({"cifar10": {"folder": ""}}, ["sources.cifar10.folder"]),
    ],
)
def test_what_a_user_may_get_wrong(cli, configured, sources, words):
    configured(**sources)
    code, _, err = cli("prepare", "digits")
    assert (code, err.count("\n")) == (2, 1)
    for word in words:
        assert word in err


def test_the_manifest_says_what_was_accepted(cli, configured, tiny_config):
    """From the record of the data to the manifest of a run."""
    from peregrine.config.load import load as load_project
    from peregrine.files import write_json

    results = configured()
    record = results / "data/digits.json"
    write_json(record, read_json(record) | {"unverified": ["some.bin"]})
    run = load_project(tiny_config).of("one")["first"].id
    assert cli("pretrain", "--run", run, "--seed", 0)[0] == 0
    manifest = json.loads((results / "runs" / run / "seed-0/manifest.json").read_text())
    assert manifest["accept_unverified"] is True
    assert manifest["unverified"] == ["some.bin"]
