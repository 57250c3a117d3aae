"""Pictures in .tar files, such as the shards of WebDataset. The files stay packed.

WebDataset's format (https://github.com/webdataset/webdataset): files of one sample have one name up to the first dot of
its last part, and ``.cls`` holds the sample's class number as text.
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError
from vaekit.images.labels import UNLABELLED, Labels
from vaekit.images.parts import Chunk, Form, Progress, Shape, chunk_images, identity_of_file
from vaekit.images.paths import MACOSX, Leftovers, is_picture_name
from vaekit.images.picture import read_image
from vaekit.images.picture_parts import FEW, form_of_pictures, read_each
from vaekit.system.files import is_regular
from vaekit.system.workers import ordered_map
from vaekit.types import Pixels

_CLASS_SUFFIX = ".cls"
_LONGEST_CLASS = 20  # digits and spaces


class Member(NamedTuple):
    """A picture in a .tar file."""

    archive: str
    start: int
    """Its first byte in the archive."""
    size: int
    """Bytes."""
    name: str
    label: str | None = None
    """The name of its class, empty without one; None if the archives have no classes."""

    def path(self) -> str:
        """Return the archive and the picture's name in it."""
        return f"{self.archive}/{self.name}"

    def open(self) -> io.BytesIO:
        """Return the picture's bytes as an open file. Raises SourceError if the archive cannot be read."""
        try:
            with open(self.archive, "rb") as file:
                file.seek(self.start)
                return io.BytesIO(file.read(self.size))
        except (OSError, OverflowError) as error:
            raise SourceError(f"cannot read {self.path()}: {error}") from error


class TarImages:
    """Pictures in .tar files.

    Their classes are the numbers in ``.cls`` files, or else the pictures' folders within the archives.
    """

    factors = None
    varied = True

    def __init__(self, source: str, archives: Sequence[Path]) -> None:
        """Read the archives' headers. Raises SourceError if one is damaged or compressed, or none has a picture."""
        self._archives = archives
        leftovers, classes = Leftovers(), dict[tuple[str, str], int]()
        members = [member for archive in archives for member in _read_headers(archive, classes, leftovers)]
        self._members = _labelled(members, classes)
        self.left_out = leftovers.in_words()
        if not members:
            raise SourceError(f"{source} holds no images: a .tar holds pictures, which are found by their suffixes")

    def __len__(self) -> int:
        return len(self._members)

    def identity(self) -> Iterator[bytes]:
        return map(identity_of_file, self._archives)

    def name(self, number: int) -> str:
        return self._members[number].path()

    def form(self, progress: Progress | None = None) -> Form:
        return form_of_pictures((member.open() for member in self._members), len(self), progress)

    @functools.cached_property
    def labels(self) -> Labels | None:
        if self._members[0].label is None:
            return None
        given = [member.label or "" for member in self._members]
        names = sorted(
            set(given) - {""}, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else name)
        )
        places = {name: place for place, name in enumerate(names)} | {"": UNLABELLED}
        return Labels(np.array([places[name] for name in given], np.int64), tuple(names))

    def read(self, numbers: NDArray[np.int64], shape: Shape) -> Pixels:
        pictures = [_read_one(self._members[int(number)], shape, resize=True) for number in numbers]
        return np.array(pictures, np.uint8).reshape(-1, *shape)

    def read_whole(self, number: int, channels: int) -> Pixels:
        member = self._members[number]
        return read_image(member.open(), channels, None, name=member.path())

    def chunks(self, shape: Shape, start: int = 0, every: int = 1, *, resize: bool = True) -> Iterator[Chunk]:
        chosen, count = self._members[start::every], chunk_images(shape)
        batches = (tuple(chosen[first : first + count]) for first in range(0, len(chosen), count))
        read = functools.partial(_read_members, shape=shape, resize=resize)
        return ordered_map(read, batches, processes=1 if len(chosen) <= FEW else None)


def _read_headers(archive: Path, classes: dict[tuple[str, str], int], leftovers: Leftovers) -> list[Member]:
    """Return an archive's pictures, and add the numbers of its classes, by archive and sample."""
    members: list[Member] = []
    try:
        if not is_regular(archive):
            raise SourceError(f"{archive} is a device or a pipe, not a file")
        with tarfile.open(archive, "r:") as opened:
            for header in opened:
                if not header.isreg() or header.issparse():
                    continue
                *folders, last = [part for part in header.name.split("/") if part not in ("", ".")] or [""]
                if any(name.startswith(".") or name == MACOSX for name in folders):
                    leftovers.files += is_picture_name(os.fsencode(last))
                    continue
                if leftovers.take(os.fsencode(last), is_folder=False):
                    continue
                if is_picture_name(os.fsencode(last)):
                    members.append(Member(str(archive), header.offset_data, header.size, "/".join((*folders, last))))
                elif last.lower().endswith(_CLASS_SUFFIX) and header.size <= _LONGEST_CLASS:
                    file = opened.extractfile(header)
                    text = b"" if file is None else file.read().strip()
                    if text.isdigit():
                        classes[str(archive), _sample("/".join((*folders, last)))] = int(text)
    except tarfile.ReadError as error:
        raise SourceError(f"{archive} is damaged, or compressed, which a .tar here must not be: {error}") from error
    except (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise SourceError(f"cannot read {archive}: {error}") from error
    return members


def _labelled(members: list[Member], classes: dict[tuple[str, str], int]) -> list[Member]:
    """Return pictures with the names of their classes, if they have any."""
    if classes:
        numbers = [classes.get((member.archive, _sample(member.name))) for member in members]
        names = ["" if number is None else str(number) for number in numbers]
    else:
        names = [member.name.rpartition("/")[0] for member in members]
        if not any(names):
            return members
        names = [name or "." for name in names]  # as in a folder of pictures
    return [member._replace(label=name) for member, name in zip(members, names, strict=True)]


def _sample(name: str) -> str:
    """Return a sample's name: that of its files up to the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _read_one(member: Member, shape: Shape, resize: bool) -> Pixels:
    return read_image(member.open(), shape[0], shape[1:], resize=resize, name=member.path())


def _read_members(members: tuple[Member, ...], shape: Shape, resize: bool) -> Chunk:
    """Decode pictures, in a worker process."""
    pixels, good, failures, failed = read_each(functools.partial(_read_one, shape=shape, resize=resize), members, shape)
    labels = None if members[0].label is None else tuple(member.label or "" for member in good)
    return Chunk(pixels, tuple(os.fsencode(member.path()) for member in good), failures, labels, failed)
