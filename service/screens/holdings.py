"""Lists of uploads, teachers and datasets, and what was found at a dataset."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from service.holdings import DatasetDocument, DatasetReport, TeacherDocument, UploadDocument
from service.screens.tables import day, listing
from service.screens.words import Signs, measure


def uploads_table(uploads: Iterable[UploadDocument]) -> RenderableType:
    grid = listing("upload", ">bytes", "sha256", "declared", "complete", whole=("upload",))
    for upload in uploads:
        done = Text(day(upload.completed_at) or "no", "" if upload.completed_at else "yellow")
        grid.add_row(upload.id, f"{upload.bytes:,}", upload.sha256[:12], day(upload.created_at), done)
    return grid


def teachers_table(teachers: Iterable[TeacherDocument]) -> RenderableType:
    grid = listing("teacher", "name", "network", "dataset", ">macs", ">params", "weights", whole=("teacher",))
    for teacher in teachers:
        cost = teacher.facts.cost
        grid.add_row(
            teacher.id,
            teacher.name,
            str(teacher.spec["name"]),
            teacher.facts.dataset.name,
            *(measure(metric, cost[metric]) if metric in cost else "" for metric in ("macs", "params")),
            str(teacher.spec.get("weights") or "trained by the job"),
        )
    return grid


def datasets_table(datasets: Iterable[DatasetDocument]) -> RenderableType:
    grid = listing("dataset", "name", "plugin", ">images", ">classes", ">faults", whole=("dataset",))
    for dataset in datasets:
        faults = Text(str(dataset.faults), "yellow" if dataset.faults else "")
        images = f"{sum(dataset.images.values()):,}"
        grid.add_row(dataset.id, dataset.name, str(dataset.spec["name"]), images, f"{dataset.classes:,}", faults)
    return grid


def report_screen(report: DatasetReport, *, signs: Signs) -> RenderableType:
    """Images by split and class, then what is wrong with files."""
    classes = listing("class", ">training")
    for found in report.classes:
        classes.add_row(found.name, f"{found.training:,}")
    splits = ", ".join(f"{count:,} {split}" for split, count in report.images.items())
    parts: list[RenderableType] = [Text(f"{splits}; {'x'.join(map(str, report.shape))}"), classes]
    files = report.files
    if files is not None:
        said = f"{files.opened:,} of {files.images:,} images opened: {files.corrupt:,} corrupt, "
        parts.append(Text(f"{said}{files.suspicious:,} suspicious; {files.others:,} other files not opened"))
        faults = listing("file", "what is wrong")
        for fault in files.faults:
            faults.add_row(f"{signs.cross} {fault.file}", fault.message)
        parts += [faults] if files.faults else []
        if files.refusal:
            parts.append(Text(f"a job would fail: {files.refusal}", "bold red"))
        elif files.corrupt and files.refusal is not None:
            parts.append(Text("a job would skip what is corrupt"))
    return Group(*parts)
