"""Read .npz files that anyone may have made, and the exceptions that damaged or encrypted ones can raise."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

try:
    from lzma import LZMAError
except ImportError:  # a Python built without lzma cannot unpack such archives

    class LZMAError(Exception):  # type: ignore[no-redef]
        """Never raised."""


NPZ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,  # NumPy's second look at a damaged header
    RuntimeError,  # an encrypted archive; NotImplementedError, an unknown compression
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
)

_LARGEST = 1 << 31  # bytes of one array
_BLOCK = 1 << 20


def read_arrays(file: Path | IO[bytes], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read those of a .npz's arrays that are there, by name.

    Unlike NumPy, this allocates no memory for what a header says and the file does not hold, and refuses members that
    are not arrays. Raises one of ``NPZ_ERRORS`` for a file that is damaged or holds pickled objects.
    """
    with zipfile.ZipFile(file) as archive:
        held = {entry.filename: entry for entry in archive.infolist()}
        wanted = [(name, held[f"{name}.npy"]) for name in names if f"{name}.npy" in held]
        return {name: _read_array(archive, entry) for name, entry in wanted}


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a .npy file: the shape, whether the array is stored by columns, and the type.

    Raises one of ``NPZ_ERRORS``.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as member:
        shape, fortran_order, dtype = read_header(member)
        held = entry.file_size - member.tell()
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds pickled objects")
        if min(shape, default=0) < 0 or dtype.itemsize * math.prod(shape) != held or held > _LARGEST:
            raise ValueError(f"{entry.filename} holds {held} bytes, which is not {dtype} of shape {shape}")
        data = bytearray()
        while block := member.read(_BLOCK):  # the last read also checks the CRC
            data += block
        if len(data) != held:
            raise ValueError(f"{entry.filename} is cut short")
        array = np.frombuffer(data, dtype) if held else np.empty(0, dtype)
        return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
