from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import SourceError, UsageError
from vaekit.images import dataset
from vaekit.images import source as sources
from vaekit.images.dataset import Images, open_source
from vaekit.images.picture import read_image
from vaekit.images.shapes import SHAPE_NAMES, draw_shapes

Pixels = NDArray[np.uint8]


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def every(images: Images) -> Pixels:
    return images.read(range(len(images)))


def idx(array: Pixels) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "available_memory", lambda: 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six RGB pictures of 12 x 10 in the subfolders cat, dog and dog/puppy."""
    pixels = noise(6, 10, 12, 3)
    places = ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.PNG", "dog/puppy/5.bmp", "dog/puppy/6.png")
    for place, picture in zip(places, pixels, strict=True):
        save(tmp_path / "pets" / place, picture)
    return tmp_path / "pets"


# Folders and files of pictures


def test_subfolders_are_labels(folder: Path) -> None:
    (folder / "notes.txt").write_text("not a picture")
    images = open_source(str(folder))
    assert (len(images), images.shape, images.name) == (6, (3, 10, 12), str(folder))
    assert images.label_names == ("cat", "dog", str(Path("dog/puppy")))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(every(images), noise(6, 10, 12, 3).transpose(0, 3, 1, 2))
    assert (images.skipped, images.resized_from, images.in_memory) == ((), "", True)


def test_a_folder_without_subfolders_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(8, 8))
    save(tmp_path / "b.png", noise(8, 8))
    images = open_source(str(tmp_path))
    assert (images.labels, images.label_names) == (None, ())


def test_images_are_read_by_number_in_any_order(folder: Path) -> None:
    images = open_source(str(folder))
    assert np.array_equal(images.read([4, 1, 1]), every(images)[[4, 1, 1]])
    assert np.array_equal(images.read(np.array([5])), every(images)[5:])


def test_mixed_sizes_and_modes_become_one_form(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(20, 30))
    save(tmp_path / "b.jpg", noise(40, 17, 3))
    Image.new("RGBA", (9, 9), (255, 0, 0, 128)).save(tmp_path / "c.png")
    Image.new("CMYK", (50, 50)).save(tmp_path / "d.jpg")
    images = open_source(str(tmp_path))
    assert (len(images), images.shape) == (4, (3, 64, 64))
    assert images.resized_from == "9 x 9 (1), 20 x 30 (1), 40 x 17 (1) and 1 other size (1)"
    assert images.made_rgb == 1
    for number, name in enumerate(("a.png", "b.jpg", "c.png", "d.jpg")):
        assert np.array_equal(images.read([number])[0], read_image(tmp_path / name, 3, (64, 64)))


def test_grey_pictures_stay_grey(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(8, 9))
    Image.fromarray(noise(8, 9).astype(np.uint16) * 257).save(tmp_path / "b.png")
    images = open_source(str(tmp_path))
    assert images.shape == (1, 8, 9)
    assert np.array_equal(every(images), np.stack([noise(8, 9)[None]] * 2))


@pytest.mark.parametrize(("height", "width"), [(129, 64), (200, 300), (7, 20), (4, 4)])
def test_pictures_too_large_or_too_small_to_train_on_are_resized(tmp_path: Path, height: int, width: int) -> None:
    save(tmp_path / "a.png", noise(height, width))
    images = open_source(str(tmp_path))
    assert images.shape == (1, 64, 64)
    assert images.resized_from == f"{height} x {width}"


def test_the_size_asked_for_is_given(folder: Path) -> None:
    images = open_source(str(folder), size=(16, 9))
    assert images.shape == (3, 16, 9)
    assert images.resized_from == "10 x 12"
    assert np.array_equal(images.read([0])[0], read_image(folder / "cat/1.png", 3, (16, 9)))


def test_a_picture_that_stands_upright_by_its_exif_keeps_its_own_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(noise(12, 20)).save(tmp_path / "a.png", exif=exif)
    images = open_source(str(tmp_path / "a.png"))
    assert images.shape == (1, 20, 12)
    assert np.array_equal(every(images)[0, 0], np.rot90(noise(12, 20), -1))


def test_unreadable_pictures_are_named_and_left_out(folder: Path) -> None:
    (folder / "cat/2.png").write_bytes(b"")
    (folder / "dog/3.png").write_text("not a picture")
    (folder / "dog/broken.png").write_bytes((folder / "dog/4.PNG").read_bytes()[:60])
    images = open_source(str(folder))
    assert len(images) == 4
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 2]
    named = ("cat/2.png", "dog/3.png", "dog/broken.png")
    assert [line.split(":")[0] for line in images.skipped] == [str(folder / name) for name in named]
    assert np.array_equal(every(images), noise(6, 10, 12, 3)[[0, 3, 4, 5]].transpose(0, 3, 1, 2))


def test_a_folder_of_nothing_readable_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"no readable image.*a\.png"):
        open_source(str(tmp_path))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(SourceError, match="holds no images") as caught:
        open_source(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert ".png" in str(caught.value)


def test_a_folder_within_itself_is_read_once(folder: Path) -> None:
    (folder / "dog" / "again").symlink_to(folder, target_is_directory=True)
    assert len(open_source(str(folder))) == 6


def test_links_to_folders_elsewhere_are_followed(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/7.png", noise(10, 12, 3))
    (folder / "fox").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    images = open_source(str(folder))
    assert len(images) == 7
    assert "fox" in images.label_names


def test_a_single_picture_is_a_source(folder: Path) -> None:
    images = open_source(str(folder / "dog/3.png"))
    assert np.array_equal(every(images), noise(6, 10, 12, 3)[2:3].transpose(0, 3, 1, 2))
    assert images.labels is None


def test_a_single_picture_whose_name_looks_like_a_pattern_is_a_source(tmp_path: Path) -> None:
    save(tmp_path / "photo[1].png", noise(8, 8))
    assert len(open_source(str(tmp_path / "photo[1].png"))) == 1


def test_a_glob_is_a_source(folder: Path) -> None:
    assert len(open_source(str(folder / "*" / "*.png"))) == 3
    assert len(open_source(str(folder / "**" / "*.png"))) == 4
    (folder / "cat" / "1.txt").write_text("not a picture")
    assert len(open_source(str(folder / "cat" / "*"))) == 2


@pytest.mark.parametrize("name", ["none", "none.png", "none.npy", "none.npz", "none/*.png", "train-images-idx3-ubyte"])
def test_a_source_that_is_not_there_is_refused_with_what_there_could_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"there is no source .*folder.*fashion-mnist") as caught:
        open_source(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3")
    with pytest.raises(SourceError, match=r"a\.csv is not a source of images"):
        open_source(str(tmp_path / "a.csv"))


def test_progress_counts_every_file_twice(folder: Path) -> None:
    (folder / "cat/1.png").write_bytes(b"")
    told: list[tuple[int, int]] = []
    open_source(str(folder), progress=lambda done, total: told.append((done, total)))
    assert told == [*((number, 6) for number in range(1, 7)), (6, 6)]  # headers, then pixels of many at a time


# Leftovers of other programs


def litter(folder: Path) -> None:
    """Leave what a Mac and a notebook leave in a folder of two classes."""
    for name in ("cat/._1.png", "dog/._3.png", ".DS_Store", "cat/.hidden.JPG", "__MACOSX/cat/._1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7" + bytes(120))
    for name in ("cat/.ipynb_checkpoints/1-checkpoint.png", ".cache/5.png", "__MACOSX/fox/6.png"):
        save(folder / name, noise(10, 12, 3))


def test_leftovers_of_other_programs_are_passed_over_and_counted(folder: Path) -> None:
    before = open_source(str(folder))
    assert before.left_out == ""
    litter(folder)
    images = open_source(str(folder))
    assert images.left_out == "skipped 3 pictures and 3 folders (names with a leading dot, or __MACOSX)"
    assert images.skipped == ()
    assert images.fingerprint() == before.fingerprint()
    assert images.label_names == before.label_names
    assert images.class_count == 3


def test_a_folder_that_is_named_is_read_whatever_its_name(folder: Path) -> None:
    litter(folder)
    assert len(open_source(str(folder / ".cache"))) == 1
    assert len(open_source(str(folder / "__MACOSX"))) == 1
    assert open_source(str(folder / ".cache" / "5.png")).left_out == ""


def test_a_folder_of_leftovers_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "._a.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"holds no images.*skipped 1 picture \(names with a leading dot"):
        open_source(str(tmp_path))


def test_patterns_pass_leftovers_over(folder: Path) -> None:
    litter(folder)
    assert len(open_source(f"{folder}/*/*.png")) == 3
    images = open_source(f"{folder}/*/*/*.png")
    assert (len(images), images.left_out) == (1, "skipped 1 picture (names with a leading dot, or __MACOSX)")
    assert len(open_source(f"{folder}/__MACOSX/*/*.png")) == 1
    assert len(open_source(f"{folder}/.cache/*.png")) == 1


def test_leftovers_beside_idx_files_are_passed_over(tmp_path: Path) -> None:
    images = noise(3, 9, 11)
    header = bytes((0, 0, 8, 3)) + b"".join(length.to_bytes(4, "big") for length in images.shape)
    (tmp_path / "numbers-idx3-ubyte").write_bytes(header + images.tobytes())
    (tmp_path / "._numbers-idx3-ubyte").write_bytes(b"\0\5\x16\7" + bytes(120))
    assert len(open_source(str(tmp_path))) == 3


def test_only_classes_with_readable_images_count(folder: Path) -> None:
    (folder / "wolf").mkdir()
    (folder / "fox").mkdir()
    (folder / "fox" / "a.png").write_bytes(b"no picture")
    assert open_source(str(folder)).class_count == 3


# All headers are read


def a_thousand_and_one(folder: Path, odd: int, other: Pixels) -> None:
    """Write small grey pictures, of which one is another."""
    usual = save(folder / "0000.png", noise(8, 8)).read_bytes()
    for number in range(1001):
        (folder / f"{number:04}.png").write_bytes(usual)
    save(folder / f"{odd:04}.png", other)


@pytest.mark.parametrize("odd", [0, 601, 1000])
def test_one_picture_in_colour_among_a_thousand_is_not_turned_grey(tmp_path: Path, odd: int) -> None:
    a_thousand_and_one(tmp_path, odd, noise(8, 8, 3))
    images = open_source(str(tmp_path))
    assert images.shape == (3, 8, 8)
    assert images.made_rgb == 1000
    assert np.array_equal(images.read([odd])[0], noise(8, 8, 3).transpose(2, 0, 1))
    assert (images.resized_from, images.left_out) == ("", "")


def test_one_picture_of_another_size_among_a_thousand_is_counted(tmp_path: Path) -> None:
    a_thousand_and_one(tmp_path, 601, noise(9, 8))
    images = open_source(str(tmp_path))
    assert images.shape == (1, 64, 64)
    assert images.resized_from == "8 x 8 (1,000) and 9 x 8 (1)"
    assert images.made_rgb == 0


def test_pictures_in_pairs_are_counted(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / f"{number}_mask.png", noise(16, 16))
        save(tmp_path / f"{number}_photo.png", noise(32, 24, 3))
    images = open_source(str(tmp_path))
    assert images.shape == (3, 64, 64)
    assert images.resized_from == "16 x 16 (4) and 32 x 24 (4)"
    assert images.made_rgb == 4
    assert open_source(str(tmp_path), size=(16, 16)).resized_from == "32 x 24 (4)"


# Sizes


@pytest.mark.parametrize("size", [(7, 64), (64, 7), (0, 0), (1, 1)])
@pytest.mark.parametrize("source", ["shapes", "none"])
def test_a_size_under_8_is_a_wrong_option(size: tuple[int, int], source: str) -> None:
    with pytest.raises(UsageError, match=f"{size[0]}x{size[1]}"):
        open_source(source, size=size)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7), (1, 100)])
def test_an_array_of_smaller_images_than_8_is_refused(tmp_path: Path, height: int, width: int) -> None:
    np.save(tmp_path / "a.npy", noise(3, height, width))
    with pytest.raises(SourceError, match=f"{height}x{width}"):
        open_source(str(tmp_path / "a.npy"))


# Shapes


def test_shapes_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SHAPES_COUNT", 50)
    images = open_source("shapes")
    drawn = draw_shapes(50)
    assert (len(images), images.shape, images.label_names) == (50, (3, 32, 32), SHAPE_NAMES)
    assert np.array_equal(every(images), drawn.images)
    assert images.labels is not None
    assert np.array_equal(images.labels, drawn.factors[:, 0])
    assert open_source("shapes", size=(16, 24)).shape == (3, 16, 24)


@pytest.mark.usefixtures("short_of_memory")
def test_shapes_are_drawn_when_asked_for_where_memory_is_short() -> None:
    images = open_source("shapes", size=(16, 24))
    assert not images.in_memory
    drawn = draw_shapes(10, (16, 24), start=700)
    assert np.abs(images.read(range(700, 710)).astype(int) - drawn.images).max() <= 1
    assert images.labels is not None
    assert np.array_equal(images.labels[700:710], drawn.factors[:, 0])
    assert images.read([]).shape == (0, 3, 16, 24)


# Arrays


LAYOUTS: dict[str, Callable[[Pixels], NDArray[Any]]] = {
    "NHWC": lambda rgb: rgb,
    "NCHW": lambda rgb: rgb.transpose(0, 3, 1, 2),
    "NCHW copied": lambda rgb: np.ascontiguousarray(rgb.transpose(0, 3, 1, 2)),
    "Fortran's order": np.asfortranarray,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_colour_arrays_of_every_layout_are_read(tmp_path: Path, layout: str) -> None:
    np.save(tmp_path / "a.npy", LAYOUTS[layout](noise(5, 9, 11, 3)))
    images = open_source(str(tmp_path / "a.npy"))
    assert (images.shape, images.labels, images.in_memory) == ((3, 9, 11), None, True)
    assert np.array_equal(every(images), noise(5, 9, 11, 3).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(5, 9, 11), (5, 1, 9, 11), (5, 9, 11, 1)])
def test_grey_arrays_of_every_layout_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", noise(5, 9, 11).reshape(shape))
    images = open_source(str(tmp_path / "a.npy"))
    assert images.shape == (1, 9, 11)
    assert np.array_equal(every(images), noise(5, 9, 11)[:, None])


@pytest.mark.parametrize("shape", [(9, 11), (5, 2, 9, 11), (5, 9, 11, 4), (2, 5, 3, 9, 11), (99,), ()])
def test_arrays_of_other_layouts_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(SourceError, match="shape") as caught:
        open_source(str(tmp_path / "a.npy"))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_from_0_to_1_are_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", (noise(5, 9, 11) / 255).astype(dtype))
    assert np.array_equal(every(open_source(str(tmp_path / "a.npy"))), noise(5, 9, 11)[:, None])


def test_floats_are_rounded_to_the_nearest_byte(tmp_path: Path) -> None:
    values = np.array([0.0, 0.4, 0.6, 99.4, 99.6, 254.4, 254.6, 255.0]) / 255
    np.save(tmp_path / "a.npy", np.tile(values, (1, 8, 1)))
    assert every(open_source(str(tmp_path / "a.npy")))[0, 0, 0].tolist() == [0, 0, 1, 99, 100, 254, 255, 255]


def test_booleans_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(5, 9, 11) > 99)
    assert np.array_equal(every(open_source(str(tmp_path / "a.npy"))), (noise(5, 9, 11) > 99)[:, None] * np.uint8(255))


@pytest.mark.parametrize("value", [1.5, -0.25, 255.0, float("nan"), float("inf")])
def test_floats_out_of_range_are_refused(tmp_path: Path, value: float) -> None:
    pixels = np.full((5, 9, 11), 0.5, np.float32)
    pixels[4, 8, 10] = value
    np.save(tmp_path / "a.npy", pixels)
    with pytest.raises(SourceError, match=r"\[0, 1\]") as caught:
        open_source(str(tmp_path / "a.npy"))
    assert f"{value:g}" in str(caught.value)


@pytest.mark.parametrize("dtype", ["int64", "uint16", "int8", "complex64", "U3"])
def test_other_types_are_refused(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 9, 11), dtype))
    with pytest.raises(SourceError, match="type"):
        open_source(str(tmp_path / "a.npy"))


def test_an_array_of_no_images_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((0, 9, 11), np.uint8))
    with pytest.raises(SourceError, match="holds no images"):
        open_source(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_resized_by_the_one_rule(tmp_path: Path, channels: int) -> None:
    pixels = noise(3, 20, 30, channels)
    np.save(tmp_path / "a.npy", pixels)
    save(tmp_path / "b.png", pixels[2].squeeze())
    images = open_source(str(tmp_path / "a.npy"), size=(10, 12))
    assert (images.shape, images.resized_from) == ((channels, 10, 12), "20 x 30")
    assert np.array_equal(images.read([2])[0], read_image(tmp_path / "b.png", channels, (10, 12)))


def test_an_npz_has_images_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", other=np.zeros(3), images=noise(5, 9, 11), labels=np.array([3, 1, 4, 1, 5]))
    images = open_source(str(tmp_path / "a.npz"))
    assert np.array_equal(every(images), noise(5, 9, 11)[:, None])
    assert images.labels is not None
    assert images.labels.tolist() == [3, 1, 4, 1, 5]


def test_the_one_array_of_an_npz_may_have_any_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", noise(5, 9, 11))
    images = open_source(str(tmp_path / "a.npz"))
    assert np.array_equal(every(images), noise(5, 9, 11)[:, None])
    assert images.labels is None


def test_an_npz_of_several_arrays_without_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=noise(5, 9, 11), x_test=noise(5, 9, 11))
    with pytest.raises(SourceError, match=r"x_train, x_test.*`images`"):
        open_source(str(tmp_path / "a.npz"))


def test_an_npz_of_nothing_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz")
    with pytest.raises(SourceError, match="nothing"):
        open_source(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("labels", [np.arange(4), np.zeros((5, 2)), np.arange(5).astype("M8[s]")])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: NDArray[Any]) -> None:
    np.savez(tmp_path / "a.npz", images=noise(5, 9, 11), labels=labels)
    with pytest.raises(SourceError, match=r"labels|a\.npz"):
        open_source(str(tmp_path / "a.npz"))


class Exploding:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_pickles_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.array([Exploding()], dtype=object)
    np.save("a.npy", array, allow_pickle=True)
    np.savez("a.npz", images=array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(SourceError, match=f"{name} holds pickled objects"):
            open_source(name)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("keep", [0, 5, 60, 100, 300])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_an_array_file_cut_short_is_refused(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, noise(5, 9, 11))
    else:
        np.savez(path, images=noise(5, 9, 11))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=f"{path.name} (cannot be read|is cut short)"):
        open_source(str(path))


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_of_altered_bytes_is_refused(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, images=np.zeros((5, 9, 11), np.uint8))
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.npz cannot be read"):
        open_source(str(path))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_text_under_an_arrays_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1 2 3")
    with pytest.raises(SourceError, match=name):
        open_source(str(tmp_path / name))


# IDX


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_file_is_a_source(tmp_path: Path, zipped: bool) -> None:
    name = "t10k-{}-idx{}-ubyte" + (".gz" if zipped else "")
    pack = gzip.compress if zipped else bytes
    (tmp_path / name.format("images", 3)).write_bytes(pack(idx(noise(5, 9, 11))))
    path = tmp_path / name.format("images", 3)
    assert open_source(str(path)).labels is None
    (tmp_path / name.format("labels", 1)).write_bytes(pack(idx(np.array([7, 2, 1, 0, 4], np.uint8))))
    images = open_source(str(path))
    assert np.array_equal(every(images), noise(5, 9, 11)[:, None])
    assert images.labels is not None
    assert images.labels.tolist() == [7, 2, 1, 0, 4]


def test_an_idx_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "digits.bin").write_bytes(idx(noise(5, 9, 11)))
    assert len(open_source(str(tmp_path / "digits.bin"))) == 5


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """A folder as the MNIST family comes: 6 images to train on and 2 to test."""
    root = tmp_path / "data" / "fashion-mnist"
    root.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 2)):
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(noise(count, 28, 28))))
        (root / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count, dtype=np.uint8))))
    return root


def assert_training_part(images: Images) -> None:
    assert np.array_equal(every(images), noise(6, 28, 28)[:, None])
    assert images.labels is not None
    assert images.labels.tolist() == list(range(6))


def test_a_folder_of_idx_files_is_its_training_part(idx_folder: Path) -> None:
    assert_training_part(open_source(str(idx_folder)))


def test_a_named_data_set_is_found_where_the_environment_says(
    idx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAEKIT_DATA", str(idx_folder.parent))
    images = open_source("fashion-mnist")
    assert images.name == "fashion-mnist"
    assert_training_part(images)
    assert open_source("fashion-mnist", size=(14, 14)).shape == (1, 14, 14)


def test_a_named_data_set_is_found_where_debian_puts_it(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAEKIT_DATA", raising=False)
    monkeypatch.setattr(sources, "_DEBIAN_DATASETS", idx_folder.parent)
    assert_training_part(open_source("fashion-mnist"))


@pytest.mark.parametrize(("name", "way"), [("fashion-mnist", "dataset-fashion-mnist"), ("mnist", "VAEKIT_DATA/mnist")])
def test_a_named_data_set_that_is_not_here_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "_DEBIAN_DATASETS", tmp_path / "none")
    with pytest.raises(SourceError, match=f"{name} is not on this machine") as caught:
        open_source(name)
    assert way in str(caught.value)


def test_a_named_data_set_of_no_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path))
    with pytest.raises(SourceError, match="no IDX file"):
        open_source("mnist")


@pytest.mark.parametrize("keep", [4, 10, 15, 16, 100, 510])
@pytest.mark.parametrize("zipped", ["no", "before", "after"])
def test_an_idx_file_cut_short_is_refused(tmp_path: Path, keep: int, zipped: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    data = idx(noise(5, 9, 11))
    match zipped:
        case "no":
            data = data[:keep]
        case "before":
            data = gzip.compress(data[:keep])
        case _:
            data = gzip.compress(data)[: max(20, keep)]
    path.write_bytes(data)
    with pytest.raises(SourceError, match="cut short") as caught:
        open_source(str(tmp_path))
    assert str(path) in str(caught.value)


def test_an_idx_file_with_bytes_too_many_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a-idx3-ubyte").write_bytes(idx(noise(5, 9, 11)) + b"\0")
    with pytest.raises(SourceError, match="damaged"):
        open_source(str(tmp_path / "a-idx3-ubyte"))


def test_idx_labels_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx(np.arange(9, dtype=np.uint8)))
    with pytest.raises(SourceError, match="shape"):
        open_source(str(tmp_path / "labels-idx1-ubyte"))


def test_an_idx_file_of_other_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x0d\x03" + bytes(12))
    with pytest.raises(SourceError, match="unsigned bytes"):
        open_source(str(tmp_path))


# Short of memory


def sources_of_every_kind(folder: Path, tmp_path: Path) -> dict[str, str]:
    np.save(tmp_path / "a.npy", noise(2_500, 9, 11) / 255)
    np.savez(tmp_path / "a.npz", images=noise(7, 12, 10, 3), labels=np.arange(7))
    (tmp_path / "b-idx3-ubyte").write_bytes(idx(noise(5, 9, 11)))
    (folder / "cat/2.png").write_bytes(b"broken")
    return {"folder": str(folder)} | {name: str(tmp_path / name) for name in ("a.npy", "a.npz", "b-idx3-ubyte")}


@pytest.mark.parametrize("kind", ["folder", "a.npy", "a.npz", "b-idx3-ubyte"])
@pytest.mark.parametrize("size", [None, (8, 13)])
def test_short_of_memory_the_pixels_are_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: tuple[int, int] | None
) -> None:
    source = sources_of_every_kind(folder, tmp_path)[kind]
    held = open_source(source, size=size)
    monkeypatch.setattr(dataset, "available_memory", lambda: 0)
    streamed = open_source(source, size=size)
    assert (held.in_memory, streamed.in_memory) == (True, False)
    assert np.array_equal(every(held), every(streamed))
    assert np.array_equal(held.read([3, 0, 3]), streamed.read([3, 0, 3]))
    assert streamed.read([2]).dtype == np.uint8
    for part in ("name", "shape", "label_names", "skipped", "resized_from"):
        assert getattr(held, part) == getattr(streamed, part)
    assert np.array_equal(held.labels, streamed.labels)  # type: ignore[arg-type]
    assert len(held) == len(streamed)


def test_images_take_at_most_half_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", noise(10, 8, 8, 3))
    for memory, held in ((2 * 10 * 8 * 8 * 3 + 2, True), (2 * 10 * 8 * 8 * 3, False)):
        monkeypatch.setattr(dataset, "available_memory", lambda memory=memory: memory)
        assert open_source(str(tmp_path / "a.npy")).in_memory is held


@pytest.mark.usefixtures("short_of_memory")
@pytest.mark.parametrize("size", [None, (9, 9)])
def test_no_images_are_read_as_none_when_streamed(folder: Path, tmp_path: Path, size: tuple[int, int] | None) -> None:
    np.save(tmp_path / "a.npy", noise(3, 8, 8))
    for source in (folder, tmp_path / "a.npy"):
        images = open_source(str(source), size=size)
        assert images.read([]).shape == (0, *images.shape)


@pytest.mark.usefixtures("short_of_memory")
def test_streamed_floats_out_of_range_are_refused_when_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((3, 8, 8), 2.0))
    with pytest.raises(SourceError, match=r"\[0, 1\]"):
        every(open_source(str(tmp_path / "a.npy")))
