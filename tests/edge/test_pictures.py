from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import UsageError, VaekitError
from vaekit.files import check_file_target
from vaekit.pictures import FORMATS, grid, save_picture, to_uint8


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
    capfd.readouterr()  # libjpeg's own complaint
    assert list(tmp_path.iterdir()) == []
