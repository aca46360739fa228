"""A configuration and a results folder of two rows, built file by file."""

import csv
from pathlib import Path

import yaml

from peregrine import files
from peregrine.config.identity import protocol_digest
from peregrine.config.load import load
from peregrine.frozen import data_of, weights_of
from peregrine.reporting import evaluations
from peregrine.reporting.collect import collect
from peregrine.reporting.published import Published

REPOSITORY = Path(__file__).parents[2]
PARTS = {"peregrine.pretrain.loop": "1", "peregrine.methods.falcon": "1"}
STUDY = {
    "name": "toy",
    "title": "Toy",
    "paper": "none",
    "summary": "none",
    "defaults": {"dataset": {"name": "toy"}, "views": [{}], "method": {"name": "falcon"}},
    "rows": {
        "small": {"label": "small, c = 16", "run": {"method": {"codes": 16}}},
        "large": {"label": "large, c = 4096", "run": {"method": {"codes": 4096}}},
        "huge": {"label": "huge", "only": ["paper"]},
    },
    "tables": [
        {
            "id": "main",
            "title": "Main",
            "rows": ["small", "large", "huge"],
            "columns": [
                {"metric": "linear/accuracy", "label": "linear", "published": "acc"},
                {
                    "metric": "online_probe/accuracy",
                    "reading": "released",
                    "label": "online",
                },
                {"metric": "codes/ami", "label": "AMI"},
            ],
            "baseline": {"large": "small"},
            "published": "1",
            "published_rows": {"large": "L", "huge": "H"},
        }
    ],
    "figures": [],
    "claims": [
        {
            "id": "T1",
            "statement": "Larger is better.",
            "tests": [
                {
                    "kind": "difference",
                    "label": "large against small",
                    "metric": "linear/accuracy",
                    "rows": ["large"],
                    "against": ["small"],
                }
            ],
        },
        {"id": "T2", "statement": "All is well.", "not_run": "nobody measured it"},
    ],
    "assumptions": [],
}


class World:
    """A configuration and a results folder of two rows and three seeds, all finished."""

    def __init__(self, root: Path) -> None:
        self.config, self.results = root / "config", root / "results"
        for folder in ("scales", "studies", "published"):
            (self.config / folder).mkdir(parents=True)
        protocols = yaml.safe_load((REPOSITORY / "config" / "protocols.yaml").read_text())
        scale = {"name": "mini", "description": "d", "seeds": [0, 1, 2]}
        for name, data in {
            "config": {"scale": "mini", "studies": ["toy"]},
            "presets": {"views": {}},
            "protocols": protocols,
            "scales/mini": scale,
            "studies/toy": STUDY,
        }.items():
            (self.config / f"{name}.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        lines = [
            Published("l", "1", "L", "acc", "linear/accuracy", "1", 2, 0.9, None, None, "src", ""),
            Published("h", "1", "H", "acc", "linear/accuracy", "1", 2, 0.95, None, None, "src", ""),
        ]
        files.write_csv(self.config / "published" / "toy.csv", Published._fields, lines)
        self.project = load(self.config)
        for row, value in (("small", 0.5), ("large", 0.7)):
            for seed in range(3):
                self.seed(row, seed, value + 0.01 * seed)

    def folder(self, row: str, seed: int) -> Path:
        run = self.project.of("toy")[row].id
        return self.results / "runs" / run / f"seed-{seed}"

    def outcome(self, row: str, seed: int, status: str = "finished", **over) -> None:
        folder = self.folder(row, seed)
        given = {
            "run": folder.parent.name,
            "seed": seed,
            "data": {"train": "abc", "test": "def"},
            "status": status,
            "epoch": 5,
            "step": 50,
            "detail": "" if status == "finished" else f"{status} early",
            "online_probe_accuracy": 0.4 + 0.1 * seed if status == "finished" else None,
        }
        if "files" not in over:
            given["files"] = self.weights(row, seed)
        files.write_json(folder / "outcome.json", given | over)

    def weights(self, row: str, seed: int, text: str = "") -> dict[str, str]:
        folder = self.folder(row, seed)
        for name in ("backbone.safetensors", "method.safetensors", "history.csv"):
            files.write_text(folder / name, f"{row} {seed} {text}")
        names = ("backbone.safetensors", "method.safetensors", "history.csv")
        return {name: files.sha256(folder / name) for name in names}

    def facts(self, row: str, seed: int, kind: str, **over) -> dict:
        """What `peregrine.frozen.write_result` puts into every evaluation."""
        outcome = files.read_json(self.folder(row, seed) / "outcome.json")
        made = {
            "weights": weights_of(outcome),
            "data": data_of(outcome),
            "extract": "now",
            "step": "now",
            "protocol": protocol_digest(self.project.protocol, kind),
            "features": "f",
        }
        keys = {key: outcome[key] for key in ("run", "seed", "status")}
        return {"kind": kind, **keys, "protocol": "standard", "provenance": made | over}

    def edit(self, row: str, seed: int, kind: str, provenance: dict | None = None, **over) -> None:
        """Change facts of an evaluation, its checksum made right again."""
        path = self.folder(row, seed) / "corrected" / f"{kind}-standard.json"
        found = files.read_json(path)
        found["provenance"] |= provenance or {}
        files.write_json(path, found | over)

    def ended(self, row: str, seed: int, status: str) -> None:
        """The seed ended so, and was evaluated as it ended."""
        self.outcome(row, seed, status)
        for kind in evaluations.EVALUATIONS:
            if (self.folder(row, seed) / "corrected" / f"{kind}-standard.json").is_file():
                self.edit(row, seed, kind, status=status)

    def manifest(self, row: str, number: int, **over) -> None:
        given = {
            "run": self.project.of("toy")[row].id,
            "seed": number,
            "code": "now",
            "code_parts": PARTS,
            "data": {"train": "abc", "test": "def"},
            "accept_unverified": False,
            "device": "cpu",
            "torch": "2.0",
            "wall_seconds": 12.5,
        }
        files.write_json(self.folder(row, number) / "manifest.json", given | over)

    def seed(self, row: str, seed: int, accuracy: float) -> None:
        self.outcome(row, seed)
        self.manifest(row, seed)
        for name, numbers in {
            "linear": {
                "all": {"accuracy": accuracy, "c_grid": [0.1, 1.0], "converged": True},
                "few": {"accuracy": max(0.0, accuracy - 0.2), "accuracy_sd": 0.02},
            },
            "knn": {"accuracy": accuracy - 0.1},
            "clustering": {"kmeans": {"ami": 0.3, "k": 10}, "codes": None},
            "collapse": {"features/rankme": 12.5, "features/rankme_ceiling": 32},
        }.items():
            path = self.folder(row, seed) / "corrected" / f"{name}-standard.json"
            files.write_json(path, self.facts(row, seed, name) | numbers)

    def ready_to_pack(self, seconds: float = 2.5) -> None:
        """What `bundle` packs besides, trained in `seconds`, and features, which it leaves."""
        for cell in self.project.of("toy").values():
            for seed in range(3):
                folder = self.folder(cell.row, seed)
                run = yaml.safe_dump(cell.run.model_dump(mode="json"))
                files.write_text(folder / "run.yaml", run)
                files.write_text(folder / "timing.csv", f"epoch,seconds\n1,{seconds}\n")
                files.write_text(folder / "corrected" / "features.safetensors", "large")

    def ask(self, evaluations: dict[str, list[str]]) -> None:
        """The study asks for extra evaluations of rows."""
        path = self.config / "studies" / "toy.yaml"
        study = STUDY | {"evaluations": evaluations}
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        self.project = load(self.config)

    def drop(self, row: str, seed: int, *names: str) -> None:
        for name in names or ("linear", "knn", "clustering", "collapse"):
            (self.folder(row, seed) / "corrected" / f"{name}-standard.json").unlink()

    def collect(self) -> Path:
        return collect(self.project, "toy", self.results, self.config)

    def lines(self, name: str) -> list[dict[str, str]]:
        with (self.collect() / name).open(newline="") as stream:
            return list(csv.DictReader(stream))

    def cell(self, row: str, column: str = "linear") -> dict[str, str]:
        lines = self.lines("tables/main.csv")
        return next(line for line in lines if (line["row"], line["column"]) == (row, column))

    def states(self, row: str) -> list[tuple[str, str]]:
        return [(r["status"], r["detail"]) for r in self.lines("runs.csv") if r["row"] == row]
