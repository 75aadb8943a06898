"""What a space says of one site: patterns and rules, looked up by the names that a site goes by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from search.errors import FieldError, InvalidSpec, did_you_mean
from search.spec import SpaceSpec


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings that hold at a site; `keep` are shares of the channels when they are not evenly spaced."""

    divisor: int
    steps: int
    min_keep: float
    max_keep: float
    keep: Sequence[float] | None
    removal: bool
    min_kernel: int
    operators: Sequence[str]
    groups: bool


@dataclass(frozen=True)
class Rules:
    """The rules of one space. Remembers which patterns met a name, so that a misspelt one is told of."""

    spec: SpaceSpec
    _names: dict[str, None] = field(default_factory=dict)

    def allows(self, *names: str) -> bool:
        """Whether what goes by these names may be changed."""
        self._names.update(dict.fromkeys(names))
        return _any(self.spec.include, names) and not _any(self.spec.exclude, names)

    def at(self, *names: str) -> Setting:
        self._names.update(dict.fromkeys(names))
        spec = self.spec
        found: dict[str, object] = {"max_keep": 1.0, "keep": None}
        for name in ("divisor", "steps", "min_keep", "removal", "min_kernel", "operators", "groups"):
            found[name] = getattr(spec, name)
        for rule in spec.blocks:
            if _any([rule.match], names):
                found |= rule.model_dump(exclude={"match"}, exclude_none=True)
        return Setting(**found)  # type: ignore[arg-type]

    def check(self, known: Iterable[str]) -> None:
        """
        `known` are the names of all modules.

        Raises:
            InvalidSpec: a pattern fits no module and no site, with pointers into the job.
        """
        names = [*self._names, *known]
        mistakes = [
            FieldError(
                pointer,
                "INVALID_VALUE",
                f"`{pattern}` fits no block, layer or site of this teacher{did_you_mean(pattern, names)}; "
                "`stillhouse plan` lists them",
            )
            for pointer, pattern in self._patterns()
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
        if mistakes:
            raise InvalidSpec(mistakes)

    def _patterns(self) -> Iterable[tuple[str, str]]:
        for at, pattern in enumerate(self.spec.include):
            yield f"/space/include/{at}", pattern
        for at, pattern in enumerate(self.spec.exclude):
            yield f"/space/exclude/{at}", pattern
        for at, rule in enumerate(self.spec.blocks):
            yield f"/space/blocks/{at}/match", rule.match


def _any(patterns: Iterable[str], names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)
