"""YAML files as checked models: how all of config/ is read."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from peregrine.errors import UserError

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise UserError(f"line {node.start_mark.line + 1}: key '{twice.pop()}' stands twice")
    return dict(zip(keys, [loader.construct_object(v, deep=True) for _, v in node.value]))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> dict:
    """A YAML mapping, by the safe loader.

    Raises:
        UserError: missing, unreadable, not YAML, not a mapping, or with a key twice.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist; there are: {', '.join(near) or 'none'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: {line}{problem}") from None
    except (UserError, ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{path}: expected a mapping of names to values at the top")
    return data


def validate(model: type[M], data: Any, where: str) -> M:
    """Checked model; the first problem becomes one line that names place, key and remedy."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top)"
        if first["type"] == "extra_forbidden":
            names = _fields_at(model, first["loc"][:-1])
            close = difflib.get_close_matches(str(first["loc"][-1]), names, 1, 0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
            raise UserError(f"{where}: unknown key '{key}'; {hint}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {key}: {message[0].lower()}{message[1:]}") from None


def _fields_at(model: type[BaseModel], path: tuple) -> list[str]:
    """Field names of the model that stands at `path` (through tuples and dicts of models)."""
    for part in path:
        if not isinstance(part, str) or part not in model.model_fields:
            continue
        stack = [model.model_fields[part].annotation]
        while stack:
            kind = stack.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
                break
            stack.extend(getattr(kind, "__args__", ()))
    return sorted(model.model_fields)


OWN_OPTIONS = ("method", "backbone", "optimizer")
"""Parts of a run whose options belong to their `name`, so another name brings none along."""


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key, later wins; another name of OWN_OPTIONS starts afresh."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = out.get(key)
            if isinstance(value, Mapping) and isinstance(old, Mapping):
                renamed = key in OWN_OPTIONS and value.get("name", old.get("name")) != old.get(
                    "name"
                )
                out[key] = merge(value) if renamed else merge(old, value)
            else:
                out[key] = merge(value) if isinstance(value, Mapping) else value
    return out


def check_name(name: str, path: Path) -> None:
    if name != path.stem:
        raise UserError(f"{path}: name is '{name}' but the file's is '{path.stem}'; make them one")


def known_names(name: str, known: Iterable[str]) -> str:
    """What may have been meant by an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known) or 'none'}"
