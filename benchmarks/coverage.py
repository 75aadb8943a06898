"""
What is understood of torchvision's classification networks, and whether it is exact.

    python -m benchmarks.coverage [name ...]

Prints a row per network and keeps it in coverage.md, whose other rows stay. A network is surveyed twice:

- at its own size (that of its first weights; 224 where they were only ever tuned at another) with the options that
  jobs have by default. Three students, the least among them, are built and counted at that size;
- at 64 pixels (96 or its own where it does not run on those) with everything that can be searched: operators of
  convolutions and widths inside of groups too. Twenty students and the least are built and counted.

Exact says of how many of these every metric was the counted one, to the unit, and that the whole candidate answers as
the network does, within 1e-5. All weights are random; times are of one thread.
"""

from __future__ import annotations

import gc
import math
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torchvision import models

from benchmarks.costs import graft_milliseconds, samples
from search.costs.measure import count
from search.errors import Unsupported
from search.spec import SpaceSpec
from search.surgery import Survey, survey

RESULTS = Path(__file__).with_suffix(".md")
EVERYTHING = SpaceSpec(operators=("low_rank", "separable"), groups=True)
SMALL = (64, 96)
COSTED = 20_000
HEAD = """\
# Coverage of torchvision's classification networks

What `python -m benchmarks.coverage` printed; its docstring says what the columns are. Times: one thread of an AVX2
processor that other work shared, torch {torch}, torchvision {torchvision}, 21 November 2026.

| model | px | blocks | sites | space | survey, s | costs/s | graft, ms | exact | all sites | exact, small | stays |
|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---|---|
"""


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    zoo = models.list_models(module=models)
    for name in track(names or zoo, "surveying", console=Console(stderr=True)):
        row = f"| {name} | {' | '.join(_row(name))} |"
        print(row, flush=True)
        rows = _kept() | {name: row}
        table = "\n".join(rows[name] for name in zoo if name in rows)
        head = HEAD.format(torch=_plain(torch.__version__), torchvision=_plain(torchvision.__version__))
        RESULTS.write_text(f"{head}{table}\n")
        gc.collect()


def _kept() -> dict[str, str]:
    """Rows of earlier runs, by model."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {match[1]: line for line in lines if (match := re.match(r"\| (\w+) \| \d", line))}


def _row(name: str) -> list[str]:
    size, model = _size(name), _built(name)
    try:
        image = _image(size)
        began = time.thread_time()
        found = survey(model, image)
        seconds = time.thread_time() - began
        whole = [
            str(size),
            str(len({site.block for site in found.space.sites})),
            str(len(found.space.sites)),
            f"10^{math.log10(found.space.size):.0f}",
            f"{seconds:.1f}",
            f"{_costed_per_second(found):,.0f}",
            f"{graft_milliseconds(found):.0f}",
            _exact(model, found, image, 2),
        ]
        stays = _stays(model, found)
        del found
        small = next((pixels for pixels in SMALL if _runs(model, pixels)), size)
        found = survey(model, _image(small), EVERYTHING)
        return [*whole, str(len(found.space.sites)), f"{_exact(model, found, _image(small), 20)} at {small} px", stays]
    except Unsupported as error:
        return [str(size), *[""] * 9, error.message]


def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # how GoogLeNet and Inception draw weights will change
        return models.get_model(name, weights=None).eval()


def _size(name: str) -> int:
    weights = {found.name: found for found in models.get_model_weights(name)}
    return int(weights["IMAGENET1K_V1"].transforms().crop_size[0]) if "IMAGENET1K_V1" in weights else 224


def _image(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _runs(model: nn.Module, size: int) -> bool:
    try:
        with torch.no_grad():
            return bool(model(_image(size)).isfinite().all())
    except (AssertionError, RuntimeError):
        return False


def _costed_per_second(found: Survey) -> float:
    rows = np.resize(found.space.array(samples(found, 20)), (COSTED, len(found.space.sites)))
    found.costs_of(rows[:20])  # the polynomials are put in order once
    began = time.thread_time()
    found.costs_of(rows)
    return COSTED / (time.thread_time() - began)


def _exact(model: nn.Module, found: Survey, image: Tensor, number: int) -> str:
    candidates = [found.space.least(), *samples(found, number)]
    costs = found.costs(candidates)
    right = sum(
        count(found.graft(candidate), image) == {metric: int(values[at]) for metric, values in costs.items()}
        for at, candidate in enumerate(candidates)
    )
    with torch.no_grad():
        ours, theirs = found.graft(found.space.full())(image), model(image)
    same = bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())
    return f"{'yes' if same and right == len(candidates) else 'no'}, {right} of {len(candidates)}"


def _stays(model: nn.Module, found: Survey) -> str:
    """Why layers keep all their channels, by share of the parameters; what writes the answer left out."""
    sizes: Counter[str] = Counter()
    for finding in found.report:
        if finding.reason and "network's output" not in finding.reason:
            own = model.get_submodule(finding.module).parameters(recurse=False)
            reason = re.sub(r"^no width below .*", "too narrow for a multiple of the divisor", finding.reason)
            sizes[reason] += sum(parameter.numel() for parameter in own)
    every = sum(parameter.numel() for parameter in model.parameters())
    return "; ".join(f"{size / every:.1%}: {reason}" for reason, size in sizes.most_common(2) if size / every >= 0.005)


def _plain(version: str) -> str:
    return version.partition("+")[0]


if __name__ == "__main__":
    main(sys.argv[1:])
