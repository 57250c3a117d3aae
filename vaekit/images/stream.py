"""A stream of any number of images, decoded in worker processes a few at a time.

Memory does not grow with the number of images: even their paths are kept in a temporary file.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from vaekit.errors import SourceError
from vaekit.images.parts import Chunk, Part, Shape, numbered
from vaekit.images.paths import PathSpool
from vaekit.images.picture import check_form
from vaekit.images.picture_parts import PictureFiles
from vaekit.images.source import open_part

__all__ = ["Chunk", "ImageStream"]


class ImageStream:
    """The images of sources (``vaekit.images.source``), in order.

    Every image becomes uint8 (C, H, W) of one shape, by the rule of ``vaekit.images.picture``.
    """

    def __init__(
        self, sources: Sequence[str], shape: Shape, *, listed: Iterable[bytes] = (), resize: bool = True
    ) -> None:
        """Open the sources, and pictures by their ``listed`` paths.

        Without ``resize``, images of another size or colour are errors. Raises SourceError for a name that is not a
        source, and for an array of images that does not fit.
        """
        self.shape = shape
        self._resize = resize
        self._spool = tempfile.TemporaryFile(prefix="vaekit-")  # noqa: SIM115 — closed with the stream
        keep_paths = functools.partial(PathSpool, self._spool)
        self._parts: list[Part] = []
        try:
            for source in sources:
                self._add(source, open_part(source, keep_paths))
            if len(pictures := PictureFiles(keep_paths(_checked(listed)))):
                self._parts.append(pictures)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def left_out(self) -> tuple[str, ...]:
        """Return a sentence for each folder about hidden pictures that were skipped."""
        return tuple(part.left_out for part in self._parts if part.left_out)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes, sorted; None if some images have no classes, or only numbers."""
        labels = [part.labels for part in self._parts]
        if not all(labels):
            return None
        return tuple(sorted({name for each in labels if each is not None for name in each.names})) or None

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the list of paths."""
        with suppress(OSError):  # the temporary folder is full, which was reported before
            self._spool.close()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return a hash of paths, and of array files' names, sizes and times."""
        digest = hashlib.sha256()
        for part in self._parts:
            for identity in part.identity():
                digest.update(identity)
        return digest.hexdigest()

    def chunks(self, start: int = 0, *, every: int = 1) -> Iterator[Chunk]:
        """Read images number ``start``, ``start + every`` and so on.

        Unreadable files are reported in ``Chunk.failures``, not raised.
        """
        for part in self._parts:
            if start < len(part):
                yield from part.chunks(self.shape, start, every, resize=self._resize)
                start += -(-(len(part) - start) // every) * every
            start -= len(part)

    def whole_chunks(self) -> Iterator[Chunk]:
        """Read every image at its own size, with the stream's number of channels.

        Each chunk has one image or one failure, as the sizes differ.
        """
        for part in self._parts:
            for number in range(len(part)):
                try:
                    pixels = part.read_whole(number, self.shape[0])[None]
                except SourceError as error:
                    yield Chunk(np.empty((0, *self.shape), np.uint8), (), (str(error),))
                else:
                    yield numbered(part, pixels, [number])

    def _add(self, source: str, part: Part) -> None:
        if not self._resize and not part.varied:
            _check_fits(source, part, self.shape)
        self._parts.append(part)


def _check_fits(source: str, part: Part, shape: Shape) -> None:
    form = part.form()
    try:
        for size in form.found:
            check_form(size, form.channels, shape[0], shape[1:])
    except ValueError as error:
        raise SourceError(f"{source}: {error}") from error


def _checked(paths: Iterable[bytes]) -> Iterator[bytes]:
    for path in paths:
        if b"\0" in path:
            raise SourceError("the list of paths holds NUL bytes: give one path a line")
        yield path
