"""What modules of a network answer on the way to its logits, and which of them are worth comparing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search.device import usage_of
from search.errors import UserError


@dataclass(frozen=True, slots=True)
class Tap:
    """A module by its name, and the shape of its feature map for one image, `[channels, height, width]`."""

    name: str
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one forward pass: `logits` `[n, classes]`, `features` as the taps were named, `embedding` `[n, width]`."""

    logits: Tensor
    features: list[Tensor]
    embedding: Tensor | None = None


class Watched:
    """
    A network that tells what it thinks. `taps` are names of modules, whose outputs `[n, channels, height, width]` are
    the features; `head` is the last linear layer, whose input is the embedding. Everything comes in float32.

    A teacher and a student grafted from it have modules of the same names.
    """

    def __init__(self, model: nn.Module, taps: Sequence[str] = (), head: str | None = None) -> None:
        self.model = model
        self._taps = [_inner(model, name) for name in taps]
        self._head = None if head is None else _inner(model, head)

    def __call__(self, images: Tensor) -> Seen:
        features: dict[int, Tensor] = {}
        embedding: list[Tensor] = []

        def keep(at: int) -> object:
            def hook(module: nn.Module, given: object, answer: Tensor) -> None:
                features[at] = answer.float()

            return hook

        def keep_input(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            embedding[:] = [given[0].float().flatten(1)]

        hooks = [module.register_forward_hook(keep(at)) for at, module in enumerate(self._taps)]  # type: ignore[arg-type]
        if self._head is not None:
            hooks.append(self._head.register_forward_pre_hook(keep_input))
        try:
            logits = forward(self.model, images)
        finally:
            for hook in hooks:
                hook.remove()
        return Seen(logits, [features[at] for at in range(len(self._taps))], embedding[0] if embedding else None)

    def dry(self, images: Tensor) -> Seen:
        """As a call, in evaluation mode and without gradients: for the shapes."""
        with evaluating(self.model), torch.no_grad():
            return self(images)


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Logits `[n, classes]` in float32; on the way in the precision of training (`search.device`)."""
    with precision(images.device):
        logits: Tensor = model(images.contiguous(memory_format=usage_of(images.device).layout))
    return logits.float()


def precision(device: torch.device) -> AbstractContextManager[object]:
    """That of training (`search.device`), for whatever is done within."""
    kind = usage_of(device).autocast
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)


@dataclass(frozen=True, slots=True)
class Sights:
    """
    What there is to tap: `maps` are all modules that answer with one feature map, in order of execution; `blocks` the
    last block at each spatial size, in that order; `head` the last linear layer.
    """

    maps: tuple[Tap, ...]
    blocks: tuple[Tap, ...]
    head: str | None

    def linear(self) -> str:
        """The last linear layer. Raises `UserError` when there is none."""
        if self.head is None:
            raise UserError("the inputs of a linear layer are compared, and this network has none", pointer="")
        return self.head

    def chosen(self, names: Sequence[str], pointer: str = "/layers") -> tuple[Tap, ...]:
        """
        The taps of these names; without any, `blocks`.

        Raises:
            UserError: a name is of no module with a feature map.
        """
        if not names:
            if not self.blocks:
                raise UserError("this network has no feature maps to compare", pointer=pointer)
            return self.blocks
        known = {tap.name: tap for tap in self.maps}
        for at, name in enumerate(names):
            if name not in known:
                raise UserError(
                    f"no module called `{name}` answers with a feature map",
                    pointer=f"{pointer}/{at}",
                    allowed=sorted(known),
                )
        return tuple(known[name] for name in names)


def sights(model: nn.Module, image: Tensor, blocks: Iterable[str]) -> Sights:
    """
    What a network shows when it looks at one image `[channels, size, size]`. `blocks` are the names of its blocks; a
    network without any is tapped at its normalisations, or where it has none, its convolutions.
    """
    order: dict[str, tuple[int, ...]] = {}
    head: list[str] = []
    names = {module: name for name, module in model.named_modules() if name}

    def hook(module: nn.Module, given: object, answer: object) -> None:
        name = names[module]
        if isinstance(answer, Tensor):
            order.pop(name, None)
            order[name] = tuple(answer.shape[1:])
        if isinstance(module, nn.Linear):
            head[:] = [name]

    with _hooked(names, hook), evaluating(model), torch.no_grad():
        model(image.unsqueeze(0))
    maps = tuple(Tap(name, (shape[0], shape[1], shape[2])) for name, shape in order.items() if len(shape) == 3)
    wanted = set(blocks)
    kinds = [
        [tap for tap in maps if tap.name in wanted],
        [tap for tap in maps if isinstance(model.get_submodule(tap.name), nn.BatchNorm2d)],
        [tap for tap in maps if isinstance(model.get_submodule(tap.name), nn.Conv2d)],
    ]
    found = next((kind for kind in kinds if kind), [])
    last = {tap.shape[1:]: tap for tap in found}  # of each size the last in order
    return Sights(maps, tuple(tap for tap in found if last[tap.shape[1:]] is tap), head[0] if head else None)


def trunk(model: nn.Module, image: Tensor, name: str) -> list[str]:
    """
    The innermost modules that have done their work when the module of this name has answered, in the order in which
    they answer one image `[channels, height, width]`. What works again afterwards is not among them.

    Raises:
        LookupError: the network has no such module, or has several.
    """
    last, order = _inner(model, name), list[str]()
    inner = {module: path for path, module in model.named_modules() if not any(module.children())}
    done: list[str] | None = None

    def note(module: nn.Module, given: object, answer: object) -> None:
        nonlocal done
        if module in inner:
            order.append(inner[module])
        if module is last:
            done = list(order)

    with _hooked({**inner, last: name}, note), evaluating(model), torch.no_grad():
        model(image.unsqueeze(0))
    if done is None:
        raise LookupError(f"the network does not use its module {name}")
    again = set(order[len(done) :])
    return [path for path in dict.fromkeys(done) if path not in again]


def _inner(model: nn.Module, name: str) -> nn.Module:
    """By its name in the network that shrinks its images first, too."""
    named: dict[str, nn.Module] = dict(model.named_modules())
    found = [named[name]] if name in named else [named[path] for path in named if path.endswith(f".{name}")]
    if len(found) != 1:
        raise LookupError(f"{len(found)} modules of the network are called {name}")
    return found[0]


@contextmanager
def _hooked(modules: Iterable[nn.Module], hook: object) -> Iterator[None]:
    hooks = [module.register_forward_hook(hook) for module in modules]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
