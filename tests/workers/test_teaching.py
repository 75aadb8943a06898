"""Teachers: trained, resumed, kept; with real training of a tiny network on digits."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from search.errors import UserError
from search.files import Files
from search.recipe import prepare
from search.spec import read_spec
from search.teachers.weights import save_weights
from tests.workers.small_job import small_spec
from workers.artifacts import FolderArtifacts
from workers.results import DatasetResult, TeacherResult
from workers.teaching import Alive, Epoch, Lesson, teach, training_arrays
from workers.uploads import Uploaded

pytestmark = pytest.mark.timeout(30)


def lesson(home: Path, epochs: int) -> Lesson:
    document = small_spec().model_dump(mode="json")
    document["teacher"]["epochs"] = epochs
    return Lesson(document, Files(cache=home / "cache"), FolderArtifacts(home / "artifacts"), "cpu")


def taught(given: Lesson) -> tuple[list[Epoch], TeacherResult]:
    *epochs, result = teach(given)
    assert isinstance(result, TeacherResult)
    return [epoch for epoch in epochs if isinstance(epoch, Epoch)], result


def test_a_teacher_is_trained_once(tmp_path: Path) -> None:
    epochs, first = taught(lesson(tmp_path, 3))
    assert [(epoch.done, epoch.total) for epoch in epochs] == [(1, 3), (2, 3), (3, 3)]
    assert first.source == "trained"
    none, second = taught(lesson(tmp_path, 3))
    assert none == []
    assert (second.source, second.weights, second.accuracy) == ("kept", first.weights, first.accuracy)


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    _, undisturbed = taught(lesson(tmp_path / "calm", 3))
    interrupted = lesson(tmp_path / "stormy", 3)
    words = teach(interrupted)
    next(word for word in words if isinstance(word, Epoch))
    words.close()
    epochs, resumed = taught(interrupted)
    assert [epoch.done for epoch in epochs] == [2, 3]
    # The name of the weights is the hash of their bytes.
    assert Path(resumed.weights).name == Path(undisturbed.weights).name


def test_a_long_epoch_shows_life(tmp_path: Path) -> None:
    """17 batches an epoch and a sign every 20 steps: the second and the third epoch have one in their midst."""
    kinds = [type(word) for word in teach(lesson(tmp_path, 3))]
    assert kinds == [DatasetResult, Epoch, Alive, Epoch, Alive, Epoch, TeacherResult]


def test_another_recipe_is_another_teacher(tmp_path: Path) -> None:
    assert taught(lesson(tmp_path, 1))[1].key != taught(lesson(tmp_path, 2))[1].key


def test_weights_that_were_uploaded_are_taught_from_on_any_machine(tmp_path: Path) -> None:
    """The lesson goes to a worker as bytes; its cache there is empty, and the artifacts are what both know."""
    artifacts, upload_id = FolderArtifacts(tmp_path / "artifacts"), f"upl_{'0' * 26}"
    document = small_spec().model_dump(mode="json")
    network = prepare(small_spec(), Files(tmp_path / "cache")).build_teacher()
    uploaded = Uploaded(artifacts)
    uploaded.keep(upload_id, [save_weights(network)], lambda _: None)
    document["teacher"]["weights"] = f"upload:{upload_id}"
    given = Lesson(document, Files(tmp_path / "elsewhere", (), uploaded), artifacts, "cpu")
    sent: Lesson = pickle.loads(pickle.dumps(given))  # noqa: S301 - our own bytes
    epochs, result = taught(sent)
    assert epochs == []
    assert result.source == "weights"
    assert artifacts.get(result.weights) == save_weights(network)
    uploaded.delete(upload_id)
    with pytest.raises(UserError, match="no complete upload"):
        list(teach(given))


def test_without_epochs_there_is_no_teacher(tmp_path: Path) -> None:
    """Nothing is trained, and nobody says how good the network is."""
    document = small_spec().model_dump(mode="json")
    document["teacher"]["epochs"] = 0
    document["distill"] = {"name": "supervised", "options": {}}
    given = Lesson(document, Files(cache=tmp_path / "cache"), FolderArtifacts(tmp_path / "artifacts"), "cpu")
    for _ in range(2):  # the second time it lies there
        dataset, result = teach(given)
        assert isinstance(dataset, DatasetResult)
        assert isinstance(result, TeacherResult)
        assert (result.source, result.accuracy, result.validation_accuracy) == ("untrained", None, None)
    recipe = prepare(read_spec(document), given.files)
    assert given.artifacts.get(result.weights) == save_weights(recipe.build_teacher())
    arrays = training_arrays(recipe, result, given.artifacts)
    for split in ("train", "validation"):
        assert arrays[f"{split}_logits"].shape == (len(arrays[f"{split}_labels"]), 10)
        assert not arrays[f"{split}_logits"].any(), "nobody has answered"
