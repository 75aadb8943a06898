"""
What holds for every test: nothing of the developer's own settings is seen, numbers come from one thread, and Hypothesis
draws the same examples on every build server. `STILLHOUSE_TEST_*` says how much some tests try.
"""

from __future__ import annotations

import os

# Before torch or Ray is imported: both read the environment once.
for name in [name for name in os.environ if name.startswith(("STILLHOUSE_", "RAY_"))]:
    if not name.startswith("STILLHOUSE_TEST_"):
        del os.environ[name]
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings  # noqa: E402

from tests.databases import _migrated, engine, migrated_file, postgres, postgres_server, sqlite  # noqa: E402

__all__ = ["_migrated", "engine", "migrated_file", "postgres", "postgres_server", "sqlite"]

settings.register_profile("laptop", deadline=None, max_examples=50)
settings.register_profile("ci", settings.get_profile("laptop"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "laptop")
