"""Data sets loaded with Hugging Face's library ``datasets``: from the hub, its cache, or a folder."""

from __future__ import annotations

import io
import os
import sys
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import MissingExtraError, SourceError
from vaekit.images.labels import UNLABELLED

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


class HubPictures:
    """The encoded pictures of a data set, with their classes. ``read_image`` decodes them."""

    def __init__(self, rows: Any, column: str) -> None:
        from datasets import ClassLabel, Image

        self._column = column
        self._rows = rows.select_columns(column).cast_column(column, Image(decode=False))
        self.labels: NDArray[np.int64] | None = None
        """(N,) class numbers, UNLABELLED for pictures without a class; None if no column holds classes."""
        self.label_names: tuple[str, ...] = ()
        for label in (label for label in _LABEL_COLUMNS if isinstance(rows.features.get(label), ClassLabel)):
            self.labels = np.array([UNLABELLED if number is None else number for number in rows[label][:]], np.int64)
            self.label_names = tuple(rows.features[label].names)
            break

    def __len__(self) -> int:
        return len(self._rows)

    def open(self, index: int) -> str | IO[bytes]:
        """Return a picture's path, or its bytes as an open file."""
        picture = self._rows[index][self._column] or {}
        return picture["path"] if picture.get("bytes") is None and picture.get("path") else _file(picture)


def open_hub(name: str) -> HubPictures:
    """Open a data set by ``NAME[:SPLIT]``, from the hub or a folder.

    SPLIT defaults to ``train``. Raises MissingExtraError if the library is not installed, and SourceError if there is
    no such data set or it has no column of images.
    """
    if find_spec("datasets") is None:
        raise MissingExtraError("sources that begin with hf: need datasets: pip install 'vaekit[hub]'")
    place, colon, split = name.rpartition(":")
    if not colon:
        place, split = name, "train"
    if not place:
        raise SourceError(f"hf:{name} names no data set: give hf:NAME or hf:NAME:SPLIT")
    rows = _load(place, split)
    return HubPictures(rows, _image_column(name, rows))


def _load(place: str, split: str) -> Any:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if not any(os.path.exists(f"{place}/{marker}") for marker in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(os.path.abspath(place) if os.path.isdir(place) else place, split=split)
        loaded = datasets.load_from_disk(place)
    except Exception as error:  # the library's errors have no common base: an empty data set is an IndexError
        raise SourceError(f"datasets cannot load {split} of {place}: {' '.join(str(error).split())}") from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise SourceError(f"{place} has no split {split}: it has {', '.join(loaded)}")
    return loaded[split]


def _image_column(name: str, rows: Any) -> str:
    from datasets import Image

    columns = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    chosen = next((column for column in _IMAGE_COLUMNS if column in columns), None)
    if chosen is None and len(columns) != 1:
        held = ", ".join(rows.features)
        raise SourceError(
            f"hf:{name} has no column of images, or several: its columns are {held}. Rename the one to use to `image`"
        )
    return chosen or columns[0]


def _file(picture: dict[str, Any]) -> IO[bytes]:
    return io.BytesIO(picture.get("bytes") or b"")
