"""Datasets as they lie on a user's disk, small: real files in the official forms."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

SPLITS = ("train", "validation", "test")


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def tree(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 8, first: int = 0) -> Path:
    """`root/CLASS/N.png`, all different."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(each):
            picture(first + 1000 * label + index).save(root / name / f"{index}.png")
    return root


def split_tree(root: Path) -> Path:
    for number, split in enumerate(SPLITS):
        tree(root / split, first=10_000 * number)
    return root


COCO = {
    "train": {"annotations": "annotations/train.json", "images": "train"},
    "validation": {"annotations": "annotations/validation.json", "images": "validation"},
    "test": {"annotations": "annotations/test.json", "images": "test"},
}


def coco(root: Path, counts: tuple[int, ...] = (8, 4, 4)) -> Path:
    """
    Images of 12x10 pixels, with instances as COCO writes them: the first of a split has a cat and a crowd of dogs, the
    second nothing, the third a cat and a dog, the fourth nothing, and so on.
    """
    (root / "annotations").mkdir(parents=True)
    for number, (split, count) in enumerate(zip(SPLITS, counts, strict=False)):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            picture(7000 + 100 * number + index).save(root / split / f"{index}.png")
            images.append({"id": 10 + index, "file_name": f"{index}.png", "width": 12, "height": 10})
            if index % 2 == 0:
                cat = {"image_id": 10 + index, "category_id": 3, "bbox": [1, 2, 4, 6], "iscrowd": 0, "area": 24}
                dogs = {"image_id": 10 + index, "category_id": 1, "bbox": [6, 0, 6, 10]}
                annotations += [
                    {"id": 2 * index + 1, **cat},
                    {"id": 2 * index + 2, **dogs, "iscrowd": int(index % 4 == 0)},
                ]
        document = {
            "info": {"year": 2026},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
        }
        (root / COCO[split]["annotations"]).write_text(json.dumps(document))
    return root


def mnist(root: Path, name: str = "FashionMNIST", train: int = 60, test: int = 20) -> Path:
    """Files in the IDX form of LeCun et al."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return root


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, each: int = 20) -> Path:
    """Batches in the form of Krizhevsky's archive, and torchvision told that these are the official checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def written(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def batch(name: str) -> list[str]:
        labels = [index % 10 for index in range(each)]
        return [name, written(name, {"data": rng.integers(0, 256, (each, 3072), dtype=np.uint8), "labels": labels})]

    names = [f"class{index}" for index in range(10)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [batch(f"data_batch_{index}") for index in range(1, 6)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch")])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": written("batches.meta", {"label_names": names})}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return root
