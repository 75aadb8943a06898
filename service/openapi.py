"""`python -m service.openapi` rewrites `docs/openapi.json`; a test holds that file to what the server says itself."""

from __future__ import annotations

from pathlib import Path
from tempfile import gettempdir
from typing import Any

from search.files import Files
from service.app import create_app
from service.checker import DirectChecker
from service.description import written
from service.settings import Settings
from service.store.engine import connect
from service.store.record import SqlRecord
from workers.memory import MemoryArtifacts

SNAPSHOT = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"
COMMAND = "python -m service.openapi"


def document() -> dict[str, Any]:
    """The description, whatever this machine's settings are."""
    files = Files(cache=Path(gettempdir()), roots=())
    app = create_app(
        Settings.model_construct(**{name: field.default for name, field in Settings.model_fields.items()}),
        SqlRecord(connect(f"sqlite:///{files.cache / 'never-opened.db'}")),
        MemoryArtifacts(),
        DirectChecker(files),
        schema_version="memory",
    )
    return app.openapi()


if __name__ == "__main__":
    SNAPSHOT.write_text(written(document()))
