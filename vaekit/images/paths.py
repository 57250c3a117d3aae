"""Lists of files of any length: found in order, and kept as the file system's bytes."""

from __future__ import annotations

import heapq
import itertools
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from vaekit.errors import SourceError, VaekitError
from vaekit.images.arrays import split_strings
from vaekit.images.picture import SUFFIXES

_SORTED_AT_ONCE = 50_000  # names of one folder that are sorted in memory

_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)


class PathList:
    """Paths, one after the other in memory: of a million files some 80 MB, where objects would take 500."""

    def __init__(self, paths: Iterable[bytes] = ()) -> None:
        self._text, self._ends = bytearray(), array("q", [0])
        for path in paths:
            self.append(path)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._text[self._ends[index] : self._ends[index + 1]])

    def append(self, path: bytes) -> None:
        """Add a path at the end."""
        self._text += path
        self._ends.append(len(self._text))


def pictures_under(folder: bytes, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[bytes]:
    """Paths of pictures at any depth, in order of their names, a folder's own before those of its subfolders.

    Links to folders are followed, but not back into a folder that they lie in.
    """
    stat = Path(os.fsdecode(folder)).stat()
    here = above | {(stat.st_dev, stat.st_ino)}
    if len(here) == len(above):
        return
    subfolders: list[bytes] = []

    def names() -> Iterator[bytes]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_dir(entry):
                        subfolders.append(entry.name)
                    elif entry.name.lower().endswith(_SUFFIXES):
                        yield entry.name
        except OSError as error:
            raise SourceError(f"cannot read the folder {os.fsdecode(folder)}: {error.strerror or error}") from error

    yield from (folder + b"/" + name for name in _sorted(names()))
    for name in sorted(subfolders):
        yield from pictures_under(folder + b"/" + name, here)


def write_strings(file: IO[bytes], strings: Iterable[bytes], *, flush: bool = True) -> None:
    """Write strings, NUL-terminated, to a temporary file. Raises VaekitError where there is no room for them."""
    try:
        file.writelines(string + b"\0" for string in strings)
        if flush:
            file.flush()
    except OSError as error:
        raise VaekitError(
            f"cannot list the images in the temporary folder {tempfile.gettempdir()}: {error.strerror or error}; "
            "TMPDIR names another"
        ) from error


def _is_dir(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _sorted(names: Iterator[bytes]) -> Iterator[bytes]:
    """Names in order, of which only so many are in memory at a time: sorted runs on disk, merged."""
    first = sorted(itertools.islice(names, _SORTED_AT_ONCE))
    if len(first) < _SORTED_AT_ONCE:
        yield from first
        return
    runs: list[Any] = []
    try:
        while first:
            run = tempfile.TemporaryFile(prefix="vaekit-")  # noqa: SIM115 — closed below
            runs.append(run)
            write_strings(run, first)
            first = sorted(itertools.islice(names, _SORTED_AT_ONCE))
        yield from heapq.merge(*(split_strings(run, 0) for run in runs))
    finally:
        for run in runs:
            run.close()
