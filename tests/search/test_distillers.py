from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from hypothesis import given
from hypothesis import strategies as st

from search.catalog import Catalog
from search.distillers.hinton import Hinton
from search.plugins import Distiller
from search.spec import Pick
from tests.search.courses import NAMES


@pytest.fixture(params=NAMES)
def distiller(request: pytest.FixtureRequest) -> Distiller:
    made: Distiller = Catalog().make("distillers", Pick(name=request.param))
    return made


def batch(seed: int, count: int = 6, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator).requires_grad_()
    teacher = (3 * torch.randn(count, classes, generator=generator)).requires_grad_()
    return logits, torch.randint(0, classes, (count,), generator=generator), teacher


class TestEveryDistiller:
    def test_the_loss_is_a_finite_scalar_with_a_gradient_for_the_student_alone(self, distiller: Distiller) -> None:
        logits, labels, teacher = batch(0)
        loss = distiller.loss(logits, labels, teacher.detach())
        assert loss.shape == ()
        assert loss.isfinite()
        loss.backward()
        assert logits.grad is not None
        assert logits.grad.abs().sum() > 0
        assert teacher.grad is None

    def test_the_order_of_the_batch_does_not_matter(self, distiller: Distiller) -> None:
        logits, labels, teacher = batch(1)
        turned = distiller.loss(logits.flip(0), labels.flip(0), teacher.flip(0))
        torch.testing.assert_close(turned, distiller.loss(logits, labels, teacher))


@given(st.integers(0, 1000), st.floats(0.5, 20))
def test_pure_distillation_is_zero_where_the_student_is_the_teacher(seed: int, temperature: float) -> None:
    logits, labels, _ = batch(seed)
    loss = Hinton(Hinton.Options(temperature=temperature)).loss(logits, labels, logits.detach())
    assert abs(loss.item()) < 1e-5


def test_hinton_against_a_sum_by_hand() -> None:
    """Two classes, one image: teacher logits (2, 0), student logits (0, 0), T = 2."""
    q = math.exp(1) / (math.exp(1) + 1)
    kl = q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5)
    expected = 0.75 * 4 * kl + 0.25 * math.log(2)
    distiller = Hinton(Hinton.Options(temperature=2, alpha=0.75))
    loss = distiller.loss(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([[2.0, 0.0]]))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_alpha_zero_is_cross_entropy() -> None:
    logits, labels, teacher = batch(2)
    loss = Hinton(Hinton.Options(alpha=0)).loss(logits, labels, teacher)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
