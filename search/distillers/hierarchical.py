from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from search.batches import Batch
from search.boxes import BOX, KIND, OBJECT
from search.course import Course, Material, Stage
from search.detector import Detector, Studied, TwoStage
from search.distillers.features import adapter
from search.errors import UserError
from search.part import Part
from search.spec import Task
from search.taps import evaluating, precision


class Hierarchical:
    """
    Distillation of detectors at several levels (Chen, Ai, Shang, Chen, Zhuang: arXiv 1909.09325), a reconstruction.

        L = own * (the detector's own losses) + pyramid * mean over maps of MSE(P, P') + region * MSE(R, R')
            + embedding * MSE(E, E')

    P are the maps of the feature pyramid, R what is pooled from them at the boxes of regions, E what the two linear
    layers before class and box make of that; primes are the teacher's. Confirmed by the paper's first figure and the
    authors' unfinished code [C]: that there are several levels, that the losses are MSE, where R and E are taken.
    Inferred [I]: P. Unknown [?]: all weights, and how regions are shared. Here [I] the teacher pools at the boxes that
    the student has sampled, for rows of two networks' own proposals would not belong together; a 1 x 1 convolution or
    a linear layer, left behind with the training, widens the student's side where the teacher's is wider; and each
    error is in units of the teacher's variance, so that weights of 1 are of the size of the detector's own losses.
    """

    class Options(Part):
        own: float = Field(1.0, ge=0, le=1e6)
        """Weight of the detector's own losses."""
        pyramid: float = Field(1.0, ge=0, le=1e6)
        """Weight of the pyramid's maps; 0 leaves them out, as in the ablation."""
        region: float = Field(1.0, ge=0, le=1e6)
        """Weight of the regions' features; 0 for detectors of one stage, which have none."""
        embedding: float = Field(1.0, ge=0, le=1e6)
        """Weight of what the head makes of a region, before class and box; 0 for detectors of one stage."""
        foreground: bool = False
        """Whether maps are compared inside of objects' boxes only; background is most of every map."""
        relative: bool = True
        """Whether errors are in units of the teacher's variance, or plain."""

    needs_teacher: ClassVar[bool] = True
    tasks: ClassVar[tuple[Task, ...]] = ("detection",)

    def __init__(self, options: Options) -> None:
        self.options = options

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Raises `TypeError`: there is nothing to be said of logits."""
        raise TypeError("detectors are distilled by what lies before their answers; open a course")

    def course(self, student: nn.Module, material: Material) -> Course:
        """Raises `UserError` for regions of a detector of one stage, or when all weights are 0."""
        return _Course(student, material, self.options)


class _Course(Course):
    student: Detector

    def __init__(self, student: nn.Module, material: Material, options: Hierarchical.Options) -> None:
        super().__init__(student)
        teacher = material.teacher
        assert isinstance(student, Detector)  # noqa: S101 - `tasks` says so
        assert isinstance(teacher, Detector)  # noqa: S101 - as above
        self._options, self._teacher = options, teacher
        self._pools = bool(options.region or options.embedding)
        if self._pools and not isinstance(student, TwoStage):
            name = "region" if options.region else "embedding"
            raise UserError(f"a detector of one stage has no regions; set `{name}: 0`", pointer=f"/{name}")
        if not (options.own or options.pyramid or self._pools):
            raise UserError("with all weights 0 there is nothing to learn", pointer="/own")
        image = material.first()
        corners = image.new_tensor([[0.0, 0.0, image.shape[-1], image.shape[-2]]])
        with torch.no_grad(), evaluating(student):
            mine, theirs = (self._shown(network, image, [corners]) for network in (student, teacher))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(material.seed)
            if options.pyramid:
                self.extras["pyramid"] = nn.ModuleList(map(_widening, mine.pyramid, theirs.pyramid))
            if options.region:
                self.extras["region"] = _widening(mine.regions, theirs.regions)
            if options.embedding:
                self.extras["embedding"] = _widening(mine.embedding, theirs.embedding)

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        with precision(batch.images.device):
            studied = self.student.study(batch.images, batch.labels, step)
            with torch.no_grad():
                target = self._shown(self._teacher, batch.images, studied.boxes)
        return torch.stack([*self._terms(batch, studied, target)]).sum()

    def _shown(self, network: Detector, images: Tensor, boxes: list[Tensor] | None) -> Studied:
        """What a network shows of its pyramid, and where that is compared, of regions at these boxes."""
        pyramid = network.pyramid(images)
        if not (self._pools and isinstance(network, TwoStage) and boxes is not None):
            return Studied({}, pyramid)
        regions = network.regions(pyramid, boxes)
        return Studied({}, pyramid, boxes, regions, network.embedding(regions))

    def _terms(self, batch: Batch, studied: Studied, target: Studied) -> Iterator[Tensor]:
        options = self._options
        if options.own:
            yield options.own * torch.stack([*studied.losses.values()]).sum()
        if options.pyramid:
            levels = zip(self.extras["pyramid"].children(), studied.pyramid, target.pyramid, strict=True)
            missed = [self._missed(widen(mine.float()), theirs.float(), batch) for widen, mine, theirs in levels]
            yield options.pyramid * torch.stack(missed).mean()
        if options.region:
            yield options.region * self._error(self.extras["region"], studied.regions, target.regions)
        if options.embedding:
            yield options.embedding * self._error(self.extras["embedding"], studied.embedding, target.embedding)

    def _missed(self, mine: Tensor, theirs: Tensor, batch: Batch) -> Tensor:
        """Of one level, `[n, channels, height, width]`."""
        squares = (mine - theirs).square()
        if self._options.foreground:
            cells = (theirs.shape[-2], theirs.shape[-1])
            inside = foreground(batch.labels, batch.images.shape[-1], cells)
            return (squares.mean(dim=1) * inside).sum() / inside.sum().clamp(min=1) / self._unit(theirs)
        return squares.mean() / self._unit(theirs)

    def _error(self, widen: nn.Module, mine: Tensor | None, theirs: Tensor | None) -> Tensor:
        """Of regions, one a row; without any there is none."""
        assert mine is not None  # noqa: S101 - seen to in the beginning
        assert theirs is not None  # noqa: S101 - as above
        if not len(mine):
            return mine.sum()
        return F.mse_loss(widen(mine.float()), theirs.float()) / self._unit(theirs.float())

    def _unit(self, theirs: Tensor) -> Tensor:
        return theirs.var().clamp(min=1e-8) if self._options.relative else theirs.new_ones(())


def foreground(labels: Tensor, size: int, cells: tuple[int, int]) -> Tensor:
    """
    Which cells of a map of images `size` pixels wide have their centre in an object's box: `labels` `[n, most, 7]`
    (`search.boxes`) -> `[n, *cells]` of 0 and 1.
    """
    rows, columns = ((torch.arange(count, device=labels.device) + 0.5) * size / count for count in cells)
    x1, y1, x2, y2 = labels[..., BOX].unbind(-1)
    across = (columns >= x1[..., None]) & (columns < x2[..., None])
    down = (rows >= y1[..., None]) & (rows < y2[..., None])
    inside = down[..., :, None] & across[..., None, :] & (labels[..., KIND] == OBJECT)[..., None, None]
    return inside.any(dim=1).float()


def _widening(mine: Tensor | None, theirs: Tensor | None) -> nn.Module:
    """From the student's channels, dimension 1, to the teacher's; nothing where there are as many."""
    assert mine is not None  # noqa: S101 - shown of both
    assert theirs is not None  # noqa: S101 - as above
    width, wanted = mine.shape[1], theirs.shape[1]
    if width == wanted:
        return nn.Identity()
    if mine.ndim == 4:
        return adapter(width, wanted)
    linear = nn.Linear(width, wanted, bias=False)
    nn.init.eye_(linear.weight)
    return linear
