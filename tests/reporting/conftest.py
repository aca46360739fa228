"""A small study of every kind of table, figure and claim, with a results folder made by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from peregrine import files
from peregrine.config import fingerprint
from peregrine.config.identity import protocol_digest
from peregrine.config.load import load
from peregrine.frozen import data_of, weights_of
from peregrine.reporting.published import Published

sys.path.append(str(Path(__file__).parent))  # small_world.py
ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
# Linear accuracy of each seed. With 5 labels a class it is .004, 0, -.004 more.
LINEAR = {
    "untrained": (0.50, 0.51, 0.52),
    "c16": (0.899, 0.900, 0.901),
    "c64": (0.880, 0.881, 0.885),
    "c256": (0.87, 0.90, 0.931),
    "mixed": (0.7, 0.7, 0.7),
}
PUBLISHED = {("P", "acc"): 0.90, ("P", "few"): 0.90, ("U", "acc"): 0.51, ("U", "few"): 0.51,
             ("Q", "acc"): 0.90, ("Q", "few"): 0.50}  # fmt: skip
SUMS = {"train": "abc", "test": "def"}
EPOCHS = 3
WIDTH = 4


def _panel(metric: str, label: str, **more) -> dict:
    return {"metric": metric, "label": label, **more}


ACCURACY = _panel("linear/accuracy", "linear probe, %", percent=True)
GROUPS = {"published": ["c16", "c64", "c256"], "other": ["mixed"]}
FIGURES = [
    {
        "id": "sizes",
        "kind": "metric_over_option",
        "groups": {**GROUPS, "elsewhere": ["big"]},
        "panels": [ACCURACY, _panel("codes/ami", "AMI", level="codes/nmi_chance")],
        "untrained": "untrained",
        "option": "method.codes",
    },
    {"id": "rows", "kind": "metric_by_row", "groups": GROUPS, "panels": [ACCURACY],
     "untrained": "untrained", "baseline": {"c64": "c16", "c256": "c16"}},
    {"id": "gain", "kind": "gain", "groups": {"all": ["c64", "c256"]}, "panels": [ACCURACY],
     "baseline": {"c64": "c16", "c256": "c16"}},
    {"id": "training", "kind": "history", "groups": GROUPS,
     "panels": [_panel("probe_accuracy", "probe, %", percent=True)]},
    {"id": "spectrum", "kind": "spectrum", "groups": {"all": ["untrained", "c16"]},
     "panels": [_panel("features", "features"), _panel("embeddings", "embeddings")]},
    {"id": "readings", "kind": "spectrum", "groups": {"all": ["c16", "c256"]},
     "panels": [_panel("embeddings", "ours"),
                _panel("embeddings", "released", reading="released")]},
    {"id": "mixtures", "kind": "mixture", "groups": {"all": ["c16", "c64"]},
     "panels": [_panel("collapse/embeddings/mixture_relative", "relative",
                       level="collapse/embeddings/mixture_chance"),
                _panel("collapse/embeddings/mixture_entropy", "released", reading="released")]},
    {"id": "matrices", "kind": "matrices", "groups": {"all": ["c16", "c256", "mixed"]},
     "panels": [_panel("correlation", "H^T H"), _panel("similarity", "H H^T")]},
    {"id": "map", "kind": "map", "groups": {"all": ["c16", "c256", "mixed"]},
     "panels": [_panel("class", "by class"), _panel("code", "by code")]},
    {"id": "labels", "kind": "label_share", "groups": {"all": ["c16", "mixed"]},
     "panels": [_panel("accuracy", "probe, %", percent=True)]},
    {"id": "beyond", "kind": "gain", "groups": {"all": ["big"]}, "panels": [ACCURACY],
     "baseline": {"big": "c16"}},  # not run here: left out of reports
]  # fmt: skip


def _test(kind: str, rows: list[str], **more) -> dict:
    given = {"metric": "linear/accuracy", "label": f"{kind} of {', '.join(rows)}"}
    return {"kind": kind, "rows": rows} | given | more


CLAIMS = [
    {"id": "A1", "statement": "No collapse - at all.", "tests": [
        _test("above", ["c16", "c64", "big"], metric="collapse/features/rankme",
              ceiling="collapse/features/rankme_ceiling", threshold=0.25,
              on_failure="contradicted"),
    ]},
    {"id": "A2", "statement": "It rises with c.", "tests": [
        _test("trend", ["c16", "c64", "c256", "big"], metric="few/accuracy", option="method.codes"),
        _test("trend", ["c16", "c64"], option="method.codes"),
    ]},
    {"id": "A3", "statement": "It beats the untrained net.", "tests": [
        _test("difference", ["c16", "c256"], against=["untrained", "untrained"]),
        _test("interaction", ["c256"], against=["untrained"], control=["c16"],
              control_against=["untrained"]),
        _test("differs", ["c16"], against=["mixed"]),
        _test("difference", ["big"], against=["c16"]),
        _test("below", ["untrained"], threshold=0.6),
    ]},
    {"id": "A4", "statement": "Nobody knows.", "not_run": "there is no row for it"},
    {"id": "A5", "statement": "One of them is bad.", "tests": [
        _test("below", ["untrained", "c16"], threshold=0.6, any_row=True),
    ]},
    {"id": "A6", "statement": "They are equal.", "tests": [
        _test("equivalent", ["c64"], against=["c256"], threshold=threshold)
        for threshold in (0.01, 0.9)
    ]},
]  # fmt: skip
COLUMNS = [
    {"metric": "linear/accuracy", "label": "linear", "published": "acc", "percent": True,
     "decimals": 1},
    {"metric": "few/accuracy", "label": "few", "published": "few"},
    {"metric": "online_probe/accuracy", "reading": "released", "label": "online"},
    {"metric": "codes/ami", "label": "AMI"},
    {"metric": "codes/nmi", "reading": "released", "label": "released NMI"},
]  # fmt: skip
STUDY = {
    "name": "toy",
    "title": "A toy - with a dash",
    "paper": "no paper",
    "summary": "Nothing.",
    "defaults": {"dataset": {"name": "digits"}, "views": [{}], "method": {"name": "falcon"}},
    "rows": {
        "untrained": {"label": "untrained net", "run": {"epochs": 0, "method": {"codes": 64}}},
        "c16": {"label": "Toy, c = 16", "run": {"method": {"codes": 16}}},
        "c64": {"label": "Toy, c = 64", "run": {"method": {"codes": 64}}},
        "c256": {"label": "Toy, c = 256", "run": {"method": {"codes": 256}}},
        "mixed": {"label": "Toy <mixed> & odd", "run": {"method": {"codes": 32}}},
        "big": {"label": "Toy, c = 1024", "only": ["elsewhere"]},
    },
    "tables": [
        {"id": "main", "title": "Main", "rows": [*LINEAR, "big"], "columns": COLUMNS,
         "baseline": {"c64": "c16", "c256": "c16"}, "published": "1", "note": "A note.",
         "published_rows": {"untrained": "U", "c16": "P", "c64": "P", "c256": "Q", "mixed": "P",
                            "big": "P"}},
        {"id": "assumed", "title": "Assumed", "rows": ["c16"], "columns": COLUMNS[:1],
         "published": "1", "published_rows": {"c16": "P"}, "assumed": True},
        {"id": "other", "title": "Other", "rows": ["c16"], "columns": COLUMNS[:1],
         "published": "1", "published_rows": {"c16": "P"}, "other_setup": "elsewhere"},
        {"id": "beyond", "title": "Beyond - left out", "rows": ["c16", "big"],
         "columns": [_panel("few/accuracy", "few")], "baseline": {"big": "c16"}},
    ],
    "figures": [{"title": f["id"], "caption": "A caption.", **f} for f in FIGURES],
    "claims": CLAIMS,
    "assumptions": [{"setting": "all", "stated": "nothing", "ours": "everything"}],
}  # fmt: skip


def identified(kind: str, outcome: dict, project) -> dict:
    """The facts that `peregrine.frozen.write_result` puts into every evaluation."""
    origin = {
        "weights": weights_of(outcome),
        "data": data_of(outcome),
        "extract": "now",
        "step": "now",
        "protocol": protocol_digest(project.protocol, kind),
        "features": "f",
    }
    keys = {key: outcome[key] for key in ("run", "seed", "status")}
    return {"kind": kind, **keys, "protocol": project.scale.protocol, "provenance": origin}


def trained(folder: Path, text: str) -> dict[str, str]:
    """Sums of files that stand for a trained net."""
    for name in ("backbone.safetensors", "method.safetensors"):
        files.write_text(folder / name, f"{name} {text}")
    return {path.name: files.sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


class World:
    """Configuration and results; seed 2 of c64 ended in NaN, seed 0 of c256 never began."""

    def __init__(self, root: Path) -> None:
        self.config, self.results, self.reports = (
            root / name for name in ("config", "results", "reports")
        )
        (self.config / "published").mkdir(parents=True)
        for name, data in {
            "config": {"scale": "paper", "studies": ["toy"]},
            "presets": {"views": {}},
            "protocols": yaml.safe_load((ROOT / "config" / "protocols.yaml").read_text()),
            "scales/paper": {"name": "paper", "description": "A scale.", "seeds": list(SEEDS)},
            "studies/toy": STUDY,
        }.items():
            files.write_text(self.config / f"{name}.yaml", yaml.safe_dump(data, sort_keys=False))
        lines = [
            Published(f"{row}/{name}", "1", row, name, "m", "1", 2, value, None, None, "src", "")
            for (row, name), value in PUBLISHED.items()
        ]
        files.write_csv(self.config / "published" / "toy.csv", Published._fields, lines)
        self.project = load(self.config)
        self.folder = self.results / "paper" / "toy"
        for row in LINEAR:
            for seed in SEEDS:
                if (row, seed) != ("c256", 0):
                    self._write(row, seed, "nan" if (row, seed) == ("c64", 2) else "finished")

    def seed_folder(self, row: str, seed: int) -> Path:
        return self.results / "runs" / self.project.of("toy")[row].id / f"seed-{seed}"

    def _write(self, row: str, seed: int, status: str) -> None:
        folder, accuracy = self.seed_folder(row, seed), LINEAR[row][seed]
        finished = status == "finished"
        if row != "untrained":
            curve = [(e, 0.001, 100 * accuracy - 10 / e) for e in range(1, EPOCHS + 1)]
            lines = [(e, lr, value / 100) for e, lr, value in curve]
            files.write_csv(folder / "history.csv", ("epoch", "lr", "probe_accuracy"), lines)
        given = {"run": folder.parent.name, "seed": seed, "data": SUMS}
        given |= {"status": status, "epoch": EPOCHS, "detail": "", "files": trained(folder, row)}
        given["online_probe_accuracy"] = accuracy - 0.02 if finished else None
        files.write_json(folder / "outcome.json", given)
        files.write_json(
            folder / "manifest.json",
            {
                "run": folder.parent.name,
                "seed": seed,
                "code": f"other-{seed}" if row == "mixed" else "now",
                "code_parts": {},
                "data": SUMS,
                "accept_unverified": False,
                "device": "cpu",
                "torch": "2.0",
            },
        )
        if not finished:
            return
        spectrum = [
            (layer, index, 2.0 ** -(index + power))
            for layer, power in (("features", 0), ("embeddings", seed))
            for index in range(WIDTH)
        ] + [("features", WIDTH, 1e-7)]  # what rounding leaves of a direction that is not there
        path = folder / "corrected" / "spectrum.csv"
        files.write_csv(path, ("layer", "index", "value"), spectrum)
        few = accuracy + 0.004 - 0.004 * seed
        for name, numbers in {
            "linear": {
                "all": {"accuracy": accuracy},
                "few": {"accuracy": few},
                "labels-1": {"accuracy": accuracy - 0.5},
                "labels-10": {"accuracy": accuracy - 0.25},
            },
            "knn": {"accuracy": accuracy - 0.1},
            "clustering": {"kmeans": {"ami": 0.3}, "codes": {"ami": 0.2, "nmi_chance": 0.1}},
            "collapse": {
                "features/rankme": 2 + accuracy,
                "features/rankme_ceiling": WIDTH,
                "embeddings/mixture_relative_k10": -accuracy,
                "embeddings/mixture_chance_k10": -0.125,
                "embeddings/mixture_relative_k20": -2 * accuracy,
                "spectrum_sha256": files.sha256(path),
                "matrices_sha256": self._matrices(folder, seed),
            },
        }.items():
            facts = identified(name, given, self.project)
            files.write_json(folder / "corrected" / f"{name}-standard.json", facts | numbers)
        # The method of c16 has no released reading.
        path = folder / "released" / "spectrum.csv"
        lines = [("embeddings", i, value) for i, value in enumerate((2.0, 0.5, 1e-7))]
        files.write_csv(path, ("layer", "index", "value"), [] if row == "c16" else lines)
        for name, numbers in {
            "clustering": {"codes": {"nmi": 0.25}},
            "collapse": {"embeddings/mixture_entropy_k10": -11000.0},
        }.items():
            facts = identified(name, given, self.project)
            facts |= {"status": "n/a"} if row == "c16" else numbers
            sums = {"spectrum_sha256": files.sha256(path)} if name == "collapse" else {}
            files.write_json(folder / "released" / f"{name}-standard.json", facts | sums)

    def _matrices(self, folder: Path, seed: int) -> str:
        """Three coordinates, four images of the classes 7, 7, 8, 9; a map of 24 of 12 classes.

        Class k has the points (k, -k) twice. c16 has no codes; else codes 40 to 60, 41 thrice.
        """
        path = folder / "corrected" / "matrices.safetensors"
        arrays = {
            "embeddings_correlation": np.eye(3, dtype=np.float32) - np.float32(seed / 8),
            "embeddings_similarity": np.ones((4, 4), np.float32),
            "similarity_labels": np.array([7, 7, 8, 9]),
            "map_points": np.repeat(np.arange(12), 2)[:, None] * np.array([[1, -1]], np.float32),
            "map_share": np.array([0.5, 0.25], np.float32),
            "map_labels": np.repeat(np.arange(12), 2),
        }
        if folder.parent.name != self.project.of("toy")["c16"].id:
            arrays["map_codes"] = np.array([41, *range(40, 62), 41])
        files.write_tensors(path, arrays)
        return files.sha256(path)


def _fix_code(patch: pytest.MonkeyPatch) -> None:
    """Results made by hand carry the code 'now'."""
    patch.setattr(fingerprint, "fingerprint", lambda step, method=None: "now")
    patch.setattr(fingerprint, "parts", lambda step, method=None: {})


@pytest.fixture(scope="module")
def fixed_code():
    """For no longer than a module: other tests ask for the real fingerprint."""
    with pytest.MonkeyPatch.context() as patch:
        _fix_code(patch)
        yield


@pytest.fixture(scope="session")
def _collected(tmp_path_factory):
    from peregrine.reporting.collect import collect

    world = World(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        _fix_code(patch)
        collect(world.project, "toy", world.results, world.config)
    return world


@pytest.fixture(scope="module")
def collected(_collected, fixed_code):
    """A world after `collect`. Tests that change it work on a copy."""
    return _collected
