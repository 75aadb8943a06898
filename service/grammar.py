"""
Reads `filter` and `order_by`: text to a tree of `service.filters`, or a refusal that names the place and the remedy.

    filter     = [ expression ] ;
    expression = term , ( { "AND" , term } | { "OR" , term } ) ;
    term       = "NOT" , term | "(" , expression , ")" | comparison ;
    comparison = field , ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) , value ;
    field      = word , [ "." , ( word | text ) ] ;
    value      = number | text | word | moment | "true" | "false" | "null" ;
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from search.errors import did_you_mean
from service.filters import (
    WORD,
    And,
    By,
    Comparison,
    Expression,
    Field,
    Kind,
    Not,
    Operator,
    Or,
    Path,
    Value,
    Vocabulary,
    written_field,
)

LONGEST = 2000
"""Characters of a filter."""
DEEPEST = 16
"""Parentheses and NOTs within one another."""
MOST_COMPARISONS = 50
MOST_KEYS = 4
"""Fields to order by."""
_LONGEST_NUMBER = 32
_LARGEST = 2**63 - 1


class Unreadable(Exception):
    """A text that is not in the language; `allowed` is what could stand there, where that is a short list."""

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message, self.allowed = message, tuple(allowed)


def read_filter(text: str, vocabulary: Vocabulary) -> Expression | None:
    """
    None for a filter that says nothing.

    Raises:
        Unreadable: it is not in the grammar, names no field of the vocabulary, or is too long or too deep.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"a filter has at most {LONGEST} characters, and this one {len(text)}")
    return _Reader(text, vocabulary).read()


def read_order(text: str, vocabulary: Vocabulary) -> tuple[By, ...]:
    """
    As `priority desc, created_at`; empty for a text that says nothing.

    Raises:
        Unreadable: it is not in the grammar or names no field of the vocabulary.
    """
    if not text.strip():
        return ()
    keys: list[By] = []
    for part in text.split(","):
        found = _KEY.fullmatch(part)
        if found is None:
            raise Unreadable(
                f'`{_shown(part.strip())}` is not a field to order by; write such as "{vocabulary.last} desc"'
            )
        field = _known(_path(found["field"]), vocabulary, "")
        if field in (key.field for key in keys):
            raise Unreadable(f"`{written_field(field)}` stands twice in the order; keep one")
        keys.append(By(field, found["way"] == "desc"))
    if len(keys) > MOST_KEYS:
        raise Unreadable(f"at most {MOST_KEYS} fields can be ordered by")
    return tuple(keys)


_FIELD = r'[A-Za-z_][A-Za-z0-9_-]*(?:\.(?:[A-Za-z0-9_-]+|"[^"\\]*"))*'
_KEY = re.compile(rf"\s*(?P<field>{_FIELD})(?:\s+(?P<way>asc|desc))?\s*", re.ASCII)
_MOMENT_TEXT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:[Zz]|[+-]\d{2}:\d{2})", re.ASCII)
_TOKEN = re.compile(
    rf"""
      (?P<space>[ \t\r\n]+)
    | (?P<text>"(?:[^"\\]|\\["\\])*"|'(?:[^'\\]|\\['\\])*')
    | (?P<moment>{_MOMENT_TEXT.pattern})
    | (?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?![A-Za-z0-9_."])
    | (?P<field>{_FIELD})
    | (?P<operator><=|>=|!=|=|<|>)
    | (?P<bracket>[()])
    """,
    re.VERBOSE | re.ASCII,
)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Reader:
    """Reads one filter, from left to right."""

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        self._vocabulary, self._end = vocabulary, len(text)
        self._tokens, self._next, self._comparisons = self._cut(text), 0, 0

    def _cut(self, text: str) -> list[_Token]:
        tokens, at = [], 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                if text[at] in "\"'":
                    raise self._refusal(
                        "a text that begins here has no end, or a \\ before something other than \\ or a quote", at
                    )
                raise self._refusal(f"`{_shown(text[at])}` has no meaning here", at)
            if found.lastgroup != "space":
                tokens.append(_Token(str(found.lastgroup), found[0], at))
            at = found.end()
        return tokens

    def read(self) -> Expression | None:
        if not self._tokens:
            return None
        found = self._expression(0)
        if self._peek() is not None:
            raise self._refusal(
                f"`{_shown(self._tokens[self._next].text)}` is not expected here; write AND or OR before it"
            )
        return found

    def _expression(self, depth: int) -> Expression:
        first = self._term(depth)
        joint = self._word()
        if joint not in ("AND", "OR"):
            return first
        parts = [first]
        while self._word() == joint:
            self._next += 1
            parts.append(self._term(depth))
        if self._word() in ("AND", "OR"):
            raise self._refusal("AND and OR stand side by side; put parentheses around those that belong together")
        return And(tuple(parts)) if joint == "AND" else Or(tuple(parts))

    def _term(self, depth: int) -> Expression:
        if depth >= DEEPEST:
            raise self._refusal(f"a filter goes {DEEPEST} parentheses and NOTs deep at most")
        if self._word() == "NOT":
            self._next += 1
            return Not(self._term(depth + 1))
        token = self._peek()
        if token is not None and token.text == "(":
            self._next += 1
            found = self._expression(depth + 1)
            closing = self._peek()
            if closing is None or closing.text != ")":
                raise self._refusal("a parenthesis is missing: `)`")
            self._next += 1
            return found
        return self._comparison()

    def _comparison(self) -> Comparison:
        self._comparisons += 1
        if self._comparisons > MOST_COMPARISONS:
            raise self._refusal(f"a filter has at most {MOST_COMPARISONS} comparisons")
        token = self._take("field", "the name of a field is expected here", self._vocabulary.names)
        path = _known(_path(token.text), self._vocabulary, _at(token.at))
        sign = self._take("operator", f"one of {' '.join(Operator)} is expected after `{token.text}`", list(Operator))
        value = self._peek()
        if value is None or value.kind in ("operator", "bracket"):
            raise self._refusal(f"{self._vocabulary.field(path).kind.value} is expected here")
        self._next += 1
        return Comparison(path, Operator(sign.text), self._value(path, Operator(sign.text), value))

    def _value(self, path: Path, compared: Operator, token: _Token) -> Value:
        field, name = self._vocabulary.field(path), written_field(path)
        if token.kind == "field" and token.text == "null":
            if compared not in (Operator.EQUAL, Operator.UNEQUAL):
                raise self._refusal("null is compared by = and != only", token.at)
            return None
        match field.kind:
            case Kind.NUMBER if token.kind == "number":
                return self._number(token)
            case Kind.MOMENT if token.kind in ("moment", "text"):
                return self._moment(token)
            case Kind.FLAG if token.kind == "field" and token.text in ("true", "false"):
                if compared not in (Operator.EQUAL, Operator.UNEQUAL):
                    raise self._refusal(f"`{name}` is compared by = and != only", token.at)
                return token.text == "true"
            case Kind.TEXT if token.kind == "text" or (token.kind == "field" and WORD.fullmatch(token.text)):
                return self._text(field, name, compared, token)
        raise self._refusal(f"`{name}` is compared with {field.kind.value}, not with `{_shown(token.text)}`", token.at)

    def _number(self, token: _Token) -> int | float:
        if len(token.text) > _LONGEST_NUMBER:
            raise self._refusal(f"a number has at most {_LONGEST_NUMBER} characters", token.at)
        try:
            number: int | float = int(token.text)
        except ValueError:
            number = float(token.text)
            if math.isfinite(number) and number.is_integer() and abs(number) <= 2**53:
                number = int(number)
        if not math.isfinite(number) or (isinstance(number, int) and abs(number) > _LARGEST):
            raise self._refusal(f"`{token.text}` is larger than any number of ours", token.at)
        return number

    def _moment(self, token: _Token) -> datetime:
        said = _unquoted(token.text) if token.kind == "text" else token.text
        try:
            if not _MOMENT_TEXT.fullmatch(said):
                raise ValueError
            return datetime.fromisoformat(said.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise self._refusal(f"`{_shown(said)}` is no {Kind.MOMENT.value.removeprefix('a ')}", token.at) from None

    def _text(self, field: Field, name: str, compared: Operator, token: _Token) -> str:
        said = _unquoted(token.text) if token.kind == "text" else token.text
        if any(
            character < " " or "\x7f" <= character < "\xa0" or "\ud800" <= character <= "\udfff" for character in said
        ):
            raise self._refusal("a text in a filter holds no control characters", token.at)
        if field.words:
            if compared not in (Operator.EQUAL, Operator.UNEQUAL):
                raise self._refusal(f"`{name}` is compared by = and != only", token.at)
            if said not in field.words:
                hint = did_you_mean(said, field.words) or did_you_mean(said.upper(), field.words)
                raise self._refusal(f"`{name}` is never `{_shown(said)}`{hint}", token.at, field.words)
        return said

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _word(self) -> str:
        token = self._peek()
        return token.text if token is not None and token.kind == "field" else ""

    def _take(self, kind: str, otherwise: str, allowed: Sequence[str]) -> _Token:
        token = self._peek()
        if token is None or token.kind != kind or token.text in ("AND", "OR", "NOT"):
            raise self._refusal(otherwise, allowed=allowed)
        self._next += 1
        return token

    def _refusal(self, message: str, at: int | None = None, allowed: Sequence[str] = ()) -> Unreadable:
        if at is None:
            token = self._peek()
            at = self._end if token is None else token.at
        return Unreadable(f"{message} ({_at(at)})", allowed)


def _at(position: int) -> str:
    return f"at character {position + 1}"


def _path(text: str) -> Path:
    """`labels."a.b"` is a name of two parts."""
    return tuple(part.strip('"') for part in re.findall(r'"[^"]*"|[^."]+', text))


def _known(path: Path, vocabulary: Vocabulary, place: str) -> Path:
    found = vocabulary.find(path)
    if found is None:
        name, names = ".".join(path), vocabulary.names
        where = f" ({place})" if place else ""
        hint = did_you_mean(name, names)
        raise Unreadable(f"there is no field `{_shown(name)}` here{hint}{where}", names)
    return found


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def _shown(text: str) -> str:
    return text[:64]
