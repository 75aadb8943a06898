"""Image files of users: found below a folder, told apart by their bytes, decoded with suspicion."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
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
from search.plugins import Fault

A = TypeVar("A")
B = TypeVar("B")
Channels = Literal[1, 3]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Those of the suffixes. Never all that Pillow knows: it hands EPS to an interpreter of PostScript."""
_MOST_PIXELS = 100_000_000
_MOST_FILE = 256 * 2**20
_LONGEST_NAME, _LONGEST_MESSAGE = 512, 512
_LOOKED_AT_ONCE = 64
_SETTLED = 2.0
"""Seconds after which the time of a change tells a file from its next version."""


class Unusable(DataError):
    """What one image file holds is no image that can be used. The dataset may do without it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file of a tree; its width and height where its annotations state them."""

    path: Path
    digest: str
    stated: tuple[int, int] | None = None


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
        content, length = self._beginning(path, most)
        if length > most:
            raise DataError(f"larger than {most // 2**20} MiB; store a smaller file", file=self.name(path))
        if not content:
            raise DataError("the file is empty; replace or remove it", file=self.name(path))
        return content

    def _beginning(self, path: Path, most: int = _MOST_FILE) -> tuple[bytes, int]:
        """What a file begins with, `most` bytes of it at most, and its length. Raises `DataError`."""
        try:
            # a named pipe would block the open for ever, hence O_NONBLOCK before it is known to be a file
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise DataError("not a regular file", file=self.name(path))
                return file.read(most), status.st_size
        except OSError as error:
            raise DataError(f"the file cannot be read: {error.strerror}", file=self.name(path)) from None

    def digests(self, paths: Sequence[Path], cache: Path, others: Set[Path] = frozenset()) -> list[str]:
        """
        SHA-256 of each file. Those whose size and times are as they were at the last call are not read again. Files
        are images but for `others`.

        Raises:
            DataError: one is missing, is no regular file or not readable; a link leads out of the tree; one of
                `others` is empty or too large, which of an image is told when it is opened.
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
            found = hashlib.sha256(self.read(path)).hexdigest() if path in others else _digest(*self._beginning(path))
            return name, [*(mark if settled else [0]), found]

        rows = dict(in_threads(digest, paths))
        if rows != known:
            with published(memo) as draft:
                draft.write_text(json.dumps(rows))
        return [str(row[-1]) for row in rows.values()]

    def decode(
        self, pictures: Sequence[Picture], size: int, channels: Channels
    ) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """
        Images `[n, channels, size, size]` of those that can be used, resized by bicubic interpolation: of each the
        largest central square, or, where its width and height are stated, all of it, as `letterbox` says. With them,
        by place, what is wrong with those that cannot: no image, truncated, empty, too large, or not as wide and high
        as stated, so that its boxes lie nobody knows where.

        Raises:
            DataError: a file leads out of the tree, cannot be read, or is not the one that was digested.
        """
        images = np.empty((len(pictures), channels, size, size), np.uint8)
        broken: dict[int, str] = {}

        def one(job: tuple[int, Picture]) -> None:
            index, picture = job
            try:
                images[index] = self._opened(picture, size, channels)
            except Unusable as error:
                broken[index] = error.message

        with _bombs_are_errors():
            for _ in in_threads(one, enumerate(pictures)):
                pass
        if not broken:
            return images, {}
        usable = [index for index in range(len(pictures)) if index not in broken]
        for place, index in enumerate(usable):  # in place: there may be no room for a second array
            images[place] = images[index]
        return images[: len(usable)], dict(sorted(broken.items()))

    def look(
        self, pictures: Sequence[Picture], size: int, channels: Channels, seconds: float = math.inf
    ) -> tuple[int, dict[Picture, str]]:
        """
        How many could be opened in that time, and what is wrong with those of them that cannot be used.

        Raises:
            DataError: as `decode`.
        """
        until, opened, broken = time.monotonic() + seconds, 0, dict[Picture, str]()

        def one(picture: Picture) -> None:
            try:
                self._opened(picture, size, channels)
            except Unusable as error:
                broken[picture] = error.message
            except MemoryError:
                broken[picture] = "more memory would be needed than there is on the machine that looked at it"

        with _bombs_are_errors():
            for batch in batched(pictures, _LOOKED_AT_ONCE):
                if time.monotonic() > until:
                    break
                opened += len(batch)
                for _ in in_threads(one, batch):
                    pass
        return opened, broken

    def _opened(self, picture: Picture, size: int, channels: Channels) -> NDArray[np.uint8]:
        """
        One image, as `decode` gives it; to be called where bombs are errors.

        Whether an image can be used is for its bytes to say, on every machine: what a machine may lack, such as memory
        or the file itself, is never `Unusable`.
        """
        self._check_inside(picture.path)
        content, length = self._beginning(picture.path)
        if _digest(content, length) != picture.digest:
            raise DataError("the file changed while the dataset was read; start again", file=self.name(picture.path))
        if length > _MOST_FILE:
            raise Unusable(f"larger than {_MOST_FILE // 2**20} MiB")
        if not content:
            raise Unusable("the file is empty")
        try:
            return _decoded(content, size, channels, picture.stated)
        except (Unusable, MemoryError):
            raise
        except UnidentifiedImageError:
            raise Unusable(f"not an image ({', '.join(_FORMATS)} are read)") from None
        except Exception as error:  # decoders of hostile bytes raise anything
            raise Unusable(f"not a readable image ({error})") from None

    def fault(self, path: Path, message: str) -> Fault:
        """What is wrong with a file, as it can be told to anybody: text of a bounded length, in names too."""
        shown = path.relative_to(self.root).as_posix().encode("utf-8", "replace").decode()
        return Fault(shown[:_LONGEST_NAME], message.replace("\0", "")[:_LONGEST_MESSAGE])

    def count(self, folder: Path) -> int:
        """Files anywhere below a folder, hidden ones left out."""
        return sum(self.count(Path(entry.path)) if entry.is_dir() else 1 for entry in self.entries(folder))


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
    raise Unusable(f"this image is {found[0]}x{found[1]} pixels, but {stated[0]}x{stated[1]} by its annotations")


def _digest(content: bytes, length: int) -> str:
    """SHA-256 of a file; of one that is too large to be read whole, of what it begins with and its length."""
    found = hashlib.sha256(content)
    if length > len(content):
        found.update(f" of {length} bytes".encode())
    return found.hexdigest()


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
