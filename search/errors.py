"""
Everything Stillhouse raises on purpose, drawn:

    StillhouseError
    ├── UserError                 what was asked cannot be done; says which field and what to do
    │   ├── InvalidSpec           the document is malformed: one FieldError per mistake
    │   │   └── UnknownName       a plugin that nobody has registered
    │   ├── BudgetImpossible      no student of this teacher keeps all limits
    │   ├── DataError             a file of the dataset is missing, corrupt or too large
    │   │   └── DatasetCorrupt    more of its images cannot be used than may be skipped
    │   ├── WeightsError          a weights file does not fit the architecture
    │   └── Unsupported           the network cannot be surveyed or exported
    ├── TrialError                this candidate failed; the job goes on
    │   ├── NonFinite             loss or outputs became NaN or infinite
    │   └── OutOfMemory           the candidate did not fit the device
    ├── VerificationFailed        an exported student does not answer as the student does
    ├── LedgerError
    │   ├── NotFound              no such job, trial or artifact
    │   ├── StaleClaim            the lease was lost: another driver owns the job now
    │   ├── IllegalTransition     a terminal state is never overwritten
    │   ├── Outdated              somebody has changed the job since it was looked at
    │   └── KeyReused             an idempotency key came again with another request
    └── StoreUnavailable          the record or the artifacts cannot be reached now; later they may
        └── StorageFull           there is no room left to write

The service maps `UserError` to 422, `NotFound` to 404, the other `LedgerError`s to 409, `StorageFull` to 507 and
`StoreUnavailable` to 503.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any


class StillhouseError(Exception):
    """Root of the tree. `code` is stable and upper-case; `str(error)` is written for the person who reads it."""

    code = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process boundaries whole, whatever their constructors ask for."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[StillhouseError], args: tuple[Any, ...], state: dict[str, Any]) -> StillhouseError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


@dataclass(frozen=True, slots=True)
class FieldError:
    """
    One mistake in a document.

    `pointer` is a JSON pointer (RFC 6901) to the value at fault, `allowed` what could stand there instead.
    """

    pointer: str
    code: str
    message: str
    allowed: tuple[str, ...] = ()

    def under(self, prefix: str) -> FieldError:
        return replace(self, pointer=prefix + self.pointer)


class UserError(StillhouseError):
    """What was asked cannot be done. `errors` points at the fields; `pointer` gives one when there is one."""

    code = "INVALID"

    def __init__(self, message: str, *, pointer: str = "", allowed: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.errors: tuple[FieldError, ...] = (FieldError(pointer, self.code, message, tuple(allowed)),)

    def under(self, prefix: str) -> UserError:
        """The same error, its pointers moved below `prefix`; for a part that does not know where it stands."""
        self.errors = tuple(error.under(prefix) for error in self.errors)
        return self


class InvalidSpec(UserError):
    code = "INVALID_SPEC"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{error.pointer or '/'}: {error.message}" for error in errors))
        self.errors = tuple(errors)


class UnknownName(InvalidSpec):
    code = "UNKNOWN_NAME"

    def __init__(self, kind: str, name: str, known: Iterable[str], *, pointer: str = "/name") -> None:
        known = sorted(known)
        message = f"no {kind} is called `{name}`{did_you_mean(name, known)}"
        super().__init__([FieldError(pointer, self.code, message, tuple(known))])


class BudgetImpossible(UserError):
    """
    No student keeps the budget. `needed` has, by metric, limits as a user writes them which together would do.

    One error points at each of them, with the value in `allowed`; without any, at the budget as a whole.
    """

    code = "BUDGET_IMPOSSIBLE"

    def __init__(self, message: str, needed: Mapping[str, str]) -> None:
        super().__init__(message, pointer="/budget")
        self.needed = dict(needed)
        if needed:
            told = [message, *(f"with that, this must be {limit}" for limit in list(needed.values())[1:])]
            self.errors = tuple(
                FieldError(f"/budget/{metric}", self.code, text, (limit,))
                for text, (metric, limit) in zip(told, needed.items(), strict=True)
            )

    def under_level(self, level: int, metrics: Collection[str]) -> BudgetImpossible:
        """The same error, pointing at the limits' place in their ladders where `metrics` have one."""
        ladders = {f"/budget/{metric}" for metric in metrics}
        self.errors = tuple(
            replace(error, pointer=f"{error.pointer}/{level}") if error.pointer in ladders else error
            for error in self.errors
        )
        return self


class DataError(UserError):
    """`file` names the file at fault, or is empty when the dataset as a whole is."""

    code = "DATASET_UNUSABLE"

    def __init__(self, message: str, *, file: str = "", pointer: str = "/dataset") -> None:
        super().__init__(f"{file}: {message}" if file else message, pointer=pointer)
        self.file = file


class DatasetCorrupt(DataError):
    """Raised before anything is trained. The message names the first of the images, and says what to do."""

    code = "DATASET_CORRUPT"

    def __init__(self, message: str) -> None:
        super().__init__(message, pointer="/dataset/options/max_bad_fraction")


class WeightsError(UserError):
    code = "WEIGHTS_UNUSABLE"

    def __init__(self, message: str, *, pointer: str = "/teacher/weights") -> None:
        super().__init__(message, pointer=pointer)


class Unsupported(UserError):
    code = "UNSUPPORTED_NETWORK"

    def __init__(self, message: str, *, pointer: str = "/teacher") -> None:
        super().__init__(message, pointer=pointer)


class TrialError(StillhouseError):
    code = "TRIAL_FAILED"


class NonFinite(TrialError):
    code = "NON_FINITE"


class OutOfMemory(TrialError):
    code = "OUT_OF_MEMORY"


class VerificationFailed(StillhouseError):
    code = "VERIFICATION_FAILED"


class LedgerError(StillhouseError):
    code = "CONFLICT"


class NotFound(LedgerError):
    code = "NOT_FOUND"


class StaleClaim(LedgerError):
    code = "STALE_CLAIM"


class IllegalTransition(LedgerError):
    code = "ILLEGAL_TRANSITION"


class Outdated(LedgerError):
    code = "OUTDATED"


class KeyReused(LedgerError):
    code = "IDEMPOTENCY_KEY_REUSED"


class StoreUnavailable(StillhouseError):
    """Whether the last write happened is unknown; a worker leaves its job as it is, to be claimed again."""

    code = "STORE_UNAVAILABLE"


class StorageFull(StoreUnavailable):
    code = "STORAGE_FULL"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean "trials"?` when a known word is near, else the empty string."""
    near = get_close_matches(word, list(known), n=1)
    return f', did you mean "{near[0]}"?' if near else ""
