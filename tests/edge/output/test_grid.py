from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import UsageError, VaekitError
from vaekit.images.pixels import to_uint8
from vaekit.output import grid as pictures
from vaekit.output.grid import FORMATS, check_size, grid, save_animation, save_images, save_picture, square
from vaekit.system import workers
from vaekit.system.files import check_file_target


def images(count: int, channels: int, height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, channels, height, width), np.float32)


def test_images_stand_row_by_row_with_white_between() -> None:
    pictures = images(5, 3, 70, 80)
    canvas = grid(pictures)
    assert canvas.shape == (2 * 72 + 2, 3 * 82 + 2, 3)
    assert canvas.dtype == np.uint8
    covered = np.zeros(canvas.shape[:2], bool)
    for number, picture in enumerate(pictures):
        top, left = 2 + number // 3 * 72, 2 + number % 3 * 82
        cell = (slice(top, top + 70), slice(left, left + 80))
        assert np.array_equal(canvas[cell], np.rint(picture.transpose(1, 2, 0) * 255).astype(np.uint8))
        covered[cell] = True
    assert (canvas[~covered] == 255).all()


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4), (64, 8)])
def test_the_grid_is_the_least_square_that_holds_them(count: int, columns: int) -> None:
    rows = -(-count // columns)
    assert grid(images(count, 1, 64, 64)).shape == (rows * 66 + 2, columns * 66 + 2, 3)


@pytest.mark.parametrize(("columns", "shape"), [(1, (6, 1)), (4, (2, 4)), (6, (1, 6)), (8, (1, 8))])
def test_columns_are_as_asked(columns: int, shape: tuple[int, int]) -> None:
    assert grid(images(6, 1, 64, 64), columns).shape == (shape[0] * 66 + 2, shape[1] * 66 + 2, 3)


def test_padding_is_as_asked() -> None:
    assert grid(images(4, 1, 64, 64), padding=0).shape == (128, 128, 3)


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 8, 8), (28, 28, 2), (8, 32, 2), (33, 9, 1), (100, 100, 1)])
def test_tiny_images_are_enlarged_by_a_whole_factor(height: int, width: int, factor: int) -> None:
    picture = images(1, 1, height, width)
    canvas = grid(picture, padding=0)
    assert canvas.shape == (height * factor, width * factor, 3)
    small = canvas[::factor, ::factor, 0]
    assert np.array_equal(small, np.rint(picture[0, 0] * 255).astype(np.uint8))
    assert np.array_equal(canvas[:, :, 0], small.repeat(factor, 0).repeat(factor, 1))


def test_grey_images_are_grey() -> None:
    canvas = grid(images(3, 1, 8, 8))
    assert (canvas == canvas[:, :, :1]).all()


def test_values_are_rounded_and_kept_within_bytes() -> None:
    values = np.array([0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.0, -1.0, 7.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 128, 255, 255, 0, 255]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp"])
def test_a_suffix_names_the_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"grid{suffix}"
    save_picture(np.full((20, 30, 3), 200, np.uint8), path)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == (FORMATS[suffix.lower()], (30, 20))
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - 200).max() <= 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_png_keeps_every_pixel(tmp_path: Path) -> None:
    canvas = grid(images(4, 3, 9, 9))
    save_picture(canvas, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), canvas)


@pytest.mark.parametrize("name", ["grid", "grid.gif", "grid.png.txt", ".png"])
def test_a_suffix_that_names_no_format_is_a_wrong_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.png"):
        check_file_target(tmp_path / name, FORMATS)


def test_a_picture_without_a_folder_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(VaekitError, match="there is no folder"):
        check_file_target(tmp_path / "none" / "a.png", FORMATS)
    (tmp_path / "file").touch()
    with pytest.raises(VaekitError, match="is a file"):
        check_file_target(tmp_path / "file" / "a.png", FORMATS)
    check_file_target(tmp_path / "a.jpg", FORMATS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("suffix", "height"), [("webp", 17_000), ("jpg", 66_000)])
def test_a_picture_larger_than_its_format_allows_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str, height: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(VaekitError, match=f"cannot write .*{path.name}"):
        save_picture(np.zeros((height, 2, 3), np.uint8), path)
    capfd.readouterr()  # libjpeg's own message
    assert list(tmp_path.iterdir()) == []


# Titles and captions


def places(canvas: NDArray[np.uint8], shown: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Find each image (C, H, W) on the canvas, in order; return (top, left) of each."""
    found = []
    for image in to_uint8(shown):
        pixels = np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
        windows = np.lib.stride_tricks.sliding_window_view(canvas[:, :, 0], pixels.shape[:2])
        tops, lefts = np.nonzero((windows[:, :, 0, :8] == pixels[0, :8, 0]).all(axis=2))
        (corner,) = [
            (y, x)
            for y, x in zip(tops.tolist(), lefts.tolist(), strict=True)
            if np.array_equal(canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]], pixels)
        ]
        found.append(corner)
    return found


def without(canvas: NDArray[np.uint8], shown: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the canvas with the images replaced by white."""
    height, width = shown.shape[2:]
    rest = canvas.copy()
    for y, x in places(canvas, shown):
        rest[y : y + height, x : x + width] = 255
    return rest


def test_captions_stand_below_images_and_leave_them_as_they_are() -> None:
    shown = images(4, 3, 70, 80)
    plain, captioned = grid(shown), grid(shown, captions=["12.3 dB", "a", "b", "c"])
    line = (len(captioned) - len(plain)) // 2
    assert 12 <= line <= 30
    assert captioned.shape[1] == plain.shape[1]
    assert places(captioned, shown) == [(2, 2), (2, 84), (2 + 72 + line, 2), (2 + 72 + line, 84)]
    text = np.asarray(without(captioned, shown) < 128)
    assert text[72 : 72 + line, :84].any()
    assert text[2 * 72 + line :, 84:].any()
    assert not text[:72].any()


def test_a_row_without_captions_has_no_line_for_them() -> None:
    shown = images(6, 1, 64, 64)
    plain, captioned = grid(shown, 2), grid(shown, 2, captions=["", "", "a"])
    line = len(captioned) - len(plain)
    assert 12 <= line <= 30
    assert [y for y, _ in places(captioned, shown)] == [2, 2, 68, 68, 134 + line, 134 + line]
    assert np.array_equal(grid(shown, 2, captions=[""] * 6), plain)


def test_row_titles_stand_left_of_the_rows_and_fit_there() -> None:
    shown = images(4, 1, 64, 64)
    plain, titled = grid(shown, 2), grid(shown, 2, row_titles=["original", "i"])
    margin = titled.shape[1] - plain.shape[1]
    assert len(titled) == len(plain)
    assert places(titled, shown) == [(2, 2 + margin), (2, 68 + margin), (68, 2 + margin), (68, 68 + margin)]
    text = np.asarray((without(titled, shown) < 128).any(axis=2))
    assert text[2:66, :margin].any()
    assert text[68:132, :margin].any()
    assert not text[:, 0].any()
    assert not text[:, margin:].any()
    assert grid(shown, 2, row_titles=["original " * 3, ""]).shape[1] > titled.shape[1]


def test_column_titles_stand_above_the_columns() -> None:
    shown = images(6, 3, 64, 64)
    plain, titled = grid(shown, 3), grid(shown, 3, column_titles=["-2", "0", "+2"])
    line = len(titled) - len(plain)
    assert 12 <= line <= 30
    assert titled.shape[1] == plain.shape[1]
    assert [y for y, _ in places(titled, shown)] == [2 + line] * 3 + [68 + line] * 3
    text = np.asarray((without(titled, shown) < 128).any(axis=(0, 2)))
    assert all(text[left : left + 64].any() for left in (2, 68, 134))
    assert not (without(titled, shown)[2 + line :] < 255).any()


def test_titles_and_captions_stand_together() -> None:
    shown = images(4, 1, 64, 64)
    rows, columns, captions = ["one", "two"], ["left", "right"], ["1", "2", "3", "4"]
    both = grid(shown, 2, row_titles=rows, column_titles=columns, captions=captions)
    assert both.shape[1] == grid(shown, 2, row_titles=rows).shape[1]
    assert len(both) == len(grid(shown, 2, column_titles=columns)) + len(grid(shown, 2, captions=captions)) - len(
        grid(shown, 2)
    )
    assert len(places(both, shown)) == 4


def test_text_grows_with_large_images() -> None:
    small, large = (
        len(grid(images(1, 1, side, side), captions=["a"])) - len(grid(images(1, 1, side, side))) for side in (64, 512)
    )
    assert large > 2 * small


# Sizes


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4), (17, 5), (10**6, 1000)])
def test_a_square_has_as_few_columns_as_hold_all(count: int, columns: int) -> None:
    assert square(count) == columns


def test_a_grid_too_large_for_one_picture_is_refused_with_the_way_out() -> None:
    check_size(156 * 156, None, (64, 64))
    check_size(100, 10, (1000, 1000))
    with pytest.raises(UsageError, match=r"101 images .* more than 100 million: give a folder"):
        check_size(101, 10, (1000, 1000))
    with pytest.raises(UsageError, match="1,000,000 images"):
        check_size(1_000_000, None, (28, 28))
    with pytest.raises(UsageError, match="million pixels"):
        check_size(2, 20_000, (100, 100))


def test_a_grid_counts_its_pixels_before_it_takes_memory() -> None:
    huge = np.broadcast_to(np.zeros((1, 1, 1, 1), np.float32), (30_000, 3, 64, 64))
    with pytest.raises(UsageError, match="30,000 images"):
        grid(huge)


# Animations


def flat(*values: float) -> NDArray[np.float32]:
    """Return images (N, 1, 8, 8), each of a single grey."""
    return np.broadcast_to(np.array(values, np.float32)[:, None, None, None], (len(values), 1, 8, 8))


def frames(path: Path) -> tuple[list[int], list[int]]:
    """Return the grey and the milliseconds of each frame of a GIF."""
    greys, times = [], []
    with Image.open(path) as picture:
        assert (picture.format, picture.info["loop"]) == ("GIF", 0)
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            pixels = np.asarray(picture.convert("L"))
            assert pixels.shape == (64, 64)
            assert (pixels == pixels[0, 0]).all()
            greys.append(int(pixels[0, 0]))
            times.append(int(picture.info["duration"]))
    return greys, times


def test_an_animation_goes_there_and_back_without_end_and_pauses_at_its_ends(tmp_path: Path) -> None:
    save_animation(flat(0.0, 0.2, 0.4, 1.0), tmp_path / "a.gif")
    greys, times = frames(tmp_path / "a.gif")
    assert greys == pytest.approx([0, 51, 102, 255, 102, 51], abs=2)
    assert len(set(times)) == 2
    assert [time == max(times) for time in times] == [True, False, False, True, False, False]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.gif"]


def test_an_animation_of_two_images_goes_from_one_to_the_other(tmp_path: Path) -> None:
    save_animation(flat(0.0, 1.0), tmp_path / "a.GIF")
    greys, times = frames(tmp_path / "a.GIF")
    assert greys == pytest.approx([0, 255], abs=2)
    assert times[0] == times[1]


def test_an_animation_in_colour_keeps_its_colours(tmp_path: Path) -> None:
    colours = np.zeros((3, 3, 70, 80), np.float32)
    for number in range(3):
        colours[number, number] = 1
    save_animation(colours, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.size == (80, 70)
        for number in range(3):
            picture.seek(number)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
            assert np.abs(pixels - 255 * np.eye(3, dtype=int)[number]).max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a", "none/a.gif"])
def test_an_animation_that_cannot_be_written_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(VaekitError, match="cannot write"):
        save_animation(flat(0, 1), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# One file per image


def batches(shown: NDArray[np.float32], size: int = 3) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(shown), size):
        yield shown[first : first + size]


def assert_holds(folder: Path, shown: NDArray[np.float32]) -> None:
    """Check that the folder contains exactly these images, pixel by pixel."""
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:06}.png" for number in range(len(shown))]
    for number, image in enumerate(to_uint8(shown)):
        with Image.open(folder / f"{number:06}.png") as picture:
            assert (picture.format, picture.mode) == ("PNG", "L" if len(image) == 1 else "RGB")
            pixels = np.asarray(picture)
            assert np.array_equal(pixels[None] if len(image) == 1 else pixels.transpose(2, 0, 1), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_each_image_becomes_a_file_of_its_own_size(tmp_path: Path, channels: int, count: int) -> None:
    shown = images(count, channels, 9, 14)
    save_images(batches(shown), count, tmp_path / "out")
    assert_holds(tmp_path / "out", shown)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_other_processes_write_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_FEW", 0)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)
    told: list[int] = []
    shown = images(8, 3, 9, 14)
    save_images(batches(shown), 8, tmp_path / "deep" / "out", told.append)
    assert_holds(tmp_path / "deep" / "out", shown)
    assert told == [3, 6, 8]
    assert multiprocessing.active_children() == []


def test_names_are_as_long_as_the_last_one_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_FEW", 10**9)
    for count, name in ((10**6, "000000.png"), (10**6 + 1, "0000000.png")):
        save_images(batches(images(1, 1, 8, 8)), count, tmp_path / str(count))
        assert [path.name for path in (tmp_path / str(count)).iterdir()] == [name]


def test_progress_is_told_how_many_are_written(tmp_path: Path) -> None:
    told: list[int] = []
    save_images(batches(images(7, 1, 8, 8)), 7, tmp_path / "out", told.append)
    assert told == [3, 6, 7]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save_images(batches(images(2, 1, 8, 8)), 2, tmp_path / "out")
    assert_holds(tmp_path / "out", images(2, 1, 8, 8))


@pytest.mark.parametrize("what", ["a folder that is not empty", "a file"])
def test_what_stands_in_the_way_is_kept_and_nothing_is_decoded(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").touch()

    never: Iterator[Any] = iter(lambda: pytest.fail("decoded in vain"), None)
    with pytest.raises(VaekitError, match=r"cannot write .*out"):
        save_images(never, 3, out)
    assert out.read_text() == "mine" if what == "a file" else [path.name for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("few", [0, 256])
def test_images_that_cease_to_come_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], few: int
) -> None:
    monkeypatch.setattr(pictures, "_FEW", few)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)

    def ceasing() -> Iterator[NDArray[np.float32]]:
        yield from batches(images(6, 1, 8, 8))
        raise error

    with pytest.raises(error):
        save_images(ceasing(), 9, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert multiprocessing.active_children() == []


def test_an_interruption_while_progress_is_told_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_FEW", 0)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_images(batches(images(30, 3, 64, 64)), 30, tmp_path / "out", interrupt)
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing_and_keeps_the_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    save = Image.Image.save

    def full(self: Image.Image, path: str, *arguments: Any, **options: Any) -> None:
        if path.endswith("000004.png"):
            raise OSError(28, "No space left on device")
        save(self, path, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(VaekitError, match=r"cannot write .*out: No space left on device"):
        save_images(batches(images(6, 1, 8, 8)), 6, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert list((tmp_path / "out").iterdir()) == []
