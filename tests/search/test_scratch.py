from __future__ import annotations

import torch
from torch import nn

from search.scratch import Scratch
from tests.search.courses import surveyed


def test_students_have_their_networks_and_nothing_of_the_teacher() -> None:
    found = surveyed()
    least, cut = Scratch(found, 3).graft(found.space.least()), found.graft(found.space.least())
    shapes = {name: tensor.shape for name, tensor in cut.state_dict().items()}
    assert {name: tensor.shape for name, tensor in least.state_dict().items()} == shapes
    for (name, module), other in zip(least.named_modules(), cut.modules(), strict=True):
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert isinstance(other, nn.Conv2d | nn.Linear)
            assert not torch.equal(module.weight, other.weight), name


def test_the_same_seed_gives_the_same_student_and_takes_nothing_from_others() -> None:
    found = surveyed()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, other, third = (Scratch(found, seed).graft(found.space.full()).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["fc.weight"], third["fc.weight"])
