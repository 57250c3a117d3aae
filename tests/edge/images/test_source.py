"""Training and the edge read every source in the same way, including unusual ones."""

from __future__ import annotations

import gzip
import io
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import SourceError
from vaekit.images import dataset
from vaekit.images import source as sources
from vaekit.images.dataset import open_source
from vaekit.images.stream import ImageStream

Pixels = NDArray[np.uint8]
Make = Callable[[Path], str | Path]
"""Writes files to a folder and returns the name of the source."""


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


GREY = noise(6, 9, 11)
RGB = noise(6, 9, 11, 3)


def npy(array: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def idx(array: Pixels) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def encrypted(archive: bytes, member: str) -> bytes:
    """The archive with one member marked as encrypted."""
    data = bytearray(archive)
    name = f"{member}.npy".encode()
    data[data.index(name) - 30 + 6] |= 1  # in the local header,
    data[data.rindex(name) - 46 + 8] |= 1  # and in the directory at the end
    return bytes(data)


def a_file(name: str, data: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def files(named: str, **contents: bytes) -> Make:
    """A source named by a path or pattern in a folder of files; ``__`` in a keyword is ``/``."""

    def make(folder: Path) -> str:
        for place, data in contents.items():
            path = folder / place.replace("__", "/").replace("_png", ".png").replace("_txt", ".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return f"{folder}/{named}"

    return make


def literally(name: str) -> Make:
    return lambda folder: name


class Read(NamedTuple):
    """The images that a consumer read from a source."""

    pixels: Pixels
    labels: list[str] | None
    """Class names, empty for an unlabelled image."""
    unreadable: list[str]


def read_for_training(source: str) -> Read:
    images = open_source(source)
    labels = None
    if images.labels is not None:
        named = (images.label_names[n] if images.label_names and n >= 0 else n for n in images.labels.tolist())
        labels = ["" if images.label_names and name == -1 else str(name) for name in named]
    return Read(images.read(range(len(images))), labels, list(images.skipped))


def read_at_the_edge(source: str, shape: tuple[int, int, int]) -> Read:
    with ImageStream([source], shape) as images:
        chunks = list(images.chunks())
    labels = None if chunks[0].labels is None else [name for chunk in chunks for name in chunk.labels or ()]
    return Read(
        np.concatenate([chunk.pixels for chunk in chunks]),
        labels,
        [failure for chunk in chunks for failure in chunk.failures],
    )


def assert_both_read(source: str, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read a source for training, in memory and not, and at the edge; return the result, which must be the same."""
    training = read_for_training(source)
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "available_memory", lambda: 0)
        by_number = read_for_training(source)
    channels, height, width = training.pixels.shape[1:]
    edge = read_at_the_edge(source, (channels, height, width))
    for other in (by_number, edge):
        assert np.array_equal(training.pixels, other.pixels)
        assert training[1:] == other[1:]
    return training


def assert_both_refuse(source: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Check that both consumers refuse a source with the same message, and return it."""
    lines = []
    for read in (read_for_training, lambda source: read_at_the_edge(source, (1, 9, 11))):
        with pytest.raises(SourceError) as caught:
            read(source)
        lines.append(str(caught.value))
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "available_memory", lambda: 0)
        with pytest.raises(SourceError):
            read_for_training(source)
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    return lines[0]


NUMBERS = ["0", "1", "2", "0", "1", "2"]
WORDS = np.array(["dog", "cat", "ant", "dog", "cat", "ant"])
THREE = np.arange(6) % 3


def with_labels(labels: NDArray[Any]) -> Make:
    return a_file("a.npz", npz(images=GREY, labels=labels))


LABELS: dict[str, tuple[NDArray[Any], list[str]]] = {
    "words": (WORDS, WORDS.tolist()),
    "words of bytes": (WORDS.astype("S"), WORDS.tolist()),
    "a column of words": (WORDS[:, None], WORDS.tolist()),
    "words, some empty": (np.where(WORDS == "ant", "", WORDS), ["dog", "cat", "", "dog", "cat", ""]),
    "numbers": (THREE, NUMBERS),
    "numbers of the other order": (THREE.astype(">i2"), NUMBERS),
    "numbers, some negative": (THREE - 1, ["-1", "0", "1", "-1", "0", "1"]),
    "a column": (THREE[:, None].astype(np.uint8), NUMBERS),
    "a column of floats": (THREE[:, None].astype(np.float32), NUMBERS),
    "one-hot": (np.eye(3)[THREE], NUMBERS),
    "one-hot booleans": (np.eye(3, dtype=bool)[THREE], NUMBERS),
    "booleans": (THREE == 1, ["0", "1", "0", "0", "1", "0"]),
    "whole floats": (THREE.astype(np.float64), NUMBERS),
    "fractions": (THREE / 4, ["0.0", "0.25", "0.5"] * 2),
}


@pytest.mark.parametrize("what", LABELS)
def test_labels_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    labels, names = LABELS[what]
    read = assert_both_read(str(with_labels(labels)(tmp_path)), monkeypatch)
    assert np.array_equal(read.pixels, GREY[:, None])
    assert read.labels == names


def test_words_are_numbered_in_their_order(tmp_path: Path) -> None:
    images = open_source(str(with_labels(np.where(WORDS == "cat", "", WORDS))(tmp_path)))
    assert images.label_names == ("ant", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [1, -1, 0, 1, -1, 0]


ARRAYS: dict[str, Make] = {
    "X.NPY": a_file("X.NPY", npy(GREY)),
    "X.NPZ": a_file("X.NPZ", npz(images=GREY)),
    "one array of any name": a_file("a.npz", npz(pictures=GREY)),
    "columns first": a_file("a.npy", npy(np.asfortranarray(GREY))),
    "columns first, in an archive": a_file("a.npz", npz(images=np.asfortranarray(GREY))),
    "columns first, one channel": a_file("a.npy", npy(np.asfortranarray(GREY[..., None]))),
    "a gzipped .npy": a_file("a.npy", gzip.compress(npy(GREY))),
    "floats": a_file("a.npy", npy((GREY / 255).astype(np.float32))),
    "floats of the other order": a_file("a.npy", npy((GREY / 255).astype(">f4"))),
    "doubles of the other order": a_file("a.npz", npz(images=(GREY / 255).astype(">f8"))),
    "half floats": a_file("a.npy", npy((GREY / 255).astype(np.float16))),
    "long doubles": a_file("a.npy", npy((GREY / 255).astype(np.longdouble))),
    "one channel first": a_file("a.npy", npy(GREY[:, None])),
    "one channel last": a_file("a.npy", npy(GREY[..., None])),
    "more than the rows": a_file("a.npy", npy(GREY) + b"more"),
    "IDX": a_file("a", idx(GREY)),
    "IDX of four axes": a_file("a", idx(GREY[..., None])),
    "IDX, gzipped, of any name": a_file("a.png", gzip.compress(idx(GREY))),
    "a folder of IDX": files("", **{"t10k-images-idx3-ubyte": idx(GREY)}),
    "a folder of two parts": files(
        "", **{"train-images.idx3-ubyte": idx(GREY), "t10k-images.idx3-ubyte": idx(GREY[:2])}
    ),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    read = assert_both_read(str(ARRAYS[what](tmp_path)), monkeypatch)
    assert np.array_equal(read.pixels, GREY[:, None])
    assert read.labels is None


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_colours_in_every_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[..., Pixels], axes: tuple[int, ...]
) -> None:
    source = a_file("a.npy", npy(layout(RGB.transpose(axes))))(tmp_path)
    assert np.array_equal(assert_both_read(str(source), monkeypatch).pixels, RGB.transpose(0, 3, 1, 2))


def test_the_labels_beside_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(GREY)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(THREE.astype(np.uint8))))
    assert assert_both_read(str(folder), monkeypatch).labels == NUMBERS
    assert assert_both_read(str(folder / "train-images-idx3-ubyte.gz"), monkeypatch).labels == NUMBERS
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path))
    assert assert_both_read("fashion-mnist", monkeypatch).labels == ["T-shirt", "trouser", "pullover"] * 2
    assert open_source("fashion-mnist").label_names[-1] == "ankle boot"


def test_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SHAPES_COUNT", 20)
    read = assert_both_read("shapes", monkeypatch)
    assert read.pixels.shape == (20, 3, 32, 32)
    assert set(read.labels or ()) == {"circle", "square", "triangle"}


ONE, OTHER = png(GREY[0]), png(GREY[1])

PICTURES: dict[str, tuple[Make, int, list[str] | None]] = {
    "a picture": (a_file("a.png", ONE), 1, None),
    "a picture under another suffix": (a_file("photo.dat", ONE), 1, None),
    "a picture without a suffix": (a_file("photo", ONE), 1, None),
    "a picture with a glob's characters": (a_file("photo[1]", ONE), 1, None),
    "a picture under a text's suffix": (a_file("letter.txt", ONE), 1, None),
    "a flat folder": (files("", a_png=ONE, b_png=OTHER), 2, None),
    "a folder of one class": (files("", cat__a_png=ONE, cat__b_png=OTHER), 2, ["cat", "cat"]),
    "a folder of classes": (files("", dog__a_png=ONE, cat__b_png=OTHER), 2, ["cat", "dog"]),
    "deep classes": (files("", b__c__a_png=ONE, b__a_png=OTHER), 2, ["b", str(Path("b/c"))]),
    "pictures beside classes": (files("", a_png=ONE, cat__b_png=OTHER), 2, [".", "cat"]),
    "a class of more names than its neighbour": (files("", **{"cat-2__a_png": ONE, "cat__a_png": OTHER}), 2, None),
    "a folder with other files": (files("", a_png=ONE, b_txt=OTHER, c=OTHER), 1, None),
    "a folder with a trailing slash": (files("pets/", pets__cat__a_png=ONE, pets__dog__a_png=ONE), 2, ["cat", "dog"]),
    "a folder named as a picture": (files("a.png", a_png__b_png=ONE), 1, None),
    "a folder with a broken picture": (files("", cat__a_png=ONE, dog__b_png=b"", dog__c_png=ONE), 2, ["cat", "dog"]),
    "a glob": (files("*.png", a_png=ONE, b_png=OTHER), 2, None),
    "a glob with other files": (files("*", a_png=ONE, b_txt=OTHER, c=OTHER, cat__a_png=ONE), 1, None),
    "a glob of folders": (files("*/*", **{"cat-2__a_png": OTHER, "cat__a_png": ONE}), 2, None),
    "a glob of any depth": (files("**/*.png", a_png=ONE, b__c_png=OTHER, b__d__e_png=ONE), 3, None),
    "a glob with a broken picture": (files("*.png", a_png=ONE, b_png=OTHER[:60]), 1, None),
}


@pytest.mark.parametrize("what", PICTURES)
def test_pictures_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    make, count, labels = PICTURES[what]
    read = assert_both_read(str(make(tmp_path)), monkeypatch)
    assert len(read.pixels) == count
    assert len(read.unreadable) == (1 if "broken" in what else 0)
    if labels is not None:
        assert read.labels == labels
    elif "class" not in what:
        assert read.labels is None


def test_folders_and_globs_have_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = ("cat/1.png", "cat/2.png", "cat-2/1.png", "cat.old/1.png", "dog/1.png")
    for place, pixels in zip(places, GREY, strict=False):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(png(pixels))
    assert np.array_equal(assert_both_read(f"{tmp_path}/*/*.png", monkeypatch).pixels[:, 0], GREY[[0, 1, 2, 3, 4]])


@pytest.fixture
def deep_folder(tmp_path: Path) -> Iterator[Path]:
    """A picture below more folders than Python has frames for; removed one by one, as rmtree needs the frames too."""
    before, depth = Path.cwd(), sys.getrecursionlimit() + 200
    os.chdir(tmp_path)
    try:
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("a.png").write_bytes(ONE)
        os.chdir(tmp_path)
        yield tmp_path
        os.chdir(tmp_path / ("d/" * depth))
        Path("a.png").unlink()
        for _ in range(depth):
            os.chdir("..")
            Path("d").rmdir()
    finally:
        os.chdir(before)


def test_a_very_deep_folder(deep_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(deep_folder)
    assert len(assert_both_read(".", monkeypatch).pixels) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe needs POSIX")
def test_a_pipe_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "is not a source of images" in assert_both_refuse(str(tmp_path / "a.png"), monkeypatch)


STRUCTURED = np.zeros((6, 9, 11), [("red", "u1"), ("green", "u1")])
PICKLED = np.array([None] * 6)

REFUSED: dict[str, tuple[Make, str]] = {
    "no name": (literally(""), "the name of a source is empty"),
    "a NUL byte": (literally("a\0b"), "there is no source"),
    "a NUL byte in a glob": (literally("a\0b/*.png"), "there is no source"),
    "a name too long": (literally("n" * 300), "there is no source nnn"),
    "a path too long": (literally("n/" * 5_000), "there is no source n/n"),
    "a .npy with a name too long": (literally("n" * 300 + ".npy"), "there is no source nnn"),
    "a glob too long": (literally("n" * 300 + "/*"), "there is no source nnn"),
    "an empty folder": (files("empty", empty__b_txt=ONE), "empty holds no images"),
    "a glob of other files": (files("*", a_txt=ONE, b=ONE), "matches no pictures"),
    "a glob of arrays": (files("*.npy", **{"a.npy": npy(GREY)}), "matches no pictures"),
    "a glob of nothing": (files("*.png"), "there is no source"),
    "an encrypted .npz": (a_file("a.npz", encrypted(npz(images=GREY), "images")), "a.npz cannot be read.*encrypted"),
    "encrypted labels": (
        a_file("a.npz", encrypted(npz(images=GREY, labels=THREE), "labels")),
        "the labels in .*a.npz cannot be used: .*encrypted",
    ),
    "pickled images": (a_file("a.npy", npy(PICKLED)), "a.npy holds pickled objects"),
    "pickled labels": (with_labels(PICKLED), "the labels in .*a.npz cannot be used: .* pickled objects"),
    "too few labels": (with_labels(THREE[:4]), r"a.npz has 6 images but labels of shape \(4,\)"),
    "one label": (with_labels(np.array(3)), "the labels in .*a.npz cannot be used: .*single number"),
    "labels neither one-hot nor a column": (with_labels(np.ones((6, 2))), r"labels of shape \(6, 2\)"),
    "labels of three axes": (with_labels(np.ones((6, 1, 1))), r"labels of shape \(6, 1, 1\)"),
    "labels that are dates": (with_labels(THREE.astype("M8[D]")), r"a.npz has labels of type datetime64\[D\]"),
    "complex labels": (with_labels(THREE.astype("c8")), "a.npz has labels of type complex64"),
    "structured labels": (with_labels(STRUCTURED[:, 0, 0]), r"a.npz has labels of type \["),
    "cut labels": (
        files(
            "train-images-idx3-ubyte",
            **{"train-images-idx3-ubyte": idx(GREY), "train-labels-idx1-ubyte": idx(THREE.astype(np.uint8))[:-1]},
        ),
        "train-labels-idx1-ubyte is cut short",
    ),
    "other IDX beside": (
        files(
            "train-images-idx3-ubyte",
            **{"train-images-idx3-ubyte": idx(GREY), "train-labels-idx1-ubyte": idx(GREY)},
        ),
        r"has 6 images but labels of shape \(6, 9, 11\)",
    ),
    "no images": (a_file("a.npy", npy(GREY[:0])), "a.npy holds no images"),
    "no images in IDX": (a_file("a", idx(GREY[:0])), "a holds no images"),
    "no images in an archive": (a_file("a.npz", npz(images=GREY[:0], labels=THREE[:0])), "a.npz holds no images"),
    "images of 16x3": (a_file("a.npy", npy(noise(5, 16, 3))), "a.npy has images of 16x3: they need at least 8x8"),
    "one image of 16x3": (a_file("a.npz", npz(images=noise(1, 16, 3))), "16x3: they need at least 8x8"),
    "images of 7x8": (a_file("a", idx(noise(5, 7, 8))), "7x8: they need at least 8x8"),
    "images without pixels": (a_file("a.npy", npy(noise(5, 0, 8))), "0x8: they need at least 8x8"),
    "one image as a matrix": (a_file("a.npy", npy(noise(16, 16))), r"a.npy has the shape \(16, 16\)"),
    "a number": (a_file("a.npy", npy(np.array(3, np.float32))), "a.npy holds a single number"),
    "structured pixels": (a_file("a.npy", npy(STRUCTURED)), "a.npy has pixels of type"),
    "pixels that are rows": (
        a_file("a.npy", npy(GREY.astype("<f8")).replace(b"'<f8'", b"'8u1'")),
        "a.npy has pixels of type",
    ),
    "pixels of 64 bits": (a_file("a.npy", npy(GREY.astype(np.int64))), "a.npy has pixels of type int64"),
    "pixels that are words": (a_file("a.npy", npy(np.full((6, 9, 11), "a"))), "a.npy has pixels of type <U1"),
    "dates for pixels": (a_file("a.npy", npy(GREY.astype("M8[s]"))), "a.npy has pixels of type datetime64"),
    "an empty file": (a_file("a.npy", b""), "a.npy cannot be read"),
    "an empty archive": (a_file("a.npz", b""), "a.npz cannot be read"),
    "an archive of no arrays": (a_file("a.npz", npz()), "a.npz holds nothing"),
    "an archive of several arrays": (a_file("a.npz", npz(x=GREY, y=GREY)), "a.npz holds x, y: name the array"),
    "a .npy named .npz": (a_file("a.npz", npy(GREY)), "a.npz cannot be read"),
    "a .npz named .npy": (a_file("a.npy", npz(images=GREY)), "a.npy cannot be read"),
    "text named .npy": (a_file("a.npy", b"1 2 3"), "a.npy cannot be read"),
    "a picture named .npy": (a_file("a.npy", ONE), "a.npy cannot be read"),
    "a gzipped file named .npy": (a_file("a.npy", gzip.compress(b"1 2 3")), "a.npy cannot be read"),
    "IDX of other numbers in a folder": (
        files("", **{"train-images-idx3-ubyte": b"\0\0\x0d\x03" + bytes(40)}),
        "train-images-idx3-ubyte is not an IDX file of unsigned bytes",
    ),
    "IDX that ends in its header": (a_file("a", idx(GREY)[:9]), "a is cut short"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_both_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    make, reason = REFUSED[what]
    assert_both_refuse_for(reason, str(make(tmp_path)), monkeypatch)


def assert_both_refuse_for(reason: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = assert_both_refuse(source, monkeypatch)
    with pytest.raises(SourceError, match=f"(?s){reason}"):
        raise SourceError(line)


CUT: dict[str, tuple[str, bytes]] = {
    ".npy": ("a.npy", npy(GREY)[:-1]),
    ".npy of columns": ("a.npy", npy(np.asfortranarray(GREY))[:-1]),
    "gzipped .npy": ("a.npy", gzip.compress(npy(GREY))[:-99]),
    "gzipped .npy of another sum": ("a.npy", gzip.compress(npy(GREY))[:-8] + bytes(8)),
    "IDX": ("a", idx(GREY)[:-1]),
    "gzipped IDX": ("a", gzip.compress(idx(GREY))[:-9]),
    "IDX that goes on": ("a", idx(GREY) + b"\0"),
    "gzipped IDX that goes on": ("a", gzip.compress(idx(GREY) + b"\0")),
    "archive": ("a.npz", npz(images=GREY)[:-9]),
    "gzipped .npy that goes on": ("a.npy", gzip.compress(npy(GREY) + b"\0")),
    "huge IDX": ("a", bytes((0, 0, 8, 3)) + b"\x7f" * 4 + bytes((0, 1, 0, 0)) * 2),
    "the hugest IDX": ("a", bytes((0, 0, 8, 3)) + b"\xff" * 4 + b"\x7f" * 8),
}


@pytest.mark.parametrize("what", CUT)
def test_files_cut_short_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    assert_both_refuse_for(
        r"/a\S* (is cut short|is damaged|cannot be read)", str(a_file(*CUT[what])(tmp_path)), monkeypatch
    )


@pytest.mark.parametrize("value", [1.5, -0.25, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
def test_floats_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, dtype: str) -> None:
    pixels = (GREY / 255).astype(dtype)
    pixels[3, 2, 1] = value
    assert_both_refuse_for(
        r"a.npy has pixels from .*\[0, 1\]", str(a_file("a.npy", npy(pixels))(tmp_path)), monkeypatch
    )


@pytest.mark.parametrize("data", [b"1,2,3", b""])
def test_a_file_that_is_no_picture(tmp_path: Path, data: bytes) -> None:
    """In training this is an error. At the edge it is one failure among other images."""
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.csv is not a source of images"):
        open_source(str(tmp_path / "a.csv"))
    read = read_at_the_edge(str(tmp_path / "a.csv"), (1, 9, 11))
    assert read.unreadable == [f"{tmp_path / 'a.csv'}: not a picture in a format that vaekit reads"]


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def forbidding(folder: bytes) -> Any:
        if folder.endswith(b"locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbidding)
    assert "locked: Permission denied" in assert_both_refuse(str(tmp_path), monkeypatch)


def test_members_of_an_archive_that_are_no_arrays_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("labels", "not an array")
        archive.writestr("images.npy", npy(GREY))
    assert assert_both_read(str(tmp_path / "a.npz"), monkeypatch).labels is None
