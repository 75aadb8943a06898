"""What users have uploaded, as it lies among the artifacts; `search.files.Files` fetches it from here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from workers.ports import Artifact, Artifacts


@dataclass(frozen=True, slots=True)
class Uploaded:
    """
    `search.files.Uploads` over artifacts: of each upload its content, and a note of the digest, which is put last and
    taken away first. Workers know no database, and the note is what tells them that an upload is whole. May be pickled.
    """

    artifacts: Artifacts

    def digest(self, upload_id: str) -> str:
        return str(json.loads(self.artifacts.get(_note(upload_id)))["sha256"])

    def pieces(self, upload_id: str) -> Iterator[bytes]:
        return self.artifacts.pieces(_content(upload_id))

    def keep(self, upload_id: str, pieces: Iterable[bytes], accept: Callable[[Artifact], None]) -> Artifact:
        """The upload, once `accept` has raised nothing; raises as `Artifacts.put_pieces` does."""
        artifact = self.artifacts.put_pieces(_content(upload_id), pieces, accept)
        note = {"bytes": artifact.bytes, "sha256": artifact.sha256}
        self.artifacts.put(_note(upload_id), json.dumps(note).encode())
        return artifact

    def delete(self, upload_id: str) -> None:
        """Again changes nothing."""
        self.artifacts.delete(_note(upload_id))
        self.artifacts.delete(_content(upload_id))


def _content(upload_id: str) -> str:
    return f"uploads/{upload_id}.safetensors"


def _note(upload_id: str) -> str:
    return f"uploads/{upload_id}.json"
