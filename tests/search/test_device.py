from __future__ import annotations

import pytest
import torch

import search.training
from search.device import Usage, usage, usage_of, worth_keeping
from search.training import Pupil, Stretch
from tests.search.test_training import data, network, run


@pytest.mark.parametrize("bf16", [False, True])
def test_a_cpu_trains_in_the_plain_layout_and_in_float32(bf16: bool) -> None:
    """docs/decisions/0004."""
    assert usage("cpu", bf16=bf16) == Usage(torch.contiguous_format, None)
    assert usage_of(torch.device("cpu")) == usage("cpu", bf16=False)


def test_cuda_uses_bfloat16_only_where_it_is_computed() -> None:
    assert usage("cuda", bf16=True) == Usage(torch.channels_last, torch.bfloat16)
    assert usage("cuda", bf16=False) == Usage(torch.channels_last, None)


def test_a_set_is_kept_on_a_device_only_when_most_of_it_stays_free() -> None:
    assert worth_keeping(10, 40)
    assert not worth_keeping(11, 40)


@pytest.mark.timeout(60)  # a process's first optimiser imports much of torch
def test_training_in_cudas_way_is_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with a network whose shapes channels-last does no harm: near the plain training, and resumable."""
    plain = run(Pupil(network()), Stretch(0, 12, (0, 12)))
    monkeypatch.setattr(search.training, "usage_of", lambda device: usage("cuda", bf16=True))
    whole = Pupil(network())
    losses = run(whole, Stretch(0, 12, (0, 12)), data())
    assert losses == pytest.approx(plain, rel=0.05)
    assert losses != plain
    assert whole.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert {tensor.dtype for tensor in whole.momentum.values()} == {torch.float32}
    first, second = Pupil(network()), Pupil(network())
    run(first, Stretch(0, 7, (0, 12)))
    second.restore(first.checkpoint())
    run(second, Stretch(7, 12, (0, 12)))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
