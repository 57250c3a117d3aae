"""What the images behind one name are to their readers: a length, labels, names, and pixels by number or in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vaekit.images.labels import Labels
from vaekit.types import Array, Pixels

Shape = tuple[int, int, int]
"""(C, H, W)."""

Progress = Callable[[int, int], None]
"""Called with the number of images looked at and their total."""

MIN_SIDE = 8
"""The least height and width of an image to train on, and of images in arrays."""

CHUNK_BYTES = 1 << 22
"""Of pixels that travel between processes at a time."""

_CHUNK_IMAGES = 256


@dataclass(frozen=True)
class Chunk:
    """Consecutive images."""

    pixels: Pixels
    """(n, C, H, W)."""
    paths: tuple[bytes, ...]
    """Of the n images, as the file system has them; an array's images are named ``file.npy[3]``."""
    failures: tuple[str, ...]
    """Of the files that could not be read, each with its reason."""
    labels: tuple[str, ...] | None = None
    """Class names of the n images, empty for an unlabelled one; None where the source has no labels."""

    @property
    def consumed(self) -> int:
        """Images and failures together."""
        return len(self.paths) + len(self.failures)

    @property
    def images(self) -> Array:
        """(n, C, H, W) in [0, 1]."""
        return self.pixels.astype(np.float32) / np.float32(255)


@dataclass(frozen=True)
class Form:
    """What images are like before they are resized."""

    channels: int
    size: tuple[int, int]
    """(height, width) to train at where none is asked for."""
    found: Mapping[tuple[int, int], int]
    """How many images there are of each size (height, width); empty where they are drawn at any size."""
    made_rgb: int = 0
    """How many images are grey where others are in colour, so that ``channels`` is 3."""


class Part(Protocol):
    """The images behind one name."""

    varied: bool
    """Whether each image is a picture, which has its own size and colour and may be unreadable alone."""

    left_out: str
    """In words, the pictures passed over as other programs' leftovers; empty where there were none."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Labels | None:
        """The classes of all images; None where they have none."""
        ...

    def identity(self) -> Iterator[bytes]:
        """Yield what a stream's fingerprint is made of: paths, or the name, size and time of an array's file."""
        ...

    def name(self, number: int) -> str:
        """Name an image to people."""
        ...

    def form(self, progress: Progress | None = None) -> Form:
        """Find out what the images are like, all of them."""
        ...

    def read(self, numbers: NDArray[np.int64], shape: Shape) -> Pixels:
        """Read images by number, in any order: (n, C, H, W). Raises SourceError where one cannot be read."""
        ...

    def chunks(self, shape: Shape, start: int = 0, every: int = 1, *, resize: bool = True) -> Iterator[Chunk]:
        """Read images number ``start``, ``start + every`` and so on. Without ``resize``, others are failures."""
        ...


def numbered(part: Part, pixels: Pixels, numbers: Iterable[int]) -> Chunk:
    """Make a chunk of images that have numbers instead of paths."""
    numbers = tuple(numbers)
    paths = tuple(os.fsencode(part.name(number)) for number in numbers)
    return Chunk(pixels, paths, (), None if part.labels is None else part.labels.names_of(numbers))


def pieces(numbers: range, shape: Shape) -> Iterator[range]:
    """Cut numbers of images into those of one chunk each."""
    rows = chunk_images(shape)
    return (numbers[first : first + rows] for first in range(0, len(numbers), rows))


def chunk_images(shape: Shape) -> int:
    """Count the images of one chunk."""
    return max(1, min(_CHUNK_IMAGES, CHUNK_BYTES // int(np.prod(shape))))
