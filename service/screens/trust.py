"""How far the result of a job can be trusted, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator

from service.documents import JobDocument
from service.findings import CorrelationDocument, EvidenceDocument, NoiseDocument, SkippedDocument
from service.screens.words import Signs, merit, percent, plural, points
from service.students import StudentDocument

_NAMED = 3


def trust_lines(job: JobDocument, signs: Signs) -> list[str]:
    """Empty where nothing was measured, and every image could be used."""
    lines = [_skipped(job.skipped_images)] if job.skipped_images is not None else []
    if job.evidence is not None:
        found = job.evidence
        lines += [_ahead(student, found.noise, signs, several=len(job.students) > 1) for student in job.students]
        lines += _lines(found, merit(job.spec), signs)
    return [line for line in lines if line]


def _skipped(found: SkippedDocument) -> str:
    named = ", ".join(fault.file for fault in found.first[:_NAMED])
    more = f" and {found.count - _NAMED:,} more" if found.count > _NAMED else ""
    return f"{found.count:,} of {plural(found.images, 'image')} could not be used and were skipped: {named}{more}"


def _ahead(student: StudentDocument, noise: NoiseDocument | None, signs: Signs, *, several: bool) -> str:
    if student.rival is None:
        return ""
    rival, name = student.rival, student.folder if several else "the student"
    lead = points(student.metrics.validation_accuracy - rival.validation_accuracy, signs)
    if rival.beaten is None or noise is None:
        return f"{name} is {lead} against trial {rival.number} on validation; how much of that is chance is not known"
    if rival.beaten:
        return f"{name} beats trial {rival.number} by {lead} on validation, more than chance makes"
    return f"{name} and trial {rival.number} are a tie: {lead} on validation is no more than chance makes"


def _lines(found: EvidenceDocument, judged: str, signs: Signs) -> Iterator[str]:
    for correlation in found.correlations:
        if correlation.value is not None:
            yield _correlation(correlation)
    if found.noise is not None:
        yield (
            f"trained again with another seed, an {judged} varies by {_distance(found.noise.value, signs)} "
            f"({_distance(found.noise.low, signs)} to {_distance(found.noise.high, signs)}; "
            f"{plural(found.noise.repeated, 'trial')} repeated); "
            f"less than {_distance(found.noise.difference, signs)} apart is a tie"
        )
    if found.exempt is not None:
        yield (
            f"of {plural(found.exempt.trials, 'trial')} let through though they would have been stopped "
            f"{found.exempt.won} beat all others ({percent(found.exempt.low)} to {percent(found.exempt.high)})"
        )
    if found.advice:
        yield found.advice


def _correlation(found: CorrelationDocument) -> str:
    later = "that of the finalists" if found.finalists else f"that after {found.later_steps:,}"
    return (
        f"the order after {found.steps:,} steps and {later}: rank correlation {found.value:.2f} "
        f"({found.low:.2f} to {found.high:.2f}; {plural(found.trials, 'trial')})"
    )


def _distance(difference: float, signs: Signs) -> str:
    return points(difference, signs).removeprefix("+")
