"""What a small adversarial change of an image does to its neighbour and its augmented features."""

from pathlib import Path

import torch

from peregrine.config.models import Protocol
from peregrine.data.prepare import Prepared
from peregrine.evaluation.features import load_run
from peregrine.frozen import weight_facts, write_result


def robustness(
    folder: Path, data: Prepared, device: torch.device, name: str, protocol: Protocol
) -> None:
    """Write corrected/robustness-{name}.json of a seed folder; no numbers yet."""
    run, outcome = load_run(folder)
    facts = weight_facts(outcome, run.method["name"])
    write_result(folder, "corrected", "robustness", (name, protocol), facts, {})
