"""What is told of a teacher and of a dataset that are registered."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search.catalog import Catalog
from search.errors import DataError, DatasetCorrupt, UserError, WeightsError
from search.files import Files
from search.inspection import dataset_report, teacher_facts
from search.spec import Pick, TeacherSpec
from search.teachers.small import SmallResNet
from search.teachers.weights import save_weights

DIGITS = Pick(name="digits", options={"size": 16})
OPTIONS = {"depth": 1, "width": 8}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if seed % 2 else "JPEG")
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that promises as many pixels as that, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    shape = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 images of two classes below `roots/pets`."""
    folder = tmp_path / "roots" / "pets"
    for number in range(40):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def report(data: Path, **options: object) -> dict[str, Any]:
    files = Files(data.parent.parent / "cache", (data.parent,))
    pick = Pick.model_validate({"name": "image_folder", "options": {"path": data.name, "size": 16, **options}})
    return dataset_report(pick, files, 5.0)


def test_a_dataset_is_counted_by_split_and_class(data: Path, tmp_path: Path) -> None:
    (data / "README.md").write_text("cats and dogs")
    found = report(data)
    assert found["task"] == "classification"
    assert found["shape"] == [3, 16, 16]
    assert found["images"] == {"train": 28, "validation": 6, "test": 6}
    assert found["classes"] == [{"name": "cat", "training": 14}, {"name": "dog", "training": 14}]
    assert found["files"] == {
        "images": 40, "opened": 40, "others": 1, "corrupt": 0, "suspicious": 0, "faults": (), "refusal": ""
    }  # fmt: skip
    generated = dataset_report(DIGITS, Files(tmp_path), 5.0)
    assert generated["files"] is None
    assert len(generated["classes"]) == 10
    assert sum(of["training"] for of in generated["classes"]) == generated["images"]["train"]


def test_broken_files_are_named_and_counted(data: Path, tmp_path: Path) -> None:
    whole = picture(100)
    broken = {
        "cat/bomb.png": bomb(50_000, 50_000),
        "cat/large.png": bomb(20_000, 6_000),
        "cat/truncated.jpg": whole[: len(whole) // 2],
        "dog/archive.jpg": b"PK\x03\x04" + bytes(200),
        "dog/program.png": b"\x7fELF" + bytes(200),
        "dog/text.jpg": b"<script>alert(1)</script>",
        "dog/postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "dog/\udcff.png": b"no name that JSON could say",
    }
    for name, content in broken.items():
        (data / name).write_bytes(content)
    (tmp_path / "secret.jpg").write_bytes(picture(101))
    os.link(tmp_path / "secret.jpg", data / "cat" / "linked.jpg")
    files = report(data)["files"]
    assert (files["corrupt"], files["suspicious"], files["opened"]) == (len(broken), 1, 40 + len(broken) + 1)
    told = {fault["file"]: fault["message"] for fault in files["faults"]}
    assert told.keys() == {*broken, "cat/linked.jpg", "dog/?.png"} - {"dog/\udcff.png"}
    assert "pixels" in told["cat/large.png"]
    assert "bomb" in told["cat/bomb.png"] or "pixels" in told["cat/bomb.png"]
    assert "truncated" in told["cat/truncated.jpg"].lower()
    assert "hard link" in told["cat/linked.jpg"]
    assert str(tmp_path) not in str(told)


def test_a_report_says_what_a_job_would(data: Path) -> None:
    """A job skips as many as the share allows, and fails beyond it with the very same words."""
    (data / "cat" / "0.jpg").write_bytes(b"text")
    assert report(data, max_bad_fraction=0.03)["files"]["refusal"] == ""
    refused = report(data, max_bad_fraction=0.02)["files"]
    assert (refused["corrupt"], refused["opened"]) == (1, 40)
    options = {"path": data.name, "size": 16, "max_bad_fraction": 0.02}
    dataset = Catalog().make(
        "datasets",
        Pick(name="image_folder", options=options),
        files=Files(data.parent.parent / "cache", (data.parent,)),
    )
    with pytest.raises(DatasetCorrupt) as caught:
        dataset.split("train")
    assert refused["refusal"] == caught.value.message


def test_a_link_that_leads_out_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(picture(101))
    (data / "cat" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match=r"pets/cat/out\.jpg: this link leads out"):
        report(data)
    (data / "cat" / "out.jpg").unlink()
    (data / "bird").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match="leads out"):
        report(data)


@pytest.mark.parametrize("path", ["..", "/etc", "pets/../..", "pets\0", "nowhere"])
def test_nothing_outside_the_roots_is_looked_at(data: Path, path: str) -> None:
    with pytest.raises(UserError):
        report(data, path=path)


def test_a_look_ends_in_time_and_says_how_much_was_seen(data: Path) -> None:
    files = Files(data.parent.parent / "cache", (data.parent,))
    pick = Pick(name="image_folder", options={"path": "pets", "size": 16})
    found = dataset_report(pick, files, -1.0)["files"]
    assert (found["images"], found["opened"]) == (40, 0)


def test_facts_of_a_teacher(tmp_path: Path) -> None:
    files = Files(tmp_path)
    bare = teacher_facts(TeacherSpec(name="small_resnet", options=OPTIONS), DIGITS, files)
    network = SmallResNet(SmallResNet.Options(depth=1, width=8)).build((3, 16, 16), 10)
    assert bare["cost"]["params"] == sum(part.numel() for part in network.parameters())
    assert bare["cost"]["flops"] == 2 * bare["cost"]["macs"] > 0
    assert (bare["classes"], bare["shape"], bare["sha256"]) == (10, [3, 16, 16], None)
    (tmp_path / "w.safetensors").write_bytes(save_weights(network))
    given = TeacherSpec(name="small_resnet", options=OPTIONS, weights=str(tmp_path / "w.safetensors"))
    facts = teacher_facts(given, DIGITS, files)
    assert len(facts["sha256"]) == 64
    assert facts == bare | {"sha256": facts["sha256"]}


@pytest.mark.parametrize(
    ("teacher", "dataset", "pointer"),
    [
        ({"name": "nobody"}, DIGITS, "/teacher/name"),
        ({"name": "small_resnet", "options": {"width": "x"}}, DIGITS, "/teacher/options/width"),
        ({"name": "detector"}, DIGITS, "/teacher/name"),
        ({"name": "small_resnet"}, Pick(name="nothing"), "/dataset/name"),
        ({"name": "small_resnet", "weights": "/nowhere"}, DIGITS, "/teacher/weights"),
    ],
)
def test_a_teacher_that_cannot_be_is_pointed_at(
    tmp_path: Path, teacher: dict[str, object], dataset: Pick, pointer: str
) -> None:
    with pytest.raises(UserError) as caught:
        teacher_facts(TeacherSpec.model_validate(teacher), dataset, Files(tmp_path))
    assert caught.value.errors[0].pointer == pointer


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(save_weights(torch.nn.Linear(2, 2)))
    given = TeacherSpec(name="small_resnet", options=OPTIONS, weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(WeightsError, match="not those of this network"):
        teacher_facts(given, DIGITS, Files(tmp_path))
