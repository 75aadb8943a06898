"""Which block of a network a module belongs to."""

from __future__ import annotations

from collections.abc import Collection


def home(module: str, blocks: Collection[str]) -> str:
    """The innermost of `blocks` that is or holds `module`; empty when none does."""
    around = (block for block in blocks if block and (module == block or module.startswith(f"{block}.")))
    return max(around, key=len, default="")
