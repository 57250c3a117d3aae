"""The images of one source for training, as uint8: in memory if they fit, else read on demand."""

from __future__ import annotations

import hashlib
import math
import os
from array import array as packed_array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError, UsageError
from vaekit.images.factors import Factors
from vaekit.images.labels import UNLABELLED
from vaekit.images.parts import MIN_SIDE, Form, Part, Progress, Shape
from vaekit.images.paths import is_picture_name
from vaekit.images.source import no_source, open_part
from vaekit.system.machine import available_memory
from vaekit.types import Pixels

_BLOCK = 1024  # images that a fingerprint reads at a time
_NAMED_SIZES = 3  # in messages: the most frequent ones
_PRINTED = 1024  # images that a fingerprint hashes if they are read on demand


@dataclass
class Images:
    """N images of one size, in memory or read on demand."""

    name: str
    """The name of the source."""
    shape: tuple[int, int, int]
    """(C, H, W)."""
    labels: NDArray[np.int64] | None
    """(N,) class numbers; None without labels. If classes have names, -1 means an unlabelled image."""
    label_names: tuple[str, ...]
    """The classes' names by number; empty if classes are known by number only."""
    skipped: tuple[str, ...]
    """Unreadable files, each with its reason."""
    left_out: str
    """A sentence about the hidden pictures that were skipped; empty if there were none."""
    resized_from: str
    """The sizes that were resized, in words, each with its number of images; empty if none was."""
    made_rgb: int
    """The number of grey images that became RGB because others are in colour."""
    in_memory: bool
    _count: int
    _read: Callable[[NDArray[np.int64]], Pixels] = field(repr=False)
    _name_of: Callable[[int], str] | None = field(default=None, repr=False)
    _digest: str = ""
    """Hash of all pixels, if opening has read them."""
    pictures: NDArray[np.int64] | None = None
    """(N,) numbers of the pictures that the images are crops of; None if images are not crops."""
    _read_crops: Callable[[NDArray[np.int64], NDArray[np.float64]], Pixels] | None = field(default=None, repr=False)
    _read_picture: Callable[[int], Pixels] | None = field(default=None, repr=False)
    factors: Factors | None = None
    """The images' known factors, if there are any."""

    def __len__(self) -> int:
        return self._count

    @property
    def class_count(self) -> int:
        """Return the number of named classes that have images."""
        if self.labels is None or not self.label_names:
            return 0
        return len(np.unique(self.labels[self.labels != UNLABELLED]))

    def name_of(self, index: int) -> str:
        """Return an image's name for messages: its file, or its number in the source."""
        return f"{self.name}[{index}]" if self._name_of is None else self._name_of(index)

    def fingerprint(self) -> str:
        """Return a hash of the images' number, shape and pixels.

        If the images are not in memory, and opening has not read them all, only _PRINTED of them are hashed, evenly
        spread over the source.
        """
        form = f"{len(self)} {self.shape} "
        if self._digest:
            return form + self._digest
        count = len(self) if self.in_memory else min(len(self), _PRINTED)
        digest = new_digest()
        for first in range(0, count, _BLOCK):
            chosen = np.arange(first, min(first + _BLOCK, count), dtype=np.int64) * len(self) // count
            digest.update(np.ascontiguousarray(self.read(chosen)).data)
        return form + digest.hexdigest()

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """Read images by number: uint8 (n, C, H, W)."""
        return self._read(np.asarray(indices, np.int64))

    def read_crops(self, indices: NDArray[np.int64], places: NDArray[np.float64]) -> Pixels:
        """Read crops at any places of the pictures that the images belong to: uint8 (n, C, H, W).

        ``places`` (n, 2) in [0, 1] say how far down and how far to the right each crop lies, from the first possible
        place to the last. Only images that are crops have them.
        """
        assert self._read_crops is not None
        return self._read_crops(np.asarray(indices, np.int64), places)

    def read_picture(self, number: int) -> Pixels:
        """Read a whole picture that images are crops of, by its number in ``pictures``: uint8 (C, h, w)."""
        assert self._read_picture is not None
        return self._read_picture(number)


def open_source(source: str, *, size: tuple[int, int] | None = None, progress: Progress | None = None) -> Images:
    """Open the images of a source for training.

    Every image is resized to ``size`` (height, width). None keeps their own size if they share one.
    Images are held in memory as uint8 if they take less than half of the available memory, else read on demand.
    Pictures are read twice, and ``progress`` counts both times: first their headers, for size and colours, then their
    pixels. Raises SourceError if there is no such source or it holds no images, and UsageError for a size under 8.
    """
    if size is not None and min(size) < MIN_SIDE:
        raise UsageError(f"the size {size[0]}x{size[1]} is too small: images need at least {MIN_SIDE}x{MIN_SIDE}")
    part = open_part(source)
    form = part.form(progress)
    shape = (form.channels, *(size or form.size))
    if part.varied:
        return _open_pictures(source, part, shape, form, progress)
    return _open_rows(source, part, shape, form)


def _open_pictures(source: str, part: Part, shape: Shape, form: Form, progress: Progress | None) -> Images:
    """Open pictures; decode each once, in processes if there are many, to find and skip unreadable ones."""
    in_memory = len(part) * math.prod(shape) < memory_for_images()
    held = np.empty((len(part) if in_memory else 0, *shape), np.uint8)
    good = packed_array("q")
    skipped: list[str] = []
    digest = new_digest()
    done = 0
    for chunk in part.chunks(shape):
        digest.update(np.ascontiguousarray(chunk.pixels).data)
        if in_memory:
            held[len(good) : len(good) + len(chunk.pixels)] = chunk.pixels
        good.extend(done + place for place in chunk.places)
        skipped += chunk.failures
        done += chunk.consumed
        if progress:
            progress(done, len(part))
    if not good:
        raise nothing_readable(source, skipped[0])
    numbers = np.frombuffer(good, np.int64)
    labels = part.labels
    return Images(
        name=source,
        shape=shape,
        labels=None if labels is None else labels.classes[numbers],
        label_names=() if labels is None else labels.names,
        skipped=tuple(skipped),
        left_out=part.left_out,
        resized_from=_resized_from(form.found, shape[1:]),
        made_rgb=form.made_rgb,
        in_memory=in_memory,
        _count=len(good),
        _read=held[: len(good)].__getitem__ if in_memory else lambda indices: part.read(numbers[indices], shape),
        _name_of=lambda index: part.name(int(numbers[index])),
        _digest=digest.hexdigest(),
    )


def _open_rows(source: str, part: Part, shape: Shape, form: Form) -> Images:
    """Open images of one size. If one can be read, all can."""
    in_memory = len(part) * math.prod(shape) < memory_for_images()
    if not in_memory:
        part.read(np.empty(0, np.int64), shape)  # a truncated file fails now, not hours later
    labels = part.labels
    return Images(
        name=source,
        shape=shape,
        labels=None if labels is None else labels.classes,
        label_names=() if labels is None else labels.names,
        skipped=(),
        left_out=part.left_out,
        resized_from=_resized_from(form.found, shape[1:]),
        made_rgb=form.made_rgb,
        in_memory=in_memory,
        _count=len(part),
        _read=_hold(part, shape).__getitem__ if in_memory else lambda indices: part.read(indices, shape),
        _name_of=part.name,
        factors=part.factors,
    )


def _hold(part: Part, shape: Shape) -> Pixels:
    pixels, done = np.empty((len(part), *shape), np.uint8), 0
    for chunk in part.chunks(shape):
        pixels[done : done + len(chunk.pixels)] = chunk.pixels
        done += len(chunk.pixels)
    return pixels


def nothing_readable(source: str, first: str) -> SourceError:
    """Return the error for a source of which no image can be read; ``first`` is the reason for the first."""
    if os.path.isfile(source) and not is_picture_name(os.fsencode(source)):
        return no_source(source)
    return SourceError(f"{source} holds no readable image; the first: {first}")


def _resized_from(found: Mapping[tuple[int, int], int], size: tuple[int, int]) -> str:
    """Return text like ``10 x 12 (5), 20 x 30 (2) and 17 other sizes (19)``.

    There are no counts if all images have one size.
    """
    others = sorted((-count, own) for own, count in found.items() if own != size)
    if len(found) == 1:
        return " and ".join(f"{height} x {width}" for _, (height, width) in others)
    named = [f"{height} x {width} ({-count:,})" for count, (height, width) in others[:_NAMED_SIZES]]
    if rest := others[_NAMED_SIZES:]:
        named.append(f"{len(rest):,} other size{'s' * (len(rest) > 1)} ({-sum(count for count, _ in rest):,})")
    return " and ".join(filter(None, (", ".join(named[:-1]), *named[-1:])))


def new_digest() -> hashlib.blake2b:
    """Return the hash of a fingerprint, of no pixels yet."""
    return hashlib.blake2b(digest_size=16)


def memory_for_images() -> int:
    """Return how many bytes of pixels are held in memory at most: half of what is available."""
    return available_memory() // 2
