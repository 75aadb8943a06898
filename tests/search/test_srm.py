"""Sparse representation matching against sums by hand, and what each of its stages leaves alone."""

from __future__ import annotations

import copy
import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search.course import course_of, spans
from search.distillers.srm import Atoms, Srm, kept, rebuilding, sparse
from search.errors import UserError
from search.spec import Schedule
from search.training import Pupil, Stretch, train
from tests.search.courses import material, pool, student

STEPS = 20


def walked(pupil: Pupil, stop: int, start: int = 0, options: Srm.Options | None = None) -> list[float]:
    source, stretch = pool(), Stretch(start, stop, (0, STEPS))
    distiller = Srm(options or Srm.Options())
    return [loss for _, loss in train(pupil, source, distiller, Schedule(batch_size=8), stretch, material(STEPS))]


@pytest.mark.parametrize(("channels", "mu", "count"), [(128, 2, 5), (256, 2, 10), (1024, 2, 40)])
def test_atoms_that_are_kept_on_cifar(channels: int, mu: float, count: int) -> None:
    """seeds: lambda .02."""
    assert kept(0.02, mu, channels) == count


def test_atoms_that_are_kept_on_imagenet() -> None:
    assert [kept(0.02, 4, channels) for channels in (64, 128, 256, 512, 512)] == [5, 10, 20, 40, 40]
    assert kept(0.02, 1, 8) == 1


def test_scores_and_code_by_hand() -> None:
    """Two channels, three atoms, one pixel (1, 2): sigmoids of 1.5, 2.5 and -.5; the two largest stay."""
    atoms = Atoms(2, 3)
    with torch.no_grad():
        atoms.atoms.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]))
        atoms.bias.fill_(0.5)
    scores = atoms(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)).sigmoid()
    first, second, third = (1 / (1 + math.exp(-raw)) for raw in (1.5, 2.5, -0.5))
    assert scores.flatten().tolist() == pytest.approx([first, second, third])
    code = sparse(scores, 2)
    assert code.flatten().tolist() == pytest.approx([first, second, 0])
    assert atoms.rebuilt(code).flatten().tolist() == pytest.approx([first, second])


@given(st.integers(0, 1000), st.integers(1, 7))
def test_a_code_keeps_so_many_of_every_pixel(seed: int, count: int) -> None:
    scores = torch.rand(2, 7, 3, 3, generator=torch.Generator().manual_seed(seed))
    assert ((sparse(scores, count) > 0).sum(dim=1) == count).all()


@pytest.mark.parametrize("count", [256, 2048])
def test_the_published_pixel_loss_has_a_floor(count: int) -> None:
    """Of scores that are 1 for the right atom and 0 for all others; seeds: 4.55 and 6.63."""
    best = F.cross_entropy(F.one_hot(torch.tensor([3]), count).float(), torch.tensor([3]))
    assert best.item() == pytest.approx(math.log(1 + (count - 1) / math.e), abs=1e-4)
    assert best.item() == pytest.approx({256: 4.55, 2048: 6.63}[count], abs=0.005)


def wave(*shape: int, step: float) -> torch.Tensor:
    return torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float32)).view(shape)


def atoms_of(channels: int, bias: float, step: float) -> Atoms:
    atoms = Atoms(channels, 16)
    with torch.no_grad():
        atoms.atoms.copy_(wave(channels, 16, step=step))
        atoms.bias.fill_(bias)
    return atoms


def test_losses_are_those_of_the_authors_code() -> None:
    """Its numbers for these inputs: layers of 8 and 4 channels, 16 atoms of which 3 stay (viebboy/SRM, Layers.py)."""
    theirs, mine = atoms_of(8, 0.25, 0.7), atoms_of(4, -0.5, 0.3)
    target, answer = wave(2, 8, 3, 3, step=0.11), wave(2, 4, 3, 3, step=0.23)
    assert rebuilding(theirs, target, 3).item() == pytest.approx(2.3251977, rel=1e-5)
    found = {
        targets: Srm(Srm.Options(targets=targets)).matching(theirs, mine, answer, target, 3).item()
        for targets in get_args(Srm.Options.model_fields["targets"].annotation)
    }
    assert found == pytest.approx({"image": 0.6589991, "pixel": 2.8704364, "both": 0.6589991 + 2.8704364}, rel=1e-5)


def test_atoms_begin_as_in_the_authors_code() -> None:
    """Evenly in +- sqrt(6 / atoms); there .15309 is the largest of 128 x 256."""
    assert Atoms(128, 256).atoms.abs().max().item() == pytest.approx(0.15309, abs=1e-4)


def test_stages_lie_where_their_shares_say() -> None:
    course = course_of(Srm(Srm.Options(dictionary=0.2, matching=0.3)), student(), material(STEPS))
    assert [(span.stage.name, span.start, span.stop) for span in spans(course.stages, STEPS)] == [
        ("dictionary", 0, 4),
        ("matching", 4, 10),
        ("distil", 10, 20),
    ]


def test_each_stage_trains_its_own() -> None:
    """First the teacher's dictionaries alone, then backbone and the student's, then the student, head included."""
    pupil = Pupil(student())
    begun = copy.deepcopy(pupil.model.state_dict())
    walked(pupil, 4)
    assert all(torch.equal(tensor, begun[name]) for name, tensor in pupil.model.state_dict().items())
    dictionaries = {name: tensor for name, tensor in pupil.extras.items() if name.startswith("teacher.")}
    mine = {name: tensor for name, tensor in pupil.extras.items() if name.startswith("student.")}
    walked(pupil, 10, 4)
    moved = {name for name, tensor in pupil.model.state_dict().items() if not torch.equal(tensor, begun[name])}
    assert "conv1.weight" in moved
    assert not any(name.startswith("fc") for name in moved)
    assert all(torch.equal(pupil.extras[name], tensor) for name, tensor in dictionaries.items())
    assert not any(torch.equal(pupil.extras[name], tensor) for name, tensor in mine.items())
    matched = {name: tensor.clone() for name, tensor in pupil.extras.items()}
    walked(pupil, 20, 10)
    assert all(torch.equal(pupil.extras[name], tensor) for name, tensor in matched.items())
    assert not torch.equal(pupil.model.state_dict()["fc.weight"], begun["fc.weight"])


def test_dictionaries_learn_to_rebuild_and_students_to_match() -> None:
    losses = walked(
        Pupil(student()), STEPS, options=Srm.Options(dictionary=0.4, matching=0.5, learning_rate=0.02, sparsity=0.25)
    )
    assert losses[7] < 0.8 * losses[0]
    assert losses[17] < losses[8]


def test_what_is_asked_for_must_be_there() -> None:
    with pytest.raises(UserError, match="no module called `layer9`") as caught:
        course_of(Srm(Srm.Options(layers=("layer1.0", "layer9"))), student(), material(STEPS))
    assert caught.value.errors[0].pointer == "/layers/1"
    assert "layer1.0" in (caught.value.errors[0].allowed or [])
    with pytest.raises(ValidationError, match="leave some of the steps"):
        Srm.Options(dictionary=0.5, matching=0.5)
