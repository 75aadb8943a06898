"""What a test needs of the machine: missing, it is skipped on a laptop and fails on a build server."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str, remedy: str) -> NoReturn:
    """Ends the test; `remedy` is what a build server lacks."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing; {remedy}")
    pytest.skip(f"{what} is missing; {remedy}")
