"""Sources that begin with hf:, from data sets on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaekit.errors import MissingExtraError, SourceError
from vaekit.images import dataset as reading
from vaekit.images.dataset import open_source
from vaekit.images.stream import ImageStream

datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'vaekit[hub]'")

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), np.uint8)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use no network, and a separate cache."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def encoded(pixels: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def dataset(column: str = "image", first: dict[str, Any] | None = None) -> Any:
    pictures = [encoded(picture) for picture in PIXELS]
    rows = {column: [first or pictures[0], *pictures[1:]], "label": [1, 0, 1, 0, 1, 1]}
    features = {column: datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_saved_data_set_is_a_source(tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset().save_to_disk(tmp_path / "pets")
    if not in_memory:
        monkeypatch.setattr(reading, "available_memory", lambda: 0)
    images = open_source(f"hf:{tmp_path / 'pets'}")
    assert (len(images), images.shape, images.in_memory) == (6, (3, 10, 12), in_memory)
    assert np.array_equal(images.read(range(6)), PIXELS.transpose(0, 3, 1, 2))
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1, 0, 1, 1]
    assert images.label_names == ("cat", "dog")
    assert images.name_of(3) == f"hf:{tmp_path / 'pets'}[3]"


def test_a_split_is_named_after_a_colon(tmp_path: Path) -> None:
    parts = datasets.DatasetDict({"train": dataset().select([0, 1, 2]), "test": dataset().select([4])})
    parts.save_to_disk(tmp_path / "pets")
    assert len(open_source(f"hf:{tmp_path / 'pets'}")) == 3
    images = open_source(f"hf:{tmp_path / 'pets'}:test")
    assert np.array_equal(images.read([0]), PIXELS[4:5].transpose(0, 3, 1, 2))
    with pytest.raises(SourceError, match="no split validation: it has train, test"):
        open_source(f"hf:{tmp_path / 'pets'}:validation")


def test_a_folder_of_parquet_files_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    dataset("img").to_parquet(tmp_path / "pets" / "train.parquet")
    images = open_source(f"hf:{tmp_path / 'pets'}:train")
    assert np.array_equal(images.read(range(6)), PIXELS.transpose(0, 3, 1, 2))
    assert images.label_names == ("cat", "dog")


def test_pictures_that_cannot_be_read_are_named_and_left_out(tmp_path: Path) -> None:
    dataset(first={"bytes": b"no picture", "path": None}).save_to_disk(tmp_path / "pets")
    images = open_source(f"hf:{tmp_path / 'pets'}")
    assert len(images) == 5
    assert images.skipped == (f"hf:{tmp_path / 'pets'}[0]: not a picture in a format that vaekit reads",)


def test_a_stream_reads_it_too(tmp_path: Path) -> None:
    dataset(first={"bytes": b"no picture", "path": None}).save_to_disk(tmp_path / "pets")
    name = f"hf:{tmp_path / 'pets'}"
    with ImageStream([name], (3, 10, 12)) as stream:
        assert len(stream) == 6
        (chunk,) = stream.chunks(every=2)
    assert np.array_equal(chunk.pixels, PIXELS[[2, 4]].transpose(0, 3, 1, 2))
    assert chunk.paths == (f"{name}[2]".encode(), f"{name}[4]".encode())
    assert chunk.labels == ("dog", "dog")
    assert len(chunk.failures) == 1


@pytest.mark.parametrize("unlabelled", [-1, None])
def test_a_picture_without_a_class_has_no_class_name(tmp_path: Path, unlabelled: int | None) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [encoded(picture) for picture in PIXELS[:3]], "label": [1, unlabelled, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "pets")
    images = open_source(f"hf:{tmp_path / 'pets'}")
    assert images.labels is not None
    assert images.labels.tolist() == [1, -1, 0]
    assert images.label_names == ("cat", "dog")
    with ImageStream([f"hf:{tmp_path / 'pets'}"], (3, 10, 12)) as stream:
        (chunk,) = stream.chunks()
    assert chunk.labels == ("dog", "", "cat")


REFUSED = {
    "hf:": "names no data set",
    "hf::test": "names no data set",
    "hf:nobody\0nothing": "datasets cannot load train",
    "hf:" + "n" * 300: "datasets cannot load train",
    "hf:" + "n/" * 5_000: "datasets cannot load train",
}


@pytest.mark.parametrize("name", REFUSED)
def test_odd_names_are_refused_in_one_line_by_both(name: str) -> None:
    lines = []
    for read in (open_source, lambda name: ImageStream([name], (3, 10, 12))):
        with pytest.raises(SourceError, match=REFUSED[name]) as caught:
            read(name)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]


@pytest.mark.parametrize("saved", [True, False])
def test_an_empty_data_set_is_refused_by_both(tmp_path: Path, saved: bool) -> None:
    (tmp_path / "pets").mkdir()
    if saved:
        dataset().select([]).save_to_disk(tmp_path / "pets")  # which the library then cannot load
    else:
        dataset().select([]).to_parquet(tmp_path / "pets" / "train.parquet")
    for read in (open_source, lambda name: ImageStream([name], (3, 10, 12))):
        with pytest.raises(SourceError, match=r"pets holds no images|cannot load train of .*pets"):
            read(f"hf:{tmp_path / 'pets'}")


def test_data_sets_without_a_column_of_images_are_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(SourceError, match="no column of images, or several: its columns are text"):
        open_source(f"hf:{tmp_path / 'texts'}")


def test_a_data_set_that_cannot_be_had_is_named_in_one_line() -> None:
    with pytest.raises(SourceError, match="datasets cannot load train of nobody/nothing") as caught:
        open_source("hf:nobody/nothing")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaekit.images.hub.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vaekit\[hub\]'"):
        open_source("hf:mnist")
