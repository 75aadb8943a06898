from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from search.part import Part


class Dkd:
    """
    Decoupled knowledge distillation (Zhao et al., CVPR 2022: arXiv 2203.08679).

    KL over {the label, all else} times `alpha`, plus KL among the other classes times `beta`, both
    `T^2`-scaled means over the batch, plus `ce` times the cross-entropy with the labels. Defaults are the paper's for
    CIFAR-100; its `ce` is 1, and 0 here, as this product's other distillers.
    """

    class Options(Part):
        temperature: float = Field(4.0, gt=0, le=100)
        alpha: float = Field(1.0, ge=0, le=1000)
        """Of what is said about the label against all other classes."""
        beta: float = Field(8.0, ge=0, le=1000)
        """Of what is said about the other classes among themselves."""
        ce: float = Field(0.0, ge=0, le=1000)
        """Of the cross-entropy with the labels."""

    needs_teacher: ClassVar[bool] = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """`logits`, `teacher_logits` `[n, classes]`, `labels` `[n]` -> scalar."""
        assert teacher_logits is not None  # noqa: S101 - needs_teacher is True
        options = self.options
        answer, target = (F.log_softmax(one / options.temperature, dim=1) for one in (logits, teacher_logits))
        is_label = F.one_hot(labels, logits.shape[1]).bool()
        label = _divergence(_two(answer, is_label), _two(target, is_label))
        # The label's own logit is taken out, so that the rest is a distribution again.
        others = _divergence(*(_without(one, is_label, options.temperature) for one in (logits, teacher_logits)))
        loss = options.temperature**2 * (options.alpha * label + options.beta * others)
        return loss if options.ce == 0 else loss + options.ce * F.cross_entropy(logits, labels)


def _two(log_probabilities: Tensor, is_label: Tensor) -> Tensor:
    """Logarithms of the chance of the label and of any other class, `[n, 2]`."""
    label = log_probabilities[is_label]
    others = log_probabilities.masked_fill(is_label, -torch.inf).logsumexp(dim=1)
    return torch.stack([label, others], dim=1)


def _without(logits: Tensor, is_label: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the other classes among themselves, `[n, classes - 1]`."""
    others = logits[~is_label].view(len(logits), -1)
    return F.log_softmax(others / temperature, dim=1)


def _divergence(answer: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(answer, target, reduction="batchmean", log_target=True)
