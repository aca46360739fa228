"""What a training leaves: its end judged, and all its declared outputs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from peregrine.config.fingerprint import parts
from peregrine.config.models import Run
from peregrine.files import sha256, write_csv, write_json, write_tensors, write_text
from peregrine.methods.build import split_state
from peregrine.pretrain.checkpoint import Position
from peregrine.pretrain.device import circumstances

if TYPE_CHECKING:
    from peregrine.pretrain.trainer import Trainer


def judge(run: Run, at: Position) -> dict[str, object]:
    """finished, collapsed or nan, judged from the history alone, so a resume judges the same."""
    status, detail = "finished", ""
    if at.history:
        row = at.history[-1]
        layer = min(("features", "embeddings"), key=lambda layer: row[f"{layer}_sd"])
        spread = row[f"{layer}_sd"]
        if not all(math.isfinite(value) for value in row.values()):
            status, detail = "nan", "a loss term or monitor is not finite"
        elif spread < run.collapse_floor and (run.on_collapse == "stop" or at.epoch == run.epochs):
            status = "collapsed"
            detail = f"{layer} sd {spread:.4g} is below the floor {run.collapse_floor:g}"
    return {"status": status, "detail": detail, "epoch": at.epoch, "online_probe_accuracy": None}


def write_results(
    trainer: "Trainer", at: Position, outcome: dict[str, object], folder: Path, attempts: int
) -> None:
    """All declared outputs; outcome.json comes last and holds the sums of the others."""
    run = trainer.run
    backbone, rest = split_state(trainer.method)
    names = {"run": at.run, "seed": str(at.seed)}
    write_tensors(folder / "backbone.safetensors", backbone, **names)
    write_tensors(folder / "method.safetensors", rest, **names)
    write_text(folder / "run.yaml", yaml.safe_dump(run.model_dump(mode="json"), sort_keys=True))
    header = list(at.history[0]) if at.history else ["epoch", "lr", "loss"]
    write_csv(folder / "history.csv", header, ([row[key] for key in header] for row in at.history))
    timing = ["epoch", "seconds", "samples_per_second"]
    write_csv(folder / "timing.csv", timing, ([row[key] for key in timing] for row in at.timing))
    seconds = sum(row["seconds"] for row in at.timing)
    write_json(
        folder / "manifest.json",
        {
            "run": at.run,
            "seed": at.seed,
            "code": at.code,
            "code_parts": parts("pretrain", run.method["name"]),
            "data": at.data,
            "accept_unverified": bool(trainer.unverified),
            "unverified": list(trainer.unverified),
            "effective_lr": trainer.schedule.base,
            "attempts": attempts,
            "wall_seconds": round(seconds, 3),
            "samples_per_second": round(at.epoch * trainer.steps * run.batch_size / seconds, 1)
            if seconds
            else None,
            **circumstances(trainer.device),
            "compiled": trainer.compiled,
            "processes": trainer.world.size,
        },
    )
    deterministic = ("backbone.safetensors", "method.safetensors", "run.yaml", "history.csv")
    outcome |= {
        "run": at.run,
        "seed": at.seed,
        "step": at.epoch * trainer.steps,
        "data": at.data,
        "files": {name: sha256(folder / name) for name in deterministic},
    }
    write_json(folder / "outcome.json", outcome)
