"""Where plugins find files: folders that the operator has opened to users, what they uploaded, a cache of our own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from search.errors import NotFound, UserError, VerificationFailed

_UPLOAD = "upload:"
"""What a location begins with that names an upload."""
_UPLOAD_ID = re.compile(r"upl_[0-9a-z]{26}")


def upload_in(location: str | None) -> str | None:
    """The id of the upload that a location names, whatever it is; None when it names a file."""
    return location.removeprefix(_UPLOAD) if location is not None and location.startswith(_UPLOAD) else None


class Uploads(Protocol):
    """What users have uploaded, by id. Whose it is was asked before. Pickled along with `Files`."""

    def digest(self, upload_id: str) -> str:
        """Its SHA-256, in hexadecimal. Raises `NotFound` when there is none, or it is not complete."""
        ...

    def pieces(self, upload_id: str) -> Iterator[bytes]:
        """Its content. Raises `NotFound`."""
        ...


@dataclass(frozen=True, slots=True)
class Files:
    """
    `cache` is a folder that may be emptied at any time. `roots` are the folders below which a path written by a user
    must lie; None allows every path, which is right only where the user is the one who runs the program. Without
    `uploads` there are none.
    """

    cache: Path
    roots: tuple[Path, ...] | None = None
    uploads: Uploads | None = None

    def resolve(self, location: str, *, pointer: str) -> Path:
        """
        The existing file or folder that a user's `location` names; relative ones are looked for below each root. An
        upload (`upload:upl_...`) is fetched into the cache, unless it is there.

        Raises:
            UserError: nothing is there, or it lies outside the roots (links are followed before that is judged).
            VerificationFailed: what is stored as the upload is not what was uploaded.
        """
        if "\0" in location:
            raise UserError("a path cannot hold a NUL character", pointer=pointer)
        upload_id = upload_in(location)
        if upload_id is not None:
            return self._fetched(upload_id, pointer)
        bases = (Path.cwd(),) if self.roots is None else self.roots
        for base in bases:
            with suppress(OSError, RuntimeError):  # a name that is too long, a link that leads to itself
                path = (base / location).resolve()
                if self.roots is not None and not path.is_relative_to(base.resolve()):
                    continue
                if path.exists():
                    return path
        if self.roots is None:
            raise UserError(f"`{location}` does not exist", pointer=pointer)
        raise UserError(
            f"`{location}` is not below a data folder of this server; ask its operator to add the folder to "
            "STILLHOUSE_DATA_ROOTS, or write a path below one of those",
            pointer=pointer,
        )

    def _fetched(self, upload_id: str, pointer: str) -> Path:
        if self.uploads is None:
            raise UserError("only servers keep uploads; write the path of a file", pointer=pointer)
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise no_such_upload(upload_id, pointer)
        try:
            digest = self.uploads.digest(upload_id)
            # By content and not by id: an upload that was made again is there already.
            path = self.cache / "uploads" / f"{digest}.safetensors"
            with exclusive(path.with_suffix(".lock")):
                if not path.exists():
                    _fetch(self.uploads, upload_id, digest, path)
        except NotFound:
            raise no_such_upload(upload_id, pointer) from None
        return path


def no_such_upload(upload_id: str, pointer: str) -> UserError:
    """The same for one that is another's, was never made or is not complete: nobody learns which."""
    return UserError(
        f"there is no complete upload `{upload_id[:64]}`; upload the file, and name it as `{_UPLOAD}upl_...`",
        pointer=pointer,
    )


def _fetch(uploads: Uploads, upload_id: str, digest: str, path: Path) -> None:
    came = hashlib.sha256()
    with published(path) as draft:
        with draft.open("wb") as file:
            for piece in uploads.pieces(upload_id):
                came.update(piece)
                file.write(piece)
        if came.hexdigest() != digest:
            raise VerificationFailed(f"the upload {upload_id} is not what was uploaded")


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Gives a draft to be written; it becomes `path` at the end, whole or not at all, however many processes write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """
    Holds a lock that other processes and threads wait for; it goes when its holder dies.

    Where the file system has no locks nobody waits: work is then done twice, which `published` makes harmless.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
