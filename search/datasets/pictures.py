"""Image files of users: found below a folder, told apart by their bytes, decoded with suspicion."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from search.errors import DataError
from search.files import Files, published
from search.plugins import Fault, Inspection

A = TypeVar("A")
B = TypeVar("B")
Channels = Literal[1, 3]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Those of the suffixes. Never all that Pillow knows: it hands EPS to an interpreter of PostScript."""
_MOST_PIXELS = 100_000_000
_MOST_FILE = 256 * 2**20
_MOST_FAULTS = 50
_LONGEST_NAME, _LONGEST_MESSAGE = 512, 512
_LOOKED_AT_ONCE = 64
_SETTLED = 2.0
"""Seconds after which the time of a change tells a file from its next version."""


@dataclass(frozen=True, slots=True)
class Tree:
    """
    A folder whose content a user chose.

    `shown` is what the user wrote for `root`: errors name files by it, not by where they lie on the server.
    """

    root: Path
    shown: str

    @classmethod
    def at(cls, path: str, files: Files) -> Tree:
        """The folder that a dataset's option `path` names. Raises `DataError` when it is none."""
        root = files.resolve(path, pointer="/dataset/options/path")
        if not root.is_dir():
            raise DataError("not a folder", file=path, pointer="/dataset/options/path")
        return cls(root, path)

    def name(self, path: Path) -> str:
        return str(Path(self.shown) / path.relative_to(self.root))

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """
        What lies in `folder`, by name, without hidden entries.

        Raises:
            DataError: it cannot be read, or a link in it leads to a folder or out of the tree.
        """
        try:
            with os.scandir(folder) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise DataError(f"the folder cannot be read: {error.strerror}", file=self.name(folder)) from None
        for entry in entries:
            if entry.is_symlink():
                self._check_inside(Path(entry.path))
                if entry.is_dir():
                    raise DataError(
                        "this is a link to a folder; put the folder itself there", file=self.name(Path(entry.path))
                    )
        return entries

    def _check_inside(self, link: Path) -> None:
        try:
            inside = link.resolve().is_relative_to(self.root)
        except RuntimeError:  # it leads to itself
            inside = False
        if not inside:
            raise DataError(
                "this link leads out of the dataset's folder; put the file itself there", file=self.name(link)
            )

    def below(self, name: str, said: str) -> Path:
        """
        What a document of the user, called `said`, names relative to the tree; whether anything is there is not asked.

        Raises:
            DataError: the name leads out of the tree.
        """
        path = self.root / name
        try:
            inside = not Path(name).is_absolute() and path.resolve().is_relative_to(self.root)
        except (ValueError, RuntimeError):  # a NUL in the name, a link that leads to itself
            inside = False
        if not inside:
            raise DataError(f"{name[:200]!a} does not name a file below the dataset's folder", file=said)
        return path

    def folders(self, folder: Path) -> list[Path]:
        return [Path(entry.path) for entry in self.entries(folder) if entry.is_dir()]

    def images(self, folder: Path) -> list[Path]:
        """Image files (by suffix) anywhere below `folder`, in order of their names."""
        images: list[Path] = []
        for entry in self.entries(folder):
            if entry.is_dir():
                images += self.images(Path(entry.path))
            elif entry.name.lower().endswith(SUFFIXES):
                images.append(Path(entry.path))
        return images

    def read(self, path: Path, most: int = _MOST_FILE) -> bytes:
        """
        Raises:
            DataError: not a regular file, not readable, empty, or larger than `most` bytes.
        """
        try:
            # a named pipe would block the open for ever, hence O_NONBLOCK before it is known to be a file
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise DataError("not a regular file", file=self.name(path))
                if status.st_size > most:
                    raise DataError(f"larger than {most // 2**20} MiB; store a smaller file", file=self.name(path))
                content = file.read(most + 1)
        except OSError as error:
            raise DataError(f"the file cannot be read: {error.strerror}", file=self.name(path)) from None
        if not content:
            raise DataError("the file is empty; replace or remove it", file=self.name(path))
        return content

    def digests(self, paths: Sequence[Path], cache: Path) -> list[str]:
        """
        SHA-256 of each file. Those whose size and times are as they were at the last call are not read again.

        Raises:
            DataError: as `read`; or a link leads out of the tree.
        """
        memo = cache / "datasets" / f"{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:24]}.digests.json"
        known = _recalled(memo)
        now = time.time()

        def digest(path: Path) -> tuple[str, list[object]]:
            self._check_inside(path)
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"the file cannot be read: {error.strerror}", file=self.name(path)) from None
            mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            name = path.relative_to(self.root).as_posix()
            if name in known and known[name][:-1] == mark:
                return name, known[name]
            settled = now - max(status.st_mtime, status.st_ctime) > _SETTLED
            return name, [*(mark if settled else [0]), hashlib.sha256(self.read(path)).hexdigest()]

        rows = dict(in_threads(digest, paths))
        if rows != known:
            with published(memo) as draft:
                draft.write_text(json.dumps(rows))
        return [str(row[-1]) for row in rows.values()]

    def decode(
        self,
        paths: Sequence[Path],
        digests: Sequence[str],
        size: int,
        channels: Channels,
        whole: Sequence[tuple[int, int]] | None = None,
    ) -> NDArray[np.uint8]:
        """
        Images `[n, channels, size, size]`, resized by bicubic interpolation: of each the largest central square, or,
        where its width and height are given in `whole`, all of it, as `letterbox` says.

        Raises:
            DataError: a file leads out of the tree, is corrupt or too large, is not the one that was digested, or is
                not as wide and high as was said.
        """
        images = np.empty((len(paths), channels, size, size), np.uint8)

        def one(job: tuple[int, Path, str]) -> None:
            index, path, digest = job
            images[index] = self._opened(path, digest, size, channels, whole[index] if whole else None)

        with _bombs_are_errors():
            for _ in in_threads(one, list(zip(range(len(paths)), paths, digests, strict=True))):
                pass
        return images

    def _opened(
        self, path: Path, digest: str, size: int, channels: Channels, stated: tuple[int, int] | None
    ) -> NDArray[np.uint8]:
        """One image, as `decode` gives it; to be called where bombs are errors."""
        self._check_inside(path)
        content = self.read(path)
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError("the file changed while the dataset was read; start again", file=self.name(path))
        try:
            return _decoded(content, size, channels, stated)
        except DataError as error:
            raise DataError(error.message, file=self.name(path)) from None
        except UnidentifiedImageError:
            raise DataError(f"not an image ({', '.join(_FORMATS)} are read); remove it", file=self.name(path)) from None
        except Exception as error:  # decoders of hostile bytes raise anything
            raise DataError(f"not a readable image ({error}); replace or remove it", file=self.name(path)) from None

    def inspect(self, pictures: Sequence[Picture], size: int, channels: Channels, seconds: float) -> Inspection:
        """What `search.plugins.Inspected` promises, of images that were digested."""
        pictures = sorted(set(pictures), key=lambda picture: picture.digest)
        linked = [self._fault(picture.path, self._linked(picture.path)) for picture in pictures]
        suspicious = [fault for fault in linked if fault is not None]
        until, opened, corrupt = time.monotonic() + seconds, 0, list[Fault]()

        def look(picture: Picture) -> str | None:
            try:
                self._opened(picture.path, picture.digest, size, channels, picture.stated)
            except DataError as error:
                return error.message.removeprefix(f"{error.file}: ")
            return None

        with _bombs_are_errors():
            for batch in batched(pictures, _LOOKED_AT_ONCE):
                if time.monotonic() > until:
                    break
                opened += len(batch)
                found = (self._fault(one.path, said) for one, said in zip(batch, in_threads(look, batch), strict=True))
                corrupt += [fault for fault in found if fault is not None]
        others = self._count(self.root) - len({picture.path for picture in pictures})
        faults = (*corrupt, *suspicious)[:_MOST_FAULTS]
        return Inspection(len(pictures), opened, max(others, 0), len(corrupt), len(suspicious), faults)

    def _fault(self, path: Path, message: str | None) -> Fault | None:
        if message is None:
            return None
        shown = path.relative_to(self.root).as_posix().encode("utf-8", "replace").decode()
        return Fault(shown[:_LONGEST_NAME], message.replace("\0", "")[:_LONGEST_MESSAGE])

    def _linked(self, path: Path) -> str | None:
        try:
            names = path.stat().st_nlink
        except OSError:
            return None  # which opening it will tell
        if names < 2:
            return None
        return f"a hard link, one of {names}: what it holds can be changed from elsewhere; put a copy there"

    def _count(self, folder: Path) -> int:
        """Files anywhere below a folder, hidden ones left out."""
        return sum(self._count(Path(entry.path)) if entry.is_dir() else 1 for entry in self.entries(folder))


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file of a tree; its width and height where its annotations state them."""

    path: Path
    digest: str
    stated: tuple[int, int] | None = None


def statistics(channels: Channels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """
    Mean and standard deviation per channel of ImageNet, on the 0..1 scale, as torchvision's own recipes use them.

    They centre natural images well enough, and knowing them needs no decoding; grey is the luminance of both.
    """
    if channels == 1:
        return (0.459,), (0.226,)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batched(items: Sequence[A], size: int) -> Iterator[Sequence[A]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def in_threads(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Results in order. Hashing and decoding leave Python's lock, so threads are enough."""
    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
        yield from pool.map(function, items)


def to_array(image: Image.Image, size: int, channels: Channels) -> NDArray[np.uint8]:
    """`[channels, size, size]` of any image; transparency is dropped, 16-bit grey is scaled to 8."""
    image = _plain(image, channels)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a square an image lies that keeps its shape: `left`, `top`, `width` and `height`, in pixels."""

    left: int
    top: int
    width: int
    height: int


def letterbox(width: int, height: int, size: int) -> Place:
    """As large as fits into `size`, in the middle."""
    longer = max(width, height)
    wide, high = (max(1, (2 * side * size + longer) // (2 * longer)) for side in (width, height))
    return Place((size - wide) // 2, (size - high) // 2, wide, high)


def _plain(image: Image.Image, channels: Channels) -> Image.Image:
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(deep >> 8, 0, 255).astype(np.uint8))
    if image.mode in ("P", "PA", "LA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")


def _letterboxed(image: Image.Image, size: int, channels: Channels, stated: tuple[int, int]) -> NDArray[np.uint8]:
    """`[channels, size, size]`; what the image leaves free has the colour that `statistics` calls the mean."""
    place = letterbox(*stated, size)
    small = _plain(image, channels).resize((place.width, place.height), Image.Resampling.BICUBIC)
    array = np.empty((channels, size, size), np.uint8)
    array[:] = np.rint(255 * np.array(statistics(channels)[0])).astype(np.uint8)[:, None, None]
    pixels = np.asarray(small).reshape(place.height, place.width, channels).transpose(2, 0, 1)
    array[:, place.top : place.top + place.height, place.left : place.left + place.width] = pixels
    return array


def _decoded(content: bytes, size: int, channels: Channels, stated: tuple[int, int] | None) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} are more than {_MOST_PIXELS:,} pixels")
        found = image.size
        image.draft(None, (2 * size, 2 * size))  # lets a JPEG be decoded at a fraction of its size
        image.load()
        if stated is None:
            return to_array(ImageOps.exif_transpose(image), size, channels)
        if found == stated:  # boxes were drawn on the pixels as they are stored
            return _letterboxed(image, size, channels, stated)
        turned = ImageOps.exif_transpose(image)
        if turned.size != image.size and found[::-1] == stated:
            return _letterboxed(turned, size, channels, stated)
    raise DataError(
        f"this image is {found[0]}x{found[1]} pixels, but {stated[0]}x{stated[1]} by its annotations; correct them"
    )


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    # around all threads at once: the list of warning filters belongs to the process
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _recalled(memo: Path) -> dict[str, list[object]]:
    try:
        rows = json.loads(memo.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(rows, dict) or not all(isinstance(row, list) and len(row) > 1 for row in rows.values()):
        return {}
    return rows
