from __future__ import annotations

from tests.databases import _migrated, engine, postgres, postgres_server, sqlite

__all__ = ["_migrated", "engine", "postgres", "postgres_server", "sqlite"]
