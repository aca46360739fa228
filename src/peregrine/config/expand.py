"""Families of rows, tables, figures and tests, written once: `for_each` in a study's YAML.

A mapping with `for_each: {name: values}` stands for one copy of itself per value, or per
combination where several names are given, the last name varying fastest. In a copy, and in the key
under which it stands, `{name}` becomes the value; values may be a mapping whose entries have parts,
and `{name.part}` is one of them. A text that is nothing but `{name}` or `{name.part}` takes the
value's own type. A copy that is no mapping is written `each: VALUE` beside `for_each`. A list in a
list is spliced into it, so that an anchor may name a part.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from peregrine.errors import UserError

KEY = "for_each"
PLACE = re.compile(r"\{(\w+)(?:\.(\w+))?\}")

Names = Mapping[str, tuple[Any, Mapping[str, Any]]]
"""Name -> its value in this copy, and that value's parts."""


def expand(data: Any, names: Names | None = None) -> Any:
    """`data` as YAML gave it, with every `for_each` written out and every list in a list spliced.

    Raises:
        UserError: a `for_each` of the wrong shape, a name that it does not give, two entries of one
            mapping that come out under the same key.
    """
    names = names or {}
    if isinstance(data, Mapping):
        out: dict[str, Any] = {}
        for key, value in data.items():
            for copy, inner in _copies(value, names):
                name = str(_filled(key, inner)) if isinstance(key, str) else key
                if name in out:
                    raise UserError(f"key '{name}' comes out twice of '{key}'; name every choice")
                out[name] = expand(copy, inner)
        return out
    if isinstance(data, list):
        found = [expand(copy, inner) for item in data for copy, inner in _copies(item, names)]
        return [each for part in found for each in (part if isinstance(part, list) else [part])]
    return _filled(data, names)


def _copies(item: Any, names: Names) -> Iterator[tuple[Any, Names]]:
    """The item for each choice of its `for_each`, with the names that hold in it."""
    if not isinstance(item, Mapping) or KEY not in item:
        yield item, names
        return
    choices = expand(item[KEY], names)
    if not isinstance(choices, Mapping) or not all(
        isinstance(name, str) and isinstance(values, list | Mapping) and values
        for name, values in choices.items()
    ):
        raise UserError(f"{KEY}: expected names with the values of each, such as {{c: [16, 256]}}")
    rest: Any = {key: value for key, value in item.items() if key != KEY}
    rest = rest["each"] if set(rest) == {"each"} else rest
    for chosen in product(*(_values(values) for values in choices.values())):
        yield rest, {**names, **dict(zip(choices, chosen, strict=True))}


def _values(values: list | Mapping) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    for value in values:
        parts = values[value] if isinstance(values, Mapping) else None
        yield value, parts if isinstance(parts, Mapping) else {}


def _filled(text: Any, names: Names) -> Any:
    """A text with its `{name}` replaced; anything else, and all outside of a copy, as it is."""
    if not names or not isinstance(text, str):
        return text
    whole = PLACE.fullmatch(text)
    if whole:
        return _named(whole, names)
    return PLACE.sub(lambda found: str(_named(found, names)), text)


def _named(found: re.Match, names: Names) -> Any:
    name, part = found.groups()
    value, parts = names.get(name, (None, {}))
    if name not in names or (part and part not in parts):
        known = [*names, *(f"{each}.{own}" for each, (_, has) in names.items() for own in has)]
        near = difflib.get_close_matches(found[0][1:-1], known, 1, 0.0)
        raise UserError(f"{KEY} gives no '{found[0][1:-1]}'; did you mean '{near[0]}'?")
    return parts[part] if part else value
