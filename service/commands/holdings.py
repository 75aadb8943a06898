"""Commands for what is kept on a server beside jobs: uploads, teachers, datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from search.errors import FieldError, InvalidSpec
from service.client import Client
from service.commands.options import Json, Url
from service.holdings import TeacherDocument
from service.screens.holdings import datasets_table, report_screen, teachers_table, uploads_table
from service.terminal import Terminal, read_document

uploads = typer.Typer(help="Uploads: list them, delete one. `stillhouse upload FILE` makes one.", no_args_is_help=True)
teachers = typer.Typer(help="Teachers: register one, list them, show one, delete one.", no_args_is_help=True)
datasets = typer.Typer(help="Datasets: register one, list them, show one, delete one.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Weights, as safetensors.", dir_okay=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="What you call it.")]
UploadId = Annotated[str, typer.Argument(metavar="UPLOAD", help="Its id, such as upl_01k...")]
TeacherId = Annotated[str, typer.Argument(metavar="TEACHER", help="Its id, such as tch_01k...")]
DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="Its id, such as ds_01k...")]
Whose = Annotated[
    str, typer.Argument(metavar="SPEC", help="A job, in YAML or JSON, that names it; - reads standard input.")
]
Weights = Annotated[Path | None, typer.Option("--weights", help="Upload this file first, and give it to the teacher.")]


def upload(file: File, as_json: Json = False, url: Url = None) -> None:
    """Upload a file of weights and print what stands for it in a job."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client, terminal.transferring(file.name) as told:
        found = client.uploads.send(file, on_bytes=told)
    terminal.show(found.weights, found)
    terminal.hint("name it in a job", f"teacher: {{name: ..., weights: {found.weights}}}")


@uploads.command("list")
def list_uploads(as_json: Json = False, url: Url = None) -> None:
    """List uploads, newest first, complete or not."""
    with Client(url) as client:
        found = list(client.uploads.list())
    Terminal(as_json=as_json).show(uploads_table(found), {"uploads": found})


@uploads.command("delete")
def delete_upload(upload_id: UploadId, as_json: Json = False, url: Url = None) -> None:
    """Delete an upload that neither a registered teacher nor a job under way uses."""
    with Client(url) as client:
        client.uploads.delete(upload_id)
    Terminal(as_json=as_json).show(f"{upload_id} is deleted", {"id": upload_id})


@teachers.command("create")
def create_teacher(name: Name, spec: Whose, weights: Weights = None, as_json: Json = False, url: Url = None) -> None:
    """Register the teacher of a job; it is built and counted, and its weights are tried."""
    terminal = Terminal(as_json=as_json)
    document = read_document(spec)
    teacher, dataset = _part(document, "teacher"), _part(document, "dataset")
    with Client(url) as client:
        if weights is not None:
            with terminal.transferring(weights.name) as told:
                teacher = teacher | {"weights": client.uploads.send(weights, on_bytes=told).weights}
        with terminal.waiting("building the teacher"):
            found = client.teachers.create(name, teacher, dataset)
    _show(terminal, found)
    terminal.hint("use it in a job", f"stillhouse teachers show {found.id} --json, and take its `spec` as `teacher`")


@teachers.command("list")
def list_teachers(as_json: Json = False, url: Url = None) -> None:
    """List teachers, newest first."""
    with Client(url) as client:
        found = list(client.teachers.list())
    Terminal(as_json=as_json).show(teachers_table(found), {"teachers": found})


@teachers.command("show")
def show_teacher(teacher_id: TeacherId, as_json: Json = False, url: Url = None) -> None:
    """Show a teacher."""
    with Client(url) as client:
        _show(Terminal(as_json=as_json), client.teachers.get(teacher_id))


@teachers.command("delete")
def delete_teacher(teacher_id: TeacherId, as_json: Json = False, url: Url = None) -> None:
    """Take a teacher from the register; jobs that were made of it go on."""
    with Client(url) as client:
        client.teachers.delete(teacher_id)
    Terminal(as_json=as_json).show(f"{teacher_id} is deleted", {"id": teacher_id})


@datasets.command("create")
def create_dataset(name: Name, spec: Whose, as_json: Json = False, url: Url = None) -> None:
    """Register the dataset of a job; its images are counted and its files opened."""
    terminal = Terminal(as_json=as_json)
    dataset = _part(read_document(spec), "dataset")
    with Client(url) as client, terminal.waiting("looking at the dataset"):
        found = client.datasets.create(name, dataset)
    terminal.show(datasets_table([found]), found)
    terminal.hint("what was found", f"stillhouse datasets report {found.id}")


@datasets.command("list")
def list_datasets(as_json: Json = False, url: Url = None) -> None:
    """List datasets, newest first."""
    with Client(url) as client:
        found = list(client.datasets.list())
    Terminal(as_json=as_json).show(datasets_table(found), {"datasets": found})


@datasets.command("show")
def show_dataset(dataset_id: DatasetId, as_json: Json = False, url: Url = None) -> None:
    """Show a dataset."""
    with Client(url) as client:
        found = client.datasets.get(dataset_id)
    Terminal(as_json=as_json).show(datasets_table([found]), found)


@datasets.command("report")
def report(dataset_id: DatasetId, as_json: Json = False, url: Url = None) -> None:
    """Show what was found when a dataset was registered: images by class, files that are broken."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        found = client.datasets.report(dataset_id)
    terminal.show(report_screen(found, signs=terminal.signs), found)


@datasets.command("delete")
def delete_dataset(dataset_id: DatasetId, as_json: Json = False, url: Url = None) -> None:
    """Take a dataset from the register; its files stay where they are."""
    with Client(url) as client:
        client.datasets.delete(dataset_id)
    Terminal(as_json=as_json).show(f"{dataset_id} is deleted", {"id": dataset_id})


def _show(terminal: Terminal, teacher: TeacherDocument) -> None:
    terminal.show(teachers_table([teacher]), teacher)


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    if not isinstance(part, dict):
        raise InvalidSpec([FieldError(f"/{name}", "MISSING_FIELD", f"`{name}` is required; add it")])
    return part
