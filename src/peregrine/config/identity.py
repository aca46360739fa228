"""What a run is called: a readable slug and a hash of everything that makes its numbers.

The canonical form is sorted JSON in which a field that equals its frozen neutral value (its
default) is left out, so a new option with a neutral default renames nothing.
tests/config/frozen_ids.json holds the pairs that must never change.
"""

import hashlib
import json
from collections.abc import Collection

from pydantic import BaseModel

from peregrine.config.models import Run
from peregrine.config.options import method_options


def digest(model: BaseModel, without: Collection[str] = ()) -> str:
    """Short hash of all values of a configuration model but those of the fields `without`."""
    text = model.model_dump_json(exclude=set(without) or None)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def protocol_digest(protocol: BaseModel, kind: str = "") -> str:
    """Short hash of what fixes an evaluation: the attack belongs to robustness alone."""
    return digest(protocol, without=() if kind == "robustness" else ("attack",))


def canonical(run: Run) -> str:
    """Sorted JSON of all fields that differ from their defaults, method options included."""
    fields = run.model_dump(mode="json", exclude_defaults=True)
    name = run.method["name"]
    options = method_options(name)(**{k: v for k, v in run.method.items() if k != "name"})
    fields["method"] = {"name": name, **options.model_dump(mode="json", exclude_defaults=True)}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(run: Run) -> str:
    """`{dataset}-{net}-{method}-{hash}`, the run's folder under results/runs."""
    digest = hashlib.sha256(canonical(run).encode()).hexdigest()[:10]
    net = run.backbone.name.replace("_", "-")
    if net == "resnet8":  # the only one that comes in widths
        net += f"x{run.backbone.width}"
    return f"{run.dataset.name}-{net}-{run.method['name'].replace('_', '-')}-{digest}"
