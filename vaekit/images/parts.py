"""The interface of a source's images: length, labels, names, and pixels by number or in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vaekit.images.factors import Factors
from vaekit.images.labels import Labels
from vaekit.types import Array, Pixels

Shape = tuple[int, int, int]
"""(C, H, W)."""

Progress = Callable[[int, int], None]
"""A function called with the number of images read so far and their total."""

MIN_SIDE = 8
"""The smallest height and width of an image to train on, and of images in arrays."""

CHUNK_BYTES = 1 << 22
"""Bytes of pixels that are sent between processes at a time."""

_CHUNK_IMAGES = 256


@dataclass(frozen=True)
class Chunk:
    """Consecutive images."""

    pixels: Pixels
    """(n, C, H, W)."""
    paths: tuple[bytes, ...]
    """The paths of the n images, as the file system's bytes. Images in arrays are named like ``file.npy[3]``."""
    failures: tuple[str, ...]
    """The files that could not be read, each with its reason."""
    labels: tuple[str, ...] | None = None
    """The class names of the n images, empty for an unlabelled one; None if the source has no labels."""
    failed: tuple[int, ...] = ()
    """The places of the failures among the images and failures together."""

    @property
    def consumed(self) -> int:
        """Return the number of images and failures together."""
        return len(self.paths) + len(self.failures)

    @property
    def places(self) -> list[int]:
        """Return the places of the n images among the images and failures together."""
        failed = set(self.failed)
        return [place for place in range(self.consumed) if place not in failed]

    @property
    def images(self) -> Array:
        """Return the images as float32 (n, C, H, W) in [0, 1]."""
        return self.pixels.astype(np.float32) / np.float32(255)


@dataclass(frozen=True)
class Form:
    """The channels and sizes of a source's images before they are resized."""

    channels: int
    size: tuple[int, int]
    """The (height, width) to train at by default."""
    found: Mapping[tuple[int, int], int]
    """The number of images of each size (height, width); empty if they are drawn at any size."""
    made_rgb: int = 0
    """The number of grey images that become RGB because others are in colour."""


class Part(Protocol):
    """The images of one source."""

    varied: bool
    """Whether the images are pictures: each has its own size and colour, and each may be unreadable."""

    left_out: str
    """A sentence about the hidden pictures that were skipped; empty if there were none."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Labels | None:
        """Return the classes of all images; None if they have no classes."""
        ...

    @property
    def factors(self) -> Factors | None:
        """Return the known factors of all images; None if there are none."""
        ...

    def identity(self) -> Iterator[bytes]:
        """Yield the bytes that a stream's fingerprint hashes.

        These are paths, or the name, size and time of an array's file.
        """
        ...

    def name(self, number: int) -> str:
        """Return an image's name for messages."""
        ...

    def form(self, progress: Progress | None = None) -> Form:
        """Return the channels and sizes of all images."""
        ...

    def read(self, numbers: NDArray[np.int64], shape: Shape) -> Pixels:
        """Read images by number, in any order: (n, C, H, W).

        Raises SourceError if one cannot be read.
        """
        ...

    def read_whole(self, number: int, channels: int) -> Pixels:
        """Read an image at its own size: (C, h, w).

        Raises SourceError if it cannot be read, or if images have no size of their own.
        """
        ...

    def chunks(self, shape: Shape, start: int = 0, every: int = 1, *, resize: bool = True) -> Iterator[Chunk]:
        """Read images number ``start``, ``start + every`` and so on.

        Without ``resize``, images of another size or colour are failures.
        """
        ...


def numbered(part: Part, pixels: Pixels, numbers: Iterable[int]) -> Chunk:
    """Make a chunk from images that have numbers instead of paths."""
    numbers = tuple(numbers)
    paths = tuple(os.fsencode(part.name(number)) for number in numbers)
    return Chunk(pixels, paths, (), None if part.labels is None else part.labels.names_of(numbers))


def identity_of_file(path: Path) -> bytes:
    """Return the bytes that ``Part.identity`` yields for a file of many images: its name, size and time."""
    stat = path.stat()
    return f"\0{path} {stat.st_size} {stat.st_mtime_ns}\0".encode(errors="surrogateescape")


def pieces(numbers: range, shape: Shape) -> Iterator[range]:
    """Split a range of image numbers into one range for each chunk."""
    rows = chunk_images(shape)
    return (numbers[first : first + rows] for first in range(0, len(numbers), rows))


def chunk_images(shape: Shape) -> int:
    """Return the number of images in one chunk."""
    return max(1, min(_CHUNK_IMAGES, CHUNK_BYTES // int(np.prod(shape))))
