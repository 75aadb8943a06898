from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from search.datasets import arrays
from search.datasets.arrays import kept_split
from search.datasets.cluttered import ClutteredDigits, compose
from search.datasets.digits import Digits, originals, sources
from search.datasets.folder import ImageFolder
from search.datasets.partition import stratified
from search.datasets.pictures import Picture, Tree, to_array
from search.datasets.shapes import SHAPES, TEXTURES, Shapes, stencils
from search.datasets.zoo import SOURCES, Torchvision
from search.errors import DataError, DatasetCorrupt, InvalidSpec, UserError
from search.files import Files
from search.part import read_part
from search.plugins import Split, SplitName
from tests.search.pictures import cifar, mnist, picture, split_tree, tree

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def folder(path: Path, **options: Any) -> ImageFolder:
    document = {"path": str(path), "size": 16, **options}
    return ImageFolder(read_part(ImageFolder.Options, document), Files(path.parent / "cache"))


def zoo(root: Path | None, dataset: str, cache: Path, **options: Any) -> Torchvision:
    document = {"dataset": dataset, **({"root": str(root)} if root else {}), **options}
    return Torchvision(read_part(Torchvision.Options, document), Files(cache))


def content(dataset: Any) -> dict[str, tuple[bytes, bytes]]:
    return {name: (dataset.split(name).images.tobytes(), dataset.split(name).labels.tobytes()) for name in SPLITS}


# -- digits ------------------------------------------------------------------------------------------------------------


def test_every_real_digit_is_in_one_split() -> None:
    members = [set(sources(name).tolist()) for name in SPLITS]
    assert [len(found) for found in members] == [1150, 250, 397]
    assert set.union(*members) == set(range(1797))


def test_resized_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    """At 8x8 nothing is resized, so the pixels must be scikit-learn's own."""
    split = Digits(Digits.Options(size=8), Files(tmp_path)).split("test")
    bunch = load_digits()
    assert np.array_equal(np.rint(split.images[:, 1] / (255 / 16)), bunch.images[sources("test")])
    assert np.array_equal(split.labels, bunch.target[sources("test")])


def test_mean_and_deviation_are_those_of_the_training_images(tmp_path: Path) -> None:
    small = ClutteredDigits.Options(train=1150, validation=10, test=10)
    files = Files(tmp_path)
    for dataset in (Digits(Digits.Options(), files), ClutteredDigits(small, files), Shapes(small, files)):
        images = dataset.split("train").images / 255.0
        assert np.allclose(images.mean(axis=(0, 2, 3)), dataset.info().mean, atol=0.005)
        assert np.allclose(images.std(axis=(0, 2, 3)), dataset.info().std, atol=0.005)


# -- cluttered digits --------------------------------------------------------------------------------------------------


def test_the_pixels_are_the_same_on_every_machine() -> None:
    """A change of this hash is a change of the dataset: its key must change with it."""
    split = compose(sources("train"), 300, "0 train")
    assert hashlib.sha256(split.images.tobytes() + split.labels.astype("<i8").tobytes()).hexdigest() == GOLDEN


GOLDEN = "787b3f77541177304eb35c02d531405e7dd6fb9c47011597a70dbb3261be4af3"


def test_only_sources_of_the_split_are_used() -> None:
    """Digits outside the pool are made white: were one of them used, as digit or as clutter, images would differ."""
    pool = sources("validation")
    digits, labels = originals(36)
    expected = compose(pool, 60, "seed").images
    outside = digits.copy()
    outside[np.setdiff1d(np.arange(1797), pool)] = 255
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.datasets.cluttered.originals", lambda size: (outside, labels))
        assert np.array_equal(compose(pool, 60, "seed").images, expected)
        outside[pool] = 255 - outside[pool]
        assert not np.array_equal(compose(pool, 60, "seed").images, expected)


def test_every_source_is_used_equally_often() -> None:
    pool = sources("train")[:50]
    split = compose(pool, 500, "seed")
    labels = originals(36)[1][pool]
    assert np.array_equal(np.bincount(split.labels, minlength=10), 10 * np.bincount(labels, minlength=10))


def test_the_digit_can_be_seen() -> None:
    """Averaged over many backgrounds, what is left of the contrast is the digit's own shape."""
    digits, _ = originals(36)
    one = sources("train")[:1]
    images = compose(one, 500, "seed").images.astype(float)
    contrast = np.abs(images - np.median(images, axis=(2, 3), keepdims=True)).mean(axis=(0, 1))
    shape = np.asarray(Image.fromarray(digits[one[0]]).resize((26, 26), Image.Resampling.BILINEAR), float)
    assert np.corrcoef(contrast[3:29, 3:29].ravel(), shape.ravel())[0, 1] > 0.5


# -- shapes ------------------------------------------------------------------------------------------------------------


def shapes(count: int, seed: str = "0 train") -> Split:
    return Shapes(Shapes.Options(), Files(Path())).compose("train", count, seed)


def test_the_pixels_of_shapes_are_the_same_on_every_machine() -> None:
    """A change of this hash is a change of the dataset: its key must change with it."""
    split = shapes(300)
    assert hashlib.sha256(split.images.tobytes() + split.labels.astype("<i8").tobytes()).hexdigest() == SHAPES_GOLDEN


SHAPES_GOLDEN = "f1fa4562afb455ae2d5f0f0c7854b26c40ad7f5568b13f62bbaabdbed8d21488"


def test_every_class_of_shapes_is_drawn_equally_often() -> None:
    assert np.array_equal(np.bincount(shapes(200).labels), np.full(len(SHAPES) * len(TEXTURES), 10))


def test_stencils_have_the_areas_of_their_shapes() -> None:
    """Of a square from -1 to 1: the disc's, square's, triangle's, pentagram's and cross's areas in closed form."""
    t36, t72 = np.tan(np.deg2rad([36, 72]))
    areas = (
        np.pi * 0.82**2,
        1.44**2,
        27**0.5 * 0.49**2,
        5 * 0.33**2 * t36 * (1 + t36 * t72),
        8 * 0.27 * 0.92 - 1.08 * 0.27,
    )
    assert np.allclose(stencils().mean(axis=(1, 2)) / 255, np.divide(areas, 4), atol=0.005)


def test_plain_shapes_are_more_even_than_textured_ones() -> None:
    """Inside, away from the edges: a pattern deviates from its mean more than the noise over a plain colour does."""
    split = shapes(2000)
    middle = split.images[:, :, 12:20, 12:20].astype(float)
    spread = middle.std(axis=(2, 3)).mean(axis=1)
    disc = np.array([spread[split.labels == texture].mean() for texture in range(len(TEXTURES))])
    assert (disc[1:] > 1.25 * disc[0]).all()


# -- the cache of decoded splits ---------------------------------------------------------------------------------------


def small_splits() -> dict[SplitName, Split]:
    rng = np.random.default_rng(0)
    return {
        name: Split(rng.integers(0, 256, (5, 1, 4, 4), dtype=np.uint8), np.arange(5, dtype=np.int64)) for name in SPLITS
    }


def test_what_is_kept_is_not_built_again(tmp_path: Path) -> None:
    built = []

    def build() -> dict[SplitName, Split]:
        built.append(1)
        return small_splits()

    for name in SPLITS * 2:
        found = kept_split(tmp_path, "key", name, build)
        assert np.array_equal(found.images, small_splits()[name].images)
        assert not found.images.flags.writeable
    assert len(built) == 1
    assert [path.name for path in (tmp_path / "datasets").glob("*.safetensors")] == ["key.safetensors"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    kept_split(tmp_path, "key", "train", small_splits)
    path = tmp_path / "datasets" / "key.safetensors"
    whole = path.read_bytes()
    # the images of the training split begin where the header ends and the labels, which are wider, have passed
    flipped = bytearray(whole)
    flipped[-60] ^= 1
    broken = {"truncate": whole[:-7], "flip": bytes(flipped), "empty": b"", "garbage": b"\xff" * 100}
    path.write_bytes(broken[damage])
    with caplog.at_level(logging.WARNING, "stillhouse.datasets"):
        for name in SPLITS:
            assert np.array_equal(kept_split(tmp_path, "key", name, small_splits).images, small_splits()[name].images)
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict[SplitName, Split]:
        raise DataError("no")

    with pytest.raises(DataError):
        kept_split(tmp_path, "key", "train", fail)
    assert [path.suffix for path in (tmp_path / "datasets").iterdir()] == [".lock"]
    assert len(kept_split(tmp_path, "key", "train", small_splits)) == 5


@pytest.mark.timeout(30)
def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; import numpy as np\n"
        "from search.datasets.arrays import kept_split; from search.plugins import Split\n"
        "def build():\n"
        "    (Path(sys.argv[1]) / f'built-{sys.argv[2]}').touch(); time.sleep(0.5)\n"
        "    split = Split(np.ones((3, 1, 2, 2), np.uint8), np.zeros(3, np.int64))\n"
        "    return {'train': split, 'validation': split, 'test': split}\n"
        "print(kept_split(Path(sys.argv[1]), 'key', 'train', build).images.sum())\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(index)], stdout=subprocess.PIPE, text=True)
        for index in range(3)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["12"] * 3
    assert len(list(tmp_path.glob("built-*"))) == 1


# -- splitting ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), min_size=1, max_size=150),
    st.integers(0, 2**32 - 1),
    st.floats(0.01, 0.49),
    st.floats(0.01, 0.49),
)
def test_a_partition_is_one(rows: list[tuple[int, int]], seed: int, validation: float, test: float) -> None:
    labels = [number % 4 for number, _ in rows]
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number, _ in rows]
    shares: dict[SplitName, float] = {"validation": validation, "test": test}
    if min(len({d for d, at in zip(digests, labels, strict=True) if at == label}) for label in set(labels)) < 3:
        with pytest.raises(DataError, match="too few for 3 splits"):
            stratified(digests, labels, shares, seed, "abcd")
        return
    split = stratified(digests, labels, shares, seed, "abcd")
    assert sorted(index for indices in split.values() for index in indices) == list(range(len(rows)))
    sides = [{digests[index] for index in indices} for indices in split.values()]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    for indices in split.values():
        assert {labels[index] for index in indices} == set(labels)


# -- image folder ------------------------------------------------------------------------------------------------------


def test_images_are_decoded_as_pillow_shows_them(tmp_path: Path) -> None:
    data = split_tree(tmp_path / "data")
    split = folder(data, size=8).split("test")
    expected = {
        np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BICUBIC, box=(1, 0, 11, 10))).tobytes()
        for path in data.glob("test/*/*.png")
    }
    assert {image.transpose(1, 2, 0).tobytes() for image in split.images} == expected


def test_labels_follow_the_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for shade, name in ((10, "dark"), (240, "light")):
        (data / name).mkdir(parents=True)
        for index in range(6):
            Image.new("L", (9, 9), shade + index).save(data / name / f"{index}.png")
    dataset = folder(data, channels=1)
    assert dataset.info().classes == ("dark", "light")
    for name in SPLITS:
        split = dataset.split(name)
        assert np.array_equal(split.images[:, 0, 0, 0] > 128, split.labels == 1)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"),
        ("1", "png"),
        ("P", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("I;16", "png"),
        ("CMYK", "jpg"),
        ("P", "gif"),
    ],
)
def test_every_kind_of_image_is_read(mode: str, suffix: str) -> None:
    image = Image.new("L", (20, 14), 200)
    if mode == "I;16":
        image = Image.fromarray(np.full((14, 20), 200 * 257, np.uint16))
    else:
        image = image.convert("RGB").convert(mode)
    stream = io.BytesIO()
    image.save(stream, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    for channels in (1, 3):
        array = to_array(Image.open(stream), 8, channels)  # type: ignore[arg-type]
        assert array.shape == (channels, 8, 8)
        assert abs(array.mean() - 200) <= (30 if mode in ("1", "P") else 3), "two colours and palettes are dithered"


def test_other_splits_than_training_may_be_taken_from_it(tmp_path: Path) -> None:
    data = tree(tmp_path / "data" / "train", each=20).parent
    tree(data / "test", each=4, first=50_000)
    dataset = folder(data, validation=0.25)
    assert [len(dataset.split(name)) for name in SPLITS] == [30, 10, 8]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_has_several_names(tmp_path: Path, name: str) -> None:
    data = split_tree(tmp_path / "data")
    (data / "validation").rename(data / name)
    assert len(folder(data).split("validation")) == 16


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", ("bus", "train", "tram"))
    assert folder(data).info().classes == ("bus", "train", "tram")


def test_names_of_files_do_not_matter(tmp_path: Path) -> None:
    first, second = split_tree(tmp_path / "a" / "data"), split_tree(tmp_path / "b" / "data")
    for index, path in enumerate(sorted(second.glob("*/*/*.png"), reverse=True)):
        path.rename(path.with_name(f"renamed-{index}.PNG"))
    (second / "train" / "cat" / ".DS_Store").write_bytes(b"not an image")
    (second / "train" / "cat" / "notes.txt").write_text("not an image")
    assert folder(first).info().key == folder(second).info().key
    assert content(folder(first)) == content(folder(second))


def test_a_changed_file_changes_the_key(tmp_path: Path) -> None:
    data = split_tree(tmp_path / "data")
    path = data / "train" / "cat" / "0.png"
    keys = [folder(data).info().key]
    picture(77).save(path)
    keys.append(folder(data).info().key)
    path.unlink()
    keys.append(folder(data).info().key)
    assert len(set(keys)) == 3


def test_a_file_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = split_tree(tmp_path / "data")
    monkeypatch.setattr("search.datasets.pictures._SETTLED", -3600.0)
    key = folder(data).info().key
    reads: list[Path] = []
    read = Tree._beginning
    monkeypatch.setattr(Tree, "_beginning", lambda self, path: (reads.append(path), read(self, path))[1])
    assert folder(data).info().key == key
    assert reads == []
    changed = data / "train" / "cat" / "0.png"
    picture(78).save(changed)
    assert folder(data).info().key != key
    assert reads == [changed]


def test_a_file_changed_this_moment_is_read_again(tmp_path: Path) -> None:
    """Its times may be those of the version before, as coarse as clocks of file systems are."""
    data = split_tree(tmp_path / "data")
    path = data / "train" / "cat" / "0.bmp"
    picture(1).save(path)
    key = folder(data).info().key
    status = path.stat()
    picture(2).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder(data).info().key != key


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it is huge."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def saved(**arguments: Any) -> bytes:
    stream = io.BytesIO()
    picture(5, (40, 40)).save(stream, **arguments)
    return stream.getvalue()


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="text"),
        pytest.param(saved(format="PNG")[:200], id="truncated png"),
        pytest.param(saved(format="JPEG")[:500], id="truncated jpeg"),
        pytest.param(bomb(50_000, 50_000), id="bomb"),
        pytest.param(bomb(11_000, 11_000), id="bomb that Pillow only warns of"),
        pytest.param(bomb(9_500, 9_500), id="header larger than its pixels"),
        pytest.param(saved(format="EPS"), id="postscript"),
        pytest.param(bomb(0, 5), id="no width"),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_a_corrupt_image_is_named(tmp_path: Path, broken: bytes, split: SplitName) -> None:
    data = split_tree(tmp_path / "data")
    (data / split / "dog" / "broken.png").write_bytes(broken)
    with pytest.raises(DatasetCorrupt) as caught:
        folder(data).split("train")
    assert "1 of 49 images cannot be used (2.04%, and `max_bad_fraction` is 0.10%)" in caught.value.message
    assert f"{data}/{split}/dog/broken.png: " in caught.value.message
    assert caught.value.code == "DATASET_CORRUPT"
    assert not list((tmp_path / "cache" / "datasets").glob("*.safetensors"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_an_image_crashes_the_decoder(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    image = bytearray(saved(format=data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    root = tmp_path_factory.mktemp("tree").resolve()
    path = root / "image.png"
    path.write_bytes(image)
    images, broken = Tree(root, "data").decode([Picture(path, hashlib.sha256(image).hexdigest())], 8, 3)
    assert (images.shape, [*broken]) in (((1, 3, 8, 8), []), ((0, 3, 8, 8), [0]))


def _link_out(data: Path) -> None:
    picture(3).save(data.parent / "secret.png")
    (data / "train" / "cat" / "link.png").symlink_to(data.parent / "secret.png")


def _link_folder(data: Path) -> None:
    (data / "train" / "mouse").symlink_to(data / "train" / "cat")


def _link_loop(data: Path) -> None:
    (data / "train" / "cat" / "again").symlink_to(data / "train")


def _link_nowhere(data: Path) -> None:
    (data / "train" / "cat" / "gone.png").symlink_to(data / "train" / "cat" / "missing.png")


def _pipe(data: Path) -> None:
    os.mkfifo(data / "train" / "cat" / "pipe.png")


def _class_only_in_test(data: Path) -> None:
    tree(data / "test", ("mouse",), first=99_000)


def _stray_image(data: Path) -> None:
    picture(4).save(data / "train" / "stray.png")


def _stray_folder(data: Path) -> None:
    (data / "extra").mkdir()


def _empty_class(data: Path) -> None:
    (data / "train" / "mouse").mkdir()


def _two_validations(data: Path) -> None:
    tree(data / "val", first=88_000)


def _same_in_two_splits(data: Path) -> None:
    (data / "test" / "cat" / "copy.png").write_bytes((data / "train" / "cat" / "3.png").read_bytes())


def _same_in_two_classes(data: Path) -> None:
    (data / "train" / "dog" / "copy.png").write_bytes((data / "train" / "cat" / "3.png").read_bytes())


def _one_class(data: Path) -> None:
    for path in sorted(data.glob("*/dog/*")):
        path.unlink()
    for path in data.glob("*/dog"):
        path.rmdir()


@pytest.mark.parametrize(
    ("spoil", "file", "says"),
    [
        (_link_out, "train/cat/link.png", "leads out of the dataset's folder"),
        (_link_folder, "train/mouse", "link to a folder"),
        (_link_loop, "train/cat/again", "link to a folder"),
        (_link_nowhere, "train/cat/gone.png", "cannot be read"),
        (_pipe, "train/cat/pipe.png", "not a regular file"),
        (_class_only_in_test, "test/mouse", "no training images"),
        (_stray_image, "train/stray.png", "in no class"),
        (_stray_folder, "extra", "only `validation` and `test` are expected"),
        (_empty_class, "train/mouse", "no image in this folder"),
        (_two_validations, "val", "two folders for validation"),
        (_same_in_two_splits, "test/cat/copy.png", "data/train/cat/3.png, in two splits"),
        (_same_in_two_classes, "train/dog/copy.png", "data/train/cat/3.png, in two classes"),
        (_one_class, "train", "at least two classes"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    tmp_path: Path, spoil: Callable[[Path], None], file: str, says: str
) -> None:
    data = split_tree(tmp_path / "data")
    folder(data).info()
    spoil(data)
    with pytest.raises(DataError) as caught:
        folder(data).info()
    assert caught.value.file == f"{data}/{file}"
    assert says in caught.value.message


def test_errors_name_files_as_the_user_does_and_not_where_they_lie(tmp_path: Path) -> None:
    split_tree(tmp_path / "data")
    (tmp_path / "data" / "train" / "cat" / "0.png").write_bytes(b"broken")
    options = read_part(ImageFolder.Options, {"path": "data", "size": 16})
    with pytest.raises(DataError) as caught:
        ImageFolder(options, Files(tmp_path / "cache", (tmp_path,))).split("train")
    assert "data/train/cat/0.png: not an image" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_folder_outside_the_roots_is_refused(tmp_path: Path) -> None:
    data = split_tree(tmp_path / "data")
    (tmp_path / "open").mkdir()
    dataset = ImageFolder(ImageFolder.Options(path=str(data), size=16), Files(tmp_path / "cache", (tmp_path / "open",)))
    with pytest.raises(UserError) as caught:
        dataset.info()
    assert caught.value.errors[0].pointer == "/dataset/options/path"


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    data = split_tree(tmp_path / "data")
    dataset = folder(data)
    dataset.info()
    picture(79).save(data / "test" / "cat" / "0.png")
    with pytest.raises(DataError, match="changed while the dataset was read"):
        dataset.split("train")


def test_too_few_images_of_a_class_are_named(tmp_path: Path) -> None:
    data = tree(tmp_path / "data")
    tree(data, ("rare",), each=2, first=70_000)
    with pytest.raises(DataError, match="class `rare` has 2 different images, too few for 3 splits"):
        folder(data).info()


def test_memory_is_counted_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = split_tree(tmp_path / "data")
    monkeypatch.setattr(arrays, "MOST_BYTES", 48 * 3 * 100 * 100)
    monkeypatch.setattr(Tree, "decode", lambda *_: pytest.fail("decoded before memory was counted"))
    with pytest.raises(DataError, match="write `size: 100` or less") as caught:
        folder(data, size=101).split("train")
    assert caught.value.errors[0].pointer == "/dataset/options/size"


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(InvalidSpec, match="together must be below 1"):
        read_part(ImageFolder.Options, {"path": "x", "validation": 0.5, "test": 0.5})


# -- torchvision -------------------------------------------------------------------------------------------------------


def test_cifar_is_read_by_torchvision_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = zoo(cifar(tmp_path / "data", monkeypatch), "CIFAR10", tmp_path / "cache", validation=0.2)
    assert dataset.info().classes == tuple(f"class{index}" for index in range(10))
    assert dataset.info().mirror
    assert [len(dataset.split(name)) for name in SPLITS] == [80, 20, 20]
    official = datasets.CIFAR10(tmp_path / "data", train=False)
    assert np.array_equal(dataset.split("test").images, official.data.transpose(0, 3, 1, 2))
    assert dataset.split("test").labels.tolist() == official.targets


def test_a_pickle_that_is_not_the_authors_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cifar(tmp_path / "data", monkeypatch)
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cbuiltins\nexec\n(S'raise SystemExit(3)'\ntR.")
    with pytest.raises(DataError, match="not found or corrupted"):
        zoo(root, "CIFAR10", tmp_path / "cache").info()


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_the_old_pickles_of_mnist_are_refused(tmp_path: Path, name: str) -> None:
    root = mnist(tmp_path / "data", name)
    (root / name / "processed").mkdir()
    for part in ("training.pt", "test.pt"):
        (root / name / "processed" / part).write_bytes(b"cbuiltins\nexec\n(S'raise SystemExit(3)'\ntR.")
    with pytest.raises(DataError, match=r"`.pt` files are not read"):
        zoo(root, name, tmp_path / "cache").info()


def test_idx_files_are_read_in_order(tmp_path: Path) -> None:
    dataset = zoo(mnist(tmp_path / "data"), "FashionMNIST", tmp_path / "cache", channels=1)
    raw = (tmp_path / "data/FashionMNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:]
    assert dataset.split("test").images.tobytes() == raw
    assert dataset.info().classes[:2] == ("T-shirt/top", "Trouser")
    assert dataset.info().size == 28


def test_training_images_that_the_test_repeats_are_left_out(tmp_path: Path) -> None:
    root = mnist(tmp_path / "data")
    raw = root / "FashionMNIST" / "raw"
    test = (raw / "t10k-images-idx3-ubyte").read_bytes()
    train = bytearray((raw / "train-images-idx3-ubyte").read_bytes())
    train[16 : 16 + 784] = test[16 : 16 + 784]
    (raw / "train-images-idx3-ubyte").write_bytes(train)
    dataset = zoo(root, "FashionMNIST", tmp_path / "cache", validation=0.2)
    assert [len(dataset.split(name)) for name in SPLITS] == [49, 10, 20]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: (raw / "train-labels-idx1-ubyte").unlink(),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b"\x00" * 40),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes((raw / "train-images-idx3-ubyte").read_bytes()[:-9]),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes((raw / "train-labels-idx1-ubyte").read_bytes()),
    ],
    ids=["missing", "garbage", "truncated", "wrong labels"],
)
def test_damaged_official_files_are_refused(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    root = mnist(tmp_path / "data")
    spoil(root / "FashionMNIST" / "raw")
    with pytest.raises(DataError, match="missing or damaged"):
        zoo(root, "FashionMNIST", tmp_path / "cache").split("train")


def test_labels_that_do_not_occur_are_no_classes(tmp_path: Path) -> None:
    """EMNIST's list of letters begins with a class that no image has."""
    root = mnist(tmp_path / "data", "EMNIST")
    raw = root / "EMNIST" / "raw"
    for part, official in (("train", "train"), ("t10k", "test")):
        for kind in ("images-idx3", "labels-idx1"):
            content = bytearray((raw / f"{part}-{kind}-ubyte").read_bytes())
            if kind == "labels-idx1":
                content[8:] = bytes(label + 1 for label in content[8:])
            (raw / f"emnist-letters-{official}-{kind}-ubyte").write_bytes(content)
    dataset = zoo(root, "EMNIST-letters", tmp_path / "cache", validation=0.2)
    assert dataset.info().classes == tuple("abcdefghij")
    assert set(dataset.split("test").labels.tolist()) == set(range(10))


def eurosat(root: Path) -> Path:
    return tree(root / "eurosat" / "2750", ("Forest", "River"), each=20).parents[1]


def test_a_dataset_of_files_without_official_splits(tmp_path: Path) -> None:
    dataset = zoo(eurosat(tmp_path / "data"), "EuroSAT", tmp_path / "cache", validation=0.1, test=0.25, size=8)
    assert dataset.info().classes == ("Forest", "River")
    assert [len(dataset.split(name)) for name in SPLITS] == [26, 4, 10]


def test_a_corrupt_file_of_a_dataset_is_named(tmp_path: Path) -> None:
    root = eurosat(tmp_path / "data")
    (root / "eurosat/2750/River/3.png").write_bytes(b"broken")
    with pytest.raises(DatasetCorrupt, match="1 of 40 images") as caught:
        zoo(root, "EuroSAT", tmp_path / "cache").split("train")
    assert f"{root}/eurosat/2750/River/3.png: not an image" in caught.value.message
    dataset = zoo(root, "EuroSAT", tmp_path / "cache", max_bad_fraction=0.03)
    assert sum(len(dataset.split(name)) for name in SPLITS) == 39
    skipped = zoo(root, "EuroSAT", tmp_path / "cache", max_bad_fraction=0.03).skipped()
    assert (skipped.count, skipped.images) == (1, 40)
    assert [fault.file for fault in skipped.faults] == ["eurosat/2750/River/3.png"]


def test_an_official_validation_part_is_used(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number, part in enumerate(("train", "valid", "test")):
        tree(root / "country211" / part, ("AD", "CH"), each=3 + number, first=5000 * number)
    dataset = zoo(root, "Country211", tmp_path / "cache", size=8)
    assert [len(dataset.split(name)) for name in SPLITS] == [6, 8, 10]


def test_links_out_of_a_dataset_are_refused(tmp_path: Path) -> None:
    root = mnist(tmp_path / "data")
    (root / "FashionMNIST" / "raw").rename(tmp_path / "elsewhere")
    (root / "FashionMNIST" / "raw").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of the dataset's folder"):
        zoo(root, "FashionMNIST", tmp_path / "cache").info()


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="leads out of the dataset's folder"):
        Tree(tmp_path, "data").images(tmp_path)


def test_the_server_does_not_say_where_its_folders_are(tmp_path: Path) -> None:
    root = mnist(tmp_path / "data")
    (root / "FashionMNIST/raw/train-labels-idx1-ubyte").write_bytes(b"")
    options = read_part(Torchvision.Options, {"dataset": "FashionMNIST", "root": "data"})
    with pytest.raises(DataError) as caught:
        Torchvision(options, Files(tmp_path / "cache", (tmp_path,))).info()
    assert str(tmp_path) not in caught.value.message


def test_usps_is_read_only_when_it_is_the_authors_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / "data" / name).write_bytes(b"BZh9")
    with pytest.raises(DataError, match="not the authors' file"):
        zoo(tmp_path / "data", "USPS", tmp_path / "cache").info()


@pytest.mark.parametrize("name", ["SEMEION", "USPS", "SVHN"])
def test_a_file_that_is_missing_is_not_fetched(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("something was fetched"))
    (tmp_path / SOURCES[name].files[-1]).write_bytes(b"not the authors' file")
    with pytest.raises(DataError):
        zoo(tmp_path, name, tmp_path / "cache").info()


def test_nothing_is_fetched_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="write `download: true`") as caught:
        zoo(None, "CIFAR10", tmp_path / "cache").info()
    assert caught.value.errors[0].pointer == "/dataset/options"


def test_a_download_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    fetched: list[Path] = []

    def fetch(self: datasets.MNIST) -> None:
        if "t10k-images-idx3-ubyte" not in {path.name for path in Path(self.raw_folder).glob("*")}:
            fetched.append(Path(self.root))
            mnist(Path(self.root))
            if len(fetched) == 1:
                raise OSError("the line is dead")

    monkeypatch.setattr(datasets.FashionMNIST, "download", fetch)
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        zoo(None, "FashionMNIST", cache, download=True).info()
    assert "the line is dead" in caught.value.message
    assert not list((cache / "torchvision").glob("*MNIST/*"))
    for _ in range(2):
        assert len(zoo(None, "FashionMNIST", cache, download=True).split("test")) == 20
    assert len(fetched) == 2
    assert len(zoo(None, "FashionMNIST", cache).split("test")) == 20


@pytest.mark.parametrize(
    ("options", "pointer", "says"),
    [
        ({"dataset": "CIFAR1O"}, "/dataset", 'did you mean "CIFAR10"?'),
        ({"dataset": "XYZ"}, "/dataset", "those read here are"),
        ({"dataset": "MNIST", "root": "x", "download": True}, "", "either `root` or `download: true`"),
        ({"dataset": "MNIST", "channels": 2}, "/channels", "must be 1 or 3"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], pointer: str, says: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read_part(Torchvision.Options, options)
    assert caught.value.errors[0].pointer == pointer
    assert says in caught.value.errors[0].message


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_name_is_torchvisions_and_takes_these_arguments(tmp_path: Path, name: str) -> None:
    """An empty folder must be found empty, not an argument be unknown."""
    source = SOURCES[name]
    loader = getattr(datasets, source.loader)
    for arguments in source.parts.values():
        with pytest.raises((RuntimeError, FileNotFoundError)):
            loader(root=str(tmp_path), download=False, **arguments)
    with pytest.raises(DataError, match="there are no files of"):
        zoo(tmp_path, name, tmp_path / "cache").info()
