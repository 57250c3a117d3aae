"""Images for the checks of an export and the measurements of a compression."""

from __future__ import annotations

import numpy as np

from vaekit.errors import SourceError
from vaekit.images.stream import ImageStream
from vaekit.types import Array
from vaekit_export.model import Say, rows_of_images

_HELD_OUT = 1000  # as many as a run holds out, if they are small


def read_held_out(source: str, shape: tuple[int, int, int], say: Say) -> Array:
    """Read as many images as a run holds out, or fewer large ones.

    See ``read_images``.
    """
    return read_images(source, shape, rows_of_images(shape, _HELD_OUT), say)


def read_images(source: str, shape: tuple[int, int, int], most: int, say: Say) -> Array:
    """Read up to ``most`` images, evenly spread over a source.

    Returns float32 (N, *shape) in [0, 1]. Images that cannot be read are skipped and reported to ``say``. Raises
    SourceError if ``source`` is not a source of images, or no image can be read.
    """
    with ImageStream([source], shape) as stream:
        total = len(stream)
        chunks = list(stream.chunks(every=max(1, -(-total // most))))
    failures = [failure for chunk in chunks for failure in chunk.failures]
    for failure in failures:
        say(f"skipped {failure}")
    if not any(chunk.paths for chunk in chunks):
        raise SourceError(f"{source} has no readable image" + (f"; the first: {failures[0]}" if failures else ""))
    return np.concatenate([chunk.images for chunk in chunks])
