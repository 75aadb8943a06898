"""What holds for every test of the service: a journal that it opens, or a command that it runs, ends with it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator

import pytest

from service import journal


@pytest.fixture(autouse=True)
def _journal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(journal, "_opened", dict(journal._opened))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    yield
    logging.captureWarnings(False)
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
