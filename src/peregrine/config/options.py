"""A method's options, read from its source file without importing torch.

Every method module holds a pydantic class `Options`. Planning needs that class - to refuse unknown
keys, to name a run - but not the module, which imports torch. So only the class statement and the
torch-free imports that it may use are executed here. A method stays one file.
"""

import ast
import importlib
import importlib.util
from functools import cache
from pathlib import Path

from peregrine.config.models import MethodOptions
from peregrine.errors import UserError
from peregrine.methods.registry import METHODS

TORCH_FREE = ("typing", "math", "pydantic", "peregrine.config")


def module_path(module: str) -> Path:
    """Source file of a peregrine module, found without importing the module itself."""
    package = Path(__file__).parents[1]
    return package.joinpath(*module.split(".")[1:]).with_suffix(".py")


def method_target(name: str) -> tuple[str, str]:
    """(module, class) of a registered method.

    Raises:
        UserError: no such method.
    """
    if name not in METHODS:
        raise UserError(f"method '{name}' is unknown; there are: {', '.join(sorted(METHODS))}")
    module, _, attribute = METHODS[name].partition(":")
    return module, attribute


@cache
def method_options(name: str) -> type[MethodOptions]:
    """The `Options` class of a method, without the rest of its module."""
    path = module_path(method_target(name)[0])
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    wanted = [node for node in tree.body if _needed(node)]
    namespace: dict = {"__name__": f"options_of_{name}"}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), namespace)  # our own source only
    if "Options" not in namespace:
        raise TypeError(f"{path} has no class Options")
    return namespace["Options"]


def _needed(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").startswith(TORCH_FREE)
    return isinstance(node, ast.ClassDef) and node.name == "Options"


def method_class(name: str) -> type:
    """The method's class; this does import torch."""
    module, attribute = method_target(name)
    return getattr(importlib.import_module(module), attribute)
