"""Images in an array file, and the built-in drawn shapes: all of one size, named by number."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError
from vaekit.images.arrays import RowFile
from vaekit.images.factors import Factors
from vaekit.images.labels import Labels
from vaekit.images.parts import (
    CHUNK_BYTES,
    MIN_SIDE,
    Chunk,
    Form,
    Progress,
    Shape,
    chunk_images,
    identity_of_file,
    numbered,
    pieces,
)
from vaekit.images.pixels import (
    array_to_pixels,
    channel_axis,
    channels_first,
    check_pixel_type,
    convert_channels,
    resize,
)
from vaekit.images.shapes import SHAPE_NAMES, draw_factors, known_factors, render
from vaekit.types import Pixels

_SHAPES_SIZE = (32, 32)


class ArrayImages:
    """Images of one size in an array file."""

    varied = False
    left_out = ""
    factors = None

    def __init__(self, source: str, rows: RowFile, labels: Labels | None) -> None:
        """Check the array. Raises SourceError if it is empty or does not hold images of at least MIN_SIDE."""
        self._source, self._rows, self.labels = source, rows, labels
        self._identity = identity_of_file(rows.path)
        check_pixel_type(source, rows.dtype)
        axis = channel_axis(source, rows.shape)
        self._channels = 1 if axis is None else rows.shape[axis]
        size = [length for number, length in enumerate(rows.shape) if number not in (0, axis)]
        self._size = size[0], size[1]
        if min(size) < MIN_SIDE:
            raise SourceError(f"{source} has images of {size[0]}x{size[1]}: they need at least {MIN_SIDE}x{MIN_SIDE}")
        if not len(rows):
            raise SourceError(f"{source} holds no images")

    def __len__(self) -> int:
        return len(self._rows)

    def identity(self) -> Iterator[bytes]:
        yield self._identity

    def name(self, number: int) -> str:
        return f"{self._source}[{number}]"

    def form(self, progress: Progress | None = None) -> Form:  # noqa: ARG002 — the header is enough, nothing is read
        return Form(self._channels, self._size, {self._size: len(self)})

    def read(self, numbers: NDArray[np.int64], shape: Shape) -> Pixels:
        return self._fitted(self._mapped[numbers], shape)

    def read_whole(self, number: int, channels: int) -> Pixels:
        whole: Pixels = self._fitted(self._mapped[number : number + 1], (channels, *self._size))[0]
        return whole

    def chunks(
        self,
        shape: Shape,
        start: int = 0,
        every: int = 1,
        *,
        resize: bool = True,  # noqa: ARG002 — all images have one size, which the stream has checked
    ) -> Iterator[Chunk]:
        row_bytes = self._rows.dtype.itemsize * int(np.prod(self._rows.shape[1:]))
        count = max(1, min(chunk_images(shape), CHUNK_BYTES // row_bytes))
        first = start
        for rows in self._rows.chunks(count, start=start):
            skipped = (start - first) % every
            numbers = range(first, first + len(rows))[skipped::every]
            yield numbered(self, self._fitted(rows[skipped::every], shape), numbers)
            first += len(rows)

    @functools.cached_property
    def _mapped(self) -> NDArray[Any]:
        return self._rows.mapped()

    def _fitted(self, rows: NDArray[Any], shape: Shape) -> Pixels:
        pixels = array_to_pixels(self._source, channels_first(self._source, rows))
        return resize(convert_channels(pixels, shape[0]), shape[1:])


class DrawnShapes:
    """The built-in shapes, drawn on demand."""

    varied = False
    left_out = ""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def identity(self) -> Iterator[bytes]:
        yield b"\0shapes\0"

    def name(self, number: int) -> str:
        return f"shapes[{number}]"

    def form(self, progress: Progress | None = None) -> Form:  # noqa: ARG002 — shapes are drawn on demand
        return Form(3, _SHAPES_SIZE, {})

    @functools.cached_property
    def labels(self) -> Labels:
        return Labels(self._factors[:, 0].astype(np.int64), SHAPE_NAMES)

    @functools.cached_property
    def factors(self) -> Factors:
        return known_factors(self._factors)

    def read(self, numbers: NDArray[np.int64], shape: Shape) -> Pixels:
        return convert_channels(render(self._factors[numbers], shape[1:]), shape[0])

    def read_whole(self, number: int, channels: int) -> Pixels:  # noqa: ARG002 — the Part protocol's
        raise SourceError("shapes are drawn at any size and have none of their own: give --size HxW, without --crop")

    def chunks(
        self,
        shape: Shape,
        start: int = 0,
        every: int = 1,
        *,
        resize: bool = True,  # noqa: ARG002 — shapes are drawn at the size of ``shape``
    ) -> Iterator[Chunk]:
        for numbers in pieces(range(start, self._count, every), shape):
            yield numbered(self, self.read(np.asarray(numbers, np.int64), shape), numbers)

    @functools.cached_property
    def _factors(self) -> NDArray[np.float64]:
        return draw_factors(self._count)
