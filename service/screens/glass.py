"""
What lies between the words of others and a terminal.

Names, labels, reasons and lines of logs are written by whoever writes them, and a terminal obeys what it is told: to
clear the screen, to set a title, to write into the clipboard. What is shown to a person has none of those characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""C0 but for tab and line feed, C1, separators of lines and paragraphs, and what turns the direction of writing."""


def shown(text: str) -> str:
    """Without the characters that steer a terminal. They have no width, so nothing moves where they are left out."""
    return _STEERING.sub("", text)


def spelled(document: str) -> str:
    """JSON that says the same with those characters spelled out, for they can stand in its texts only."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


class Glass(Console):
    """Lets through what is written with `shown`, and what rich itself tells the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))
