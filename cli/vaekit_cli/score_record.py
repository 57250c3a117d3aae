"""The file of JSON lines that `vaekit score --watch` appends to, and reads after a restart."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vaekit.errors import SourceError, VaekitError

if TYPE_CHECKING:
    from vaekit.images.watch import NewPicture

_BLOCK = 1 << 16
_BEGIN = b'{"path": '


class ScoreRecord:
    """JSON lines, one for each picture, on stdout or in a file."""

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        """Check the file, and cut off a last line that is not whole. Raises SourceError if it holds other lines."""
        self._path, self._say = path, say
        if path is not None and path.exists():
            try:
                with open(path, "r+b") as file:
                    _check(path, file)
                    _cut_last_line(file)
            except OSError as error:
                raise VaekitError(f"cannot write {path}: {error.strerror or error}") from error

    def pictures(self) -> Iterator[NewPicture]:
        """Yield the pictures in the file. Lines that cannot be read are counted, and reported at the end."""
        if self._path is None or not self._path.exists():
            return
        unreadable = 0
        with open(self._path, "rb") as file:
            for line in file:
                picture = _parse(line)
                if picture is None:
                    unreadable += 1
                else:
                    yield picture
        if unreadable:
            self._say(f"{self._path}: {unreadable:,} lines cannot be read; their pictures are scored again")

    def add(self, row: dict[str, Any]) -> bytes:
        """Write a line, and return it. Raises VaekitError if the file cannot be written."""
        line = json.dumps(row).encode() + b"\n"
        if self._path is None:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            return line
        try:
            # Opened for each line, so that the file may be moved away while the folder is watched.
            with open(self._path, "ab", buffering=0) as file:
                written = file.write(line)
        except OSError as error:
            raise VaekitError(f"cannot write {self._path}: {error.strerror or error}") from error
        if written != len(line):
            raise VaekitError(f"cannot write {self._path}: the disk is full")
        return line


def _check(path: Path, file: BinaryIO) -> None:
    first = file.readline(_BLOCK)
    torn = not first.endswith(b"\n") and first.startswith(_BEGIN)
    if first and not torn and _parse(first) is None:
        raise SourceError(f"{path} does not hold the lines of `vaekit score --watch`: choose another file for -o")


def _cut_last_line(file: BinaryIO) -> None:
    """Cut off a last line without a line break. A power failure leaves one."""
    end = file.seek(0, os.SEEK_END)
    position = end
    while position:
        start = max(0, position - _BLOCK)
        file.seek(start)
        block = file.read(position - start)
        if (found := block.rfind(b"\n")) >= 0:
            position = start + found + 1
            break
        position = start
    if position != end:
        file.truncate(position)


def _parse(line: bytes) -> NewPicture | None:
    from vaekit.images.watch import NewPicture

    try:
        row = json.loads(line)
        path, size, modified = row["path"], row["bytes"], row["modified_ns"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(path, str) and isinstance(size, int) and isinstance(modified, int)):
        return None
    return NewPicture(Path(path).name, size, modified)
