from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search.costs.measure import count
from search.course import Stage, state_of
from search.distillers.pcl import Pcl, _Course, _views, objective, weight
from search.errors import UserError
from search.estimate import pace
from search.spec import Schedule
from tests.search.courses import INFO, material, pool, student, surveyed

STAGE = Stage("distil")


def opened(*, views: int = 3, **options: object) -> _Course:
    course = Pcl(Pcl.Options.model_validate(options)).course(student(least=False), material(views=views))
    assert isinstance(course, _Course)
    course.train()
    return course


def image() -> Tensor:
    return material().first()


def peers(course: _Course) -> list[nn.Module]:
    return list(course.extras["peers"].children())


def means(course: _Course) -> list[nn.Module]:
    return [course.student, *course.extras["means"].children()]


class TestLoss:
    def test_the_ramp_is_that_of_the_paper(self) -> None:
        found = [weight(epoch / 300, 80 / 300) for epoch in (0, 20, 40, 60, 80, 81, 300)]
        assert found == pytest.approx([0.0067, 0.060, 0.2865, 0.7316, 1, 1, 1], abs=5e-4)

    def test_two_peers_against_a_sum_by_hand(self) -> None:
        """One image of class 0 and two classes; every distribution is told by its log odds, here x of class 0."""

        def logits(odds: float) -> Tensor:
            return torch.tensor([[odds, 0.0]])

        def probability(odds: float) -> float:
            return 1 / (1 + math.exp(-odds))

        def entropy(odds: float) -> float:
            return -math.log(probability(odds))

        def apart(target: float, answer: float, temperature: float) -> float:
            q, p = probability(target / temperature), probability(answer / temperature)
            return temperature**2 * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))

        expected = entropy(0.5) + entropy(-1.0) + entropy(2.0)
        expected += 0.25 * (apart(2.0, 0.5, 3) + apart(2.0, -1.0, 3))
        # The first peer learns from the second one's mean, and the second from the first one's.
        expected += 0.25 * (apart(-0.7, 0.5, 3) + apart(0.4, -1.0, 3))
        found = objective(
            [logits(0.5), logits(-1.0)], logits(2.0), [logits(0.4), logits(-0.7)], torch.tensor([0]), 3.0, 0.25
        )
        assert found.item() == pytest.approx(expected, rel=1e-6)

    def test_of_three_peers_the_means_of_the_others_count_half_each(self) -> None:
        generator = torch.Generator().manual_seed(0)
        answers, together, labels = torch.zeros(3, 2, 4), torch.zeros(2, 4), torch.tensor([1, 2])
        mean = torch.randn(2, 4, generator=generator)
        plain = objective(list(answers), together, [torch.zeros(2, 4)] * 3, labels, 3.0, 1.0).item()
        taught = objective(list(answers), together, [mean, *torch.zeros(2, 2, 4)], labels, 3.0, 1.0).item()
        q = (mean / 3).softmax(dim=1)
        apart = 9 * (q * (4 * q).log()).sum(dim=1).mean().item()
        # Peers 1 and 2 see the mean of peer 0, with a weight of 1 / 2.
        assert taught - plain == pytest.approx(apart, rel=1e-5)

    def test_what_teaches_meets_no_gradient_and_the_classifier_of_all_reaches_the_peers(self) -> None:
        answers = [torch.randn(2, 4).requires_grad_() for _ in range(2)]
        taught = [torch.randn(2, 4).requires_grad_() for _ in range(2)]
        together = torch.randn(2, 4).requires_grad_()
        labels = torch.tensor([1, 2])
        objective(answers, together, taught, labels, 3.0, 1.0).backward()
        assert all(mean.grad is None for mean in taught)
        probabilities = together.detach().softmax(dim=1)
        # Of cross-entropy alone: the KL with it on the left side has added nothing.
        expected = (probabilities - torch.eye(4)[labels]) / 2
        torch.testing.assert_close(together.grad, expected)

    def test_with_nothing_shared_no_classifier_and_no_memory_it_is_mutual_learning(self) -> None:
        course = opened(peers=2, shared=False, ensemble=False, ema=0, temperature=1, ramp=1e-9)
        first, second = peers(course)
        assert not {id(one) for one in first.parameters()} & {id(one) for one in second.parameters()}
        assert not torch.equal(first.get_submodule("conv1").weight, second.get_submodule("conv1").weight)
        batch = course.draw(pool(3), 1, 8)
        answers = [peer(view) for peer, view in zip((first, second), batch.images.chunk(2), strict=True)]
        odds, labels = [answer.log_softmax(dim=1) for answer in answers], batch.labels[:8]
        expected = torch.stack([-one[torch.arange(8), labels].mean() for one in odds]).sum()
        for mine, other in (odds, odds[::-1]):
            expected = expected + (other.exp() * (other - mine)).sum(dim=1).mean()
        assert course.loss(batch, STAGE, 1).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_cross_entropy_of_the_classifier_of_all_reaches_every_branch_and_the_trunk(self) -> None:
        course = opened()
        batch = course.draw(pool(3), 0, 8)
        seen = [peer(view) for peer, view in zip(course._watched, batch.images.chunk(3), strict=True)]
        embeddings = [one.embedding for one in seen if one.embedding is not None]
        nn.functional.cross_entropy(course.extras["together"](torch.cat(embeddings, 1)), batch.labels[:8]).backward()
        for peer in peers(course):
            for name in ("conv1", "layer3.0.conv1"):
                gradient = peer.get_submodule(name).weight.grad
                assert isinstance(gradient, Tensor)
                assert gradient.abs().sum() > 0


class TestPeers:
    def test_share_the_very_modules_up_to_the_cut_and_nothing_above_it(self) -> None:
        course = opened()
        first, *others = peers(course)
        for group, trunk in ((others, first), (means(course)[1:], course.student)):
            for network in group:
                assert network.get_submodule("conv1") is trunk.get_submodule("conv1")
                assert network.get_submodule("layer2.0.bn2") is trunk.get_submodule("layer2.0.bn2")
                for name in ("layer3.0.conv1", "layer3.0.bn1", "fc"):
                    assert network.get_submodule(name) is not trunk.get_submodule(name)
        assert first.get_submodule("conv1") is not course.student.get_submodule("conv1")

    def test_all_begin_with_the_student_and_differ_above_the_cut_only_when_reset(self) -> None:
        course, alike = opened(), opened(reset=False)
        for mean, peer in zip(means(course), peers(course), strict=True):
            assert_equal(mean, peer)
        assert_equal(course.student, student(least=False))
        first, second, third = (peer.get_submodule("layer3.0.conv1").weight for peer in peers(course))
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)
        for peer in peers(alike):
            assert_equal(peer, alike.student)

    def test_a_cut_can_be_named(self) -> None:
        first, second, _ = peers(opened(cut="layer1.0"))
        assert first.get_submodule("layer1.0.conv2") is second.get_submodule("layer1.0.conv2")
        assert first.get_submodule("layer2.0.conv1") is not second.get_submodule("layer2.0.conv1")

    def test_the_first_step_copies_and_later_ones_average(self) -> None:
        course = opened(ema=0.75)
        optimiser = torch.optim.SGD([one for _, one in course.trained(STAGE)], lr=0.1)
        expected: Tensor | None = None
        for step, kept in enumerate((0, 1 / 2, 2 / 3, 3 / 4, 3 / 4)):
            course.loss(course.draw(pool(3), step, 8), STAGE, step).backward()
            optimiser.step()
            optimiser.zero_grad()
            course.after(step)
            for name in ("conv1", "layer3.0.conv1"):  # of the trunk too, which all means share, once a step
                mine, peer = (one.get_submodule(name).weight for one in (course.student, peers(course)[0]))
                if step == 0:
                    assert torch.equal(mine, peer)
            peer = peers(course)[0].get_submodule("conv1").weight.detach().clone()
            expected = peer if expected is None else kept * expected + (1 - kept) * peer
            torch.testing.assert_close(course.student.get_submodule("conv1").weight, expected)

    @pytest.mark.timeout(60)  # the first count in a process imports torch's compiler
    def test_the_student_is_never_trained_and_has_the_cost_it_had(self) -> None:
        course = opened()
        trained = {id(parameter) for _, parameter in course.trained(STAGE)}
        assert not trained & {id(parameter) for parameter in course.student.parameters()}
        assert not trained & {id(parameter) for mean in means(course) for parameter in mean.parameters()}
        assert trained >= {id(parameter) for peer in peers(course) for parameter in peer.parameters()}
        before = student(least=False)
        names = [(name, type(module)) for name, module in course.student.named_modules()]
        assert names == [(name, type(module)) for name, module in before.named_modules()]
        assert count(course.student, image()) == count(before, image())

    def test_means_look_at_the_batches_for_their_statistics(self) -> None:
        course = opened()
        norm = course.student.get_submodule("bn1")
        course.loss(course.draw(pool(3), 0, 8), STAGE, 0)
        assert norm.num_batches_tracked == 3  # once for every peer's mean: the trunk is one
        assert course.student.get_submodule("layer3.0.bn1").num_batches_tracked == 1

    def test_a_shared_tensor_is_kept_once(self) -> None:
        state = state_of(opened().extras)
        assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
        assert "peers.0.conv1.weight" in state
        assert "peers.1.conv1.weight" not in state


class TestViews:
    def test_all_peers_see_the_same_images_and_none_the_same_view(self) -> None:
        course, images = opened(), len(pool(3)) // 3
        batch = course.draw(pool(3), 7, 8)
        drawn = pool(3).drawn(7, 8) % images
        stored = [pool(3).pick(view * images + drawn).images for view in range(3)]
        for at in range(8):
            seen = [
                next(view for view in range(3) if torch.equal(part[at], stored[view][at]))
                for part in batch.images.chunk(3)
            ]
            assert sorted(seen) == [0, 1, 2]
        for labels in batch.labels.chunk(3):
            assert labels.tolist() == pool(3).labels[drawn].tolist()

    def test_with_fewer_views_than_peers_some_share_theirs(self) -> None:
        chosen = _views(0, 0, 50, views=2, peers=3)
        assert (chosen[0] != chosen[1]).all()
        assert (chosen[0] == chosen[2]).all()
        assert set(chosen[0]) == {0, 1}

    def test_views_change_from_step_to_step_and_follow_from_the_seed(self) -> None:
        assert np.array_equal(_views(1, 5, 20, 4, 3), _views(1, 5, 20, 4, 3))
        assert not np.array_equal(_views(1, 5, 20, 4, 3), _views(1, 6, 20, 4, 3))
        assert not np.array_equal(_views(1, 5, 20, 4, 3), _views(2, 5, 20, 4, 3))


class TestRefusals:
    def test_one_view_is_not_enough(self) -> None:
        with pytest.raises(UserError, match=r"raise `search\.views`") as raised:
            opened(views=1)
        assert raised.value.errors[0].pointer == "/peers"

    def test_a_cut_that_does_not_exist(self) -> None:
        with pytest.raises(UserError) as raised:
            opened(cut="layer9")
        assert raised.value.errors[0].pointer == "/cut"
        assert "layer2.0" in raised.value.errors[0].allowed

    def test_a_cut_within_a_block_that_students_may_lose(self) -> None:
        found = surveyed()
        block = next(site.block for site in found.space.sites if site.kind == "removal")
        whole = found.space.full().as_dict()
        lost = {site.name: site.choices[0] for site in found.space.sites if site.kind == "removal"}
        network = found.graft(found.space.candidate(whole | lost))
        with pytest.raises(UserError, match="cut at a whole block") as raised:
            Pcl(Pcl.Options(cut=f"{block}.conv2")).course(network, material())
        assert raised.value.errors[0].pointer == "/cut"
        Pcl(Pcl.Options(cut=block)).course(network, material())

    def test_alone_a_peer_learns_from_the_labels(self) -> None:
        logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        found = Pcl(Pcl.Options()).loss(logits, labels, None)
        torch.testing.assert_close(found, nn.functional.cross_entropy(logits, labels))


def test_a_step_can_be_timed_before_a_job() -> None:
    """With images of its own making, of which every peer finds a view."""
    found = surveyed()
    network = found.graft(found.space.full())
    timed = pace(
        network, found.cost["macs"], INFO, Pcl(Pcl.Options()), Schedule(), threads=1, device="cpu", found=found
    )
    assert timed.learn.expected > 3 * timed.look.expected


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
