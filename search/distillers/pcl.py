from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from search.batches import Batch, Source
from search.course import Course, Material, Stage
from search.distillers.hinton import Hinton
from search.errors import UserError
from search.part import Part
from search.taps import Seen, Watched, forward, trunk


class Pcl:
    """
    Peers that teach each other, without a teacher (peer collaborative learning; Wu, Gong: arXiv 2006.04147).

    Several copies of the student share its lower layers, and each sees views of its own of the same images [C]. They
    learn from the labels, from a classifier of all their embeddings together, and from the means over time of the
    other peers. The student that is deployed is the mean of the first peer, at the cost of one network [S].

    For `m` peers with logits z_j, their means z'_j, and the classifier of all peers z_e [S]:

        sum_j CE(z_j) + CE(z_e) + w sum_j KL_T(z_e || z_j) + w sum_j 1 / (m - 1) sum_{l != j} KL_T(z'_l || z_j)

    No gradient flows through the left sides of the KLs; CE(z_e) reaches the peers. `w = exp(-5 (1 - e / ramp)^2)` rises
    to 1 at the end of the ramp, here with every step and not every epoch [I]. After step g a mean is `phi` of itself
    and `1 - phi` of its peer, `phi = min(1 - 1 / g, ema)`, so the first step copies; that is of parameters alone, and
    the means look at the same batches in training mode for their batch-norm statistics [S].

    With `shared: false`, `ensemble: false`, `ema: 0` and temperature 1 it is deep mutual learning (Zhang et al.: arXiv
    1706.00384), but for the views, and for all networks moving at once where the paper's take turns.
    """

    class Options(Part):
        peers: int = Field(3, ge=2, le=8)
        """3 in the paper's main experiments [S]; a step takes as much time as so many networks."""
        temperature: float = Field(3.0, gt=0, le=100)
        ramp: float = Field(80 / 300, gt=0, le=1)
        """Share of the training in which what peers learn from each other gains its full weight: 80 of 300 epochs."""
        ema: float = Field(0.999, ge=0, lt=1)
        """
        Most of itself that a mean keeps at a step. Up to step `1 / (1 - ema)` it is the plain mean of all steps so far,
        the first ones among them: lower it for a short training, to 0.98 for some hundreds of steps.
        """
        cut: str | None = Field(None, max_length=256)
        """The last module that peers share; without it, the last block before the last stage."""
        shared: bool = True
        """Whether peers share what lies below the cut; else each is a whole network."""
        ensemble: bool = True
        """Whether there is a classifier of all peers, from which they learn."""
        reset: bool = True
        """Whether all peers but the first start untrained above the cut, and so differ; else in their views alone."""

    needs_teacher: ClassVar[bool] = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Cross-entropy, which is what one peer without others learns from; the teacher is not read."""
        return F.cross_entropy(logits, labels)

    def course(self, student: nn.Module, material: Material) -> Course:
        """
        Raises:
            UserError: no linear layer, no module to cut at, or only one view of the images.
        """
        return _Course(student, material, self.options)


def weight(done: float, ramp: float) -> float:
    """Of what peers learn from each other when the share `done` of the training is over."""
    return math.exp(-5 * (1 - min(1.0, done / ramp)) ** 2)


def objective(
    answers: Sequence[Tensor],
    together: Tensor | None,
    means: Sequence[Tensor],
    labels: Tensor,
    temperature: float,
    w: float,
) -> Tensor:
    """
    The loss of all peers: `answers` and `means` one for each, `together` of the classifier of all, if there is one;
    logits `[n, classes]`, `labels` `[n]`.
    """
    soft, others = Hinton(Hinton.Options(temperature=temperature)), len(answers) - 1
    parts = [] if together is None else [F.cross_entropy(together, labels)]
    for at, answer in enumerate(answers):
        parts.append(F.cross_entropy(answer, labels))
        if together is not None:
            parts.append(w * soft.loss(answer, labels, together.detach()))
        parts += [w * soft.loss(answer, labels, mean.detach()) / others for own, mean in enumerate(means) if own != at]
    return torch.stack(parts).sum()


class _Course(Course):
    """
    `student` is the mean of the first peer and never meets a gradient. Peers are whole networks of which the modules
    below the cut are the very same objects; so are means, with those of the student.
    """

    def __init__(self, student: nn.Module, material: Material, options: Pcl.Options) -> None:
        super().__init__(student)
        self._options, self._material = options, material
        head = material.sights.linear()
        if material.views == 1:
            raise UserError(
                "every peer sees a view of its own, and there is only one; raise `search.views`, best to as many as "
                f"peers, {options.peers}",
                pointer="/peers",
            )
        first, names = copy.deepcopy(student), _trunk(student, material, options) if options.shared else []
        shared = [(first.get_submodule(name), student.get_submodule(name)) for name in names]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(material.seed)
            others = [_copied(first, {mine: mine for mine, _ in shared}) for _ in range(options.peers - 1)]
            if options.reset:
                for peer in others:
                    _reset(peer, {mine for mine, _ in shared})
            seen = Watched(student, head=head).dry(material.first())
            together = nn.Linear(options.peers * _embedding(seen).shape[1], seen.logits.shape[1])
        peers, means = [first, *others], [_copied(peer, dict(shared)) for peer in others]
        self.extras["peers"] = nn.ModuleList(peers)
        if options.ensemble:
            self.extras["together"] = together
        self.extras["means"] = nn.ModuleList(means)
        self._watched = [Watched(peer, head=head) for peer in peers]
        self._means = [student, *means]
        # By the mean's parameter, so that those of the trunk move once.
        rows = zip(self._means, peers, strict=True)
        pairs = [pair for mean, peer in rows for pair in zip(mean.parameters(), peer.parameters(), strict=True)]
        self._pairs = list({id(mean): (mean, peer) for mean, peer in pairs}.values())

    def trained(self, stage: Stage) -> Iterator[tuple[str, nn.Parameter]]:
        """The peers and the classifier of all; means only follow."""
        for name, module in self.extras.items():
            if name != "means":
                yield from module.named_parameters(prefix=f"extras/{name}")

    def draw(self, source: Source, step: int, size: int) -> Batch:
        """The same images for every peer, one peer's after the other's."""
        pool, views, peers = self._material.source, self._material.views, self._options.peers
        images = len(pool) // views
        at = pool.drawn(step, size) % images
        chosen = _views(self._material.seed, step, len(at), views, peers)
        return pool.pick((chosen * images + at).reshape(-1))

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        peers = self._options.peers
        images, labels = batch.images.chunk(peers), batch.labels[: len(batch.labels) // peers]
        seen = [peer(view) for peer, view in zip(self._watched, images, strict=True)]
        with torch.no_grad():
            means = [forward(mean, view) for mean, view in zip(self._means, images, strict=True)]
        together: Tensor | None = None
        if self._options.ensemble:
            together = self.extras["together"](torch.cat([_embedding(one) for one in seen], dim=1))
        w = weight(step / self._material.steps, self._options.ramp)
        return objective([one.logits for one in seen], together, means, labels, self._options.temperature, w)

    def after(self, step: int) -> None:
        """The means follow; after the first step they are the peers."""
        kept = min(1 - 1 / (step + 1), self._options.ema)
        with torch.no_grad():
            for mean, peer in self._pairs:
                mean.lerp_(peer, 1 - kept)


def _views(seed: int, step: int, count: int, views: int, peers: int) -> NDArray[np.int64]:
    """
    `[peers, count]`: which of its views each peer sees of each of a step's images, no two peers the same one while
    there are enough.
    """
    rng = np.random.default_rng([seed, 3, step])
    order = rng.permuted(np.tile(np.arange(views), (count, 1)), axis=1)
    return order[:, np.arange(peers) % views].T


def _trunk(student: nn.Module, material: Material, options: Pcl.Options) -> list[str]:
    """The modules that peers share, by name; none in a network of one size of maps, if no option says where to cut."""
    known, stages = [tap.name for tap in material.sights.maps], [tap.name for tap in material.sights.blocks]
    if options.cut is None and len(stages) < 2:
        return []
    cut = stages[-2] if options.cut is None else options.cut
    if cut not in known:
        message = f"no module called `{cut}` answers with a feature map"
        raise UserError(message, pointer="/cut", allowed=sorted(known))
    try:
        return trunk(student, material.first()[0], cut)
    except LookupError:
        message = f"`{cut}` is missing where its block is removed; cut at a whole block"
        raise UserError(message, pointer="/cut", allowed=stages) from None


def _copied(network: nn.Module, instead: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A copy that has, instead of copies of some modules, others."""
    return copy.deepcopy(network, {id(module): other for module, other in instead.items()})


def _reset(network: nn.Module, kept: Collection[nn.Module]) -> None:
    """Gives all but some of its modules random weights; drawn on the host, where the seed has been set."""
    for module in network.modules():
        anew = getattr(module, "reset_parameters", None)
        if module not in kept and callable(anew):
            device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
            module.cpu()
            anew()
            module.to(device)


def _embedding(seen: Seen) -> Tensor:
    assert seen.embedding is not None  # noqa: S101 - a course is opened only where there is a head
    return seen.embedding
