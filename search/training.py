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

from search.batches import Batch, Source
from search.device import Usage, usage_of
from search.errors import NonFinite, OutOfMemory
from search.plugins import Distiller
from search.spec import Schedule

Momentum = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps `start` to `stop` of a cosine that spans `cosine[0]` to `cosine[1]`."""

    start: int
    stop: int
    cosine: tuple[int, int]

    def learning_rate(self, step: int, schedule: Schedule) -> float:
        """Linear warm-up from zero, then half a cosine down to zero at the cosine's end."""
        first, last = self.cosine
        done = (step - first + 1) / (last - first)
        if done <= schedule.warmup:
            return schedule.learning_rate * done / schedule.warmup
        return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - schedule.warmup) / (1 - schedule.warmup)))


@dataclass
class Pupil:
    """A network in training: the model, its momentum by parameter name, and the step it has reached."""

    model: nn.Module
    step: int = 0
    momentum: Momentum = field(default_factory=dict)

    def checkpoint(self) -> bytes:
        """Everything needed to go on, as safetensors."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": tensor for name, tensor in self.momentum.items()}
        tensors["step"] = torch.tensor(self.step)
        return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})

    def restore(self, checkpoint: bytes) -> None:
        """The inverse of `checkpoint`, into a model of the same shape."""
        tensors = load(checkpoint)
        self.step = int(tensors.pop("step"))
        device = next(self.model.parameters()).device
        state = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(state)
        self.momentum = {
            name.removeprefix("momentum."): tensor.to(device)
            for name, tensor in tensors.items()
            if name.startswith("momentum.")
        }

    def begin_again(self) -> None:
        """Keeps the weights and forgets the training that led to them."""
        self.step, self.momentum = 0, {}


def step_of(checkpoint: bytes) -> int:
    """The step that a pupil had reached when it left this checkpoint."""
    return int(load(checkpoint)["step"])


def train(
    pupil: Pupil, source: Source, distiller: Distiller, schedule: Schedule, stretch: Stretch
) -> Iterator[tuple[int, float]]:
    """
    Trains in place from `stretch.start` to `stretch.stop`, yielding `(step, loss)` after every step.

    Raises:
        NonFinite: the loss became NaN or infinite; the pupil is not usable any more.
        OutOfMemory: the device could not hold a step.
    """
    model = pupil.model
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    use = usage_of(named[0][1].device)
    model.to(memory_format=use.layout)
    optimiser = _optimiser(named, pupil.momentum, schedule)
    parameters = [parameter for _, parameter in named]
    model.train()
    for step in range(stretch.start, stretch.stop):
        for group in optimiser.param_groups:
            group["lr"] = stretch.learning_rate(step, schedule)
        try:
            loss = _differentiate(model, source.batch(step, schedule.batch_size), distiller, use)
            nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"the device is too small for a batch of {schedule.batch_size}: {error}") from None
        if not math.isfinite(loss):
            raise NonFinite(f"the loss became {loss} at step {step + 1}; try a smaller learning rate")
        pupil.step = step + 1
        yield pupil.step, loss
    pupil.momentum = {
        name: optimiser.state[parameter]["momentum_buffer"]
        for name, parameter in named
        if "momentum_buffer" in optimiser.state[parameter]
    }


def _differentiate(model: nn.Module, batch: Batch, distiller: Distiller, use: Usage) -> float:
    """The loss of a batch; its gradients are left with the parameters."""
    images = batch.images.contiguous(memory_format=use.layout)
    if use.autocast is None:
        logits = model(images)
    else:
        with torch.autocast(images.device.type, dtype=use.autocast):
            logits = model(images)
    loss = distiller.loss(logits.float(), batch.labels, batch.teacher_logits)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def _optimiser(named: list[tuple[str, nn.Parameter]], momentum: Momentum, schedule: Schedule) -> torch.optim.SGD:
    matrices = [parameter for _, parameter in named if parameter.ndim > 1]
    vectors = [parameter for _, parameter in named if parameter.ndim <= 1]
    optimiser = torch.optim.SGD(
        [
            {"params": matrices, "weight_decay": schedule.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=schedule.learning_rate,
        momentum=0.9,
        nesterov=True,
        fused=True,
    )
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
