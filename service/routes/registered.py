"""Teachers and datasets that are looked at once, and have an id since."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from service.auth import may_read, may_submit
from service.deps import (
    AskingDep,
    DatasetId,
    DatasetsDep,
    IdempotencyKey,
    JsonBody,
    TeacherId,
    TeachersDep,
    once,
    read_body,
)
from service.description import answers, body
from service.holdings import (
    DatasetDocument,
    DatasetPage,
    DatasetReport,
    DatasetRequest,
    TeacherDocument,
    TeacherFacts,
    TeacherPage,
    TeacherRequest,
)
from service.routes import pages
from service.routes.creation import creation, made
from service.schemas import Paging
from service.store.values import Registered

teachers = APIRouter(prefix="/v1/teachers", tags=["teachers"], dependencies=[may_read])
datasets = APIRouter(prefix="/v1/datasets", tags=["datasets"], dependencies=[may_read])

_PETS = {"name": "image_folder", "options": {"path": "pets", "size": 64}}
_SPEC = {"name": "small_resnet", "options": {"width": 16}, "weights": "upload:upl_01ke7bq8k0f7m2s5v9x3y6z1ab"}
_TEACHER = {
    "id": "tch_01ke7bq8k0f7m2s5v9x3y6z1ab",
    "name": "pets, March",
    "spec": _SPEC,
    "facts": {
        "task": "classification",
        "classes": 2,
        "shape": [3, 64, 64],
        "cost": {"macs": 22_901_345, "flops": 45_802_690, "params": 624_106},
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "dataset": _PETS,
    },
    "created_at": "2026-01-05T09:30:00Z",
}
_IMAGES = {"train": 5_180, "validation": 1_110, "test": 1_110}
_DATASET = {
    "id": "ds_01ke7bq8k0f7m2s5v9x3y6z1ab",
    "name": "pets",
    "spec": _PETS,
    "task": "classification",
    "shape": [3, 64, 64],
    "images": _IMAGES,
    "classes": 2,
    "faults": 1,
    "created_at": "2026-01-05T09:30:00Z",
}
_REPORT = {
    "task": "classification",
    "shape": [3, 64, 64],
    "images": _IMAGES,
    "classes": [{"name": "cat", "training": 2_590}, {"name": "dog", "training": 2_590}],
    "files": {
        "images": 7_400,
        "opened": 7_400,
        "others": 1,
        "corrupt": 1,
        "suspicious": 0,
        "faults": [{"file": "dog/1042.jpg", "message": "not a readable image (Truncated File Read)"}],
        "refusal": "",
    },
}
_ON_ONE = ("UNAUTHENTICATED", "NOT_FOUND", "STORE_UNAVAILABLE")
_ASKED = (
    "MALFORMED_JSON",
    "MALFORMED_REQUEST",
    "UNAUTHENTICATED",
    "BODY_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
    "INVALID",
    "INVALID_SPEC",
    "INVALID_PARAMETER",
    "UNKNOWN_NAME",
    "DATASET_UNUSABLE",
    "IDEMPOTENCY_KEY_REUSED",
    "VERIFICATION_FAILED",
    "BUSY",
    "STORAGE_FULL",
)


@teachers.post(
    "",
    operation_id="teachers.create",
    dependencies=[may_submit],
    status_code=201,
    response_model=TeacherDocument,
    responses={
        **creation("teacher", _TEACHER, "get", "delete"),
        **answers(*_ASKED, "WEIGHTS_UNUSABLE", "UNSUPPORTED_NETWORK"),
    },
    openapi_extra=body(TeacherRequest, {"name": "pets, March", "teacher": _SPEC, "dataset": _PETS}),
)
async def create_teacher(document: JsonBody, key: IdempotencyKey, register: TeachersDep, asking: AskingDep) -> Response:
    """
    Register a teacher for the images of a dataset. It is built, given its weights and surveyed; nothing is trained.

    `spec` of the answer is what stands at `teacher` in a job.
    """
    asked = read_body(TeacherRequest, document)
    sent = once("teachers.create", key, asked)
    former = await run_in_threadpool(register.replay, sent)
    if former is not None:
        return made(_teacher(former), f"/v1/teachers/{former.id}", new=False)
    dataset = asked.dataset.model_dump(mode="json")
    facts = {**await asking.teacher(asked.teacher, asked.dataset), "dataset": dataset}
    spec = asked.teacher.model_dump(mode="json", exclude_unset=True)
    found, new = await run_in_threadpool(register.create, asked.name, spec, facts, sent)
    return made(_teacher(found), f"/v1/teachers/{found.id}", new=new)


@teachers.get(
    "",
    operation_id="teachers.list",
    responses=answers("UNAUTHENTICATED", "INVALID_PARAMETER", example={"teachers": [_TEACHER], "next_page_token": ""}),
)
def list_teachers(paging: Annotated[Paging, Query()], register: TeachersDep) -> TeacherPage:
    """The teachers that the caller's tenant has registered, newest first, a page at a time."""
    found = register.list(limit=paging.size + 1, before=pages.read(paging.page_token))
    page, token = pages.cut(found, paging.size, lambda teacher: (teacher.created_at, teacher.id))
    return TeacherPage(teachers=[_teacher(teacher) for teacher in page], next_page_token=token)


@teachers.get("/{teacher_id}", operation_id="teachers.get", responses=answers(*_ON_ONE, example=_TEACHER))
def get_teacher(teacher_id: TeacherId, register: TeachersDep) -> TeacherDocument:
    """One teacher, and what is known of it."""
    return _teacher(register.get(teacher_id))


@teachers.delete(
    "/{teacher_id}",
    operation_id="teachers.delete",
    dependencies=[may_submit],
    status_code=204,
    response_class=Response,
    responses={204: {"description": "It is not registered any more"}, **answers(*_ON_ONE, "STORAGE_FULL")},
)
def delete_teacher(teacher_id: TeacherId, register: TeachersDep) -> Response:
    """Take a teacher from the register. Jobs hold a copy of its `spec` and go on; its upload stays."""
    register.delete(teacher_id)
    return Response(status_code=204)


@datasets.post(
    "",
    operation_id="datasets.create",
    dependencies=[may_submit],
    status_code=201,
    response_model=DatasetDocument,
    responses={**creation("dataset", _DATASET, "get", "report", "delete"), **answers(*_ASKED)},
    openapi_extra=body(DatasetRequest, {"name": "pets", "dataset": _PETS}),
)
async def create_dataset(document: JsonBody, key: IdempotencyKey, register: DatasetsDep, asking: AskingDep) -> Response:
    """
    Register a dataset: its images are counted, and as many of its files as the time allows are opened, to see whether
    they are whole.

    `spec` of the answer is what stands at `dataset` in a job. One that no job could use is refused.
    """
    asked = read_body(DatasetRequest, document)
    sent = once("datasets.create", key, asked)
    former = await run_in_threadpool(register.replay, sent)
    if former is not None:
        return made(_dataset(former), f"/v1/datasets/{former.id}", new=False)
    facts = await asking.dataset(asked.dataset)
    spec = asked.dataset.model_dump(mode="json", exclude_unset=True)
    found, new = await run_in_threadpool(register.create, asked.name, spec, facts, sent)
    return made(_dataset(found), f"/v1/datasets/{found.id}", new=new)


@datasets.get(
    "",
    operation_id="datasets.list",
    responses=answers("UNAUTHENTICATED", "INVALID_PARAMETER", example={"datasets": [_DATASET], "next_page_token": ""}),
)
def list_datasets(paging: Annotated[Paging, Query()], register: DatasetsDep) -> DatasetPage:
    """The datasets that the caller's tenant has registered, newest first, a page at a time."""
    found = register.list(limit=paging.size + 1, before=pages.read(paging.page_token))
    page, token = pages.cut(found, paging.size, lambda dataset: (dataset.created_at, dataset.id))
    return DatasetPage(datasets=[_dataset(dataset) for dataset in page], next_page_token=token)


@datasets.get("/{dataset_id}", operation_id="datasets.get", responses=answers(*_ON_ONE, example=_DATASET))
def get_dataset(dataset_id: DatasetId, register: DatasetsDep) -> DatasetDocument:
    """One dataset."""
    return _dataset(register.get(dataset_id))


@datasets.get("/{dataset_id}/report", operation_id="datasets.report", responses=answers(*_ON_ONE, example=_REPORT))
def get_report(dataset_id: DatasetId, register: DatasetsDep) -> DatasetReport:
    """
    What was found when the dataset was registered: images, classes, files that are broken or suspicious, and whether a
    job would do without the broken ones or fail.
    """
    return DatasetReport.of(register.get(dataset_id).facts)


@datasets.delete(
    "/{dataset_id}",
    operation_id="datasets.delete",
    dependencies=[may_submit],
    status_code=204,
    response_class=Response,
    responses={204: {"description": "It is not registered any more"}, **answers(*_ON_ONE, "STORAGE_FULL")},
)
def delete_dataset(dataset_id: DatasetId, register: DatasetsDep) -> Response:
    """Take a dataset from the register. Its files stay where they are, and jobs hold a copy of its `spec`."""
    register.delete(dataset_id)
    return Response(status_code=204)


def _teacher(found: Registered) -> TeacherDocument:
    facts = TeacherFacts.model_validate(found.facts)
    return TeacherDocument(
        id=found.id, name=found.name, spec=dict(found.spec), facts=facts, created_at=found.created_at
    )


def _dataset(found: Registered) -> DatasetDocument:
    report = DatasetReport.of(found.facts)
    return DatasetDocument(
        id=found.id,
        name=found.name,
        spec=dict(found.spec),
        task=report.task,
        shape=report.shape,
        images=report.images,
        classes=len(report.classes),
        faults=0 if report.files is None else report.files.corrupt + report.files.suspicious,
        created_at=found.created_at,
    )
