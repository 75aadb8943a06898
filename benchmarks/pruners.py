"""
Pruners made by others, with their own importance and their own search: torch-pruning and NVIDIA ModelOpt.

torch-pruning is among the `dev` dependencies. ModelOpt is not, because it would decide the versions of other packages;
it is looked for in the folder `modelopt` of STILLHOUSE_BENCH_HOME (`.stillhouse/benchmarks` of the checkout):

    pip install --no-deps --target .stillhouse/benchmarks/modelopt nvidia-modelopt==0.47.0 torchprofile==0.0.4 \
        "pulp<4" omegaconf "antlr4-python3-runtime==4.9.*" ninja nvidia-ml-py regex
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch_pruning
from torch import nn

from benchmarks.final import Compute, Found, Options
from benchmarks.teachers import DIVISOR, Bench, home
from search.budget import Budget
from search.costs.measure import count
from search.quality import EVALUATION_BATCH, accuracy, outputs

_PRUNING_STEPS = 400
"""The share of channels that goes rises by a four-hundredth a step, so that little of the budget is left unused."""
_SCORED, _CALIBRATION = 1000, 2
"""What FastNAS looks at for each width: validation images, and batches that calibrate batch norms."""


def pruned_by_magnitude(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """torch-pruning: the L2 norm of coupled weights, global within isomorphic groups (Fang et al., 2024)."""
    return _pruned(bench, budget, compute, torch_pruning.importance.GroupMagnitudeImportance(p=2), isomorphic=True)


def pruned_by_scale(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """
    torch-pruning: the scale of batch norms, global (Liu et al., "Learning Efficient Convolutional Networks through
    Network Slimming"), of a teacher that was not trained to be sparse, as nobody's teacher is.
    """
    return _pruned(bench, budget, compute, torch_pruning.importance.BNScaleImportance(), isomorphic=False)


def fastnas(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """
    NVIDIA ModelOpt's FastNAS: how much accuracy each width costs alone, then a threshold for all of them by bisection.

    Widths in steps of a twentieth, and multiples of our divisor. Scored on 1,000 validation images after its own
    batch-norm calibration on 512 training images. What the widths cost alone is kept for other budgets of the same
    teacher, as ModelOpt offers; the seconds spent on it are counted each time. Nothing is trained.
    """
    folder = home() / "modelopt"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it replaces nothing of the environment
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import modelopt.torch.prune as mtp
    except ImportError as error:
        return Found(None, f"not installed: {error}")
    (metric, limit), *others = budget.limits.items()
    if others or metric not in ("macs", "params"):
        return Found(None, "FastNAS takes one limit, of macs or params")
    rules = {"channels_ratio": tuple(0.05 * step for step in range(1, 21)), "channel_divisor": DIVISOR}
    norms = {"features_ratio": rules["channels_ratio"], "feature_divisor": DIVISOR}
    seen = bench.validation

    def score(model: nn.Module) -> float:
        return accuracy(outputs(model, seen.images[:_SCORED], seen.normalise), seen.labels[:_SCORED])

    kept = home() / "fastnas" / f"{bench.result.weights.rpartition('/')[2]}.pth"
    spent = kept.with_suffix(".json")
    kept.parent.mkdir(parents=True, exist_ok=True)
    if spent.exists():
        compute.seconds += json.loads(spent.read_text())
    searching = Compute()
    with searching.timed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        student, _ = mtp.prune(
            _fresh(bench),
            mode=[("fastnas", {"nn.Conv2d": rules | {"kernel_size": ()}, "nn.BatchNorm2d": norms, "nn.Linear": norms})],
            constraints={"flops": 2 * limit} if metric == "macs" else {"params": limit},
            dummy_input=bench.example[:1],
            config={
                "data_loader": [bench.train.batch(step, EVALUATION_BATCH).images for step in range(_CALIBRATION)],
                "collect_func": lambda images: images,
                "score_func": score,
                "checkpoint": str(kept),
                "verbose": False,
            },
        )
    compute.seconds += searching.seconds
    if not spent.exists():
        spent.write_text(json.dumps(searching.seconds))
    if not budget.holds(count(student, bench.example)):
        return Found(None, "what it found is not within the budget")
    return Found(student)


def _pruned(bench: Bench, budget: Budget, compute: Compute, importance: Any, *, isomorphic: bool) -> Found:
    with compute.timed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        student = _fresh(bench)
        classifiers = [module for module in student.modules() if isinstance(module, nn.Linear)]
        pruner = torch_pruning.pruner.BasePruner(
            student,
            bench.example[:1],
            importance=importance,
            global_pruning=True,
            isomorphic=isomorphic,
            pruning_ratio=1.0,
            iterative_steps=_PRUNING_STEPS,
            ignored_layers=classifiers,
        )
        for _ in range(_PRUNING_STEPS):
            if budget.holds(count(student, bench.example)):
                return Found(student)
            pruner.step()
    return Found(None, "it cannot be pruned to the budget")


def _fresh(bench: Bench) -> nn.Module:
    """A copy of the teacher whose parameters learn."""
    model = bench.recipe.build_teacher()
    model.load_state_dict(bench.teacher.state_dict())
    return model.eval()
