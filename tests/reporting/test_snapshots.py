"""Published snapshots: made of bundles alone, the same bytes anywhere, compared byte by byte."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from small_world import STUDY, World

from peregrine import files
from peregrine.config.load import load
from peregrine.reporting import snapshots
from peregrine.reporting.bundles import bundle
from peregrine.reporting.collect import read_collected

ROOT = Path(__file__).parents[2]
ACCURACY = {"metric": "linear/accuracy", "label": "linear probe, %", "percent": True}
FIGURES = [
    {"id": "rows", "title": "Rows", "caption": "All of them.", "kind": "metric_by_row",
     "groups": {"all": ["small", "large"]}, "panels": [ACCURACY]},
    {"id": "beyond", "title": "Beyond", "caption": "Of a row that is not run.", "kind": "gain",
     "groups": {"all": ["huge"]}, "panels": [ACCURACY], "baseline": {"huge": "small"}},
]  # fmt: skip
OTHER = {
    **{"name": "other", "title": "Other", "paper": "none", "summary": "none"},
    "defaults": {"dataset": {"name": "toy"}, "views": [{}], "method": {"name": "falcon"}},
    "rows": {"only": {"label": "only", "run": {"method": {"codes": 9}}}},
    **{"tables": [], "figures": [], "claims": [], "assumptions": []},
}


def tool():
    """tools/published.py, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("published_tool", ROOT / "tools/published.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Place:
    """A repository; `build` gives it a study of two rows and three seeds, and another without."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "reports/published/mini"

    def build(self) -> "Place":
        root, self.world = self.root, World(self.root)
        files.write_text(root / "config/studies/toy.yaml", dumped(STUDY | {"figures": FIGURES}))
        files.write_text(root / "config/studies/other.yaml", dumped(OTHER))
        config = {"scale": "mini", "studies": ["toy", "other"]}
        files.write_text(root / "config/config.yaml", dumped(config))
        self.world.project = load(self.world.config)
        for cell in self.world.project.of("toy").values():
            for seed in range(3):
                run = dumped(cell.run.model_dump(mode="json"))
                files.write_text(self.world.folder(cell.row, seed) / "run.yaml", run)
        return self

    def pack(self, name: str, *rows: str, weights: bool = False) -> Path:
        path = self.folder / "bundles" / name
        runs = [self.world.project.of("toy")[row].id for row in rows]
        bundle(self.world.project, self.world.results, path, runs, weights)
        return path

    def run(self, *words: str) -> int:
        return tool().main(words, self.root)

    def bytes(self) -> dict[str, bytes]:
        """All files below reports/."""
        found = [path for path in (self.root / "reports").rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}


def dumped(data) -> str:
    return yaml.safe_dump(data, sort_keys=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory, fixed_code):
    """A published scale of two bundles. Tests that change it work on a copy."""
    place = Place(tmp_path_factory.mktemp("home")).build()
    place.pack("a.tar.xz", "small")
    place.pack("b.tar.xz", "large")
    shutil.rmtree(place.world.results)
    assert place.run() == 0
    return place


@pytest.fixture
def place(home, tmp_path):
    """A copy of home."""
    shutil.copytree(home.root, tmp_path / "copy")
    return Place(tmp_path / "copy")


@pytest.fixture
def fresh(tmp_path, fixed_code):
    """Results, and nothing published yet."""
    return Place(tmp_path / "fresh").build()


def refused(capsys, place, *words) -> str:
    """The one line of a refusal, after which everything is as it was."""
    before = place.bytes()
    capsys.readouterr()
    assert place.run(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("published: error: ")
    assert place.bytes() == before
    return err


def test_a_snapshot_has_all_that_is_worth_citing(home):
    assert set(home.bytes()) == {
        *("index.html", "manifest.json", "bundles/a.tar.xz", "bundles/b.tar.xz"),
        *("toy.pdf", "toy.html", "toy/runs.csv", "toy/claims.json"),
        *("toy/tables/main.csv", "toy/figures/rows.png"),  # "beyond" no report shows
    }
    claims = json.loads((home.folder / "toy/claims.json").read_text())
    assert [claim["verdict"] for claim in claims] == ["supported @mini", "not run @mini"]
    runs = (home.folder / "toy/runs.csv").read_text()
    assert runs.count(",finished,") == runs.count(",adopted,") == 6


def test_the_index_names_what_is_there_and_its_links_lead_somewhere(home):
    page = (home.folder / "index.html").read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 2 and all((home.folder / link).is_file() for link in links)
    assert "<h2>Other" not in page and "theory" not in page


def test_the_page_shows_the_figures_beside_it(home):
    page = (home.folder / "toy.html").read_text()
    assert re.findall(r'<img[^>]* src="([^"]+)"', page) == ["toy/figures/rows.png"]
    assert "base64" not in page


def test_the_whole_of_it_may_be_kept_elsewhere(place, tmp_path):
    """With notebooks that find their files where they lie; sums of the rest are in the manifest."""
    assert place.run("--check", "--whole", str(tmp_path / "all")) == 0
    whole = tmp_path / "all" / "mini"
    names = read_collected(whole / "toy")["files"]
    assert {"metrics.csv", "figures/rows.svg", "figures/data/rows.csv"} < set(names)
    cells = json.loads((whole / "toy.ipynb").read_text())["cells"]
    assert any('folder = "toy"' in "".join(cell["source"]) for cell in cells)
    left_out = files.read_json(place.folder / "manifest.json")["left_out"]
    assert all(files.sha256(whole / name) == checksum for name, checksum in left_out.items())
    assert {"toy.ipynb", "toy.json", "toy/metrics.csv", "toy/figures/rows.svg"} < set(left_out)


def test_the_manifest_says_what_it_is_made_of_and_how(home):
    manifest = files.read_json(home.folder / "manifest.json")
    kept = {n: b for n, b in home.bytes().items() if n != "manifest.json"}
    made = {n for n in kept if not n.startswith("bundles/")}
    assert set(manifest["files"]) == made
    assert all(files.sha256(home.folder / n) == s for n, s in manifest["files"].items())
    assert manifest["bundles"] == {
        name: {"sha256": files.sha256(home.folder / "bundles" / name), "seeds": 3}
        for name in ("a.tar.xz", "b.tar.xz")
    }
    assert "toy/figures/beyond.png" in manifest["left_out"]
    named = ("scales/mini", "presets", "protocols", "studies/toy")  # not config.yaml, not "other"
    assert set(manifest["config"]) == {
        *(f"config/{name}.yaml" for name in named),
        "config/published/toy.csv",
    }
    assert all(files.sha256(home.root / n) == s for n, s in manifest["config"].items())
    steps = ("pretrain", "extract", "evaluate", "diagnose")
    assert manifest["code"]["results"] == {"falcon": {step: ["now"] for step in steps}}
    assert manifest["commands"]["snapshot"] == "make published SCALE=mini"
    large = load(home.root / "config").of("toy")["large"].id
    assert manifest["runs"][large]["rows"] == ["toy/large"]
    assert manifest["runs"][large]["commands"] == [
        "python -m peregrine prepare toy",
        *(
            f"python -m peregrine {step} --scale mini --run {large} --seed 0 --seed 1 --seed 2"
            for step in steps
        ),
    ]


def test_another_place_time_and_split_give_the_same_bytes(home, tmp_path, monkeypatch, fixed_code):
    """Another folder, temporary folder, time zone and config.yaml too; one bundle, not two."""
    away = Place(tmp_path / "far" / "away").build()
    away.pack("all.tar.xz")
    shutil.rmtree(away.world.results)
    config = {"scale": "mini", "studies": ["toy", "other"], "results": "there", "reports": "here"}
    files.write_text(away.root / "config/config.yaml", dumped(config))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert away.run("--scale", "mini") == 0
    one, other = home.bytes(), away.bytes()
    manifests = [json.loads(each.pop("manifest.json")) for each in (one, other)]
    for each in (one, other):
        for name in [name for name in each if name.startswith("bundles/")]:
            del each[name]
        for name, data in each.items():
            for word in (b"/away", b"/home", b"Tokyo", bytes(tmp_path.parent), b"/tmp"):
                assert word not in data, f"{name}: {word}"
    assert one == other
    for manifest in manifests:
        del manifest["bundles"], manifest["checksum"]
    assert manifests[0] == manifests[1]


def test_check_lists_what_differs_and_writes_nothing(place, capsys):
    path = place.folder / "toy/runs.csv"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    (place.folder / "toy.pdf").unlink()
    files.write_text(place.folder / "toy/notes.md", "mine")
    before = place.bytes()
    assert place.run("--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        "mini: 3 files not what bundles, config/ and the code give",
        "  missing: toy.pdf",
        "  foreign: toy/notes.md",
        "  differs: toy/runs.csv",
        "type `make published SCALE=mini`, look at what it changes and commit it",
    ]
    assert place.bytes() == before


def test_making_it_again_repairs_what_was_found(home, place, capsys):
    (place.folder / "toy.pdf").unlink()
    files.write_text(place.folder / "old/notes.md", "of a study that is gone")
    (place.folder / "index.html").unlink()
    (place.folder / "index.html").symlink_to(home.folder / "index.html")
    assert snapshots.differences(place.folder, home.folder) == [
        "differs: index.html",  # a link to the right bytes is not kept with the repository
        "foreign: old/notes.md",
        "missing: toy.pdf",
    ]
    assert snapshots.publish(place.folder, home.folder) == [
        "removed: old/notes.md",
        "written: index.html",
        "written: toy.pdf",
    ]
    assert place.bytes() == home.bytes() and not (place.folder / "old").exists()
    assert not (place.folder / "index.html").is_symlink()
    assert snapshots.publish(place.folder, home.folder) == []


def test_a_snapshot_that_is_whole_passes(place, capsys):
    assert place.run("--check") == 0
    assert capsys.readouterr().out == (
        "mini: every file is what its bundles, config/ and the code give\n"
    )


def test_nothing_published_is_said_and_passes(tmp_path, capsys):
    assert tool().main(["--check"], tmp_path) == 0
    assert "no bundles yet" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_scale_that_is_unknown_or_without_bundles_is_a_line(fresh, capsys):
    (fresh.folder / "bundles").mkdir(parents=True)
    assert "python -m peregrine bundle --scale mini" in refused(capsys, fresh, "--scale", "mini")
    assert "mini2.yaml does not exist" in refused(capsys, fresh, "--scale", "mini2")
    assert fresh.run() == 0  # an empty folder is no snapshot
    files.write_text(fresh.folder / "toy.pdf", "of bundles that are gone")
    assert "has no bundle" in refused(capsys, fresh)


def test_a_damaged_bundle_is_a_line_and_nothing_is_written(place, capsys):
    path = place.folder / "bundles/b.tar.xz"
    path.write_bytes(path.read_bytes()[:-40])
    assert "b.tar.xz" in refused(capsys, place)
    assert "b.tar.xz" in refused(capsys, place, "--check")


def test_what_lies_beside_the_bundles_is_a_line(place, capsys):
    files.write_text(place.folder / "bundles/notes.md", "mine")
    assert "notes.md is no bundle" in refused(capsys, place)


def test_a_bundle_of_runs_that_the_scale_has_no_more_is_named(place, capsys):
    path = place.root / "config/studies/toy.yaml"
    path.write_text(path.read_text().replace("codes: 4096", "codes: 512"))
    line = refused(capsys, place)
    assert "b.tar.xz: run '" in line and "is none of the 3 runs of scale mini" in line


def test_weights_are_not_published(fresh, capsys):
    fresh.pack("w.tar.xz", "small", weights=True)
    assert "w.tar.xz has weights; pack metrics alone" in refused(capsys, fresh)


def test_bundles_that_disagree_on_a_seed_are_refused(fresh, capsys):
    """Which of them is adopted last must not matter."""
    fresh.pack("a.tar.xz", "small")
    fresh.world.seed("small", 1, 0.9)
    fresh.pack("b.tar.xz")
    line = refused(capsys, fresh)
    run = fresh.world.project.of("toy")["small"].id
    assert f"b.tar.xz and {fresh.folder}/bundles/a.tar.xz have different results of {run}" in line
    assert ", seed-1;" in line


def test_too_large_bundles_are_refused_before_they_are_unpacked(fresh, capsys, monkeypatch):
    size = fresh.pack("all.tar.xz").stat().st_size
    monkeypatch.setattr(snapshots, "adopt", None)
    monkeypatch.setattr(snapshots, "LARGEST", size - 1)
    line = refused(capsys, fresh)
    assert f"would have {size / 1e6:.1f} MB" in line and "all.tar.xz" in line


def test_too_large_a_snapshot_is_refused_with_its_largest_files(home, place, capsys, monkeypatch):
    sizes = {path: path.stat().st_size for path in home.folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    monkeypatch.setattr(snapshots, "LARGEST", total)
    assert place.run("--check") == 0
    monkeypatch.setattr(snapshots, "LARGEST", total - 1)
    line = refused(capsys, place)
    five = sorted(sizes, key=lambda path: -sizes[path])[:5]
    named = ", ".join(f"{path.name} {sizes[path] / 1e6:.1f}" for path in five)
    assert f"would have {total / 1e6:.1f} MB, " in line and f": {named}, ...; " in line


def test_scales_like_it_and_replicates_come_along(fresh, capsys):
    """In folders of their own, and none of them among the seeds of the scale."""
    world, place = fresh.world, fresh.folder / "bundles"
    fast = {"name": "mini-fast", "like": "mini", "description": "fast"}
    fast["times"] = {"optimizer.lr": 2}
    files.write_text(world.config / "scales/mini-fast.yaml", dumped(fast))
    world.project = load(world.config)
    world.ready_to_pack(seconds=1)
    fresh.pack("a.tar.xz")
    for seed in range(3):
        world.manifest("small", seed, threads=2)
    world.ready_to_pack(seconds=2)
    fresh.pack("replicates/threads-2/a.tar.xz", "small")
    world.project = load(world.config, scale="mini-fast")
    for row, value in (("small", 0.9), ("large", 0.1)):
        for seed in range(3):
            world.seed(row, seed, value + 0.01 * seed)
    world.ready_to_pack()
    bundle(world.project, world.results, place / "like/mini-fast/a.tar.xz")
    assert fresh.run("--scale", "mini") == 0
    runs = (fresh.folder / "toy/runs.csv").read_text()
    assert runs.count(",finished,") == 6
    stated = json.loads((fresh.folder / "toy/sensitivity.json").read_text())
    (test,) = stated["claims"][0]["tests"]
    # .2 here, -.8 there, on every seed.
    found = test["variations"]["mini-fast"]
    assert (found["turned"], found["change"]["effect"]) == (True, -1.0)
    assert "threads-2" in (fresh.folder / "toy/noise_floor.csv").read_text()
    manifest = files.read_json(fresh.folder / "manifest.json")
    assert {name: each["seeds"] for name, each in manifest["bundles"].items()} == {
        **{"a.tar.xz": 6, "like/mini-fast/a.tar.xz": 6, "replicates/threads-2/a.tar.xz": 3}
    }
    assert "config/scales/mini-fast.yaml" in manifest["config"]
    for scale in ("mini", "mini-fast"):
        made = manifest["runs"][load(world.config, scale=scale).of("toy")["small"].id]
        assert f" --scale {scale} --run " in made["commands"][1]
    fast["like"] = "other"
    files.write_text(world.config / "scales/mini-fast.yaml", dumped(fast))
    files.write_text(
        world.config / "scales/other.yaml",
        dumped({"name": "other", "description": "d", "seeds": [0]}),
    )
    assert "mini-fast" in refused(capsys, fresh)
    (place / "elsewhere").mkdir()
    shutil.copy(place / "a.tar.xz", place / "elsewhere")
    assert "elsewhere/a.tar.xz is out of place" in refused(capsys, fresh)


def test_detection_comes_from_bundles_and_not_from_this_machine(tmp_path):
    world = World(tmp_path)
    shutil.copy(ROOT / "config/detection.yaml", world.config)
    given = {"scale": "mini", "studies": ["toy"], "detection_data": {"bccd": "nowhere"}}
    files.write_text(world.config / "config.yaml", dumped(given))
    scale = yaml.safe_load((world.config / "scales/mini.yaml").read_text())
    files.write_text(world.config / "scales/mini.yaml", dumped(scale | {"detection": "bccd-c4"}))
    bare = load(world.config, detection_data={})
    results = tmp_path / "scratch"
    assert snapshots._with_detection(world.config, bare, results).detection is None
    files.write_text(results / "adopted/run/seed-0/corrected/detection-standard.json", "{}")
    assert snapshots._with_detection(world.config, bare, results).detection.name == "bccd-c4"


def test_git_does_not_ignore_what_is_published():
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    ignored = ["git", "check-ignore", "-q", "--no-index", "reports/published/cpu/falcon.pdf"]
    assert subprocess.run(ignored, cwd=ROOT).returncode == 1
    ignored[-1] = "reports/cpu/falcon.pdf"
    assert subprocess.run(ignored, cwd=ROOT).returncode == 0
