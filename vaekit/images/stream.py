"""Any number of images as a stream: listed on disk, decoded in processes, a bounded number at a time.

Memory does not grow with the number of images: even their paths lie in a temporary file, as the file system's bytes.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError
from vaekit.images.arrays import RowFile, split_strings
from vaekit.images.dataset import (
    BUILT_IN_FILES,
    CLASS_NAMES,
    HUB,
    SHAPES_COUNT,
    array_labels,
    channels_first,
    find_dataset,
    idx_images,
    no_source,
    resize,
    to_uint8,
)
from vaekit.images.hub import open_hub
from vaekit.images.idx import is_idx
from vaekit.images.paths import pictures_under, write_strings
from vaekit.images.picture import SUFFIXES, check_form, convert_channels, read_image
from vaekit.images.shapes import SHAPE_NAMES, draw_factors, render
from vaekit.system.workers import ordered_map

T = TypeVar("T")

_CHUNK_BYTES = 1 << 22  # of pixels that travel between processes at a time
_CHUNK_IMAGES = 256
_FEW = 256  # files that are decoded in this process: others take longer to start than these take to decode


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of a stream."""

    pixels: NDArray[np.uint8]
    """(n, C, H, W)."""
    paths: tuple[bytes, ...]
    """Of the n images, as the file system has them; an array's images are named ``file.npy[3]``."""
    failures: tuple[str, ...]
    """Of the files that could not be read, each with its reason."""
    labels: tuple[str, ...] | None = None
    """Class names of the n images, from subfolders or the array's own labels; None where there are none."""

    @property
    def consumed(self) -> int:
        """Images and failures together."""
        return len(self.paths) + len(self.failures)

    @property
    def images(self) -> NDArray[np.float32]:
        """(n, C, H, W) in [0, 1]."""
        return self.pixels.astype(np.float32) / np.float32(255)


class _Part(Protocol):
    """Some of a stream's images."""

    def __len__(self) -> int: ...

    def chunks(self, start: int, every: int) -> Iterator[Chunk]:
        """Images number ``start``, ``start + every`` and so on."""
        ...


class ImageStream:
    """Images of sources, in order: folders, pictures, globs, .npy, .npz, IDX, hf: names, and the built-in names.

    Every image becomes uint8 (C, H, W) of one shape by the rule of ``vaekit.images.picture``.
    """

    def __init__(
        self,
        sources: Sequence[str],
        shape: tuple[int, int, int],
        *,
        listed: Iterable[bytes] = (),
        resize: bool = True,
    ) -> None:
        """``listed`` are paths of pictures more. Without ``resize``, images of another size or colour are refused.

        Raises SourceError for a source that is none, or an array of images that does not fit.
        """
        self.shape = shape
        self._resize = resize
        self._spool = tempfile.TemporaryFile(prefix="vaekit-")  # noqa: SIM115 — closed with the stream
        self._digest = hashlib.sha256()
        self._parts: list[_Part] = []
        try:
            for source in sources:
                self._add(source)
            self._add_files(listed)
            write_strings(self._spool, ())  # what still waits to be written
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the list of paths."""
        with suppress(OSError):  # of a temporary folder that is full, told before
            self._spool.close()

    @property
    def fingerprint(self) -> str:
        """A hash of what the stream lists: paths, and the name, size and time of array files."""
        return self._digest.hexdigest()

    def chunks(self, start: int = 0, *, every: int = 1) -> Iterator[Chunk]:
        """Images number ``start``, ``start + every`` and so on; files that cannot be read are told, not raised."""
        for part in self._parts:
            if start < len(part):
                yield from part.chunks(start, every)
                start += -(-(len(part) - start) // every) * every
            start -= len(part)

    def _add(self, source: str) -> None:
        path = Path(source)
        if source == "shapes":
            self._add_part(_Shapes(self.shape), source)
        elif source in BUILT_IN_FILES:
            self._add_array(source, idx_images(find_dataset(source)), CLASS_NAMES.get(source, ()))
        elif source.startswith(HUB):
            self._add_part(_Hub(source, self.shape, self._resize), source)
        elif os.path.isdir(source):
            self._add_folder(path)
        elif os.path.isfile(source):
            if path.suffix.lower() in (".npy", ".npz") or is_idx(path):
                self._add_array(source, path)
            else:
                self._add_files([os.fsencode(path)])
        elif matches := sorted(glob.glob(source, recursive=True)):
            self._add_files(os.fsencode(match) for match in matches if Path(match).is_file())
        else:
            raise no_source(source)

    def _add_folder(self, folder: Path) -> None:
        before = len(self)
        self._add_files(pictures_under(os.fsencode(folder)), root=os.fsencode(folder))
        if len(self) == before:
            if not any("idx3-ubyte" in file.name for file in folder.iterdir()):
                raise SourceError(f"{folder} holds no images: vaekit reads {', '.join(sorted(SUFFIXES))}")
            self._add_array(str(folder), idx_images(folder))

    def _add_array(self, source: str, path: Path, class_names: tuple[str, ...] = ()) -> None:
        stat = path.stat()
        array = _Array(source, RowFile(path, ("images",)), self.shape, self._resize, class_names)
        self._add_part(array, f"{path} {stat.st_size} {stat.st_mtime_ns}")

    def _add_files(self, paths: Iterable[bytes], root: bytes | None = None) -> None:
        start, count = self._spool.seek(0, os.SEEK_END), 0
        for path in paths:
            if b"\0" in path:
                raise SourceError("the list of paths holds NUL bytes: give one path a line")
            write_strings(self._spool, (path,), flush=False)
            self._digest.update(path + b"\0")
            count += 1
        if count:
            self._parts.append(_Files(self._spool, start, count, self.shape, self._resize, root))

    def _add_part(self, part: _Part, identity: str) -> None:
        self._digest.update(b"\0" + identity.encode(errors="surrogateescape") + b"\0")
        self._parts.append(part)


class _Files:
    """Pictures whose paths lie in the spool."""

    def __init__(
        self,
        spool: IO[bytes],
        start: int,
        count: int,
        shape: tuple[int, int, int],
        resize: bool,
        root: bytes | None,
    ) -> None:
        self._spool, self._start, self._count = spool, start, count
        self._read = functools.partial(_read_files, shape=shape, resize=resize, root=root)
        self._chunk = _chunk_images(shape)

    def __len__(self) -> int:
        return self._count

    def chunks(self, start: int, every: int) -> Iterator[Chunk]:
        paths = itertools.islice(split_strings(self._spool, self._start), start, self._count, every)
        pieces = iter(lambda: tuple(itertools.islice(paths, self._chunk)), ())
        few = (self._count - start) // every <= _FEW
        return ordered_map(self._read, pieces, processes=1 if few else None)


class _Array:
    """Images of an array in a file."""

    def __init__(
        self,
        source: str,
        rows: RowFile,
        shape: tuple[int, int, int],
        resize: bool,
        class_names: tuple[str, ...],
    ) -> None:
        self._source, self._rows, self._shape, self._class_names = source, rows, shape, class_names
        first = channels_first(source, np.broadcast_to(np.empty((), rows.dtype), rows.shape))
        if not all(first.shape[1:]):
            raise SourceError(f"{source} has images without pixels")
        self._row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
        if not resize:
            try:
                check_form(first.shape[2:], first.shape[1], shape[0], shape[1:])
            except ValueError as error:
                raise SourceError(f"{source}: {error}") from error

    def __len__(self) -> int:
        return len(self._rows)

    def chunks(self, start: int, every: int) -> Iterator[Chunk]:
        channels, *size = self._shape
        first = start
        count = max(1, min(_chunk_images(self._shape), _CHUNK_BYTES // self._row_bytes))
        for rows in self._rows.chunks(count, start=start):
            numbers = range(first, first + len(rows))[(start - first) % every :: every]
            pixels = to_uint8(self._source, channels_first(self._source, rows[(start - first) % every :: every]))
            fitted = resize(convert_channels(pixels, channels), (size[0], size[1]))
            yield Chunk(fitted, _numbered(self._source, numbers), (), self._labels(numbers))
            first += len(rows)

    def _labels(self, numbers: range) -> tuple[str, ...] | None:
        if self._classes is None:
            return None
        found = self._classes[numbers.start : numbers.stop : numbers.step].tolist()
        names = dict(enumerate(self._class_names))
        return tuple(names.get(label, str(label)) for label in found)

    @functools.cached_property
    def _classes(self) -> NDArray[Any] | None:
        """Classes (N,): ``labels`` beside the images in a .npz, or the file beside an IDX file."""
        labels = array_labels(self._rows.path)
        return labels if labels is not None and labels.shape == (len(self),) else None


class _Hub:
    """Pictures of a data set that Hugging Face's library loads."""

    def __init__(self, source: str, shape: tuple[int, int, int], resize: bool) -> None:
        self._pictures = open_hub(source.removeprefix(HUB))
        self._shape, self._resize = shape, resize

    def __len__(self) -> int:
        return len(self._pictures)

    def chunks(self, start: int, every: int) -> Iterator[Chunk]:
        numbers, rows = range(start, len(self), every), _chunk_images(self._shape)
        for first in range(0, len(numbers), rows):
            yield self._read(numbers[first : first + rows])

    def _read(self, numbers: range) -> Chunk:
        def one(number: int) -> NDArray[np.uint8]:
            channels, height, width = self._shape
            name = self._pictures.name(number)
            return read_image(self._pictures.open(number), channels, (height, width), resize=self._resize, name=name)

        pixels, good, failures = _read_each(one, numbers, self._shape)
        labels, names = self._pictures.labels, self._pictures.label_names
        return Chunk(
            pixels,
            tuple(os.fsencode(self._pictures.name(number)) for number in good),
            failures,
            None if labels is None else tuple(names[labels[number]] for number in good),
        )


class _Shapes:
    """The built-in shapes, drawn as they are needed."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape

    def __len__(self) -> int:
        return SHAPES_COUNT

    def chunks(self, start: int, every: int) -> Iterator[Chunk]:
        channels, *size = self._shape
        numbers, rows = range(start, SHAPES_COUNT, every), _chunk_images(self._shape)
        for first in range(0, len(numbers), rows):
            some = numbers[first : first + rows]
            factors = draw_factors(some[-1] + 1 - some[0], start=some[0])[::every]
            pixels = render(factors, (size[0], size[1]))
            names = tuple(SHAPE_NAMES[int(shape)] for shape in factors[:, 0])
            yield Chunk(convert_channels(pixels, channels), _numbered("shapes", some), (), names)


def _numbered(source: str, numbers: Iterable[int]) -> tuple[bytes, ...]:
    return tuple(os.fsencode(f"{source}[{number}]") for number in numbers)


def _read_files(paths: tuple[bytes, ...], shape: tuple[int, int, int], resize: bool, root: bytes | None) -> Chunk:
    """Decode pictures; this runs in a process of its own."""

    def one(path: bytes) -> NDArray[np.uint8]:
        channels, height, width = shape
        return read_image(os.fsdecode(path), channels, (height, width), resize=resize)

    pixels, good, failures = _read_each(one, paths, shape)
    labels = None if root is None else tuple(_folder_below(root, path) for path in good)
    return Chunk(pixels, good, failures, labels)


def _read_each(
    read: Callable[[T], NDArray[np.uint8]], pictures: Sequence[T], shape: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], tuple[T, ...], tuple[str, ...]]:
    """Images (n, C, H, W) of those pictures that can be read, which these are, and why the others cannot."""
    pixels = np.empty((len(pictures), *shape), np.uint8)
    good: list[T] = []
    failures: list[str] = []
    for picture in pictures:
        try:
            pixels[len(good)] = read(picture)
            good.append(picture)
        except SourceError as error:
            failures.append(str(error))
    return pixels[: len(good)], tuple(good), tuple(failures)


def _folder_below(root: bytes, path: bytes) -> str:
    """The folder of a file, as its path from a folder above it."""
    return str(Path(os.fsdecode(path)).parent.relative_to(os.fsdecode(root)))


def _chunk_images(shape: tuple[int, int, int]) -> int:
    return max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // int(np.prod(shape))))
