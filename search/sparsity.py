"""
How strong the channels of a network are, as MorphNet measures it (Gordon et al.: arXiv 1711.06798), and what it means
for its tensors when some die.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search.surgery import Place, Survey

Alive = NDArray[np.bool_]
"""Of the units of all width sites, in the order of the sites, `[units of all]`."""


class Strengths:
    """
    Of every unit of every width site: the largest |scale| that a batch norm of the site has for one of its channels, so
    that channels which are added to each other, or are filtered one by one, live as long as one of them does. Where a
    site has no batch norm with scales, the root mean square of the weights that make the channel, as a multiple of what
    that is on average in the teacher (group lasso).

    `network` has the teacher's structure and is read at every call.
    """

    def __init__(self, survey: Survey, network: nn.Module) -> None:
        self._numbers = sorted(survey.widths)
        self._sites = [_Makers.of(survey, site, network) for site in self._numbers]
        self._bounds = np.cumsum([0, *(survey.widths[site].units for site in self._numbers)])
        with torch.no_grad():
            taught = [_Makers.of(survey, site, survey.teacher)() for site in self._numbers]
        self._usual = [max(float(part.mean()), 1e-30) for part in taught]
        for site, mean in zip(self._sites, self._usual, strict=True):
            site.scale = 1.0 if site.norms else 1 / mean

    def __call__(self) -> Tensor:
        """`[units of all sites]`, through which gradients flow to the scales."""
        return torch.cat([site() for site in self._sites])

    def give_back(self, alive: Alive, values: NDArray[np.float64], sites: Collection[int]) -> None:
        """
        Multiplies the scales at `sites`, so that strengths which are `values` now are in the mean of those alive what
        they are in the teacher.

        The next batch norm divides out what all channels before it have in common. Pressed, they would all fade
        together, and meet no resistance, for that changes little; so only what they differ by is let through.
        """
        with torch.no_grad():
            for at, (number, site) in enumerate(zip(self._numbers, self._sites, strict=True)):
                units = slice(self._bounds[at], self._bounds[at + 1])
                now = float(values[units][alive[units]].mean())
                for place, norm in site.norms if number in sites and now > 0 else ():
                    norm.weight[_at(place, norm.weight, alive[units])] *= self._usual[at] / now

    def relative(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same as multiples of what is usual among the channels of their sites in the teacher."""
        usual = [mean if site.norms else 1.0 for site, mean in zip(self._sites, self._usual, strict=True)]
        found: NDArray[np.float64] = values / np.repeat(usual, np.diff(self._bounds))
        return found


@dataclass
class _Makers:
    """What makes the channels of one site: `members` tell how strong they are, `norms` are the batch norms of these."""

    members: list[tuple[Place, nn.Parameter]]
    norms: list[tuple[Place, _BatchNorm]]
    scale: float = 1.0

    @classmethod
    def of(cls, survey: Survey, site: int, network: nn.Module) -> _Makers:
        makers = [place for place in survey.widths[site].places if place.side == "out"]
        modules, parameters = dict(network.named_modules()), dict(network.named_parameters())
        norms = []
        for place in makers:
            norm = modules.get(place.layer)
            if isinstance(norm, _BatchNorm) and place.tensor == f"{place.layer}.weight":
                norms.append((place, norm))
        told = [place for place, _ in norms] or [
            place for place in makers if place.tensor in parameters and parameters[place.tensor].dim() > 1
        ]
        return cls([(place, parameters[place.tensor]) for place in told], norms)

    def __call__(self) -> Tensor:
        """`[units]`."""
        found = [_strength(place, parameter) for place, parameter in self.members]
        largest = found[0] if len(found) == 1 else torch.stack(found).amax(0)
        return largest if self.norms else largest * self.scale


class Deaths:
    """Takes channels out of a network in training: what makes or reads them becomes zero, and stays so."""

    def __init__(self, survey: Survey, network: nn.Module) -> None:
        parameters, start = dict(network.named_parameters()), 0
        self._parts: list[tuple[slice, Place, nn.Parameter]] = []
        for site in sorted(survey.widths):
            width = survey.widths[site]
            units, start = slice(start, start + width.units), start + width.units
            self._parts += [
                (units, place, parameters[place.tensor]) for place in width.places if place.tensor in parameters
            ]
        self._masks: Sequence[tuple[nn.Parameter, Tensor]] = ()

    def tell(self, alive: Alive) -> None:
        """Who is alive now."""
        masks: dict[int, tuple[nn.Parameter, Tensor]] = {}
        for units, place, parameter in self._parts:
            if not alive[units].all():
                _, mask = masks.setdefault(id(parameter), (parameter, torch.ones_like(parameter)))
                mask.index_fill_(place.dim, _at(place, mask, ~alive[units]), 0.0)
        self._masks = list(masks.values())

    def apply(self) -> None:
        with torch.no_grad():
            for parameter, mask in self._masks:
                parameter.mul_(mask)


def revived(survey: Survey, network: nn.Module, alive: Mapping[int, Alive]) -> None:
    """
    Gives the dead, by site those that are not `alive`, what makes them in the teacher; in place. What reads them stays
    zero: the network computes what it did, and a student that has some of them has something to learn with.
    """
    taught = {**dict(survey.teacher.named_parameters()), **dict(survey.teacher.named_buffers())}
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    places = [(site, place) for site, width in survey.widths.items() for place in width.places]
    with torch.no_grad():
        for site, place in places:
            if place.side == "out":
                tensor, at = tensors[place.tensor], _at(place, tensors[place.tensor], ~alive[site])
                given = taught[place.tensor].to(tensor.device).index_select(place.dim, at)
                tensor.index_copy_(place.dim, at, given)
        for site, place in places:
            if place.side == "in":
                tensor = tensors[place.tensor]
                tensor.index_fill_(place.dim, _at(place, tensor, ~alive[site]), 0.0)


def _at(place: Place, tensor: Tensor, units: Alive) -> Tensor:
    """The addresses of some units."""
    return torch.from_numpy(place.addresses[units].reshape(-1)).to(tensor.device)


def _strength(place: Place, parameter: nn.Parameter) -> Tensor:
    """Of one tensor, `[units]`: the largest scale of a unit, or the root mean square of the weights that make it."""
    units, columns = place.addresses.shape
    if parameter.dim() > 1:
        others = [dim for dim in range(parameter.dim()) if dim != place.dim]
        squares = parameter.square().mean(others)
        return _gathered(place, squares).view(units, columns).mean(1).sqrt()
    found = _gathered(place, parameter.abs())
    return found if columns == 1 else found.view(units, columns).amax(1)


def _gathered(place: Place, values: Tensor) -> Tensor:
    """`[units * columns]`; most places hold all channels of a layer in order, which takes no copy."""
    flat = place.addresses.reshape(-1)
    if len(flat) == len(values) and (flat == np.arange(len(flat))).all():
        return values
    return values[torch.from_numpy(flat).to(values.device)]
