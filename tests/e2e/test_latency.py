"""A job with a time to keep, nothing of it scripted: table, search, measurements, and the file that comes home."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from search.budget import Budget
from search.latency.measure import compare
from search.limits import Measurement
from search.plugins import DatasetInfo
from search.recipe import prepare
from tests.workers.small_job import small_spec
from tests.workers.test_driver import House
from workers.ports import JobState, Phase
from workers.results import ExportResult, SurveyResult
from workers.timing import read_table


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_student_twice_as_fast_as_its_teacher(tmp_path: Path) -> None:
    """`min` is the statistic that a busy machine disturbs least; the verdict is about the file itself."""
    house = House(tmp_path)
    spec = small_spec(
        teacher={"name": "small_resnet", "options": {"width": 16, "depth": 1}, "epochs": 1},
        budget={"latency": {"limit": "2x faster", "statistic": "min"}},
        space={"divisor": 4},
        export={"onnx": True},
    )
    state, job = house.drive(spec)
    assert state is JobState.SUCCEEDED, house.ledger.job(job).reason

    survey = SurveyResult.model_validate(house.result(job, Phase.SURVEY))
    table = read_table(house.artifacts, survey.times["latency"].table)
    assert len(table.networks) == 13
    assert survey.cost["latency"] == pytest.approx(table.teacher.nanoseconds, rel=0.3)
    assert survey.times["latency"].error is not None
    assert survey.limits["latency"] == survey.cost["latency"] // 2
    assert all(trial.cost["latency"] <= survey.limits["latency"] for trial in house.ledger.trials(job))

    found = ExportResult.model_validate(house.result(job, Phase.EXPORT)).times["latency"]
    assert found.measured <= survey.limits["latency"]
    assert found.measured == round(found.comparison.ratio * survey.cost["latency"])
    assert found.comparison.ratio <= 0.5
    assert found.comparison.first.environment["onnxruntime"] == onnxruntime.__version__

    (stored,) = (file for file in house.ledger.job(job).files if file.name == "student/student.onnx")
    (tmp_path / "student.onnx").write_bytes(house.artifacts.get(stored.artifact.key))
    info: DatasetInfo = prepare(spec, house.files).info
    teacher = prepare(spec, house.files).build_teacher()
    again = compare(tmp_path / "student.onnx", teacher, info.shape, Measurement(statistic="min"))
    assert again.ratio < 0.75, "the file that is taken home is the faster one"

    document = house.document(job)
    assert document.student is not None
    (verdict,) = document.student.verdicts
    assert Budget({"latency": int(verdict.limit)}).holds({"latency": int(verdict.value)}) is verdict.fits is True
    (shown,) = document.student.times
    assert (shown.predicted, shown.measured) == (found.predicted, found.measured)
