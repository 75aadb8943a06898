"""Residual blocks that may be taken away whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def removable_blocks(model: nn.Module, example: Tensor) -> list[str]:
    """
    Names of the blocks that are their input plus something, in order of execution.

    That is found by numbers: with all its own parameters zero, the block gives back the activation it receives when
    `model`, in evaluation mode, sees `example`. Of nested modules the innermost counts. A block owns a convolution,
    is called once, with one tensor, and shares no parameter with the rest of the network.
    """
    owners = _owners(model)
    inputs: dict[str, list[Any]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            received = args[0] if len(args) == 1 and not kwargs else None
            inputs.setdefault(name, []).append(received.clone() if isinstance(received, Tensor) else None)

        return hook

    hooks = []
    for name, module in model.named_modules():
        alone = all(
            owner == name or owner.startswith(f"{name}.") for p in module.parameters() for owner in owners[id(p)]
        )
        if name and alone and not isinstance(module, _ConvNd) and _has_convolution(module):
            hooks.append(module.register_forward_pre_hook(note(name), with_kwargs=True))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()

    found: list[str] = []
    for name in sorted(inputs, key=lambda name: -name.count(".")):  # inner modules before those around them
        nested = any(inner.startswith(f"{name}.") for inner in found)
        if not nested and len(inputs[name]) == 1 and _is_residual(model.get_submodule(name), inputs[name][0]):
            found.append(name)
    return [name for name in inputs if name in found]


def _owners(model: nn.Module) -> dict[int, Sequence[str]]:
    """For every parameter, by id, the modules that hold it directly."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return dict(owners)


def _has_convolution(module: nn.Module) -> bool:
    return any(isinstance(part, _ConvNd) for part in module.modules())


def _is_residual(block: nn.Module, received: Tensor | None) -> bool:
    if received is None or not bool(received.any()):
        return False
    silent = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
        try:
            output = silent(received.clone())
        except Exception:  # a block that cannot stand alone is no candidate
            return False
    return isinstance(output, Tensor) and output.shape == received.shape and torch.equal(output, received)
