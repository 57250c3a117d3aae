"""Arrays in files, read and written a few rows at a time, so that memory does not grow with their length."""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError
from vaekit.images.idx import MAGIC, open_maybe_gzipped
from vaekit.system.npz import NPZ_ERRORS

_BLOCK = 1 << 20


class RowFile:
    """An array in a .npy or IDX file, or one array of a .npz, by rows. Nothing in it is unpickled, ever."""

    def __init__(self, path: Path, names: Sequence[str] = ()) -> None:
        """``names`` are those of the array wanted in a .npz, the first that is there; else its only array.

        Raises SourceError where the file cannot be read, holds pickled objects or no such array.
        """
        self.path = path
        self.name = _choose(path, names) if path.suffix.lower() == ".npz" else ""
        with self._open() as file:
            self.shape, self.dtype = _read_header(path, file)

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self, rows: int, *, start: int = 0) -> Iterator[NDArray[Any]]:
        """The array from row ``start`` on, up to ``rows`` rows at a time. Raises SourceError where it is cut short."""
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        with self._open() as file:
            _read_header(self.path, file)
            file.seek(start * row_bytes, os.SEEK_CUR)
            for first in range(start, len(self), rows):
                count = min(rows, len(self) - first)
                data = _read(file, count * row_bytes)
                if len(data) != count * row_bytes:
                    raise SourceError(f"{self.path} is cut short: it ends within row {first + len(data) // row_bytes}")
                yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            with open_maybe_gzipped(self.path) as file:
                if not self.name:
                    yield file
                    return
                with zipfile.ZipFile(file) as archive, archive.open(self.name) as member:
                    yield member
        except NPZ_ERRORS as error:
            raise SourceError(f"{self.path} cannot be read as an array: {' '.join(str(error).split())}") from error


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file of that type and shape, whose rows are to follow."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def split_strings(file: IO[bytes], start: int) -> Iterator[bytes]:
    """The NUL-terminated strings of a file from a position on; others may move in the file meanwhile."""
    rest = b""
    while True:
        file.seek(start)
        block = file.read(1 << 16)
        if not block:
            return
        start += len(block)
        *whole, rest = (rest + block).split(b"\0")
        yield from whole


def _choose(path: Path, names: Sequence[str]) -> str:
    """The name of the member of a .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name for name in archive.namelist() if name.endswith(".npy")]
    except NPZ_ERRORS as error:
        raise SourceError(f"{path} cannot be read as an array: {' '.join(str(error).split())}") from error
    wanted = next((f"{name}.npy" for name in names if f"{name}.npy" in held), None)
    if wanted is None and len(held) != 1:
        there = ", ".join(name.removesuffix(".npy") for name in held) or "nothing"
        raise SourceError(f"{path} holds {there}: name the array {' or '.join(f'`{name}`' for name in names)}")
    return wanted or held[0]


def _read(file: IO[bytes], size: int) -> bytes | bytearray:
    """Up to ``size`` bytes, in blocks: what a header promises is not yet memory to be taken."""
    data = bytearray()
    while len(data) < size and (block := file.read(min(size - len(data), _BLOCK))):
        data += block
    return data


def _read_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    start = file.read(4)
    if start[:3] == MAGIC:
        if len(start) < 4 or not start[3]:
            raise SourceError(f"{path} is cut short, or an IDX file of no rows")
        shape = tuple(np.frombuffer(file.read(4 * start[3]), ">u4", start[3]).tolist())
        _check_shape(path, shape, 1)
        return shape, np.dtype(np.uint8)
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if dtype.hasobject:
        raise SourceError(f"{path} holds pickled objects, which could run any code: vaekit loads plain numbers only")
    if not shape:
        raise SourceError(f"{path} holds a single number, not rows")
    if fortran_order and len(shape) > 1:
        raise SourceError(f"{path} is stored column by column: save it as np.ascontiguousarray(array)")
    _check_shape(path, shape, dtype.itemsize)
    return shape, dtype


def _check_shape(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    if min(shape) < 0 or max(shape) > sys.maxsize or itemsize * math.prod(shape[1:]) > sys.maxsize:
        raise SourceError(f"{path} is damaged: its header says that its shape is {shape}")
