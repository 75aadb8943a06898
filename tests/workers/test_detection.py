"""A job of detection, small and real, from its teacher to a file that finds what the student finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from search.recipe import prepare
from search.spec import JobSpec, read_spec
from service.documents import JobDocument
from tests.bundles import read_back_here
from tests.workers.test_driver import House, take_home
from workers.ports import JobState, Phase

pytestmark = pytest.mark.timeout(90)


def spec(**changes: object) -> JobSpec:
    document: dict[str, object] = {
        "task": "detection",
        "teacher": {
            "name": "detector",
            "options": {
                "backbone": {"name": "small_resnet", "options": {"width": 4, "depth": 1}},
                "channels": 8,
                "embedding": 16,
                "proposals": 10,
                "found": 10,
                "samples": 16,
                "candidates": 40,
                "least_score": 0.01,
            },
            "epochs": 3,
            "training": {"batch_size": 8, "learning_rate": 0.02},
        },
        "dataset": {"name": "scenes", "options": {"train": 48, "validation": 10, "test": 12, "size": 64}},
        "budget": {"params": "50%"},
        "space": {"divisor": 2},
        "search": {
            "strategy": {"name": "uniform"},
            "weights": "slice",
            "trials": 1,
            "rungs": [1, 2],
            "repeats": 0,
            "views": 1,
            "calibration_batches": 1,
            "training": {"batch_size": 4},
        },
        "distill": {"name": "hierarchical"},
        "finalists": {"count": 1, "steps": 4, "checkpoint_every": 2, "training": {"batch_size": 4}},
        "export": {"onnx": False},
    }
    return read_spec(document | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[House, JobDocument]:
    house = House(tmp_path_factory.mktemp("job"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_back_here(monkeypatch)
        state, job = house.drive(spec())
    document = house.document(job)
    assert state is JobState.SUCCEEDED, document.reason
    return house, document


def test_a_job_of_detection_ends_with_a_student_within_its_budget(finished: tuple[House, JobDocument]) -> None:
    _, job = finished
    assert job.student is not None
    assert job.teacher.metrics is not None
    assert [verdict.fits for verdict in job.student.verdicts] == [True]
    for metrics in (job.teacher.metrics, job.student.metrics):
        assert set(metrics.detection) == {"ap50", "miss_rate"}
        assert metrics.shots == {}
        assert 0 <= metrics.accuracy <= metrics.detection["ap50"] <= 1
        assert 0 <= metrics.detection["miss_rate"] <= 1
    assert job.student.metrics.kl == 0


def test_what_is_taken_home_finds_what_the_student_finds(finished: tuple[House, JobDocument], tmp_path: Path) -> None:
    house, job = finished
    exported = house.result(job.id, Phase.EXPORT)
    assert set(exported["deviation"]) == {"bundle"}, "what ONNX finds is seen by tests/search/test_detector_export.py"
    student = take_home(house, job.id, tmp_path)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = student(images).numpy()
    assert found.shape == (2, 10, 6)
    assert (np.diff(found[..., 4], axis=1) <= 0).all(), "the best ones first"


def test_plan_of_a_job_of_detection(finished: tuple[House, JobDocument]) -> None:
    house, job = finished
    plan = prepare(spec(), house.files).plan()
    assert plan["teacher"]["cost"] == job.teacher.cost
