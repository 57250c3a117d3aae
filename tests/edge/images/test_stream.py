from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import SourceError
from vaekit.images import parts, picture_parts
from vaekit.images import paths as listing
from vaekit.images import source as sources
from vaekit.images.picture import read_image
from vaekit.images.shapes import SHAPE_NAMES, draw_shapes
from vaekit.images.stream import Chunk, ImageStream
from vaekit.system import workers

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]

GREY: Shape = (1, 8, 9)
COLOUR: Shape = (3, 8, 9)

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)


class Images(NamedTuple):
    """The results of reading a stream."""

    pixels: Pixels
    paths: list[bytes]
    failures: list[str]
    labels: list[str | None]

    @property
    def names(self) -> list[str]:
        return [Path(os.fsdecode(path)).name for path in self.paths]


def joined(chunks: Iterator[Chunk], shape: Shape) -> Images:
    """Concatenate all chunks."""
    every = list(chunks)
    for chunk in every:
        assert chunk.pixels.shape == (len(chunk.paths), *shape)
        assert chunk.pixels.dtype == np.uint8
        assert chunk.consumed == len(chunk.paths) + len(chunk.failures)
        assert chunk.labels is None or len(chunk.labels) == len(chunk.paths)
    return Images(
        np.concatenate([np.empty((0, *shape), np.uint8), *(chunk.pixels for chunk in every)]),
        [path for chunk in every for path in chunk.paths],
        [failure for chunk in every for failure in chunk.failures],
        [label for chunk in every for label in chunk.labels or [None] * len(chunk.paths)],
    )


def read(*named: str | Path, shape: Shape = GREY, listed: tuple[bytes, ...] = (), resize: bool = True) -> Images:
    """Read all images of the sources."""
    with ImageStream([str(source) for source in named], shape, listed=listed, resize=resize) as images:
        found = joined(images.chunks(), shape)
        assert len(found.paths) + len(found.failures) == len(images)
    return found


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save(path: Path | bytes, number: int = 0) -> None:
    """Return a grey picture that depends only on the number."""
    where = Path(os.fsdecode(path))
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(png(picture(number)))


def picture(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, GREY[1:], np.uint8)


def idx(array: Pixels) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_CHUNK_IMAGES", 3)


# Folders


def test_folders_are_read_at_any_depth_in_the_order_of_names(tmp_path: Path) -> None:
    deep = "/".join("deeper" for _ in range(40))
    places = ("10.png", "9.png", "Z.PNG", "a.png", "b/1.png", "b/c/1.jpg", "b/d/0.png", "ä/1.png", f"ä/{deep}/1.png")
    for number, place in enumerate(places):
        save(tmp_path / place, number)
    (tmp_path / "b" / "notes.txt").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    images = read(tmp_path)
    assert images.paths == [os.fsencode(tmp_path / place) for place in places]
    assert np.array_equal(images.pixels[:, 0], [picture(number) for number in range(len(places))])
    assert images.failures == []


def test_a_folder_with_a_pictures_name_is_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "a.png" / "b.png")
    assert read(tmp_path).paths == [os.fsencode(tmp_path / "a.png" / "b.png")]


def test_subfolders_are_labels(tmp_path: Path) -> None:
    for place in ("cat/1.png", "cat/kitten/1.png", "dog/1.png"):
        save(tmp_path / place)
    assert read(tmp_path).labels == ["cat", "cat/kitten", "dog"]


def test_a_relative_folder_has_relative_paths_and_the_same_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "pets" / "cat" / "1.png")
    monkeypatch.chdir(tmp_path)
    images = read("pets/")
    assert (images.paths, images.labels) == ([b"pets/cat/1.png"], ["cat"])
    monkeypatch.chdir("pets")
    assert read(".").labels == ["cat"]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png")
    save(tmp_path / "pets" / "2.png")
    for name in ("one", "two"):
        (tmp_path / "pets" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert read(tmp_path / "pets").names == ["2.png", "1.png", "1.png"]


def test_links_back_are_not_followed(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b" / "1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "b" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "a" / "b" / "here").symlink_to(".", target_is_directory=True)
    assert read(tmp_path).paths == [os.fsencode(tmp_path / "a" / "b" / "1.png")]


def test_folders_that_link_to_each_other_are_read_once_each_way(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        save(tmp_path / name / f"{name}.png")
        (tmp_path / name / "other").symlink_to(tmp_path / other, target_is_directory=True)
    assert read(tmp_path).names == ["a.png", "b.png", "b.png", "a.png"]


def test_links_to_pictures_are_read_by_their_own_name(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "photo", 7)
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "1.png").symlink_to(tmp_path / "elsewhere" / "photo")
    images = read(tmp_path / "pets")
    assert images.names == ["1.png"]
    assert np.array_equal(images.pixels[0, 0], picture(7))


def test_links_to_nothing_are_failures_and_the_rest_goes_on(tmp_path: Path) -> None:
    save(tmp_path / "b.png")
    (tmp_path / "a.png").symlink_to("gone")
    images = read(tmp_path)
    assert images.names == ["b.png"]
    assert images.failures == [f"{tmp_path / 'a.png'}: No such file or directory"]


def test_links_to_themselves_do_not_end_the_reading_of_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "b.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    images = read(tmp_path)
    assert images.names == ["b.png"]
    assert len(images.failures) == 1
    assert images.failures[0].startswith(f"{tmp_path / 'loop.png'}: ")


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "locked" / "1.png")
    scandir = os.scandir

    def forbidding(folder: bytes) -> Any:
        if folder.endswith(b"locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbidding)
    with pytest.raises(SourceError, match=r"cannot read the folder .*locked: Permission denied"):
        read(tmp_path)


def test_an_empty_folder_is_refused_with_what_could_be_there(tmp_path: Path) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(SourceError, match=r"holds no images: vaekit reads .*\.png") as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("limit", [1, 4, 7, 14, 15, 16])
def test_more_names_than_are_sorted_at_once_are_in_order_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    names = [f"{number * 7 % 15}.png" for number in range(15)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.png").touch()
    monkeypatch.setattr(listing, "_SORTED_AT_ONCE", limit)
    expected = [os.fsencode(tmp_path / name) for name in (*sorted(names), "sub/0.png")]
    assert [failure.split(":")[0] for failure in read(tmp_path).failures] == [os.fsdecode(path) for path in expected]


# Files and globs


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a", "a.txt", "photo[1].png", "what?*.png", "a b\n.png", "ü.png"])
def test_an_explicit_file_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, 5)
    images = read(tmp_path / name)
    assert images.paths == [os.fsencode(tmp_path / name)]
    assert np.array_equal(images.pixels[0, 0], picture(5))
    assert images.labels == [None]


def test_a_folder_whose_name_has_a_globs_characters_is_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "photos[12]" / "a.png")
    assert len(read(tmp_path / "photos[12]").paths) == 1


def test_globs_are_files_in_the_order_of_names(tmp_path: Path) -> None:
    for place in ("2.png", "1.png", "b.jpg", "deep/0.png", "deep/deeper/3.png"):
        save(tmp_path / place)
    assert read(tmp_path / "*.png").names == ["1.png", "2.png"]
    assert read(tmp_path / "[1b].*").names == ["1.png", "b.jpg"]
    everything = read(tmp_path / "*")
    assert (everything.names, everything.failures) == (["1.png", "2.png", "b.jpg"], [])
    assert read(tmp_path / "**" / "*.png").names == ["1.png", "2.png", "0.png", "3.png"]


def test_a_glob_takes_pictures_by_their_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    images = read(tmp_path / "*")
    assert (images.names, images.failures) == (["a.png"], [])


def test_a_file_named_directly_that_is_no_picture_is_a_failure(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    images = read(tmp_path / "notes.txt", tmp_path / "a.png")
    assert images.names == ["a.png"]
    assert images.failures == [f"{tmp_path / 'notes.txt'}: not a picture in a format that vaekit reads"]


NO_SOURCES = ["none", "none.png", "none.npy", "none/*.png", "a.png/below", "[", "n" * 300, "n" * 5_000, "\0"]


@pytest.mark.parametrize("name", NO_SOURCES)
def test_a_source_that_is_not_there_is_refused_with_what_there_could_be(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(SourceError, match=r"there is no source .*folder.*fashion-mnist"):
        read(tmp_path / "a.png", f"{tmp_path}/{name}")


def test_no_sources_are_no_images() -> None:
    assert read().paths == []


def test_a_source_that_is_refused_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[IO[bytes]] = []
    temporary_file = tempfile.TemporaryFile

    def noted(**options: Any) -> IO[bytes]:
        opened.append(temporary_file(**options))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    with pytest.raises(SourceError, match="there is no source"):
        read(tmp_path / "none")
    assert opened
    assert all(file.closed for file in opened)


# Lists of paths


def test_a_list_of_paths_is_read_in_its_own_order(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / f"{number}.png", number)
    order = (2, 0, 3, 0)
    images = read(listed=tuple(os.fsencode(tmp_path / f"{number}.png") for number in order))
    assert images.names == [f"{number}.png" for number in order]
    assert np.array_equal(images.pixels[:, 0], [picture(number) for number in order])


def test_names_that_are_not_utf_8_are_kept_to_the_byte(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    path = folder + b"/\xe4.png"
    save(path, 3)
    for images in (
        read(listed=(path,)),
        read(os.fsdecode(path)),
        read(os.fsdecode(folder)),
        read(tmp_path),
        read(os.fsdecode(folder) + "/*.png"),
    ):
        assert images.paths == [path]
        assert np.array_equal(images.pixels[0, 0], picture(3))
    Path(os.fsdecode(path)).write_bytes(b"no picture")
    assert read(tmp_path).failures[0].startswith(os.fsdecode(path) + ": ")


def test_a_list_may_name_what_is_no_picture_and_the_rest_goes_on(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    listed = tuple(os.fsencode(tmp_path) + name for name in (b"", b"/none.png", b"/a.png", b"/" + b"n" * 300, b"/a/b"))
    images = read(listed=listed)
    assert images.names == ["a.png"]
    assert [failure.split(": ")[0] for failure in images.failures] == [
        os.fsdecode(listed[number]) for number in (0, 1, 3, 4)
    ]


def test_a_list_separated_by_nul_is_not_taken_for_one_path(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    path = os.fsencode(tmp_path / "a.png")
    with pytest.raises(SourceError, match="NUL"):
        read(listed=(path + b"\0" + path + b"\0",))


def test_a_list_of_many_paths_comes_out_whole(tmp_path: Path) -> None:
    listed = tuple(os.fsencode(tmp_path) + b"/%d" % number for number in range(250)) * 20
    with ImageStream([], GREY, listed=listed) as images:
        assert len(images) == len(listed)
        first = next(images.chunks(4_900))
    assert [failure.split(": ")[0] for failure in first.failures] == [os.fsdecode(path) for path in listed[4_900:]]


# Arrays


LAYOUTS: dict[str, Callable[[Pixels], NDArray[Any]]] = {
    "NHWC": lambda rgb: rgb,
    "NCHW": lambda rgb: rgb.transpose(0, 3, 1, 2).copy(),
    "floats": lambda rgb: (rgb / 255).astype(np.float32),
    "half floats": lambda rgb: (rgb / 255).astype(np.float16),
    "doubles of the other order": lambda rgb: (rgb / 255).astype(">f8"),
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_colour_arrays_of_every_layout_are_read(tmp_path: Path, layout: str) -> None:
    rgb = noise(7, 8, 9, 3)
    np.save(tmp_path / "a.npy", LAYOUTS[layout](rgb))
    images = read(tmp_path / "a.npy", shape=COLOUR)
    assert np.array_equal(images.pixels, rgb.transpose(0, 3, 1, 2))
    assert images.paths == [os.fsencode(f"{tmp_path}/a.npy[{number}]") for number in range(7)]
    assert images.labels == [None] * 7


@pytest.mark.parametrize("shape", [(7, 8, 9), (7, 1, 8, 9), (7, 8, 9, 1)])
def test_grey_arrays_of_every_layout_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", noise(7, 8, 9).reshape(shape))
    assert np.array_equal(read(tmp_path / "a.npy").pixels, noise(7, 8, 9)[:, None])


def test_booleans_are_black_and_white(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(7, 8, 9) > 99)
    assert np.array_equal(read(tmp_path / "a.npy").pixels, (noise(7, 8, 9) > 99)[:, None] * np.uint8(255))


@pytest.mark.parametrize("name", ["a.npz", "a.NPZ"])
def test_an_npz_has_images_and_perhaps_labels(tmp_path: Path, name: str) -> None:
    with open(tmp_path / name, "wb") as file:
        np.savez(file, other=noise(3), images=noise(7, 8, 9))
    images = read(tmp_path / name)
    assert np.array_equal(images.pixels, noise(7, 8, 9)[:, None])
    assert images.labels == [None] * 7


@pytest.mark.usefixtures("small_chunks")
def test_the_labels_of_an_npz_go_with_its_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=noise(7, 8, 9), labels=np.arange(7) * 11)
    assert read(tmp_path / "a.npz").labels == [str(11 * number) for number in range(7)]


NO_LABELS: dict[str, tuple[NDArray[Any], str]] = {
    "too few": (np.arange(3), r"has 7 images but labels of shape \(3,\)"),
    "too many axes": (np.zeros((7, 2), np.int64), r"has 7 images but labels of shape \(7, 2\)"),
    "objects": (np.array([None] * 7), "the labels in .*a.npz cannot be used: .*pickled objects"),
}


@pytest.mark.parametrize("what", NO_LABELS)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, what: str) -> None:
    labels, reason = NO_LABELS[what]
    np.savez(tmp_path / "a.npz", images=noise(7, 8, 9), labels=labels)
    with pytest.raises(SourceError, match=reason):
        read(tmp_path / "a.npz")


def test_labels_that_are_words_do_not_keep_the_images_from_being_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=noise(2, 8, 9), labels=np.array(["cat", "dog"]))
    images = read(tmp_path / "a.npz")
    assert np.array_equal(images.pixels, noise(2, 8, 9)[:, None])
    assert images.labels == ["cat", "dog"]


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_file_of_any_name_is_a_source(tmp_path: Path, zipped: bool) -> None:
    pack = gzip.compress if zipped else bytes
    (tmp_path / "digits.bin").write_bytes(pack(idx(noise(7, 8, 9))))
    images = read(tmp_path / "digits.bin")
    assert np.array_equal(images.pixels, noise(7, 8, 9)[:, None])
    assert images.labels == [None] * 7


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """A folder as the MNIST family comes: 7 images to train on and 2 to test."""
    root = tmp_path / "data" / "fashion-mnist"
    root.mkdir(parents=True)
    for part, count in (("train", 7), ("t10k", 2)):
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(noise(count, 8, 9))))
        (root / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count, dtype=np.uint8) + 3)))
    return root


def test_a_folder_of_idx_files_is_its_training_part(idx_folder: Path) -> None:
    images = read(idx_folder)
    assert np.array_equal(images.pixels, noise(7, 8, 9)[:, None])
    assert images.paths[6] == os.fsencode(f"{idx_folder}[6]")
    assert images.labels == [str(number) for number in range(3, 10)]


def test_a_named_data_set_is_found_where_the_environment_says(
    idx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAEKIT_DATA", str(idx_folder.parent))
    images = read("fashion-mnist")
    assert np.array_equal(images.pixels, noise(7, 8, 9)[:, None])
    assert images.paths == [b"fashion-mnist[%d]" % number for number in range(7)]
    assert images.labels[-2:] == ["bag", "ankle boot"]


def test_a_named_data_set_that_is_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "_DEBIAN_DATASETS", tmp_path / "none")
    with pytest.raises(SourceError, match=r"mnist is not on this machine: .*VAEKIT_DATA/mnist"):
        read("mnist")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_are_drawn_at_the_size_asked_for(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setattr(sources, "SHAPES_COUNT", 8)
    images = read("shapes", shape=(channels, 16, 24))
    drawn = draw_shapes(8, (16, 24))
    luma = np.round(drawn.images.transpose(0, 2, 3, 1) @ np.array([0.299, 0.587, 0.114]))[:, None]
    assert np.abs(images.pixels - (drawn.images if channels == 3 else luma)).max() <= 1
    assert images.paths == [b"shapes[%d]" % number for number in range(8)]
    assert images.labels == [SHAPE_NAMES[int(number)] for number in drawn.factors[:, 0]]


@pytest.mark.parametrize("shape", [(9, 11), (5, 2, 9, 11), (5, 9, 11, 4), (2, 5, 3, 9, 11), (99,), ()])
def test_arrays_of_other_layouts_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(SourceError, match=r"a\.npy (has the shape|holds a single number)"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", ["int64", "uint16", "int8", "complex64", "U3"])
def test_arrays_of_other_types_are_refused(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 8, 9), dtype))
    with pytest.raises(SourceError, match=r"a\.npy has pixels of type"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [1.5, -0.25, 255.0, float("nan"), float("inf")])
def test_floats_out_of_range_are_refused(tmp_path: Path, value: float) -> None:
    pixels = np.full((5, 8, 9), 0.5, np.float32)
    pixels[4, 7, 8] = value
    np.save(tmp_path / "a.npy", pixels)
    with pytest.raises(SourceError, match=r"a\.npy has pixels .*\[0, 1\]"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(5, 0, 9), (5, 8, 0), (5, 0, 0), (5, 3, 0, 9)])
def test_arrays_of_images_without_pixels_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(SourceError, match=r"a\.npy"):
        read(tmp_path / "a.npy")


def test_an_array_of_no_images_is_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((0, 8, 9), np.uint8))
    with pytest.raises(SourceError, match=r"a\.npy holds no images"):
        read(tmp_path / "a.npy")


def test_an_npz_of_several_arrays_without_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=noise(5, 8, 9), x_test=noise(5, 8, 9))
    with pytest.raises(SourceError, match=r"a\.npz holds x_train, x_test: name the array `images`"):
        read(tmp_path / "a.npz")


def npy_header(*shape: int) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


BAD_FILES: dict[str, tuple[str, bytes]] = {
    "an empty .npy": ("a.npy", b""),
    "an empty .npz": ("a.npz", b""),
    "text": ("a.npy", b"1 2 3"),
    "images larger than any memory": ("a.npy", npy_header(5, 10**9, 10**9)),
    "images larger than any number": ("a.npy", npy_header(5, 10**18, 10**18)),
    "more images than can be counted": ("a.npy", npy_header(2**70, 8, 9)),
    "more images than there are": ("a.npy", npy_header(10**15, 8, 9)),
    "fewer images than none": ("a.npy", npy_header(-5, 8, 9)),
    "a negative size": ("a.npy", npy_header(5, -8, 9)),
    "an IDX file's first bytes": ("a", b"\0\0\x08"),
    "an IDX file without axes": ("a", b"\0\0\x08\0"),
    "an IDX file cut short in its header": ("a", idx(noise(5, 8, 9))[:11]),
    "an IDX file cut short": ("a", idx(noise(5, 8, 9))[:-1]),
    "a gzipped IDX file cut short": ("a", gzip.compress(idx(noise(5, 8, 9)))[:-9]),
    "a huge IDX file": ("a", b"\0\0\x08\x03" + b"\xff" * 12),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_damaged_arrays_are_refused_in_one_line(tmp_path: Path, what: str) -> None:
    name, data = BAD_FILES[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_large_images_in_an_array_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    with open(tmp_path / "a.npy", "wb") as file:
        file.write(npy_header(60, 1000, 1000))
        file.truncate(file.tell() + 60 * 1000 * 1000)
    tracemalloc.start()
    try:
        assert read(tmp_path / "a.npy").pixels.shape == (60, *GREY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000


# All images get the same shape


def tiff(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (9, 8)).save(buffer, "TIFF")
    return buffer.getvalue()


def moving(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (9, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


PICTURES: dict[str, bytes] = {
    "grey.png": png(noise(8, 9)),
    "colour.png": png(noise(8, 9, 3)),
    "large.png": png(noise(30, 20, 3)),
    "small.png": png(noise(3, 4)),
    "alpha.png": png(noise(8, 9, 4)),
    "moving.gif": moving("GIF"),
    "moving.png": moving("PNG"),
    "moving.webp": moving("WEBP"),
    "deep.png": png(noise(8, 9).astype(np.uint16) * 257),
    "bits.png": png(noise(8, 9) > 99),
}


@pytest.mark.parametrize("shape", [GREY, COLOUR, (3, 16, 16), (1, 30, 11)])
def test_pictures_are_those_of_the_one_rule(tmp_path: Path, shape: Shape) -> None:
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)
    images = read(tmp_path, shape=shape)
    assert images.names == sorted(PICTURES)
    for name, pixels in zip(images.names, images.pixels, strict=True):
        assert np.array_equal(pixels, read_image(tmp_path / name, shape[0], shape[1:]))


def test_the_first_frame_of_a_moving_picture_counts_and_16_bits_become_8(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(PICTURES["moving.gif"])
    (tmp_path / "b.png").write_bytes(PICTURES["deep.png"])
    images = read(tmp_path, shape=COLOUR)
    assert np.array_equal(images.pixels[0], np.broadcast_to(np.array([255, 0, 0])[:, None, None], COLOUR))
    assert np.array_equal(images.pixels[1], np.broadcast_to(noise(8, 9), COLOUR))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize("size", [(8, 9), (16, 10), (5, 20)])
def test_images_in_arrays_and_in_files_become_the_same(
    tmp_path: Path, own: int, channels: int, size: tuple[int, int]
) -> None:
    pixels = noise(3, 12, 14, own)
    np.save(tmp_path / "a.npy", pixels)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(pixels[number].squeeze()))
    shape = (channels, *size)
    assert np.array_equal(read(tmp_path / "a.npy", shape=shape).pixels, read(tmp_path, shape=shape).pixels)


def test_the_images_of_a_chunk_are_floats_from_0_to_1(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(72, dtype=np.uint8).reshape(1, 8, 9) * 3 + 42)
    with ImageStream([str(tmp_path / "a.npy")], GREY) as images:
        (chunk,) = images.chunks()
    assert chunk.images.dtype == np.float32
    assert np.array_equal(chunk.images, chunk.pixels / np.float32(255))
    assert (chunk.images.max(), chunk.images.min()) == (1, np.float32(42) / np.float32(255))


def test_without_resizing_pictures_of_another_size_or_colour_are_failures(tmp_path: Path) -> None:
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)
    grey, colour = (read(tmp_path, shape=shape, resize=False) for shape in (GREY, COLOUR))
    assert grey.names == ["bits.png", "deep.png", "grey.png"]
    assert colour.names == ["alpha.png", "colour.png", "moving.gif", "moving.png", "moving.webp"]
    reasons = {Path(failure.split(": ")[0]).name: failure.split(": ")[1] for failure in colour.failures}
    assert reasons["large.png"] == "it is 30x20, not 8x9, and --no-resize refuses that"
    assert reasons["grey.png"] == "it is grey, the model's images are in colour, and --no-resize refuses that"


@pytest.mark.parametrize("shape", [(5, 8, 9, 3), (5, 3, 8, 9), (5, 9, 8), (5, 8, 10)])
def test_without_resizing_arrays_of_another_size_or_colour_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(SourceError, match=r"a\.npy: it is .* --no-resize refuses that"):
        ImageStream([str(tmp_path / "a.npy")], GREY, resize=False)


def test_without_resizing_arrays_that_fit_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(5, 8, 9))
    assert np.array_equal(read(tmp_path / "a.npy", resize=False).pixels, noise(5, 8, 9)[:, None])


# Unreadable images


def bomb() -> bytes:
    """Return a small PNG whose header claims 3.6 billion pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "a.png": (b"", "not a picture"),
    "b.png": (b"a recipe for soup", "not a picture"),
    "c.png": (png(noise(64, 64))[:2_000], ""),
    "d.png": (bomb(), "pixels"),
    "e.tif": (tiff("F"), "floating-point"),
    "f.gif": (PICTURES["moving.gif"][:20], ""),
}


@pytest.mark.usefixtures("small_chunks")
def test_pictures_that_cannot_be_read_are_named_with_the_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    for number, (name, (data, _)) in enumerate(UNREADABLE.items()):
        (tmp_path / name).write_bytes(data)
        save(tmp_path / f"{name[0]}2.png", number)
    tracemalloc.start()
    try:
        images = read(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert images.names == [f"{name[0]}2.png" for name in UNREADABLE]
    assert np.array_equal(images.pixels[:, 0], [picture(number) for number in range(len(UNREADABLE))])
    assert len(images.failures) == len(UNREADABLE)
    for failure, (name, (_, reason)) in zip(images.failures, UNREADABLE.items(), strict=True):
        assert failure.startswith(f"{tmp_path / name}: ")
        assert len(failure) > len(f"{tmp_path / name}: ")
        assert reason in failure
        assert "\n" not in failure


def test_a_folder_of_nothing_readable_is_all_failures(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").touch()
    images = read(tmp_path)
    assert (images.paths, len(images.failures)) == ([], 5)


# Several sources, from any start


class Mixed(NamedTuple):
    """Sources of every kind, and their expected images."""

    sources: list[str]
    listed: tuple[bytes, ...]
    pixels: Pixels
    paths: list[bytes | None]
    """The expected image, or None if it is unreadable."""
    labels: list[str | None]

    def open(self) -> ImageStream:
        return ImageStream(self.sources, GREY, listed=self.listed)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """27 images: a folder, an array, shapes, a picture, IDX, and a list of two."""
    root = tmp_path_factory.mktemp("mixed")
    folder = [root / "folder" / f"{number // 4}" / f"{number}.png" for number in range(8)]
    for number, path in enumerate([*folder, root / "one.png", root / "listed.png"]):
        save(path, number)
    folder[2].write_bytes(b"no picture")
    np.savez_compressed(root / "a.npz", images=noise(6, 8, 9), labels=np.arange(6))
    (root / "b.gz").write_bytes(gzip.compress(idx(255 - noise(4, 8, 9))))
    drawn = draw_shapes(6, GREY[1:])
    luma = np.stack([np.asarray(Image.fromarray(rgb.transpose(1, 2, 0)).convert("L")) for rgb in drawn.images])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SHAPES_COUNT", 6)
        patch.setattr(parts, "_CHUNK_IMAGES", 3)
        yield Mixed(
            [str(root / name) for name in ("folder", "a.npz")] + ["shapes", str(root / "one.png"), str(root / "b.gz")],
            (os.fsencode(root / "gone.png"), os.fsencode(root / "listed.png")),
            np.stack(
                [
                    *map(picture, range(8)),
                    *noise(6, 8, 9),
                    *luma,
                    picture(8),
                    *(255 - noise(4, 8, 9)),
                    *map(picture, (9, 9)),
                ]
            )[:, None],
            [
                *(None if path is folder[2] else os.fsencode(path) for path in folder),
                *(os.fsencode(f"{root}/a.npz[{number}]") for number in range(6)),
                *(b"shapes[%d]" % number for number in range(6)),
                os.fsencode(root / "one.png"),
                *(os.fsencode(f"{root}/b.gz[{number}]") for number in range(4)),
                None,
                os.fsencode(root / "listed.png"),
            ],
            [
                *("0" if number < 4 else "1" for number in range(8)),
                *map(str, range(6)),
                *(SHAPE_NAMES[int(number)] for number in drawn.factors[:, 0]),
                *[None] * 7,
            ],
        )


def assert_is_the_part(found: Images, mixed: Mixed, numbers: list[int]) -> None:
    good = [number for number in numbers if mixed.paths[number] is not None]
    assert found.paths == [mixed.paths[number] for number in good]
    assert np.array_equal(found.pixels, mixed.pixels[good])
    assert found.labels == [mixed.labels[number] for number in good]
    assert len(found.failures) == len(numbers) - len(good)


def test_sources_of_every_kind_follow_each_other(mixed: Mixed) -> None:
    with mixed.open() as images:
        assert len(images) == 27
        assert_is_the_part(joined(images.chunks(), GREY), mixed, list(range(27)))


@quick
@given(start=st.integers(0, 30))
def test_from_any_start_exactly_the_rest_comes(mixed: Mixed, start: int) -> None:
    with mixed.open() as images:
        assert_is_the_part(joined(images.chunks(start), GREY), mixed, list(range(start, 27)))


@quick
@given(start=st.integers(0, 30), every=st.integers(1, 30))
def test_every_nth_image_is_that_one(mixed: Mixed, start: int, every: int) -> None:
    with mixed.open() as images:
        found = joined(images.chunks(start, every=every), GREY)
        assert_is_the_part(found, mixed, list(range(start, 27, every)))


@quick
@given(st.integers(0, 20))
def test_what_is_consumed_so_far_is_where_to_go_on(mixed: Mixed, left_after: int) -> None:
    with mixed.open() as images:
        chunks = images.chunks()
        consumed = sum(chunk.consumed for chunk, _ in zip(chunks, range(left_after), strict=False))
    with mixed.open() as images:
        assert_is_the_part(joined(images.chunks(consumed), GREY), mixed, list(range(consumed, 27)))


def test_a_stream_may_be_read_more_than_once_and_side_by_side(mixed: Mixed) -> None:
    with mixed.open() as images:
        both = list(zip(images.chunks(), images.chunks(), strict=True))
        for one, other in both:
            assert (one.paths, one.failures, one.labels) == (other.paths, other.failures, other.labels)
            assert np.array_equal(one.pixels, other.pixels)
        assert sum(one.consumed for one, _ in both) == 27


def test_chunks_hold_a_bounded_number_of_images(mixed: Mixed) -> None:
    with mixed.open() as images:
        assert max(chunk.consumed for chunk in images.chunks()) == 3


def test_chunks_of_large_images_hold_fewer(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.uint8))
    with ImageStream([str(tmp_path / "a.npy")], (3, 1500, 1000)) as images:
        assert [chunk.consumed for chunk in images.chunks()] == [1, 1, 1]


@pytest.mark.parametrize("start", [0, 5])
def test_other_processes_read_the_same(mixed: Mixed, monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    monkeypatch.setattr(picture_parts, "FEW", 0)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)
    with mixed.open() as images:
        assert_is_the_part(joined(images.chunks(start), GREY), mixed, list(range(start, 27)))
    assert multiprocessing.active_children() == []


def test_a_stream_left_early_leaves_no_process_behind(mixed: Mixed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_parts, "FEW", 0)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)
    with mixed.open() as images:
        chunks = images.chunks()
        assert next(chunks).consumed == 3
        assert multiprocessing.active_children()
        chunks.close()  # type: ignore[attr-defined]  # a generator
    assert multiprocessing.active_children() == []


# Fingerprints


def fingerprint(*named: str | Path, listed: tuple[bytes, ...] = (), shape: Shape = GREY) -> str:
    with ImageStream([str(source) for source in named], shape, listed=listed) as images:
        before = images.fingerprint
        list(images.chunks())
        assert images.fingerprint == before
    return before


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder of two pictures and, beside it, an array and a picture."""
    for place in ("folder/a.png", "folder/b.png", "c.png"):
        save(tmp_path / place)
    np.save(tmp_path / "a.npy", noise(3, 8, 9))
    return tmp_path


def test_the_same_images_have_the_same_fingerprint(few: Path) -> None:
    both = (few / "folder", few / "a.npy")
    assert fingerprint(*both) == fingerprint(*both)
    assert fingerprint(few / "folder") == fingerprint(few / "folder" / "*.png")
    listed = tuple(os.fsencode(few / "folder" / name) for name in ("a.png", "b.png"))
    assert fingerprint(few / "folder") == fingerprint(listed=listed)
    assert len(fingerprint("shapes")) == 64


def test_other_images_have_another_fingerprint(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SHAPES_COUNT", 3)
    folder, array, alone = few / "folder", few / "a.npy", few / "c.png"
    found = [
        fingerprint(),
        fingerprint("shapes"),
        fingerprint(folder),
        fingerprint(alone),
        fingerprint(array),
        fingerprint(folder, array),
        fingerprint(array, folder),
        fingerprint(folder, alone),
        fingerprint(folder, folder),
        fingerprint(folder / "b.png", folder / "a.png"),
    ]
    assert len(set(found)) == len(found)


def test_a_picture_more_or_renamed_changes_the_fingerprint(few: Path) -> None:
    before = fingerprint(few / "folder")
    (few / "folder" / "notes.txt").touch()
    assert fingerprint(few / "folder") == before
    (few / "folder" / "b.png").rename(few / "folder" / "c.png")
    renamed = fingerprint(few / "folder")
    save(few / "folder" / "d.png")
    assert len({before, renamed, fingerprint(few / "folder")}) == 3


def test_an_array_written_again_changes_the_fingerprint(few: Path) -> None:
    before = fingerprint(few / "a.npy")
    stat = (few / "a.npy").stat()
    os.utime(few / "a.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000))
    touched = fingerprint(few / "a.npy")
    np.save(few / "a.npy", noise(4, 8, 9))
    os.utime(few / "a.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len({before, touched, fingerprint(few / "a.npy")}) == 3


def test_a_file_that_is_named_like_a_data_set_has_a_fingerprint_of_its_own(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SHAPES_COUNT", 1)
    assert fingerprint("shapes") != fingerprint(listed=(b"shapes",))
