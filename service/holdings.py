"""What the API says of uploads, teachers and datasets, and what is said to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from search.part import Part
from search.spec import Pick, TeacherSpec
from service.findings import Document

LARGEST_UPLOAD = 2**40
"""Bytes; what a server takes is a setting below that."""
Title = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class UploadRequest(Part):
    bytes: int = Field(ge=1, le=LARGEST_UPLOAD)
    """Length of the file. A server says in its limits how long it may be."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the file, in hexadecimal."""


class UploadDocument(Document):
    id: str
    weights: str
    """What stands at `weights` of a teacher, once it is complete."""
    bytes: int
    sha256: str
    created_at: datetime
    completed_at: datetime | None
    """None until the content has come, and is what was declared."""


class UploadPage(Document):
    uploads: list[UploadDocument]
    """Newest first."""
    next_page_token: str
    """Empty when this is the last page."""


class TeacherRequest(Part):
    name: Title
    """What you call it."""
    teacher: TeacherSpec
    dataset: Pick
    """Whose images it is built for."""


class TeacherFacts(Document):
    task: str
    classes: int
    shape: list[int]
    """Of an image: channels, height, width."""
    cost: dict[str, int]
    """By metric."""
    sha256: str | None
    """Of its weights; None where it is trained by the job."""
    dataset: Pick
    """Whose images it was built for."""


class TeacherDocument(Document):
    id: str
    name: str
    spec: dict[str, Any]
    """Exactly what stands at `teacher` in a job."""
    facts: TeacherFacts
    """What was found when it was registered."""
    created_at: datetime


class TeacherPage(Document):
    teachers: list[TeacherDocument]
    """Newest first."""
    next_page_token: str
    """Empty when this is the last page."""


class DatasetRequest(Part):
    name: Title
    """What you call it."""
    dataset: Pick


class DatasetDocument(Document):
    id: str
    name: str
    spec: dict[str, Any]
    """Exactly what stands at `dataset` in a job."""
    task: str
    shape: list[int]
    """Of an image as networks see it: channels, height, width."""
    images: dict[str, int]
    """By split."""
    classes: int
    faults: int
    """Files that are corrupt or suspicious, as its report tells."""
    created_at: datetime


class DatasetPage(Document):
    datasets: list[DatasetDocument]
    """Newest first."""
    next_page_token: str
    """Empty when this is the last page."""


class ReportedClass(Document):
    name: str
    training: int
    """Training images of it; of detection, training objects."""


class ReportedFault(Document):
    file: str
    """Relative to the dataset's folder."""
    message: str


class ReportedFiles(Document):
    images: int
    opened: int
    """How many of them were decoded in the time there was, chosen by their content and not by their names."""
    others: int
    """Files of other kinds below the folder. They were not opened."""
    corrupt: int
    """Images that cannot be used: truncated, empty, too large, no images, or not of the size that is stated."""
    suspicious: int
    """Images that can, but can be changed from elsewhere: hard links."""
    faults: list[ReportedFault]
    """The first of both."""
    refusal: str | None
    """
    Why a job with it would fail, as far as was opened: more of it is corrupt than its `max_bad_fraction` lets a job
    skip. Empty if it would not; null where it was registered before that was looked at.
    """


class DatasetReport(Document):
    """What was found when the dataset was registered."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> DatasetReport:
        """As it was kept, by whichever version."""
        files = facts["files"]
        return cls.model_validate({**facts, "files": None if files is None else {"refusal": None, **files}})

    task: str
    shape: list[int]
    images: dict[str, int]
    """By split."""
    classes: list[ReportedClass]
    files: ReportedFiles | None
    """None where the images are generated, or come with the program."""
