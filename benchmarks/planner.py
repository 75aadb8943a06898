"""
How fast a budget is proved, and how large the programme for it is.

    python -m benchmarks.planner

Three questions of each network: the exact bounds of every metric; whether some student keeps three limits at once (30 %
of the macs and of the params, 70 % of the activation bytes) though operators make costs contradict each other; and,
among all that keep them, the one with the least harm, by made-up harms. Then, without operators, what a job's next
budget takes once harms are known: the optimum and eight near-optima kept apart. Then the whole plan of a job on
ResNet-50.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from search.catalog import Catalog
from search.files import Files
from search.planner import Planner
from search.recipe import prepare
from search.space import Space
from search.spec import Pick, SpaceSpec, read_spec
from search.surgery import survey

NETWORKS = ("resnet50", "densenet201", "mobilenet_v2", "efficientnet_b0")
SPACE = SpaceSpec(operators=("low_rank", "separable"))
SHARES = {"macs": 0.3, "params": 0.3, "activation_bytes": 0.7}
KNOWN = (
    ("small_resnet", {"width": 24, "depth": 2}, SpaceSpec(divisor=2), 32),
    ("small_mobilenet", {}, SpaceSpec(divisor=2), 32),
    ("torchvision", {"builder": "resnet50"}, SpaceSpec(), 224),
)
BUDGETS = ({"macs": 0.5}, {"macs": 0.2}, {"macs": 0.1}, {"params": 0.1}, SHARES)
SECONDS = 60.0


def harms(space: Space) -> list[list[float]]:
    """Rising as less is kept, and not alike at any two sites."""
    rng = np.random.default_rng(0)
    return [
        [float(weight * (1 - (choice + 1) / (site.full + 1)) ** 1.5) for choice in site.choices]
        for site, weight in zip(space.sites, rng.uniform(0.2, 2.0, len(space.sites)), strict=True)
    ]


def main() -> None:
    torch.set_num_threads(1)  # as in the server's process that checks jobs
    print(f"{'network':18}{'sites':>6}{'bounds':>9}{'fits':>9}{'least harm':>12}{'columns':>9}{'proved':>8}{'gap':>10}")
    for name in NETWORKS:
        model = (
            Catalog().make("teachers", Pick(name="torchvision", options={"builder": name})).build((3, 224, 224), 1000)
        )
        found = survey(model, torch.randn(1, 3, 224, 224), SPACE)
        planner = Planner(found.polynomials, seconds=60.0)
        full = found.costs([found.space.full()])
        limits = {metric: int(share * full[metric][0]) for metric, share in SHARES.items()}
        began = time.perf_counter()
        planner.bounds()
        bounds = time.perf_counter() - began
        began = time.perf_counter()
        witness = planner.fit(limits)
        fits = time.perf_counter() - began
        began = time.perf_counter()
        best = planner.minimise(harms(found.space), limits)
        least = time.perf_counter() - began
        assert witness.choices is not None, name
        assert all(planner.costs(witness.choices)[metric] <= limit for metric, limit in limits.items()), name
        print(
            f"{name:18}{len(found.space.sites):6}{bounds:7.2f} s{fits:7.2f} s{least:10.2f} s{best.columns:9,}"
            f"{'yes' if best.proved else 'no':>8}{best.gap:10.1e}",
            flush=True,
        )
    near_optima()
    with tempfile.TemporaryDirectory() as name:
        whole, survey_alone = whole_plan(Path(name))
        print(f"plan of resnet50, three limits: {whole:.1f} s, of which its survey {survey_alone:.1f} s")


def near_optima() -> None:
    """
    Processor seconds for the optimum and for eight near-optima, harms of the first and the last of these, and by how
    much one of them could be better at most.
    """
    print(
        f"{'known harms':14}{'limits':>42}{'optimum':>10}{'gap':>7}{'all eight':>11}{'found':>7}{'harms':>18}{'gap':>7}"
    )
    for name, options, rules, size in KNOWN:
        model = Catalog().make("teachers", Pick(name=name, options=options)).build((3, size, size), 10)
        found = survey(model, torch.randn(1, 3, size, size), rules)
        for shares in BUDGETS:
            limits = {metric: int(share * found.cost[metric]) for metric, share in shares.items()}
            table, planner = harms(found.space), Planner(found.polynomials, seconds=SECONDS)
            began = time.process_time()
            best = planner.minimise(table, limits)
            alone = time.process_time() - began
            began = time.process_time()
            answers = planner.diverse(table, limits, 8)
            together = time.process_time() - began
            values = [answer.value for answer in answers if answer.value is not None]
            print(
                f"{options.get('builder', name)!s:14}{shares!s:>42}{alone:8.2f} s{best.gap:7.1%}{together:9.1f} s"
                f"{len(values):7}{f'{min(values):.3f} to {max(values):.3f}' if values else '':>18}"
                f"{max(answer.gap for answer in answers):7.1%}",
                flush=True,
            )


def whole_plan(folder: Path) -> tuple[float, float]:
    """Seconds from the document to the plan, and of these the survey's."""
    rng = np.random.default_rng(0)
    for label in ("one", "other"):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{number}.png")
    spec = {
        "teacher": {"name": "torchvision", "options": {"builder": "resnet50"}},
        "dataset": {"name": "image_folder", "options": {"path": str(folder / "images"), "size": 224}},
        "budget": {"macs": "30%", "params": "30%", "activation_bytes": "70%"},
    }
    began = time.perf_counter()
    plan = prepare(read_spec(spec), Files(folder / "cache")).plan()
    seconds = {phase["phase"]: phase["expected"] for phase in plan["estimate"]["phases"]}
    return time.perf_counter() - began, seconds["survey"]


if __name__ == "__main__":
    main()
