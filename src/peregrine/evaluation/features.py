"""Frozen features of a trained run: computed once, in eval mode, and read by every evaluation."""

from pathlib import Path

import numpy as np
import torch

from peregrine.config.fingerprint import fingerprint
from peregrine.config.identity import run_id
from peregrine.config.load import build_run, read_yaml
from peregrine.config.models import Run
from peregrine.data.prepare import Prepared
from peregrine.errors import UserError
from peregrine.files import read_tensors, sha256, write_tensors
from peregrine.frozen import FEATURES, data_of, read_outcome, weights_of
from peregrine.methods.base import Method
from peregrine.methods.build import build_method, load_state
from peregrine.streams import generator

BATCH = 512
SCORES = 2**25
"""Scores held at a time, 128 MiB: with more than 65,536 codes a batch has fewer images."""


def load_run(folder: Path) -> tuple[Run, dict]:
    """(run, outcome) of a seed folder, every file checked against the sums in outcome.json.

    Raises:
        UserError: a file is missing or changed, or belongs to another run.
    """
    outcome = read_outcome(folder)
    for name, expected in outcome["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is missing or changed; run pretrain again")
    run = build_run([read_yaml(folder / "run.yaml")], str(folder / "run.yaml"))
    if run_id(run) != outcome["run"]:
        raise UserError(f"{folder / 'run.yaml'} is not run {outcome['run']}; run pretrain again")
    return run, outcome


def load_method(run: Run, outcome: dict, folder: Path, data: Prepared) -> Method:
    """The trained network of a seed folder, in eval mode on the CPU."""
    shape = data.images["train"].shape
    method = build_method(run, outcome["seed"], channels=shape[1], train_images=shape[0])
    backbone, _ = read_tensors(folder / "backbone.safetensors")
    rest, _ = read_tensors(folder / "method.safetensors")
    load_state(method, backbone, rest)
    return method.eval()


def extract(folder: Path, data: Prepared, device: torch.device, embedding_sample: int) -> Path:
    """Write {folder}/corrected/features.safetensors and return its path.

    Arrays: {split}_features float32 [n, f], {split}_labels int64 [n], {split}_embeddings float32
    [m, d] (train: a fixed sample of `embedding_sample`, its labels in `sample_labels`), and where
    the method has scores {split}_codes int64 [n] (argmax) and {split}_usage float64 [c] (mean
    softmax). A run whose outcome is `nan` has no arrays, only that status in the metadata.
    """
    run, outcome = load_run(folder)
    if outcome["data"] != data.sums:
        raise UserError(
            f"{folder} was trained on other data than {run.dataset.name} holds now;"
            " run pretrain again"
        )
    path = folder / "corrected" / FEATURES
    facts = {
        "kind": "features",
        "run": outcome["run"],
        "seed": str(outcome["seed"]),
        "status": outcome["status"],
        "data": data_of(outcome),
        "weights": weights_of(outcome),
        "code": fingerprint("extract", run.method["name"]),
        "codes": str(run.method.get("codes", 0)),
    }
    if outcome["status"] == "nan":
        write_tensors(path, {}, **facts)
        return path
    method = load_method(run, outcome, folder, data).to(device)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        arrays |= {f"{split}_{k}": v for k, v in _describe(method, data, split, device).items()}
    draws = generator(0, "evaluation/embedding sample")
    picks = torch.randperm(len(arrays["train_labels"]), generator=draws)[:embedding_sample]
    kept = picks.sort().values.numpy()
    arrays["train_embeddings"] = arrays["train_embeddings"][kept]
    arrays["sample_labels"] = arrays["train_labels"][kept]
    write_tensors(path, arrays, **facts)
    return path


@torch.no_grad()
def _describe(
    method: Method, data: Prepared, split: str, device: torch.device
) -> dict[str, np.ndarray]:
    mean = torch.tensor(data.mean, device=device).view(-1, 1, 1)
    sd = torch.tensor(data.sd, device=device).view(-1, 1, 1)
    features, embeddings, codes, usage = [], [], [], []
    images = data.images[split]
    size = max(1, min(BATCH, SCORES // max(1, getattr(method.options, "codes", 1))))
    for start in range(0, len(images), size):
        batch = torch.from_numpy(images[start : start + size]).to(device).float() / 255
        seen = method.describe((batch - mean) / sd)
        features.append(seen.features.float().cpu().numpy())
        embeddings.append(seen.embeddings.float().cpu().numpy())
        if seen.scores is not None:
            scores = seen.scores.float()
            codes.append(scores.argmax(dim=1).cpu().numpy())
            usage.append(scores.softmax(dim=1).double().sum(dim=0).cpu().numpy())
    out = {
        "features": np.concatenate(features),
        "embeddings": np.concatenate(embeddings),
        "labels": data.labels[split],
    }
    if codes:
        out["codes"] = np.concatenate(codes)
        out["usage"] = np.sum(usage, axis=0) / len(images)
    return out


def forget_checkpoint(folder: Path) -> None:
    """Remove a run's checkpoint: its results have been used, nothing needs to resume any more."""
    (folder / "resume" / "last.safetensors").unlink(missing_ok=True)
