"""The page for notebooks can be run from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "notebook.md").read_text(encoding="utf-8")


@pytest.mark.timeout(120)  # the first count in a process imports torch's compiler
def test_what_the_page_shows_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    shown: dict[str, object] = {}
    exec(program, shown)  # noqa: S102 - our own page
    assert isinstance(shown["logits"], torch.Tensor)
    assert shown["logits"].shape == (1, 10)
    said = capsys.readouterr().out
    assert "students at most" in said
    assert re.search(r"^macs \d+ to \d+$", said, re.MULTILINE)
    assert "network's output" in said
