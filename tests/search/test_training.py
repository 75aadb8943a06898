from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from search.batches import Cached, Normalise
from search.distillers.hinton import Hinton
from search.errors import NonFinite
from search.plugins import DatasetInfo
from search.spec import Schedule
from search.training import Pupil, Stretch, recalibrate, train

INFO = DatasetInfo("key", ("a", "b", "c"), 1, 4, (0.5,), (0.5,), mirror=False, pad=0)
SCHEDULE = Schedule(batch_size=8, learning_rate=0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def data(scale: float = 1) -> Cached:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(40, 1, 4, 4), dtype=np.uint8)
    labels = rng.integers(0, 3, size=40)
    logits = (scale * 4 * np.eye(3)[labels]).astype(np.float32)
    return Cached(images, labels, logits, Normalise(INFO), seed=3)


def run(pupil: Pupil, stretch: Stretch, source: Cached | None = None) -> list[float]:
    source = source or data()
    return [loss for _, loss in train(pupil, source, Hinton(Hinton.Options()), SCHEDULE, stretch)]


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    schedule = Schedule(learning_rate=0.2, warmup=0.1)
    rates = [0.2 * Stretch(0, 100, (0, 100)).share(step, schedule) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[9] == pytest.approx(0.2)
    assert rates[54] == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[99] == pytest.approx(0)


def test_the_rate_falls_in_steps_where_it_shall() -> None:
    """The recipe of BKD: a warm-up of 5 of 200 epochs, a hundredth after 160, a ten-thousandth after 180."""
    schedule = Schedule(warmup=5 / 200, drops=(0.8, 0.9), drop=0.01)
    shares = [Stretch(0, 200, (0, 200)).share(epoch, schedule) for epoch in range(200)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert shares[5:160] == [1] * 155
    assert shares[160:180] == pytest.approx([1e-2] * 20)
    assert shares[180:] == pytest.approx([1e-4] * 20)


def test_training_lowers_the_loss() -> None:
    losses = run(Pupil(network()), Stretch(0, 60, (0, 60)))
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])


def test_training_in_two_stretches_equals_training_in_one() -> None:
    whole = Pupil(network())
    run(whole, Stretch(0, 20, (0, 20)))
    first = Pupil(network())
    run(first, Stretch(0, 9, (0, 20)))
    second = Pupil(network())
    second.restore(first.checkpoint())
    assert second.step == 9
    run(second, Stretch(9, 20, (0, 20)))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_beginning_again_keeps_weights_and_forgets_momentum() -> None:
    pupil = Pupil(network())
    run(pupil, Stretch(0, 5, (0, 5)))
    weights = {name: tensor.clone() for name, tensor in pupil.model.state_dict().items()}
    pupil.begin_again()
    assert (pupil.step, pupil.momentum) == (0, {})
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pupil.model.state_dict().items())


def test_weight_decay_spares_vectors() -> None:
    """With targets equal to the outputs of a constant network there is no gradient: only decay can move a weight."""
    model = network()
    for parameter in model[4].parameters():
        nn.init.zeros_(parameter)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    schedule = Schedule(batch_size=8, learning_rate=0.1, weight_decay=0.5, warmup=0)
    source = data(scale=0)
    list(train(Pupil(model), source, Hinton(Hinton.Options()), schedule, Stretch(0, 3, (0, 30))))
    after = dict(model.named_parameters())
    assert after["0.weight"].norm() < 0.95 * before["0.weight"].norm()
    assert torch.equal(after["1.weight"], before["1.weight"])
    torch.testing.assert_close(after["1.bias"], before["1.bias"])


def test_a_loss_that_is_not_finite_ends_the_training_at_once() -> None:
    source = data()
    source.logits[:] = np.nan
    with pytest.raises(NonFinite, match="at step 1;"):
        run(Pupil(network()), Stretch(0, 5, (0, 5)), source)


def test_recalibration_is_the_average_over_the_batches() -> None:
    model, source = network(), data()
    run(Pupil(model), Stretch(0, 5, (0, 5)))
    recalibrate(model, source, batches=2, batch_size=8)
    with torch.no_grad():
        seen = [model[0](source.batch(step, 8).images) for step in range(2)]
    mean = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in seen]).mean(dim=0)
    variance = torch.stack([batch.var(dim=(0, 2, 3)) for batch in seen]).mean(dim=0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == 0.1


@pytest.mark.parametrize("channels", range(1, 14))
def test_every_channel_count_trains(channels: int) -> None:
    """Strided 1x1 convolutions of odd widths corrupted memory in channels-last layout (docs/decisions/0004)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.Conv2d(channels, 8, 1, 2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    assert all(math.isfinite(loss) for loss in run(Pupil(model), Stretch(0, 6, (0, 6))))
