"""Scales, which may be like another, and what they multiply."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from peregrine.config.models import Scale
from peregrine.config.reading import check_name, known_names, merge, read_yaml, validate
from peregrine.errors import UserError


def read_scale(path: Path) -> Scale:
    """A scale, laid over the one that it is like."""
    data = read_yaml(path)
    if isinstance(like := data.get("like"), str):
        known = sorted(each.stem for each in _beside(path))
        if like not in known:
            raise UserError(f"{path}: like: no other scale '{like}'; {known_names(like, known)}")
        if "description" not in data:
            raise UserError(f"{path}: description is missing: say in a few words what differs")
        below = read_yaml(path.with_name(f"{like}.yaml"))
        if "like" in below:
            raise UserError(f"{path}: like: scale '{like}' is itself like another; name that one")
        data = merge(below, data)
    scale = validate(Scale, data, str(path))
    check_name(scale.name, path)
    return scale


def scales_like(path: Path) -> Iterator[str]:
    """Names of the scales beside `path` that vary it, sorted: like it, and no further look.

    A file that cannot be read says so when it is asked for, and stops no other scale.
    """
    for other in _beside(path):
        with suppress(UserError):
            data = read_yaml(other)
            if data.get("like") == path.stem and data.get("looks", 1) == 1:
                yield other.stem


def _beside(path: Path) -> list[Path]:
    """The other scales' files."""
    found = sorted(path.parent.glob("*.yaml"))
    return [each for each in found if each != path and not each.name.startswith(".")]


def multiplied(data: dict[str, Any], times: Mapping[str, float], where: str) -> dict[str, Any]:
    """The values of a run with factors on some numbers, in place; whole ones have to stay whole.

    Raises:
        UserError: an option that is not a number, or a part of a whole one.
    """
    for path, factor in times.items():
        *folders, last = path.split(".")
        place: Any = data
        for part in folders:
            place = place.get(part) if isinstance(place, dict) else None
        value = place.get(last) if isinstance(place, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{where}: times: option '{path}' is not a number")
        product = value * factor
        if isinstance(value, int):
            # 100 times 1.1 is 110.00000000000001.
            whole = round(product) if math.isfinite(product) else math.inf
            if not math.isclose(product, whole, rel_tol=1e-9) or whole == math.inf:
                raise UserError(f"{where}: times: {path} {value} times {factor:g} is not whole")
            product = whole
        place[last] = product
    return data
