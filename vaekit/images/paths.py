"""Lists of any number of files, found in order and kept as the file system's bytes."""

from __future__ import annotations

import heapq
import itertools
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import IO, Any, Protocol

from vaekit.errors import SourceError, VaekitError
from vaekit.images.arrays import split_strings
from vaekit.images.picture import SUFFIXES

_SORTED_AT_ONCE = 50_000  # names of one folder sorted in memory at a time

MACOSX = "__MACOSX"
"""The folder of file attributes that macOS adds to archives."""

_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)


class Paths(Protocol):
    """Paths in order, as the file system's bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...

    def every(self, step: int, start: int = 0) -> Iterator[bytes]:
        """Yield paths number ``start``, ``start + step`` and so on."""
        ...


class PathList:
    """Paths in memory, one after the other.

    A million paths take about 80 MB; as separate objects they would take 500.
    """

    def __init__(self, paths: Iterable[bytes] = ()) -> None:
        self._text, self._ends = bytearray(), array("q", [0])
        for path in paths:
            self.append(path)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._text[self._ends[index] : self._ends[index + 1]])

    def every(self, step: int, start: int = 0) -> Iterator[bytes]:
        """Yield paths number ``start``, ``start + step`` and so on."""
        return (self[index] for index in range(start, len(self), step))

    def append(self, path: bytes) -> None:
        """Add a path at the end."""
        self._text += path
        self._ends.append(len(self._text))


class PathSpool:
    """Paths in a temporary file, which several spools may share. Memory does not grow with their number."""

    def __init__(self, file: IO[bytes], paths: Iterable[bytes]) -> None:
        """Append paths to the file. Raises VaekitError if the disk is full."""
        self._file, self._start, self._count = file, file.seek(0, os.SEEK_END), 0
        for path in paths:
            write_strings(file, (path,), flush=False)
            self._count += 1
        write_strings(file, ())  # flushes the file

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        """Return one path. This reads all paths before it, so it is slow."""
        return next(self.every(1, index))

    def every(self, step: int, start: int = 0) -> Iterator[bytes]:
        """Yield paths number ``start``, ``start + step`` and so on."""
        return itertools.islice(split_strings(self._file, self._start), start, self._count, step)


def is_picture_name(path: bytes) -> bool:
    """Return whether a file's suffix is that of a picture."""
    return path.lower().endswith(_SUFFIXES)


class Leftovers:
    """A count of hidden files and folders: ``._cat.png``, ``.ipynb_checkpoints/``, ``__MACOSX/``.

    Other programs leave them among pictures. They are copies, thumbnails or no pictures at all, so they are skipped.
    """

    def __init__(self) -> None:
        self.files = self.folders = 0

    def take(self, name: bytes, *, is_folder: bool) -> bool:
        """Return whether a file or folder of that name is a leftover.

        Folders, and files with a picture's suffix, are counted.
        """
        if not name.startswith(b".") and name != MACOSX.encode():
            return False
        self.folders += is_folder
        self.files += not is_folder and is_picture_name(name)
        return True

    def in_words(self) -> str:
        """Return a sentence with the counts; empty if nothing was skipped."""
        counts = ((self.files, "picture"), (self.folders, "folder"))
        said = " and ".join(f"{count:,} {what}{'s' * (count != 1)}" for count, what in counts if count)
        return f"skipped {said} (names with a leading dot, or __MACOSX)" if said else ""


def pictures_under(folder: bytes, leftovers: Leftovers | None = None) -> Iterator[bytes]:
    """Yield the paths of pictures at any depth, sorted by name.

    A folder's own pictures come before those of its subfolders. Leftovers below the folder are skipped, and counted in
    ``leftovers``. Links to folders are followed, except to a folder that contains the link. Raises SourceError if a
    folder cannot be read.
    """
    leftovers = leftovers or Leftovers()
    waiting = [(folder, frozenset[tuple[int, int]]())]  # a stack of folders, each with the folders that contain it
    while waiting:
        folder, above = waiting.pop()
        subfolders: list[bytes] = []
        try:
            stat = os.stat(folder)  # noqa: PTH116 — the path is bytes
            within = above | {(stat.st_dev, stat.st_ino)}
            if len(within) > len(above):
                yield from (folder + b"/" + name for name in _sorted(_picture_names(folder, subfolders, leftovers)))
        except OSError as error:
            raise SourceError(f"cannot read the folder {os.fsdecode(folder)}: {error.strerror or error}") from error
        waiting += [(folder + b"/" + name, within) for name in sorted(subfolders, reverse=True)]


def _picture_names(folder: bytes, subfolders: list[bytes], leftovers: Leftovers) -> Iterator[bytes]:
    """Yield the names of a folder's pictures, unsorted; append those of its subfolders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = _is_dir(entry)
            if leftovers.take(entry.name, is_folder=is_folder):
                continue
            if is_folder:
                subfolders.append(entry.name)
            elif is_picture_name(entry.name):
                yield entry.name


def write_strings(file: IO[bytes], strings: Iterable[bytes], *, flush: bool = True) -> None:
    """Write NUL-terminated strings to a temporary file.

    Raises VaekitError if the disk is full.
    """
    try:
        file.writelines(string + b"\0" for string in strings)
        if flush:
            file.flush()
    except OSError as error:
        raise VaekitError(
            f"cannot list the images in the temporary folder {tempfile.gettempdir()}: {error.strerror or error}; "
            "set TMPDIR to another folder"
        ) from error


def _is_dir(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _sorted(names: Iterator[bytes]) -> Iterator[bytes]:
    """Sort names with at most _SORTED_AT_ONCE of them in memory.

    More names are sorted in temporary files, which are then merged.
    """
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
