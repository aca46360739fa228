"""What binds an evaluation to the weights, data, code and protocol that it came from. No torch.

Every file derived from a trained run carries these facts, so that `collect` can tell numbers of
other weights, code or protocol apart instead of averaging them.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from peregrine.config.fingerprint import fingerprint
from peregrine.config.identity import protocol_digest
from peregrine.config.models import Extra, Model
from peregrine.errors import UserError
from peregrine.files import map_tensors, read_json, sha256, write_json

FEATURES = "features.safetensors"

STEPS = {
    "linear": "evaluate",
    "knn": "evaluate",
    "clustering": "evaluate",
    "collapse": "diagnose",
    "robustness": "robustness",
    "detection": "detect",
}
"""Evaluation -> the step that makes it."""

EXTRA = get_args(Extra)
"""Evaluations made of the weights themselves, and only of the rows for which a study asks."""

NOT_AVAILABLE = "n/a"
"""Status of a reading that a method does not have."""

UNMEASURED = ("nan", NOT_AVAILABLE)
"""Status of features without arrays: there is nothing to measure."""


def joined(*sums: str) -> str:
    """One SHA-256 for several."""
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def weights_of(outcome: Mapping[str, Any]) -> str:
    """The sum of a run's weights, from its outcome.json."""
    return joined(*(outcome["files"][f"{part}.safetensors"] for part in ("backbone", "method")))


def data_of(outcome: Mapping[str, Any]) -> str:
    """The sum of the data that a run was trained on."""
    return joined(outcome["data"]["train"], outcome["data"]["test"])


def read_outcome(folder: Path) -> dict[str, Any]:
    """outcome.json of a seed folder.

    Raises:
        UserError: missing, changed, or another file under that name.
    """
    outcome = read_json(folder / "outcome.json")
    if not {"run", "seed", "status", "files", "data"} <= set(outcome):
        raise UserError(f"{folder / 'outcome.json'} is no outcome; run pretrain again")
    return outcome


def weight_facts(outcome: Mapping[str, Any], method: str) -> dict[str, str]:
    """What an evaluation of the weights themselves comes from; `method` is the name of theirs."""
    return {
        "run": outcome["run"],
        "seed": str(outcome["seed"]),
        "status": outcome["status"],
        "weights": weights_of(outcome),
        "data": data_of(outcome),
        "method": method,
    }


def read_features(folder: Path, reading: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, facts) of a seed folder's features, which must be those of its present weights.

    The arrays are verified and stay in the file: those of ImageNet need not fit into memory.

    Raises:
        UserError: missing or damaged, or of other weights or another run.
    """
    outcome = read_outcome(folder)
    path = folder / reading / FEATURES
    arrays, facts = map_tensors(path)
    if facts.get("kind") != "features":
        raise UserError(f"{path} holds no features; run extract again")
    if (facts["run"], facts["seed"]) != (outcome["run"], str(outcome["seed"])):
        raise UserError(f"{path} belongs to run {facts['run']}, seed {facts['seed']}; move it")
    if facts["weights"] != weights_of(outcome):
        raise UserError(f"{path} was made with other weights than stand there; run extract again")
    return arrays, facts


def write_result(
    folder: Path,
    reading: str,
    kind: str,
    protocol: tuple[str, Model],
    facts: Mapping[str, str],
    result: Mapping[str, Any],
) -> None:
    """Write {reading}/{kind}-{protocol}.json with the facts that bind it to its origin.

    Args:
        folder, reading: where; `kind` is a key of STEPS.
        protocol: its name and values; of detection the values of its own.
        facts: of the features; of EXTRA those of `weight_facts`, of detection with `images`, the
            sum of the images that it saw besides.
        result: the numbers.
    """
    name, values = protocol
    origin = {"weights": facts["weights"], "data": facts["data"]}
    origin["protocol"] = protocol_digest(values, kind)
    if kind in EXTRA:
        origin["step"] = fingerprint(STEPS[kind], facts["method"])
        origin |= {key: facts[key] for key in ("images",) if key in facts}
    else:
        origin["step"] = fingerprint(STEPS[kind])
        origin |= {"extract": facts["code"], "features": sha256(folder / reading / FEATURES)}
    identity = {
        "kind": kind,
        "run": facts["run"],
        "seed": int(facts["seed"]),
        "status": facts["status"],
        "protocol": name,
        "provenance": origin,
    }
    write_json(folder / reading / f"{kind}-{name}.json", {**identity, **result})
