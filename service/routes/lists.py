"""Lists with a filter and an order, page by page."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.filters import (
    And,
    By,
    Comparison,
    Expression,
    Kind,
    Operator,
    Path,
    Value,
    Vocabulary,
    settled,
    written,
)
from service.grammar import Unreadable, read_filter, read_order
from service.problems import Refusal
from service.routes import pages
from service.schemas import JobPaging, TrialPaging
from service.store.values import Listing

_LARGEST = 2**63 - 1
_LONGEST_TEXT = 512


@dataclass(frozen=True)
class Asked:
    """A list as a request asks for it."""

    listing: Listing
    of: str
    """Names the list, so that a token of one is not taken for another's."""

    @classmethod
    def read(cls, sorting: JobPaging | TrialPaging, vocabulary: Vocabulary, usual: tuple[By, ...]) -> Asked:
        """
        `usual` is the order of those who ask for none.

        Raises:
            Refusal: filter, order or token cannot be read, or the token belongs to another filter or order.
        """
        where = _read("filter", lambda: read_filter(sorting.filter, vocabulary))
        if sorting.state is not None:
            of_state = Comparison(("state",), Operator.EQUAL, str(sorting.state))
            where = of_state if where is None else And((of_state, where))
        order = settled(_read("order_by", lambda: read_order(sorting.order_by, vocabulary)) or usual, vocabulary)
        of = _digest(where, order)
        after = _place(sorting.page_token, order, vocabulary, of)
        return cls(Listing(order, sorting.size, where, after), of)

    def token(self, after: tuple[Value, ...] | None) -> str:
        """
        Of the next page; empty where there is none. It is not signed: it says nothing that a reader of the page does
        not know, and a forged one can only name another place in the same list.
        """
        if after is None:
            return ""
        said = [value.isoformat() if isinstance(value, datetime) else value for value in after]
        place = json.dumps([self.of, *said])
        return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _read(parameter: str, reading: Any) -> Any:
    try:
        return reading()
    except Unreadable as error:
        raise Refusal("INVALID_PARAMETER", error.message, parameter=parameter, allowed=error.allowed) from None


def _digest(where: Expression | None, order: tuple[By, ...]) -> str:
    said = json.dumps([written(where) if where else "", order])
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def _place(token: str, order: tuple[By, ...], vocabulary: Vocabulary, digest: str) -> tuple[Value, ...] | None:
    if not token:
        return None
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        of, *said = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not isinstance(of, str):
            raise TypeError
        if of != digest:
            message = "this page_token belongs to a list with another filter, state or order; begin again without one"
            raise Refusal("INVALID_PARAMETER", message, parameter="page_token")
        return tuple(_value(value, by.field, vocabulary) for value, by in zip(said, order, strict=True))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise pages.unknown() from None


def _value(said: Any, field: Path, vocabulary: Vocabulary) -> Value:
    """Raises `ValueError` or `TypeError` when it is no value of that field."""
    if said is None:
        return None
    match vocabulary.field(field).kind:
        case Kind.MOMENT:
            at = datetime.fromisoformat(said)
            if at.tzinfo is None:
                raise ValueError
            return at
        case Kind.TEXT if isinstance(said, str) and len(said) <= _LONGEST_TEXT and "\0" not in said:
            said.encode()  # half of a surrogate pair is no text
            return said
        case Kind.FLAG if isinstance(said, bool):
            return said
        case Kind.NUMBER if isinstance(said, (int, float)) and not isinstance(said, bool):
            if math.isfinite(said) and abs(said) <= _LARGEST:
                return said
    raise ValueError
