"""Long-tailed data: how many images stay, which ones, and how distillation is balanced over their classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from hypothesis import given
from hypothesis import strategies as st

from search.batches import Cached
from search.catalog import Catalog
from search.course import Material
from search.datasets.long_tailed import Kind, LongTailed, profile
from search.distillers.bkd import Balanced, Bkd, weights
from search.distillers.hinton import Hinton
from search.errors import DataError, InvalidSpec
from search.files import Files
from search.plugins import Counted, Dataset, SplitName
from search.quality import shots
from search.recipe import prepare
from search.spec import Pick, read_spec
from search.taps import forward
from tests.search.courses import INFO, pool, student, surveyed

SMALL = {"train": 400, "validation": 40, "test": 40}


def thinned(tmp_path: Path, of: dict[str, Any], **options: Any) -> LongTailed:
    pick = Pick(name="long_tailed", options={"of": of, **options})
    dataset: LongTailed = Catalog().make("datasets", pick, files=Files(tmp_path))
    return dataset


# -- counts and weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "classes", "least", "images", "low", "high", "ratio"),
    [(500, 100, 5, 10_847, 0.045, 4.38, 97.6), (5000, 10, 50, 12_406, 0.051, 3.99, None)],
)
def test_counts_and_weights_are_those_of_the_authors_code(
    most: int, classes: int, least: int, images: int, low: float, high: float, ratio: float | None
) -> None:
    """CIFAR-100 and CIFAR-10 at an imbalance of 100."""
    counts = profile(most, classes, 100, "exponential")
    assert (counts[0], counts[-1], counts.sum()) == (most, least, images)
    found = weights(counts, 0.9999)
    assert found[0].item() == pytest.approx(low, abs=5e-4)
    assert found[-1].item() == pytest.approx(high, abs=5e-3)
    assert found.sum().item() == pytest.approx(classes, rel=1e-6)
    if ratio is not None:
        assert (found[-1] / found[0]).item() == pytest.approx(ratio, abs=0.05)


def test_a_step_makes_the_second_half_rare() -> None:
    assert profile(500, 5, 100, "step").tolist() == [500, 500, 5, 5, 5]
    assert profile(60, 4, 100, "step").tolist() == [60, 60, 1, 1]
    assert profile(0, 3, 100, "exponential").tolist() == [0, 0, 0]


@given(st.integers(1, 5000), st.integers(1, 100), st.floats(1, 1000), st.sampled_from(["exponential", "step"]))
def test_a_profile_falls_from_most_to_its_imbalance(most: int, classes: int, imbalance: float, kind: Kind) -> None:
    counts = profile(most, classes, imbalance, kind)
    assert (np.diff(counts) <= 0).all()
    assert counts.max() <= most
    assert counts.min() >= 1
    assert counts[-1] >= int(most / imbalance) - 1
    if classes > 1:
        assert counts[0] == most
        assert counts[-1] <= max(1, most / imbalance + 1e-6)


def test_weights_stay_finite_for_a_class_without_images_and_are_all_one_where_nothing_is_to_be_balanced() -> None:
    assert weights(np.array([0, 1, 10]), 0.9999).tolist() == weights(np.array([1, 1, 10]), 0.9999).tolist()
    for counts, beta in (([7, 7, 7], 0.9999), ([1, 50, 5000], 0.0)):
        assert weights(np.array(counts), beta).tolist() == [1.0, 1.0, 1.0]
    # Towards 1 the effective number is the number itself.
    inverse = weights(np.array([1, 2, 4]), 1 - 1e-9)
    torch.testing.assert_close(inverse / inverse[2], torch.tensor([4.0, 2.0, 1.0]), rtol=1e-6, atol=0)


# -- the loss ----------------------------------------------------------------------------------------------------------


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (6,), generator=generator)
    return torch.randn(6, 4, generator=generator), labels, 3 * torch.randn(6, 4, generator=generator)


def imbalanced(counts: tuple[int, ...] = (8, 4, 2, 1), views: int = 2, steps: int = 20) -> Material:
    """Images of four classes, so many of each."""
    whole = pool(views=1, count=4 * max(counts))
    at = np.concatenate([np.flatnonzero(whole.labels == label)[:count] for label, count in enumerate(counts)])
    at = np.tile(at, views)
    source = Cached(whole.images[at], whole.labels[at], whole.logits[at], whole.normalise, seed=3)
    return Material.of(surveyed(), source, views, steps, seed=5)


def loss_at(step: int, material: Material, **options: float) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a course, with the student's logits, the labels and the teacher's logits it was worked out from."""
    course = Bkd(Bkd.Options(**options)).course(student(), material)
    course.student.eval()
    batch = material.source.pick(np.arange(8))
    assert batch.teacher_logits is not None
    logits = forward(course.student, batch.images)
    return course.loss(batch, course.stages[0], step).item(), logits, batch.labels, batch.teacher_logits


def balanced_by_hand(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> float:
    """As the equation is written: columns weighted, rows renormalised."""
    temperature = 2.0
    target = weight * F.softmax(teacher / temperature, dim=1)
    target = target / target.sum(dim=1, keepdim=True)
    answer = F.softmax(logits / temperature, dim=1)
    divergence = (target * (target / answer).log()).sum(dim=1).mean()
    return (F.cross_entropy(logits, labels) + temperature**2 * divergence).item()


def test_columns_are_weighted_by_the_counts_and_rows_made_to_sum_to_one() -> None:
    found, logits, labels, teacher = loss_at(0, imbalanced((8, 4, 2, 0)))
    weight = weights(np.array([8, 4, 2, 1]), 0.9999)
    assert found == pytest.approx(balanced_by_hand(logits, labels, teacher, weight), rel=1e-5)
    assert found != pytest.approx(balanced_by_hand(logits, labels, teacher, torch.ones(4)), rel=1e-3)


def test_an_answer_by_hand() -> None:
    """One image, two classes: the teacher says (.5, .5), weights (.4, 1.6) make that (.2, .8); the student is even."""
    distiller = Bkd(Bkd.Options(alpha=3, temperature=5))
    target = distiller.balanced(torch.zeros(1, 2), torch.tensor([0.4, 1.6]))
    assert F.softmax(target / 5, dim=1).tolist()[0] == pytest.approx([0.2, 0.8])
    loss = distiller.loss(torch.zeros(1, 2), torch.tensor([0]), target).item()
    assert loss == pytest.approx(np.log(2) + 3 * 25 * (0.2 * np.log(0.4) + 0.8 * np.log(1.6)), rel=1e-6)


def test_a_loss_is_that_of_the_authors_code() -> None:
    """Its numbers for these inputs (EricZsy/BalancedKnowledgeDistillation, losses.py), with and without weights."""
    logits, teacher = (3 * torch.sin(step * torch.arange(12.0)).view(4, 3) for step in (0.9, 0.4))
    labels, distiller = torch.tensor([0, 1, 2, 0]), Bkd(Bkd.Options())
    weighted = distiller.balanced(teacher, weights(np.array([500, 50, 5]), 0.9999))
    assert distiller.loss(logits, labels, weighted).item() == pytest.approx(5.9911084, rel=1e-5)
    assert distiller.loss(logits, labels, teacher).item() == pytest.approx(3.0108180, rel=1e-5)


def test_with_equal_classes_it_is_cross_entropy_and_distillation() -> None:
    logits, labels, teacher = rows()
    distiller = Bkd(Bkd.Options())
    plain = F.cross_entropy(logits, labels) + Hinton(Hinton.Options(temperature=2)).loss(logits, labels, teacher)
    torch.testing.assert_close(distiller.loss(logits, labels, teacher), plain)
    even = distiller.balanced(teacher, weights(np.array([9, 9, 9, 9]), 0.9999))
    torch.testing.assert_close(distiller.loss(logits, labels, even), plain)


def test_to_weight_rows_by_their_label_would_change_nothing_and_to_weight_columns_does() -> None:
    """What a public re-implementation does: the weight of a row is undone when it is made to sum to one."""
    _, labels, teacher = rows()
    weight = weights(np.array([500, 100, 20, 5]), 0.9999)
    target = F.softmax(teacher / 2, dim=1)
    by_row = weight[labels][:, None] * target
    torch.testing.assert_close(by_row / by_row.sum(dim=1, keepdim=True), target)
    ours = F.softmax(Bkd(Bkd.Options()).balanced(teacher, weight) / 2, dim=1)
    assert (ours - target).abs().max() > 0.1
    assert (ours[:, 3] >= target[:, 3]).all()
    assert (ours[:, 0] <= target[:, 0]).all()


@pytest.mark.parametrize(("deferred", "off", "on"), [(0.0, [], [0, 19]), (0.8, [0, 15], [16, 19]), (1.0, [0, 19], [])])
def test_weights_are_on_from_where_they_are_deferred_to(deferred: float, off: list[int], on: list[int]) -> None:
    """Of 20 steps 16, as 160 of 200 epochs."""
    material = imbalanced()
    weight = weights(material.counts, 0.9999)
    for step in off + on:
        found, *given_to = loss_at(step, material, deferred=deferred)
        expected = balanced_by_hand(*given_to, weight if step in on else torch.ones(4))
        assert found == pytest.approx(expected, rel=1e-5)


def test_counts_are_of_images_and_not_of_their_views() -> None:
    material = imbalanced((8, 4, 2, 0), views=3)
    assert material.counts.tolist() == [8, 4, 2, 0]
    course = Balanced(student(), Bkd(Bkd.Options()), replace(material, steps=5))
    assert course.extras.state_dict() == {}
    assert len(material.counts) == len(INFO.classes)


# -- what becomes of rare classes --------------------------------------------------------------------------------------


def test_accuracy_is_told_by_the_training_images_of_a_class() -> None:
    """Classes at the edges of the groups, one image each; of two neighbours one is right."""
    counts = np.array([500, 101, 100, 20, 19, 1])
    labels = np.arange(6)
    answers = np.eye(6, dtype=np.float32)[[0, 0, 2, 0, 4, 0]]
    assert shots(answers, labels, counts) == {"many": 0.5, "medium": 0.5, "few": 0.5}
    assert shots(answers[:5], labels[:5], counts) == {"many": 0.5, "medium": 0.5, "few": 1.0}
    assert shots(answers[2:4], labels[2:4], counts) == {}, "one group says what all say"


def test_of_balanced_data_nothing_new_is_told() -> None:
    answers, labels = np.eye(2, dtype=np.float32), np.arange(2)
    assert shots(answers, labels, np.array([95, 105])) == {}
    assert shots(answers, labels, np.array([500, 300])) == {}
    assert shots(answers, labels, np.array([95, 190])) == {"many": 1.0, "medium": 1.0}


# -- the dataset -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exponential", "step"])
def test_only_training_images_are_left_out(tmp_path: Path, kind: Kind) -> None:
    whole: Dataset = Catalog().make("datasets", Pick(name="shapes", options=SMALL), files=Files(tmp_path))
    dataset = thinned(tmp_path, {"name": "shapes", "options": SMALL}, imbalance=4, kind=kind)
    train, before = dataset.split("train"), whole.split("train")
    expected = profile(20, 20, 4, kind)
    assert np.array_equal(np.bincount(train.labels, minlength=20), expected)
    assert np.array_equal(dataset.counts(), expected)
    known = {image.tobytes(): label for image, label in zip(before.images, before.labels.tolist(), strict=True)}
    assert all(
        known[image.tobytes()] == label for image, label in zip(train.images, train.labels.tolist(), strict=True)
    )
    assert len({image.tobytes() for image in train.images}) == len(train)
    rest: tuple[SplitName, ...] = ("validation", "test")
    for name in rest:
        assert np.array_equal(dataset.split(name).images, whole.split(name).images)
        assert np.array_equal(dataset.split(name).labels, whole.split(name).labels)


def test_a_larger_imbalance_keeps_some_of_what_a_smaller_one_keeps(tmp_path: Path) -> None:
    of = {"name": "digits", "options": {"size": 8}}
    kept = [
        {image.tobytes() for image in thinned(tmp_path, of, imbalance=imbalance).split("train").images}
        for imbalance in (2, 10, 50)
    ]
    assert kept[0] > kept[1] > kept[2]


def test_what_decides_its_content_is_in_its_key(tmp_path: Path) -> None:
    of = {"name": "digits", "options": {"size": 8}}
    keys = [
        thinned(tmp_path, of).info().key,
        thinned(tmp_path, of, imbalance=50).info().key,
        thinned(tmp_path, of, kind="step").info().key,
        thinned(tmp_path, of, seed=1).info().key,
        thinned(tmp_path, {"name": "digits", "options": {"size": 16}}).info().key,
    ]
    assert len(set(keys)) == len(keys)
    assert thinned(tmp_path, {"name": "digits"}, imbalance=100).info() == thinned(tmp_path, {"name": "digits"}).info()


def test_it_is_counted_without_an_image_being_painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = thinned(tmp_path, {"name": "cluttered_digits", "options": SMALL}, imbalance=5)
    train = len(expected.split("train"))
    monkeypatch.setattr("search.datasets.cluttered._compose", None)
    elsewhere = thinned(tmp_path / "other", {"name": "cluttered_digits", "options": SMALL}, imbalance=5)
    assert elsewhere.sizes() == {"train": train, "validation": 40, "test": 40}


def test_a_dataset_that_cannot_tell_its_counts_is_opened(tmp_path: Path) -> None:
    dataset = thinned(tmp_path, {"name": "digits"}, imbalance=5)
    expected, whole = dataset.counts(), dataset._whole
    dataset._whole = cast(Dataset, SimpleNamespace(info=whole.info, sizes=whole.sizes, split=whole.split))
    assert not isinstance(dataset._whole, Counted)
    assert np.array_equal(dataset.counts(), expected)


@pytest.mark.parametrize(
    ("options", "pointer", "says"),
    [
        ({"of": {"name": "digits", "options": {"size": 4}}}, "/dataset/options/of/options/size", "greater than"),
        ({"of": {"name": "digits", "options": {"sise": 8}}}, "/dataset/options/of/options/sise", "size"),
        ({"of": {"name": "digit"}}, "/dataset/options/of/name", "digits"),
        ({"of": {"name": "long_tailed", "options": {}}}, "/dataset/options/of", "not of itself"),
        ({"of": {"options": {}}}, "/dataset/options/of/name", "required"),
        ({}, "/dataset/options/of", "required"),
        ({"of": {"name": "digits"}, "imbalance": 0.01}, "/dataset/options/imbalance", "greater than"),
    ],
)
def test_wrong_options_are_pointed_at(tmp_path: Path, options: dict[str, Any], pointer: str, says: str) -> None:
    spec = {
        "teacher": {"name": "small_resnet"},
        "dataset": {"name": "long_tailed", "options": options},
        "budget": {"macs": "50%"},
    }
    with pytest.raises(InvalidSpec) as raised:
        prepare(read_spec(spec), Files(tmp_path))
    assert [error.pointer for error in raised.value.errors] == [pointer]
    assert says in raised.value.errors[0].message


def test_what_is_wrong_with_the_data_is_said_of_the_dataset_within(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    dataset = thinned(tmp_path, {"name": "image_folder", "options": {"path": str(tmp_path / "file")}})
    for asked in (dataset.info, dataset.sizes, dataset.counts, lambda: dataset.split("train")):
        with pytest.raises(DataError) as raised:
            asked()
        assert raised.value.errors[0].pointer == "/dataset/options/of/options/path"


def test_images_without_a_class_cannot_be_thinned_by_it(tmp_path: Path) -> None:
    dataset = thinned(tmp_path, {"name": "scenes"})
    for asked in (dataset.info, dataset.sizes, dataset.counts, lambda: dataset.split("train")):
        with pytest.raises(DataError, match="detection") as raised:
            asked()
        assert raised.value.errors[0].pointer == "/dataset/options/of"
