"""
A student written down as data: its modules, its tensors, and the steps from images to logits, or to boxes.

torch.fx follows the student's forward in eval mode. What a module of torch.nn does stays one step, so batch norm and
dropout come back as modules and the reloaded student can be trained on. What a module of another package does only
while training is not carried over. `search.export.load` reads the document; its table `ALLOWED` says what may be named.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from math import isfinite
from numbers import Integral
from operator import attrgetter
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from search.errors import Unsupported
from search.export.load import ALLOWED, ROOMS

VERSION = 1

_METHODS = frozenset(ALLOWED["torch.Tensor"].split())
_NAMES: Mapping[Any, str] = {
    getattr(ROOMS[room], word): f"{room}.{word}"
    for room, words in ALLOWED.items()
    for word in words.split()
    if room != "torch.Tensor"
}
_DROPOUTS: Mapping[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
}
_SHAPES = {"shape": "size", "ndim": "dim"}


def describe(student: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """
    The document without its facts about images and classes, and the tensors it needs, by path.

    Raises:
        Unsupported: the forward branches on values, takes or returns something other than one tensor, or uses a
            module or a function that the document may not name; a parameter has two owners, or is not float32.
    """
    graph = _follow(student)
    return _Writer(student, graph).document()


def _follow(student: nn.Module) -> fx.Graph:
    training = {module: module.training for module in student.modules()}
    try:
        return _Tracer().trace(student.eval())
    except Exception as error:  # a forward can fail in any way when it meets a stand-in for a tensor
        raise Unsupported(f"the student cannot be exported: its forward cannot be followed ({error})") from error
    finally:
        for module, mode in training.items():
            module.training = mode


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _NAMES or super().is_leaf_module(m, module_qualified_name)


class _Writer:
    def __init__(self, student: nn.Module, graph: fx.Graph) -> None:
        self._student, self._graph = student, graph
        self._modules: dict[str, dict[str, Any]] = {}
        self._tensors: dict[str, Tensor] = {}
        self._loose: dict[str, dict[str, Any]] = {}
        """Tensors that belong to no module of the document."""
        self._forget = _last_uses(graph)

    def document(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        entries = [node for node in self._graph.find_nodes(op="placeholder") if node.users]
        if len(entries) != 1:
            raise Unsupported(f"the student takes {len(entries)} inputs; one with one input can be exported")
        (exit_,) = self._graph.find_nodes(op="output")
        if not isinstance(exit_.args[0], fx.Node):
            kind = type(exit_.args[0]).__name__
            raise Unsupported(f"the student returns a {kind}; one that returns one tensor can be exported")
        steps = [self._step(node) for node in self._graph.nodes if node.op not in ("placeholder", "output")]
        self._check_tensors()
        document = {
            "version": VERSION,
            "input": {"step": entries[0].name},
            "modules": self._modules,
            "tensors": self._loose,
            "steps": steps,
            "output": {"step": exit_.args[0].name},
        }
        return document, self._tensors

    def _step(self, node: fx.Node) -> dict[str, Any]:
        kind, target, args, kwargs = self._call(node)
        return {
            "name": node.name,
            "kind": kind,
            "target": target,
            "args": _data(args, node.name),
            "kwargs": {name: _data(arg, node.name) for name, arg in kwargs.items()},
            "forget": self._forget[node],
        }

    def _call(self, node: fx.Node) -> tuple[str, str, tuple[Any, ...], Mapping[str, Any]]:
        match node.op, node.target:
            case "call_module", str(path):
                self._add_module(path, self._student.get_submodule(path))
                return "module", path, node.args, node.kwargs
            case "get_attr", str(path):
                self._add_tensor(path, attrgetter(path)(self._student))
                return "tensor", path, (), {}
            case "call_method", str(name) if name in _METHODS:
                return "method", f"torch.Tensor.{name}", node.args, node.kwargs
            case "call_function", target if target in _NAMES:
                return "function", _NAMES[target], node.args, node.kwargs
            case "call_function", target if target in _DROPOUTS:
                return self._dropout(node)
            case "call_function", target if target is getattr and node.args[1] in _SHAPES:
                return "method", f"torch.Tensor.{_SHAPES[str(node.args[1])]}", node.args[:1], {}
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
        raise _refused(f"step `{node.name}` uses `{name}`, which a bundle may not name")

    def _dropout(self, node: fx.Node) -> tuple[str, str, tuple[Any, ...], Mapping[str, Any]]:
        """A dropout that was called as a function becomes a module, so that it knows whether one trains."""
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
        given.apply_defaults()
        tensor, p, training, inplace = given.arguments.values()
        if training:
            raise _refused(f"step `{node.name}` drops out at inference too")
        path = f"traced_{node.name}"
        self._modules[path] = _module(path, _DROPOUTS[node.target](p, inplace))
        return "module", path, (tensor,), {}

    def _add_module(self, path: str, module: nn.Module) -> None:
        self._modules[path] = _module(path, module)
        self._tensors |= {f"{path}.{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}

    def _add_tensor(self, path: str, tensor: Tensor) -> None:
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        self._tensors[path] = tensor
        self._loose[path] = {"kind": kind, "shape": list(tensor.shape)}

    def _check_tensors(self) -> None:
        owners: dict[int, str] = {}
        for path, tensor in self._tensors.items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise _refused(f"`{path}` is {str(tensor.dtype).removeprefix('torch.')}; only float32 is")
            if owners.setdefault(id(tensor), path) != path:
                raise _refused(f"`{path}` and `{owners[id(tensor)]}` are one tensor")


def _module(path: str, module: nn.Module) -> dict[str, Any]:
    """The class of a module and what its constructor was given, read from its attributes and tried out."""
    kind = type(module)
    if kind not in _NAMES:
        raise _refused(f"`{path}` is a `{kind.__module__}.{kind.__qualname__}`, which a bundle may not name")
    options = {
        name: _data(module.bias is not None if name == "bias" else getattr(module, name), path)
        for name in inspect.signature(kind).parameters
        if name not in ("device", "dtype") and hasattr(module, name)
    }
    with torch.device("meta"):
        twin = kind(**{name: tuple(option) if isinstance(option, list) else option for name, option in options.items()})
    if repr(twin) != repr(module) or _shapes(twin) != _shapes(module):
        raise _refused(f"`{path}` does not follow from the arguments `{kind.__name__}` takes")
    return {"class": _NAMES[kind], "options": options}


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[str]]:
    """For every step, the values that no later step reads."""
    order = {node: at for at, node in enumerate(graph.nodes)}
    forget: dict[fx.Node, list[str]] = {node: [] for node in graph.nodes}
    for value in graph.nodes:
        if value.op != "output":
            forget[max([value, *value.users], key=order.__getitem__)].append(value.name)
    return forget


def _data(argument: Any, where: str) -> Any:
    """An argument as JSON; the inverse of `search.export.load._value`."""
    match argument:
        case None | bool() | str():
            return argument
        case fx.Node():
            return {"step": argument.name}
        case tuple() | list():
            return [_data(item, where) for item in argument]
        case EllipsisType():
            return {"ellipsis": 3}
        case slice():
            return {"slice": [_data(item, where) for item in (argument.start, argument.stop, argument.step)]}
        case Integral():
            return int(argument)
        case float() if isfinite(argument):
            return argument
    raise _refused(f"`{where}` is given {argument!r}, which is not data")


def _refused(what: str) -> Unsupported:
    return Unsupported(f"the student cannot be exported: {what}")
