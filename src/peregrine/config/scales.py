"""Scales, which may be like another, and what they multiply."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peregrine.config.models import Scale
from peregrine.config.reading import check_name, known_names, merge, read_yaml, validate
from peregrine.errors import UserError


def read_scale(path: Path) -> Scale:
    """A scale, laid over the one that it is like."""
    data = read_yaml(path)
    if isinstance(like := data.get("like"), str):
        base = path.with_name(f"{like}.yaml")
        if like == path.stem or not base.is_file():
            known = sorted(each.stem for each in path.parent.glob("*.yaml") if each != path)
            raise UserError(f"{path}: like: no other scale '{like}'; {known_names(like, known)}")
        below = read_yaml(base)
        if "like" in below:
            raise UserError(f"{path}: like: scale '{like}' is itself like another; name that one")
        data = merge(below, data)
    scale = validate(Scale, data, str(path))
    check_name(scale.name, path)
    return scale


def scales_like(path: Path) -> Iterator[str]:
    """The names of the scales beside `path` that are like it, sorted."""
    for other in sorted(path.parent.glob("*.yaml")):
        if other != path and read_yaml(other).get("like") == path.stem:
            yield other.stem


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
        if isinstance(value, int) and product != int(product):
            raise UserError(f"{where}: times: {path} {value} times {factor:g} is not whole")
        place[last] = int(product) if isinstance(value, int) else product
    return data
