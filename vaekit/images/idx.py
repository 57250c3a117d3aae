"""IDX files, the format of the MNIST family: http://yann.lecun.com/exdb/mnist describes it."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError

MAGIC = bytes((0, 0, 8))
"""The first bytes of an IDX file of unsigned bytes; the next byte is its number of axes."""

_READ_ERRORS = (OSError, EOFError, zlib.error)


def is_idx(path: Path) -> bool:
    """Return whether a file starts like an IDX file of unsigned bytes.

    It may be gzipped.
    """
    try:
        with open_maybe_gzipped(path) as file:
            return file.read(3) == MAGIC
    except _READ_ERRORS:
        return False


def check_idx(path: Path) -> None:
    """Raise SourceError unless a file starts like an IDX file of unsigned bytes."""
    try:
        with open_maybe_gzipped(path) as file:
            start = file.read(3)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    if start != MAGIC:
        raise SourceError(f"{path} is not an IDX file of unsigned bytes")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Raises SourceError if it is another kind of file or is cut short.
    """
    try:
        with open_maybe_gzipped(path) as file:
            data = file.read()
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    if len(data) < 4 or data[:3] != MAGIC:
        raise SourceError(f"{path} is not an IDX file of unsigned bytes")
    axes = data[3]
    start = 4 + 4 * axes
    if len(data) < start:
        raise SourceError(f"{path} is cut short: it ends within its header")
    shape = np.frombuffer(data, ">u4", axes, offset=4).tolist()
    expected = math.prod(shape)
    if len(data) - start != expected:
        raise SourceError(
            f"{path} is cut short or damaged: {len(data) - start:,} bytes of data, where its header says "
            f"{' x '.join(map(str, shape))} = {expected:,}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def open_maybe_gzipped(path: Path) -> BinaryIO:
    """Open a file to read its bytes; a gzipped one is unzipped."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")  # type: ignore[return-value]  # GzipFile acts as a BinaryIO


def _unreadable(path: Path, error: Exception) -> SourceError:
    return SourceError(f"{path} cannot be read: {error}; it may be cut short")
