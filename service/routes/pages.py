"""Where a page of a list that is sorted by time has ended, for clients to hand back as it is."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from service.problems import Refusal
from service.store.values import Cursor

T = TypeVar("T")
_ID = re.compile(r"[a-z]+_[0-9a-z]{26}")


def token(at: datetime, item_id: str, *, of: str | None = None) -> str:
    """
    `of` names the list, so that a token of one is not taken for another's. It is not signed: it says nothing that a
    reader of the page does not know, and a forged one can only name another place in the same list.
    """
    place = json.dumps([at.isoformat(), item_id, of])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def cut(found: Sequence[T], size: int, place: Callable[[T], Cursor], *, of: str | None = None) -> tuple[list[T], str]:
    """The page, of what was found with one more than its `size`, and the token of the next; empty where it ends."""
    page = list(found[:size])
    return page, token(*place(page[-1]), of=of) if len(found) > size else ""


def read(token: str, *, of: str | None = None) -> Cursor | None:
    """
    The place; None for the beginning.

    Raises:
        Refusal: it is no token, or one of another list.
    """
    if not token:
        return None
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        at, item_id, of_list = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        place = (datetime.fromisoformat(at), str(item_id))
    except (ValueError, TypeError, binascii.Error):
        raise unknown() from None
    if place[0].tzinfo is None or not _ID.fullmatch(place[1]):
        raise unknown()
    if of_list != of:
        message = "this page_token belongs to a list with another `state`; begin again without one"
        raise Refusal("INVALID_PARAMETER", message, parameter="page_token")
    return place


def unknown() -> Refusal:
    message = "this is no page_token of ours; hand back `next_page_token` as it came, or begin again without one"
    return Refusal("INVALID_PARAMETER", message, parameter="page_token")
