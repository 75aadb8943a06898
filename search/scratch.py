"""Students that begin with nothing: the control for every weight that was cut, and what some papers start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from search.space import Candidate


class Grafting(Protocol):
    """Where the weights come from that a candidate begins with: a `Survey`, a `Library` or an `Elastic` student."""

    def graft(self, candidate: Candidate) -> nn.Module: ...


@dataclass(frozen=True)
class Scratch:
    """The networks that `donor` would graft, with random weights in place of its own; the same for the same seed."""

    donor: Grafting
    seed: int

    def graft(self, candidate: Candidate) -> nn.Module:
        student = self.donor.graft(candidate)
        anew(student, self.seed)
        return student


def anew(network: nn.Module, seed: int) -> None:
    """
    Random weights, as residual networks are begun: normal with a variance of 2 over the fan-out for convolutions (He
    et al.: arXiv 1502.01852), torch's own for everything else.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
