"""Compiled training passes of the backbone: a GPU is told of hundreds of small kernels at once.

At small images and batches the host cannot launch the kernels of a step as fast as the GPU runs
them. torch.compile fuses some and replays the rest as one CUDA graph. As with cuDNN's choice of
kernels the last bits are others, so it is a circumstance and stands in the manifest.
"""

import torch
from torch import nn

from peregrine.config.machine import compile_choice
from peregrine.nets.drop_path import DropPath

WORTH = 10_000
"""Steps of a training from which compiling, about a minute, is paid back on a GPU. Estimated: at
some milliseconds a step that are saved."""


def compile_training(method: nn.Module, device: torch.device, steps: int) -> bool:
    """Compile training passes of the method's backbone and of its moving averages, in place.

    By default on CUDA, for trainings of at least WORTH steps; PEREGRINE_COMPILE=0 never and 1
    always, on the CPU too. Names and values of weights stay, and so does eval mode. What a pass
    returns is overwritten by that of the next step, see `begin_step`.

    Args:
        steps: of the whole training, so that a resumed one chooses as before.

    Returns:
        Whether anything was compiled.
    """
    choice = compile_choice()
    wanted = choice if choice is not None else device.type == "cuda" and steps >= WORTH
    if not wanted or not steps:
        return False
    # Stochastic depth draws from a generator of its own, which a graph cannot replay.
    if any(isinstance(each, DropPath) for each in method.backbone.modules()):
        return False
    lacking = _lacking(device)
    if lacking:
        print(f"the backbone is not compiled, training goes on without: {lacking}", flush=True)
        return False
    for module in [*method.modules()]:
        if type(module) is type(method.backbone):
            _compile(module)
    return True


def begin_step() -> None:
    """Tell CUDA graphs that what the passes of the step before returned is used no more.

    Gradients belong to it: they must have been set to None.
    """
    torch.compiler.cudagraph_mark_step_begin()


def _compile(backbone: nn.Module) -> None:
    eager = backbone.forward
    # Not dynamic: a crop of another size gets a graph of its own, of which there are two at most.
    fast = torch.compile(eager, mode="reduce-overhead", dynamic=False)
    backbone.forward = lambda images: fast(images) if backbone.training else eager(images)


def _lacking(device: torch.device) -> str:
    """Why a trifle cannot be compiled, such as no C++ compiler; '' where it can."""
    try:
        torch.compile(lambda x: x.square() + 1)(torch.ones(2, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        return " ".join(str(error).split())[:200]
    return ""
