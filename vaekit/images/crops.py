"""Crops of images at their own resolution, for training on what is larger than the network's window."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError, UsageError
from vaekit.images.dataset import Images, memory_for_images, new_digest, nothing_readable
from vaekit.images.parts import MIN_SIDE, Part, Progress, Shape
from vaekit.images.source import open_part
from vaekit.types import Pixels

DEFAULT_SIZE = (64, 64)
"""The height and width of a crop."""


@dataclass(frozen=True)
class _Pictures:
    """The pictures of a source that can be read, at their own sizes."""

    part: Part
    channels: int
    numbers: NDArray[np.int64]
    """(P,) in the source."""
    sizes: NDArray[np.int64]
    """(P, 2), height and width."""
    held: list[Pixels] | None
    """All pictures, each (C, h, w); None if they do not fit in memory."""
    skipped: tuple[str, ...]
    digest: str

    def read(self, number: int) -> Pixels:
        """Return a picture, (C, h, w)."""
        if self.held is not None:
            return self.held[number]
        return self.part.read_whole(int(self.numbers[number]), self.channels)


def open_crops(source: str, *, size: tuple[int, int] | None = None, progress: Progress | None = None) -> Images:
    """Open crops of a source's images for training.

    Each image counts once for each crop of ``size`` (height, width) that fits beside the others, so that every part of
    every image has about the same weight. ``Images.read`` gives these crops, evenly spread over the image;
    ``Images.read_crops`` gives crops at any place. Images are held in memory as uint8 if they take less than half of
    the available memory. Raises SourceError if there is no such source, it holds no images, or one is smaller than the
    crop, and UsageError for a size under 8.
    """
    size = size or DEFAULT_SIZE
    if min(size) < MIN_SIDE:
        raise UsageError(f"the size {size[0]}x{size[1]} is too small: crops need at least {MIN_SIDE}x{MIN_SIDE}")
    part = open_part(source)
    form = part.form()
    pictures = _read_all(source, part, form.channels, progress)
    _check_sizes(source, pictures, size)
    windows = pictures.sizes // size  # (P, 2), how many rows and columns of crops fit
    counts = windows.prod(axis=1)
    owners = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate([_grid(rows, columns) for rows, columns in windows])
    labels = part.labels
    read = partial(_crops, pictures, owners, (form.channels, *size))
    return Images(
        name=source,
        shape=(form.channels, *size),
        labels=None if labels is None else labels.classes[pictures.numbers[owners]],
        label_names=() if labels is None else labels.names,
        skipped=pictures.skipped,
        left_out=part.left_out,
        resized_from="",
        made_rgb=form.made_rgb,
        in_memory=pictures.held is not None,
        _count=len(owners),
        _read=lambda indices: read(indices, places[indices]),
        _name_of=lambda index: part.name(int(pictures.numbers[owners[index]])),
        _digest=pictures.digest,
        pictures=owners,
        _read_crops=read,
        _read_picture=pictures.read,
    )


def _read_all(source: str, part: Part, channels: int, progress: Progress | None) -> _Pictures:
    """Decode every picture once; hold them while they fit in memory."""
    held: list[Pixels] | None = []
    limit = memory_for_images()
    numbers, sizes, skipped, digest, pixels = list[int](), list[tuple[int, int]](), list[str](), new_digest(), 0
    for number in range(len(part)):
        try:
            whole = part.read_whole(number, channels)
        except SourceError as error:
            if not part.varied:  # the reason holds for all
                raise
            skipped.append(str(error))
            continue
        finally:
            if progress:
                progress(number + 1, len(part))
        numbers.append(number)
        sizes.append((whole.shape[1], whole.shape[2]))
        digest.update(np.ascontiguousarray(whole).data)
        pixels += whole.size
        if held is not None:
            held.append(whole)
            if pixels >= limit:
                held = None
    if not numbers:
        raise nothing_readable(source, skipped[0])
    return _Pictures(part, channels, np.array(numbers), np.array(sizes), held, tuple(skipped), digest.hexdigest())


def _check_sizes(source: str, pictures: _Pictures, size: tuple[int, int]) -> None:
    """Raise SourceError if a picture is smaller than the crop."""
    small = np.flatnonzero((pictures.sizes < size).any(axis=1))
    if len(small):
        height, width = pictures.sizes[small[0]]
        name = pictures.part.name(int(pictures.numbers[small[0]]))
        raise SourceError(
            f"{source}: {len(small):,} of {len(pictures.sizes):,} images are smaller than the crop of "
            f"{size[0]}x{size[1]}, such as {name} of {height}x{width}: choose a smaller --size or leave them out"
        )


def _grid(rows: int, columns: int) -> NDArray[np.float64]:
    """Return the places of ``rows`` x ``columns`` crops that are evenly spread, (rows · columns, 2) in [0, 1]."""
    down, right = (np.linspace(0, 1, count) if count > 1 else np.array([0.5]) for count in (rows, columns))
    return np.stack(np.meshgrid(down, right, indexing="ij"), -1).reshape(-1, 2)


def _crops(
    pictures: _Pictures,
    owners: NDArray[np.int64],
    shape: Shape,
    indices: NDArray[np.int64],
    places: NDArray[np.float64],
) -> Pixels:
    """Cut crops of ``shape`` out of the pictures that own the images."""
    _, height, width = shape
    crops = np.empty((len(indices), *shape), np.uint8)
    for row, (index, place) in enumerate(zip(indices, places, strict=True)):
        owner = owners[index]
        room = pictures.sizes[owner] - (height, width)
        top, left = np.minimum(np.floor(place * (room + 1)), room).astype(int)
        crops[row] = pictures.read(int(owner))[:, top : top + height, left : left + width]
    return crops
