"""Small networks of every wiring that CNNs are made of, for Hypothesis to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

Step = tuple[Any, ...]

WIDTHS = (4, 6, 8, 12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("conv"), st.sampled_from(WIDTHS), st.sampled_from([1, 3, 5]), st.booleans()),
        st.tuples(st.just("grouped"), st.sampled_from([2, 4])),
        st.tuples(st.just("depthwise"), st.sampled_from([1, 2]), st.sampled_from([3, 5])),
        st.tuples(st.just("residual"), st.sampled_from([1, 2])),
        st.tuples(st.just("dense"), st.sampled_from(WIDTHS)),
        st.tuples(st.just("branches"), st.sampled_from(WIDTHS), st.sampled_from(WIDTHS)),
        st.tuples(st.just("gate"), st.sampled_from([2, 4])),
        st.tuples(st.just("again")),
        st.tuples(st.just("skip")),
        st.tuples(st.just("shuffle"), st.just(2)),
        st.tuples(st.just("halves")),
        st.tuples(st.just("flip")),
        st.tuples(st.just("norm"), st.sampled_from(["batch", "group", "layer", "prelu", "scale"])),
        st.tuples(st.just("pool")),
        st.tuples(st.just("attention")),
        st.tuples(st.just("pixel")),
        st.tuples(st.just("pad")),
        st.tuples(st.just("softmax")),
    ),
    min_size=1,
    max_size=7,
)


@dataclass(frozen=True)
class Plan:
    """What a network is built from: equal plans, equal networks."""

    stem: int
    steps: tuple[Step, ...]
    flat: int


plans = st.builds(Plan, st.sampled_from(WIDTHS), STEPS.map(tuple), st.sampled_from([1, 1, 2]))


class Drawn(nn.Module):
    """Maps images `[n, 3, 12, 12]` to logits `[n, 5]`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plan = plan
        self.stem = nn.Conv2d(3, plan.stem, 3, padding=1)
        self.parts = nn.ModuleDict()
        width, picture = plan.stem, 12
        for at, step in enumerate(plan.steps):
            width, picture = self._grow(str(at), step, width, picture)
        self.fc = nn.Linear(width * plan.flat**2, 5)
        self._decided: dict[str, bool] = {}
        with torch.no_grad():
            self.eval()(torch.zeros(1, 3, 12, 12))

    def _once(self, name: str, applies: bool) -> bool:
        """As in a network that is written down, the way through does not change with the number of channels."""
        return self._decided.setdefault(name, applies)

    def _grow(self, name: str, step: Step, width: int, picture: int) -> tuple[int, int]:
        kind, *given = step
        parts = self.parts
        match kind:
            case "conv":
                out, kernel, strided = given
                strided = strided and picture > 6
                parts[name] = nn.Conv2d(width, out, kernel, padding=kernel // 2, stride=2 if strided else 1)
                return out, (picture + 1) // 2 if strided else picture
            case "grouped" if width % given[0] == 0:
                parts[name] = nn.Conv2d(width, width * 2, 3, padding=1, groups=given[0], bias=False)
                return width * 2, picture
            case "depthwise":
                times, kernel = given
                parts[name] = nn.Conv2d(width, width * times, kernel, padding=kernel // 2, groups=width)
                return width * times, picture
            case "residual":
                inner = width * given[0]
                parts[name] = Residual(width, inner)
            case "dense":
                parts[name] = nn.Conv2d(width, given[0], 3, padding=1)
                return width + given[0], picture
            case "branches":
                parts[f"{name}a"], parts[f"{name}b"] = (nn.Conv2d(width, out, 1) for out in given)
                return sum(given), picture
            case "gate":
                parts[f"{name}a"] = nn.Conv2d(width, given[0], 1)
                parts[f"{name}b"] = nn.Conv2d(given[0], width, 1)
            case "again":
                parts[name] = nn.Conv2d(width, width, 3, padding=1)
            case "norm":
                parts[name] = _norm(given[0], width)
            case "pixel" if width % 4 == 0:
                return width // 4, picture * 2
        return width, picture

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        past = x
        for at, step in enumerate(self.plan.steps):
            before = x
            x = self._walk(str(at), step, x, past)
            past = before
        pooled = functional.adaptive_avg_pool2d(x, self.plan.flat)
        return self.fc(pooled.flatten(1))

    def _walk(self, name: str, step: Step, x: Tensor, past: Tensor) -> Tensor:
        kind, *_ = step
        match kind:
            case "residual":
                return self.parts[name](x).relu()
            case "dense":
                return torch.cat([x, self.parts[name](x).relu()], 1)
            case "branches":
                return torch.cat([self.parts[f"{name}b"](x), self.parts[f"{name}a"](x)], 1)
            case "gate":
                squeezed = self.parts[f"{name}a"](x.mean((2, 3), keepdim=True)).relu()
                return x * self.parts[f"{name}b"](squeezed).sigmoid()
            case "again":
                return self.parts[name](self.parts[name](x).relu())
            case "skip":
                return x + past if self._once(name, x.shape == past.shape) else x
            case "shuffle" if self._once(name, x.shape[1] % 2 == 0):
                n, c, h, w = x.shape
                return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            case "halves" if self._once(name, x.shape[1] % 2 == 0):
                one, other = x.chunk(2, 1)
                return torch.cat([one.relu(), other], 1)
            case "flip":
                return x.flip(1)
            case "pool":
                return functional.max_pool2d(x, 2) if self._once(name, x.shape[-1] > 6) else x
            case "attention":
                flat = x.flatten(2)
                return (torch.softmax(flat.transpose(1, 2) @ flat, -1) @ flat.transpose(1, 2)).mT.view_as(x) + x
            case "pixel" if self._once(name, x.shape[1] % 4 == 0):
                return functional.pixel_shuffle(x, 2)
            case "pad":
                return functional.pad(x, (1, 1, 1, 1))
            case "softmax":
                return x.softmax(1)
        return self.parts[name](x) if name in self.parts else x


class Residual(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, inner, 3, padding=1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(functional.relu_(self.one(x)))


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


def _norm(kind: str, width: int) -> nn.Module:
    match kind:
        case "batch":
            return nn.BatchNorm2d(width)
        case "group":
            return nn.GroupNorm(2, width)
        case "prelu":
            return nn.PReLU(width)
        case "scale":
            return Scale(width)
        case _:
            return nn.Sequential(nn.GroupNorm(1, width))
