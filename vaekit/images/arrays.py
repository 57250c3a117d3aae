"""Arrays in files, processed a few rows at a time so that memory does not grow with their length."""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError, VaekitError
from vaekit.images.idx import MAGIC, open_maybe_gzipped
from vaekit.system.npz import NPZ_ERRORS, read_header

_BLOCK = 1 << 20
_ROWS_AT_ONCE = 1 << 16
_LARGEST_ROW = 1 << 40  # bytes
_MOST_EMPTY_ROWS = 1 << 20  # rows that hold nothing: a file of a few bytes can have any number of them


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool = False
    """Whether the array is stored by columns, so that each row is scattered over the file."""
    is_idx: bool = False


class RowFile:
    """An array in a .npy, .npz or IDX file, read by rows. Nothing is ever unpickled."""

    def __init__(self, path: Path, names: Sequence[str] = ()) -> None:
        """Read the header of the array.

        From a .npz the first array of ``names`` that exists is taken; if none exists, its only array. Raises
        SourceError if the file cannot be read, holds pickled objects or has no such array.
        """
        self.path = path
        self._name = _choose(path, names) if is_npz(path) else ""
        with self._open() as file:
            self._header = _read_header(path, file)
        self.shape, self.dtype = self._header.shape, self._header.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self, rows: int, *, start: int = 0) -> Iterator[NDArray[Any]]:
        """Yield the array from row ``start`` on, ``rows`` at a time.

        Raises SourceError if the file is cut short, or if an IDX or compressed file holds more than its header says.
        """
        if self._header.fortran_order:
            array = self.mapped()
            for first in range(start, len(self), rows):
                yield np.ascontiguousarray(array[first : first + rows])
            return
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        with self._open() as file:
            _read_header(self.path, file)
            file.seek(start * row_bytes, os.SEEK_CUR)
            for first in range(start, len(self), rows):
                count = min(rows, len(self) - first)
                data = _read(file, count * row_bytes)
                if len(data) != count * row_bytes:
                    raise self._too_short(first * row_bytes + len(data))
                yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
            if start <= len(self) and self._must_end(file) and file.read(1):  # the read also checks the CRC
                raise self._too_long()

    def whole(self) -> NDArray[Any]:
        """Read the whole array into memory."""
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.chunks(_ROWS_AT_ONCE)])

    def mapped(self) -> NDArray[Any]:
        """Map the array into memory, to read rows by number.

        A compressed array is first unpacked to a temporary file. Raises SourceError if the file is cut short, and
        VaekitError if the temporary folder is full.
        """
        with self._open() as file:
            _read_header(self.path, file)
            if not _is_packed(file):
                return self._map(file, file.tell())
            with tempfile.TemporaryFile(prefix="vaekit-") as unpacked:
                self._unpack(file, unpacked)
                return self._map(unpacked, 0)

    def _unpack(self, file: IO[bytes], target: IO[bytes]) -> None:
        left = self._bytes + 1  # a small file may unpack to far more than its header says
        while left and (block := file.read(min(left, _BLOCK))):
            try:
                left -= target.write(block)
                target.flush()
            except OSError as error:
                raise VaekitError(
                    f"cannot unpack {self.path} in the temporary folder {tempfile.gettempdir()}: "
                    f"{error.strerror or error}; set TMPDIR to another folder"
                ) from error
        if not left:
            raise self._too_long()

    def _map(self, file: IO[bytes], start: int) -> NDArray[Any]:
        held = file.seek(0, os.SEEK_END) - start
        if held < self._bytes:
            raise self._too_short(held)
        if held > self._bytes and self._must_end(file):
            raise self._too_long()
        if not self._bytes:
            return np.empty(self.shape, self.dtype)
        order: Literal["F", "C"] = "F" if self._header.fortran_order else "C"
        return np.memmap(file, self.dtype, "r", start, self.shape, order)

    @property
    def _bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def _must_end(self, file: IO[bytes]) -> bool:
        """Return whether the file must end after the array.

        A plain .npy may hold more, because ``np.save`` can append to it.
        """
        return self._header.is_idx or _is_packed(file)

    def _too_short(self, held: int) -> SourceError:
        if self._header.fortran_order:
            return SourceError(f"{self.path} is cut short: it holds {held:,} of {self._bytes:,} bytes")
        return SourceError(f"{self.path} is cut short: it ends within row {held * len(self) // self._bytes}")

    def _too_long(self) -> SourceError:
        return SourceError(f"{self.path} is damaged: it holds more than the {len(self):,} rows of its header")

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            with open_maybe_gzipped(self.path) as file:
                if not self._name:
                    yield file
                    return
                with zipfile.ZipFile(file) as archive, archive.open(self._name) as member:
                    yield member
        except NPZ_ERRORS as error:
            raise _unreadable(self.path, error) from error


def is_npz(path: Path) -> bool:
    """Return whether a file's name ends in .npz."""
    return path.suffix.lower() == ".npz"


def npz_names(path: Path) -> list[str]:
    """Return the names of a .npz's arrays. Raises SourceError if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except NPZ_ERRORS as error:
        raise _unreadable(path, error) from error


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file; the caller writes the rows."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def split_strings(file: IO[bytes], start: int) -> Iterator[bytes]:
    """Yield the NUL-terminated strings of a file from a position on.

    Other readers may move the file's position between two strings.
    """
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
    """Return the .npz's member of the first existing name, or its only one."""
    held = npz_names(path)
    wanted = next((name for name in names if name in held), None)
    if wanted is None and len(held) != 1:
        there = ", ".join(held) or "nothing"
        raise SourceError(f"{path} holds {there}: name the array {' or '.join(f'`{name}`' for name in names)}")
    return f"{wanted or held[0]}.npy"


def _is_packed(file: IO[bytes]) -> bool:
    """Return whether a file is gzipped or a member of an archive."""
    return not isinstance(file, io.BufferedReader)


def _unreadable(path: Path, error: Exception) -> SourceError:
    cut = "; it may be cut short" if isinstance(error, EOFError) else ""
    return SourceError(f"{path} cannot be read as an array: {' '.join(str(error).split())}{cut}")


def _read(file: IO[bytes], size: int) -> bytes | bytearray:
    """Read up to ``size`` bytes, in blocks.

    A damaged header may promise more than memory holds, so nothing is allocated in advance.
    """
    data = bytearray()
    while len(data) < size and (block := file.read(min(size - len(data), _BLOCK))):
        data += block
    return data


def _read_header(path: Path, file: IO[bytes]) -> _Header:
    start = file.read(4)
    if start[:3] == MAGIC:
        return _read_idx_header(path, file, start)
    file.seek(0)
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise SourceError(f"{path} holds pickled objects, which could run any code: vaekit loads plain numbers only")
    if not shape:
        raise SourceError(f"{path} holds a single number, of shape (), not rows")
    _check_shape(path, shape, dtype.itemsize)
    return _Header(shape, dtype, fortran_order=fortran_order and len(shape) > 1)


def _read_idx_header(path: Path, file: IO[bytes], start: bytes) -> _Header:
    axes = start[3] if len(start) == 4 else 0
    lengths = file.read(4 * axes)
    if not axes or len(lengths) < 4 * axes:
        raise SourceError(f"{path} is cut short, or an IDX file of no rows")
    shape = tuple(np.frombuffer(lengths, ">u4").tolist())
    _check_shape(path, shape, 1)
    return _Header(shape, np.dtype(np.uint8), is_idx=True)


def _check_shape(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    row = itemsize * math.prod(max(side, 1) for side in shape[1:])  # NumPy counts an axis of no length as 1, too
    if min(shape) < 0 or max(shape) > sys.maxsize or row > _LARGEST_ROW:
        raise SourceError(f"{path} is damaged: its header says that its shape is {shape}")
    if shape[0] > _MOST_EMPTY_ROWS and not itemsize * math.prod(shape[1:]):
        raise SourceError(f"{path} has the shape {shape}: its rows hold nothing")
