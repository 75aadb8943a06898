"""Where plugins find files: folders that the operator has opened to users, and a cache of our own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from search.errors import UserError


@dataclass(frozen=True, slots=True)
class Files:
    """
    `cache` is a folder that may be emptied at any time. `roots` are the folders below which a path written by a user
    must lie; None allows every path, which is right only where the user is the one who runs the program.
    """

    cache: Path
    roots: tuple[Path, ...] | None = None

    def resolve(self, location: str, *, pointer: str) -> Path:
        """
        The existing file or folder that a user's `location` names; relative ones are looked for below each root.

        Raises:
            UserError: nothing is there, or it lies outside the roots (links are followed before that is judged).
        """
        if "\0" in location:
            raise UserError("a path cannot hold a NUL character", pointer=pointer)
        bases = (Path.cwd(),) if self.roots is None else self.roots
        for base in bases:
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
