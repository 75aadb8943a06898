"""
The training loop. Teachers, trials and finalists are all trained here.

One `Stretch` of training goes from one step to another on a cosine that may have begun before it, so that a long
training can be cut into stretches with checkpoints between them and come out the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from search.batches import Source
from search.course import Course, Material, Stage, course_of, restore, spans, state_of
from search.device import usage_of
from search.errors import NonFinite, OutOfMemory
from search.plugins import Distiller
from search.spec import Schedule

Momentum = dict[str, Tensor]
Optimiser = torch.optim.SGD | torch.optim.Adam


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps `start` to `stop` of a cosine that spans `cosine[0]` to `cosine[1]`."""

    start: int
    stop: int
    cosine: tuple[int, int]

    def share(self, step: int, schedule: Schedule) -> float:
        """Of the largest learning rate: a linear rise from zero, then steps, or half a cosine down to zero."""
        first, last = self.cosine
        done, warmup = (step - first + 1) / (last - first), schedule.warmup
        if done <= warmup:
            return done / warmup
        if schedule.drops:
            return schedule.drop ** sum(done > drop for drop in schedule.drops)
        return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


@dataclass
class Pupil:
    """
    A network in training: the model, the optimiser's memory by parameter name, what its course trains or carries
    beside it, and the step it has reached.
    """

    model: nn.Module
    step: int = 0
    momentum: Momentum = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)

    def checkpoint(self) -> bytes:
        """Everything needed to go on, as safetensors."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": tensor for name, tensor in self.momentum.items()}
        tensors |= {f"extras.{name}": tensor for name, tensor in self.extras.items()}
        tensors["step"] = torch.tensor(self.step)
        return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})

    def restore(self, checkpoint: bytes) -> None:
        """The inverse of `checkpoint`, into a model of the same shape."""
        tensors = load(checkpoint)
        self.step = int(tensors.pop("step"))
        device = next(self.model.parameters()).device
        state = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(state)
        self.momentum, self.extras = (
            {name.removeprefix(part): tensor.to(device) for name, tensor in tensors.items() if name.startswith(part)}
            for part in ("momentum.", "extras.")
        )

    def begin_again(self) -> None:
        """Keeps the weights and forgets the training that led to them."""
        self.step, self.momentum, self.extras = 0, {}, {}


def step_of(checkpoint: bytes) -> int:
    """The step that a pupil had reached when it left this checkpoint."""
    return int(load(checkpoint)["step"])


def train(
    pupil: Pupil,
    source: Source,
    distiller: Distiller,
    schedule: Schedule,
    stretch: Stretch,
    material: Material | None = None,
) -> Iterator[tuple[int, float]]:
    """
    Trains in place from `stretch.start` to `stretch.stop`, yielding `(step, loss)` after every step. Of a distiller
    with several stages each lies where it lies in the whole training, whose length `material` tells.

    Raises:
        NonFinite: the loss became NaN or infinite; the pupil is not usable any more.
        OutOfMemory: the device could not hold a step.
        UserError: the distiller needs more than logits, and there is no `material`; or its options do not suit it.
    """
    model = pupil.model
    device = next(model.parameters()).device
    model.to(memory_format=usage_of(device).layout)
    course = course_of(distiller, model, material)
    course.extras.to(device)
    if pupil.extras:
        restore(course.extras, pupil.extras)
    parts = spans(course.stages, material.steps) if material is not None and len(course.stages) > 1 else []
    if not parts:
        yield from _walk(pupil, course, course.stages[0], source, schedule, stretch)
    for part in parts:
        start, stop = max(part.start, stretch.start), min(part.stop, stretch.stop)
        if start < stop:
            if start == part.start:
                pupil.momentum = {}
            here = Stretch(start, stop, (part.start, part.stop))
            yield from _walk(pupil, course, part.stage, source, schedule, here)
    pupil.extras = {name: tensor.detach().clone() for name, tensor in state_of(course.extras).items()}


def _walk(
    pupil: Pupil, course: Course, stage: Stage, source: Source, schedule: Schedule, stretch: Stretch
) -> Iterator[tuple[int, float]]:
    """Trains within one stage."""
    named = [(name, parameter) for name, parameter in course.trained(stage) if parameter.requires_grad]
    trained = {id(parameter) for _, parameter in named}
    # What a stage leaves alone would only gather gradients that nobody wants.
    resting = [one for one in (*pupil.model.parameters(), *course.extras.parameters()) if id(one) not in trained]
    resting = [one for one in resting if one.requires_grad]
    optimiser = _optimiser(named, pupil.momentum, schedule, stage, stretch.start - stretch.cosine[0])
    parameters = [parameter for _, parameter in named]
    course.train()
    peak = schedule.learning_rate if stage.adam is None else stage.adam
    for one in resting:
        one.requires_grad_(False)
    try:
        for step in range(stretch.start, stretch.stop):
            for group in optimiser.param_groups:
                group["lr"] = peak * stretch.share(step, schedule)
            course.before(step)
            try:
                loss = course.loss(course.draw(source, step, schedule.batch_size), stage, step)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, schedule.clip)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(f"the device is too small for a batch of {schedule.batch_size}: {error}") from None
            course.after(step)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFinite(f"the loss became {value} at step {step + 1}; try a smaller learning rate")
            pupil.step = step + 1
            yield pupil.step, value
    finally:
        for one in resting:
            one.requires_grad_()
    pupil.momentum = {
        f"{kind}{name}": optimiser.state[parameter][key]
        for name, parameter in named
        for key, kind in _MEMORY.items()
        if key in optimiser.state[parameter]
    }


_MEMORY = {"momentum_buffer": "", "exp_avg": "", "exp_avg_sq": "second/"}
"""What an optimiser remembers of a parameter, and how that is named in a checkpoint."""


def _optimiser(
    named: list[tuple[str, nn.Parameter]], momentum: Momentum, schedule: Schedule, stage: Stage, walked: int
) -> Optimiser:
    """Of a stage that has `walked` so many steps; in a training that goes on, with the memory of those."""
    groups = [
        {
            "params": [parameter for _, parameter in named if parameter.ndim > 1],
            "weight_decay": schedule.weight_decay,
        },
        {"params": [parameter for _, parameter in named if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if stage.adam is not None:
        adam = torch.optim.Adam([parameter for _, parameter in named], lr=stage.adam, fused=True)
        for name, parameter in named:
            if name in momentum:
                adam.state[parameter] = {
                    "step": torch.tensor(float(walked), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter).copy_(momentum[name]),
                    "exp_avg_sq": torch.zeros_like(parameter).copy_(momentum[f"second/{name}"]),
                }
        return adam
    optimiser = torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=0.9, nesterov=True, fused=True)
    for name, parameter in named:
        # In the parameter's layout and never missing, as the fused step wants it; of an elastic student some have no
        # gradient for a while. A first step from zero is the first step.
        buffer = torch.zeros_like(parameter)
        optimiser.state[parameter]["momentum_buffer"] = buffer.copy_(momentum[name]) if name in momentum else buffer
    return optimiser


def recalibrate(model: nn.Module, source: Source, *, batches: int, batch_size: int) -> None:
    """
    Recomputes batch-norm statistics as a plain average over the first `batches` batches of `source`.

    Weights that were just sliced have the statistics of another network.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for step in range(batches):
            model(source.batch(step, batch_size).images)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
