"""Jobs on a folder of images of which some cannot be used."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.spec import JobSpec
from service.screens.live import event_line
from service.screens.result import result_screen
from service.screens.tables import job_screen
from service.screens.words import UNICODE
from tests.search.pictures import picture, split_tree
from tests.workers.small_job import small_spec
from tests.workers.test_driver import House, as_far_as
from workers.events import Event
from workers.ports import JobState, Phase
from workers.results import DatasetResult, TeacherResult

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """48 images of two classes, and a JPEG that was cut off."""
    folder = split_tree(tmp_path / "pets")
    stream = io.BytesIO()
    picture(1, (40, 40)).save(stream, format="JPEG")
    (folder / "train" / "dog" / "cut.jpg").write_bytes(stream.getvalue()[:500])
    return folder


def on(data: Path, **options: Any) -> JobSpec:
    search = small_spec().search.model_dump(mode="json") | {"trials": 1, "rungs": [1], "repeats": 0}
    dataset = {"name": "image_folder", "options": {"path": str(data), "size": 16, **options}}
    return small_spec(dataset=dataset, search=search, finalists={"count": 1, "steps": 2})


def screen(drawn: Any) -> str:
    console = Console(width=120, file=io.StringIO(), color_system=None, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


def test_a_job_lists_what_it_goes_without(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    house = House(tmp_path)
    with caplog.at_level(logging.WARNING, "stillhouse.driver"):
        other, job = as_far_as(house, Phase.FINALISTS, on(data, max_bad_fraction=0.03))
    document = other.document(job)
    assert document.skipped_images is not None
    assert (document.skipped_images.count, document.skipped_images.images) == (1, 49)
    (fault,) = document.skipped_images.first
    assert fault.file == "train/dog/cut.jpg"
    assert "truncated" in fault.message.lower()
    assert "1 of 49 images cannot be used and are skipped: train/dog/cut.jpg: " in caplog.text
    (told,) = (event for event in other.ledger.events(job) if event.kind == "IMAGES_SKIPPED")
    assert told.data["faults"] == [fault.model_dump()]
    assert event_line(told, document.spec) == "1 of 49 images cannot be used and are skipped"
    said = "1 of 49 images could not be used and were skipped: train/dog/cut.jpg"
    assert said in screen(result_screen(document, [], width=120, signs=UNICODE))
    assert "image_folder, 1 of 49 images skipped" in screen(job_screen(document, signs=UNICODE))

    (data / "train" / "dog" / "cut.jpg").rename(data / "train" / "dog" / "renamed.jpg")
    again, second = as_far_as(house, Phase.SEARCH, on(data, max_bad_fraction=0.03))
    teacher = TeacherResult.model_validate(again.result(second, Phase.TEACHER))
    assert teacher.source == "kept"
    assert teacher.dataset is not None
    assert [one.file for one in teacher.dataset.faults] == ["train/dog/renamed.jpg"], "its own names, not the first's"


def test_a_corrupt_dataset_ends_the_job_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    house = House(tmp_path)
    state, job = house.drive(on(data))
    record = house.ledger.job(job)
    assert state is JobState.FAILED
    assert record.reason.startswith("DATASET_CORRUPT: 1 of 49 images cannot be used (2.04%, ")
    assert f"{data}/train/dog/cut.jpg: " in record.reason
    assert record.reason.endswith("allow a larger `max_bad_fraction`")
    assert [phase for phase, known in record.phases.items() if known.result is not None] == []
    assert not house.ledger.trials(job)
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]


def _removed(data: Path) -> None:
    (data / "test" / "cat" / "2.png").unlink()


def _added(data: Path) -> None:
    picture(4711).save(data / "test" / "cat" / "new.png")


def _broken(data: Path) -> None:
    path = data / "test" / "cat" / "2.png"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("phase", "change"), [(Phase.SEARCH, _broken), (Phase.FINALISTS, _removed), (Phase.FINALISTS, _added)]
)
def test_a_dataset_that_changes_during_a_job_is_noticed(
    data: Path, tmp_path: Path, phase: Phase, change: Callable[[Path], None]
) -> None:
    """A file that is missing by then is no bad image: the splits would be others than those that were trained on."""

    def spoil(_: str, event: Event) -> None:
        if event.kind == "PHASE_ENTERED" and event.data["phase"] == phase:
            change(data)

    house = House(tmp_path, spoil)
    state, job = house.drive(on(data, max_bad_fraction=0.2))
    assert state is JobState.FAILED
    assert house.ledger.job(job).reason.startswith(
        "DATASET_UNUSABLE: the dataset is not what it was when the job opened it"
    )
    assert Phase.EXPORT not in house.ledger.job(job).phases


def test_versions_before_and_after_read_what_this_one_writes_and_the_other_way_round() -> None:
    """The version before knows no `dataset`, and is told of none unless it is needed."""
    old = {"name": "x", "key": "k", "source": "kept", "weights": "w", "accuracy": 0.5, "validation_accuracy": 0.5}
    found = TeacherResult.model_validate(old | {"of_a_later_version": 1})
    assert found.dataset is None
    whole, partial = DatasetResult(key="k"), DatasetResult(key="k-s", skipped=2, images=9)
    for dataset in (None, whole):
        assert "dataset" not in found.model_copy(update={"dataset": dataset}).model_dump(mode="json")
    told = found.model_copy(update={"dataset": partial})
    assert TeacherResult.model_validate(told.model_dump(mode="json")) == told
