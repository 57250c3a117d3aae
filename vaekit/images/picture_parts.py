"""Images that are pictures, in files or in a data set: each has its own size, and may be unreadable."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from array import array as packed_array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError
from vaekit.images.hub import HubPictures
from vaekit.images.labels import Labels
from vaekit.images.parts import MIN_SIDE, Chunk, Form, Progress, Shape, chunk_images, numbered, pieces
from vaekit.images.paths import Paths
from vaekit.images.picture import probe_image, read_image
from vaekit.system.workers import ordered_map
from vaekit.types import Pixels

T = TypeVar("T")

_MIXED_SIZE = (64, 64)  # default for large pictures and pictures of several sizes
_LARGEST_NATIVE_SIDE = 128
_BYTES_AT_ONCE, _LEAST_FILES = 1 << 22, 8  # in files that a process decodes at a time, so that all end together
FEW = 256
"""Up to this many pictures, fewer large ones, are decoded in this process: to start others would take longer."""


class PictureFiles:
    """Pictures in files. With a root folder, their subfolders are their classes."""

    factors = None
    varied = True

    def __init__(self, paths: Paths, root: bytes | None = None, left_out: str = "") -> None:
        self._paths, self._root, self.left_out = paths, root, left_out

    def __len__(self) -> int:
        return len(self._paths)

    def identity(self) -> Iterator[bytes]:
        return (path + b"\0" for path in self._paths.every(1))

    def name(self, number: int) -> str:
        return os.fsdecode(self._paths[number])

    def form(self, progress: Progress | None = None) -> Form:
        names = (os.fsdecode(path) for path in self._paths.every(1))
        return form_of_pictures(names, len(self), progress)

    @functools.cached_property
    def labels(self) -> Labels | None:
        if not self._has_classes:
            return None
        classes: dict[bytes, int] = {}  # in order of appearance
        found = packed_array("q", (classes.setdefault(self._folder(p), len(classes)) for p in self._paths.every(1)))
        names = [_class_name(folder) for folder in classes]
        order = np.argsort(np.argsort(names)).astype(np.int64)  # each class's rank among the sorted names
        return Labels(order[np.frombuffer(found, np.int64)], tuple(sorted(names)))

    def read(self, numbers: NDArray[np.int64], shape: Shape) -> Pixels:
        pictures = [read_image(self.name(int(number)), shape[0], shape[1:]) for number in numbers]
        return np.array(pictures, np.uint8).reshape(-1, *shape)

    def read_whole(self, number: int, channels: int) -> Pixels:
        return read_image(self.name(number), channels, None)

    def chunks(self, shape: Shape, start: int = 0, every: int = 1, *, resize: bool = True) -> Iterator[Chunk]:
        paths, count = self._paths.every(every, start), min(chunk_images(shape), self._files_at_once)
        batches = iter(lambda: tuple(itertools.islice(paths, count)), ())
        processes = 1 if (len(self) - start) // every <= min(FEW, 2 * self._files_at_once) else None
        read = functools.partial(_read_files, shape=shape, resize=resize)
        return map(self._labelled, ordered_map(read, batches, processes=processes))

    def _labelled(self, chunk: Chunk) -> Chunk:
        if not self._has_classes:
            return chunk
        return dataclasses.replace(chunk, labels=tuple(_class_name(self._folder(path)) for path in chunk.paths))

    @functools.cached_property
    def _files_at_once(self) -> int:
        """Return how many files a process decodes at a time, by the first one's size: few large ones."""
        try:
            size = Path(self.name(0)).stat().st_size
        except OSError:
            size = 0
        return max(_LEAST_FILES, _BYTES_AT_ONCE // (size + 1))

    @functools.cached_property
    def _has_classes(self) -> bool:
        return self._root is not None and any(map(self._folder, self._paths.every(1)))

    def _folder(self, path: bytes) -> bytes:
        """Return a file's folder relative to the root; empty for the root itself."""
        return path[len(self._root or b"") + 1 :].rpartition(b"/")[0]


class HubImages:
    """Pictures of a data set loaded with Hugging Face's library."""

    factors = None
    varied = True
    left_out = ""

    def __init__(self, source: str, pictures: HubPictures) -> None:
        """Take the pictures and their classes. Raises SourceError if the data set is empty."""
        self._source, self._pictures = source, pictures
        self.labels = None if pictures.labels is None else Labels(pictures.labels, pictures.label_names)
        if not len(pictures):
            raise SourceError(f"{source} holds no images")

    def __len__(self) -> int:
        return len(self._pictures)

    def identity(self) -> Iterator[bytes]:
        yield f"\0{self._source}\0".encode(errors="surrogateescape")

    def name(self, number: int) -> str:
        return f"{self._source}[{number}]"

    def form(self, progress: Progress | None = None) -> Form:
        return form_of_pictures(map(self._pictures.open, range(len(self))), len(self), progress)

    def read(self, numbers: NDArray[np.int64], shape: Shape) -> Pixels:
        pictures = [self._read_one(int(number), shape) for number in numbers]
        return np.array(pictures, np.uint8).reshape(-1, *shape)

    def read_whole(self, number: int, channels: int) -> Pixels:
        return read_image(self._pictures.open(number), channels, None, name=self.name(number))

    def chunks(self, shape: Shape, start: int = 0, every: int = 1, *, resize: bool = True) -> Iterator[Chunk]:
        read = functools.partial(self._read_one, shape=shape, resize=resize)
        for numbers in pieces(range(start, len(self), every), shape):
            pixels, good, failures, failed = read_each(read, numbers, shape)
            yield dataclasses.replace(numbered(self, pixels, good), failures=failures, failed=failed)

    def _read_one(self, number: int, shape: Shape, resize: bool = True) -> Pixels:
        picture, name = self._pictures.open(number), self.name(number)
        return read_image(picture, shape[0], shape[1:], resize=resize, name=name)


def form_of_pictures(pictures: Iterable[str | IO[bytes]], count: int, progress: Progress | None) -> Form:
    """Return the form of pictures, from all their headers.

    They are grey if all of them are. The size is their own if they share one and it is small.
    """
    found: Counter[tuple[int, int]] = Counter()
    grey = 0
    for number, picture in enumerate(pictures, 1):
        with suppress(SourceError):
            size, is_grey = probe_image(picture)
            found[size] += 1
            grey += is_grey
        if progress:
            progress(number, count)
    if 0 < grey == found.total():
        return Form(1, _native_size(found), found)
    return Form(3, _native_size(found), found, made_rgb=grey)


def _native_size(found: Counter[tuple[int, int]]) -> tuple[int, int]:
    if len(found) == 1:
        (size,) = found
        if min(size) >= MIN_SIDE and max(size) <= _LARGEST_NATIVE_SIDE:
            return size
    return _MIXED_SIZE


def _read_files(paths: tuple[bytes, ...], shape: Shape, resize: bool) -> Chunk:
    """Decode pictures, in a worker process."""

    def one(path: bytes) -> Pixels:
        return read_image(os.fsdecode(path), shape[0], shape[1:], resize=resize)

    pixels, good, failures, failed = read_each(one, paths, shape)
    return Chunk(pixels, good, failures, failed=failed)


def read_each(
    read: Callable[[T], Pixels], pictures: Sequence[T], shape: Shape
) -> tuple[Pixels, tuple[T, ...], tuple[str, ...], tuple[int, ...]]:
    """Read the pictures that can be read.

    Returns their pixels (n, C, H, W), the pictures themselves, and the errors and the places of the others.
    """
    pixels = np.empty((len(pictures), *shape), np.uint8)
    good: list[T] = []
    failures: list[str] = []
    failed: list[int] = []
    for place, picture in enumerate(pictures):
        try:
            pixels[len(good)] = read(picture)
            good.append(picture)
        except SourceError as error:
            failures.append(str(error))
            failed.append(place)
    return pixels[: len(good)], tuple(good), tuple(failures), tuple(failed)


@functools.lru_cache
def _class_name(folder: bytes) -> str:
    """Return a class's name from its folder relative to the root; ``.`` for the root."""
    return str(Path(os.fsdecode(folder)))
