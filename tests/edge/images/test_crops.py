"""Crops of images at their own resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaekit.errors import SourceError, UsageError
from vaekit.images import dataset
from vaekit.images.crops import open_crops
from vaekit.images.dataset import Images

SIZES = {"a/one.png": (20, 31), "a/two.png": (10, 9), "b/three.png": (8, 40)}  # height, width


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write pictures of several sizes, each pixel telling where it lies: (row, column, picture)."""
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([rows, columns, np.full_like(rows, number)], -1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


@pytest.fixture(params=["held", "read on demand"])
def crops(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    """Open the crops, with and without memory for all pictures."""
    if request.param != "held":
        monkeypatch.setattr("vaekit.images.crops.memory_for_images", lambda: 700)
    return open_crops(str(folder), size=(8, 9))


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(map(int, crop[:, 0, 0])) for crop in pixels]


def test_each_picture_counts_for_the_crops_that_fit_beside_each_other(crops: Images) -> None:
    assert crops.shape == (3, 8, 9)
    assert crops.pictures is not None
    assert crops.pictures.tolist() == [0] * 6 + [1] + [2] * 4
    assert len(crops) == 11
    assert crops.labels is not None
    assert crops.labels.tolist() == [0] * 7 + [1] * 4
    assert crops.label_names == ("a", "b")
    assert crops.name_of(6).endswith("two.png")


def test_crops_that_are_measured_are_spread_over_the_picture(crops: Images) -> None:
    found = corners(crops.read(range(11)))
    assert found[:6] == [(0, 0, 0), (0, 11, 0), (0, 22, 0), (12, 0, 0), (12, 11, 0), (12, 22, 0)]
    assert found[6] == (1, 0, 1)  # the middle of three places
    assert [column for _, column, _ in found[7:]] == [0, 10, 21, 31]


def test_a_crop_has_the_pixels_of_its_place(crops: Images) -> None:
    (crop,) = crops.read_crops(np.array([0]), np.array([[0.5, 0.999]]))
    rows, columns = np.mgrid[6:14, 22:31]
    np.testing.assert_array_equal(crop, np.stack([rows, columns, np.zeros_like(rows)]))


def test_random_places_reach_every_corner_and_never_leave_the_picture(crops: Images) -> None:
    places = np.random.default_rng(0).random((4000, 2))
    places[:4] = [[0, 0], [0, 1], [1, 0], [1, 1]]
    found = set(corners(crops.read_crops(np.zeros(4000, np.int64), places)))
    assert found == {(row, column, 0) for row in range(13) for column in range(23)}


def test_the_fingerprint_follows_pixels_and_size(folder: Path) -> None:
    before = open_crops(str(folder), size=(8, 9)).fingerprint()
    assert open_crops(str(folder), size=(8, 9)).fingerprint() == before
    assert open_crops(str(folder), size=(8, 8)).fingerprint() != before
    Image.new("RGB", (40, 8)).save(folder / "b" / "three.png")
    assert open_crops(str(folder), size=(8, 9)).fingerprint() != before


def test_memory_decides_what_is_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_crops(str(folder), size=(8, 8)).in_memory
    monkeypatch.setattr(dataset, "available_memory", lambda: 1000)
    assert not open_crops(str(folder), size=(8, 8)).in_memory


def test_arrays_are_cropped_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 20, 16), np.uint8)
    np.save(tmp_path / "grey.npy", pixels)
    crops = open_crops(str(tmp_path / "grey.npy"), size=(10, 8))
    assert (len(crops), crops.shape) == (12, (1, 10, 8))
    np.testing.assert_array_equal(crops.read([0, 11])[1, 0], pixels[2, 10:, 8:])


@pytest.mark.parametrize(
    ("size", "said"),
    [((11, 8), "2 of 3 images are smaller than the crop of 11x8, such as .*two.png of 10x9: choose a smaller --size")],
)
def test_a_picture_smaller_than_the_crop_is_named(folder: Path, size: tuple[int, int], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_crops(str(folder), size=size)


def test_what_cannot_be_cropped_is_said(folder: Path) -> None:
    with pytest.raises(UsageError, match="at least 8x8"):
        open_crops(str(folder), size=(7, 8))
    with pytest.raises(SourceError, match="none of their own"):
        open_crops("shapes", size=(8, 8))
    (folder / "a" / "two.png").write_bytes(b"no picture")
    assert [reason.count("two.png") for reason in open_crops(str(folder), size=(8, 9)).skipped] == [1]
