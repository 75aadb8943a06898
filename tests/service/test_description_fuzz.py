"""
The OpenAPI document taken at its word by Schemathesis: everything it says may be sent is sent, and much that it does
not, in every phase and under every check, to a real server on both databases.

Jobs are not built here (`Willing`): that a check of a spec answers in words is tests/service/test_checker.py's.
STILLHOUSE_TEST_FUZZ_EXAMPLES raises how many requests each operation gets.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.app import create_app
from service.settings import Settings
from service.store.engine import latest_revision
from service.store.record import SqlRecord
from tests.service.served import listening
from tests.service.test_tenancy import Willing
from workers.memory import MemoryArtifacts

EXAMPLES = int(os.environ.get("STILLHOUSE_TEST_FUZZ_EXAMPLES", "4"))
KEY = "a-key-for-whoever-tries-everything"

pytestmark = pytest.mark.timeout(600 + 60 * EXAMPLES)


def test_nothing_that_is_sent_makes_the_document_untrue(engine: Engine, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, api_key=KEY, key_rate=1e6, key_burst=1_000_000)
    app = create_app(settings, SqlRecord(engine), MemoryArtifacts(), Willing(), schema_version=latest_revision())
    with listening(app) as url:
        tried = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
                *("run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
                *("--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"),
                *("--max-examples", str(EXAMPLES), "--seed", "1", "--continue-on-failure", "--no-shrink"),
                *("--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "20"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
    said = tried.stdout + tried.stderr
    counted = re.search(r"([\d,]+) generated", said)
    assert counted is not None, said
    print(f"{counted[1]} requests")
    assert tried.returncode == 0, said
    assert int(counted[1].replace(",", "")) >= 1000
