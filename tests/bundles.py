"""Bundles read back in this process. A fresh one imports torch first: two seconds, for tests of something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from search.export import bundle, load, verify


def read_back_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process itself is seen by tests/search/test_export.py, and by every job that does not ask for this."""

    def bundle_answers(folder: Path, questions: dict[str, Tensor]) -> dict[str, Tensor]:
        return verify.student_answers(load.load(folder), questions)

    monkeypatch.setattr(bundle, "bundle_answers", bundle_answers)
