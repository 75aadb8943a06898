"""
What a process logs: a line a record, as text for people or as JSON for programs, and no secret in either.

Who writes a line need not say what it is about: `about` is told once where a request or a job becomes known, and is
put on every line that is written from there on.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Form = Literal["text", "json"]

SUBJECTS = ("request_id", "tenant", "job_id", "trial_id", "trace_id")
"""What a line can be about."""
MEASURES = ("method", "path", "status", "seconds")
"""What the line of a request says besides; `extra` of a logging call gives it, as it may give any subject."""

_TEXT = "%(asctime)s %(name)s %(levelname)s %(message)s"
_HIDDEN = "***"
_SHORTEST_SECRET = 6
"""Characters. To hide every `a` because that is somebody's password would tell it."""

_PATTERNS = (
    (re.compile(r"\b(sth_|whsec_)[\w+/=-]+"), rf"\1{_HIDDEN}"),
    (re.compile(r"(://[^\s:/@]*):[^\s@/]+@"), rf"\1:{_HIDDEN}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {_HIDDEN}"),
    (re.compile(r"\b(authorization['\"]?\s*[:=,]\s*['\"]?)(?!bearer|basic)[^\s'\"]+", re.IGNORECASE), rf"\1{_HIDDEN}"),
    (re.compile(r"\b(password|passwd|secret|api_key|token)=[^\s&'\"]+", re.IGNORECASE), rf"\1={_HIDDEN}"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039 - never changed, only replaced
_opened: dict[str, Any] = {"form": "text", "level": "info", "secrets": []}


def about(**subjects: str) -> None:
    """Lines from here on, in this request and what it starts, are about these `SUBJECTS`."""
    _about.set({**_about.get(), **subjects})


def subjects() -> Mapping[str, str]:
    """What lines written here would be about."""
    return _about.get()


class Redaction(logging.Filter):
    """
    Takes secrets out of message and traceback before any formatter sees them: whatever looks like one (keys of ours,
    passwords in URLs, authorization), and each of `known`.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        super().__init__()
        self._known = sorted({secret for secret in known if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception as error:  # a call whose arguments do not fit its words must not lose the line
            message = f"{record.msg} ({type(error).__name__} in its arguments)"
        record.msg, record.args = self.hidden(message), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = _plain.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self.hidden(record.exc_text)
        if record.stack_info:
            record.stack_info = self.hidden(record.stack_info)
        for name in MEASURES:
            if isinstance(told := getattr(record, name, None), str):
                setattr(record, name, self.hidden(told))
        return True

    def hidden(self, text: str) -> str:
        for secret in self._known:
            text = text.replace(secret, _HIDDEN)
        for pattern, left in _PATTERNS:
            text = pattern.sub(left, text)
        return text


class TextLines(logging.Formatter):
    """For people. A message is one line, whoever had a hand in its words; only a traceback has more."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], super().formatMessage(record))


class JsonLines(logging.Formatter):
    """For programs: one object a line, in ASCII. `fixed` is what every line of this process is about."""

    def __init__(self, fixed: Mapping[str, str]) -> None:
        super().__init__()
        self._fixed = dict(fixed)

    def format(self, record: logging.LogRecord) -> str:
        told = {**self._fixed, **_about.get()}
        own = {name: getattr(record, name) for name in (*SUBJECTS, *MEASURES) if hasattr(record, name)}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **told,
            **own,
        }
        if record.exc_text or record.exc_info:
            line["exception"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)


def open_journal(
    form: Form, level: str, *, secrets: Iterable[str] = (), file: Path | None = None, **fixed: str
) -> None:
    """
    From now on everything that this process logs goes to standard error, or to `file`, in that form, without `secrets`.

    `fixed` are `SUBJECTS` of the whole process, such as the job of a driver. With JSON, what would end the process or a
    thread with a traceback over many lines becomes a line too.
    """
    secrets = tuple(secrets)
    handler = logging.StreamHandler() if file is None else logging.FileHandler(file)
    handler.setFormatter(JsonLines(fixed) if form == "json" else TextLines())
    handler.addFilter(Redaction(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Its every step of a migration is of no interest to who starts a server.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    _opened.update(form=form, level=level, secrets=secrets)
    if form == "json":
        sys.excepthook = _last_words
        threading.excepthook = lambda dying: _last_words(
            dying.exc_type, dying.exc_value or dying.exc_type(), dying.exc_traceback
        )


def handed_on() -> dict[str, Any]:
    """What `open_journal` was given here, for a process that this one starts; it can be written as JSON."""
    return dict(_opened)


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("stillhouse").critical("ended by %s", kind.__name__, exc_info=(kind, error, trace))


_plain = logging.Formatter()
