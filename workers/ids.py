"""Ids of what is put on record: a word for the kind, and a ULID, which sorts by the time it was made."""

from __future__ import annotations

import os

import ulid

_IDS_AT_ONCE = 256


class _Drawn:
    """
    Random bytes of the system, drawn for many ids at once. Each draw gives up the interpreter while the generator is
    locked: drawn for one id at a time, it kept all threads of a busy server waiting for one another.
    """

    def __init__(self) -> None:
        self._left = b""

    def __call__(self, _: int) -> bytes:
        if not self._left:
            self._left = os.urandom(_IDS_AT_ONCE * ulid.constants.RANDOMNESS_LEN)
        taken, self._left = self._left[: ulid.constants.RANDOMNESS_LEN], self._left[ulid.constants.RANDOMNESS_LEN :]
        return taken


_ULIDS = ulid.ULIDGenerator(randomness=_Drawn())


def new_id(kind: str) -> str:
    """`job_01m811g5qyswznzjp39hbvpkmg`. Threads may share it."""
    return f"{kind}_{_ULIDS.generate()}".lower()
