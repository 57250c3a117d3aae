"""Pictures in Parquet files: a column of encoded pictures, such as the bytes of PNG or JPEG files, in each row.

The column is of binary values, or of structs with a field ``bytes``, as Hugging Face's library writes them. It is
called ``image`` or ``img``, or is the only one of its kind. Classes are in a column ``label`` or ``labels``: whole
numbers, which the metadata of that library may name, or words.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import MissingExtraError, SourceError
from vaekit.images.labels import UNLABELLED, Labels, labels_of_array
from vaekit.images.parts import Chunk, Form, Progress, Shape, chunk_images, identity_of_file
from vaekit.images.picture import read_image
from vaekit.images.picture_parts import FEW, form_of_pictures, read_each
from vaekit.system.files import is_regular
from vaekit.system.workers import ordered_map
from vaekit.types import Pixels

T = TypeVar("T")

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels")
_LARGEST_GROUP = 1 << 30  # bytes, before compression: each process holds one


class Group(NamedTuple):
    """A row group of a file: what Parquet reads at once."""

    file: str
    column: str
    """The column of the pictures; ``image.bytes`` if they are structs."""
    number: int
    """Its number in the file."""
    rows: range
    """The numbers of its rows in the file."""


class Row(NamedTuple):
    """A picture."""

    group: Group
    place: int
    """Its place in the group."""

    def name(self) -> str:
        """Return the file and the row's number in it."""
        return f"{self.group.file}[{self.group.rows[self.place]}]"

    def open(self) -> io.BytesIO:
        """Return the picture's bytes as an open file. Raises SourceError if they cannot be read, or are missing."""
        picture = _pictures_of(self.group)[self.place].as_py()
        if picture is None:
            raise SourceError(f"{self.name()}: the row has no picture")
        return io.BytesIO(picture)


class ParquetImages:
    """Pictures in Parquet files."""

    factors = None
    varied = True
    left_out = ""

    def __init__(self, source: str, files: Sequence[Path]) -> None:
        """Read the files' footers.

        Raises SourceError if one is damaged or has no pictures, and MissingExtraError without pyarrow.
        """
        self._source, self._files = source, files
        self._groups = [group for file in files for group in _groups_of(file)]
        self._ends = np.cumsum([len(group.rows) for group in self._groups], dtype=np.int64)
        if not len(self):
            raise SourceError(f"{source} holds no images")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def identity(self) -> Iterator[bytes]:
        return map(identity_of_file, self._files)

    def name(self, number: int) -> str:
        return self._row(number).name()

    def form(self, progress: Progress | None = None) -> Form:
        return form_of_pictures(_opened(map(self._row, range(len(self)))), len(self), progress)

    @functools.cached_property
    def labels(self) -> Labels | None:
        parts = [_labels_of(file) for file in self._files]
        given = [part for part in parts if part is not None]
        if not given:
            return None
        if len(given) < len(parts):
            raise SourceError(f"{self._source}: some of its files have labels, and others have none")
        if len({part.names for part in given}) > 1:
            return _of_names([name for part in given for name in part.names_of(range(len(part.classes)))])
        return Labels(np.concatenate([part.classes for part in given]), given[0].names)

    def read(self, numbers: NDArray[np.int64], shape: Shape) -> Pixels:
        pictures = np.empty((len(numbers), *shape), np.uint8)
        for place in np.argsort(numbers, kind="stable"):  # so that each group of rows is read once
            pictures[place] = _read_one(self._row(int(numbers[place])), shape, resize=True)
        return pictures

    def read_whole(self, number: int, channels: int) -> Pixels:
        row = self._row(number)
        return read_image(row.open(), channels, None, name=row.name())

    def chunks(self, shape: Shape, start: int = 0, every: int = 1, *, resize: bool = True) -> Iterator[Chunk]:
        numbers = range(start, len(self), every)
        read = functools.partial(_read_rows, shape=shape, resize=resize)
        chunks = ordered_map(read, self._pieces(numbers, shape), processes=1 if len(numbers) <= FEW else None)
        done = 0
        for chunk in chunks:
            good = [numbers[done + place] for place in chunk.places]
            yield dataclasses.replace(chunk, labels=None if self.labels is None else self.labels.names_of(good))
            done += chunk.consumed

    def _pieces(self, numbers: range, shape: Shape) -> Iterator[tuple[Row, ...]]:
        """Yield the rows of each chunk, which are of one group."""
        most, rows = chunk_images(shape), list[Row]()
        for number in numbers:
            row = self._row(number)
            if rows and (row.group is not rows[0].group or len(rows) == most):
                yield tuple(rows)
                rows = []
            rows.append(row)
        if rows:
            yield tuple(rows)

    def _row(self, number: int) -> Row:
        place = int(np.searchsorted(self._ends, number, side="right"))
        group = self._groups[place]
        return Row(group, number - int(self._ends[place]) + len(group.rows))


def _opened(rows: Iterator[Row]) -> Iterator[io.BytesIO]:
    """Yield the rows' pictures as open files; an empty one for a row without a picture."""
    for row in rows:
        try:
            yield row.open()
        except SourceError:
            yield io.BytesIO()


def _read_one(row: Row, shape: Shape, resize: bool) -> Pixels:
    return read_image(row.open(), shape[0], shape[1:], resize=resize, name=row.name())


def _read_rows(rows: tuple[Row, ...], shape: Shape, resize: bool) -> Chunk:
    """Decode pictures, in a worker process."""
    read = functools.partial(_read_one, shape=shape, resize=resize)
    pixels, good, failures, failed = read_each(read, rows, shape)
    return Chunk(pixels, tuple(os.fsencode(row.name()) for row in good), failures, failed=failed)


def _groups_of(file: Path) -> list[Group]:
    """Return a file's row groups."""
    opened = _open(file)
    column = _column_of(file, opened.schema_arrow)

    def groups() -> list[Group]:
        found, first = list[Group](), 0
        for number in range(opened.metadata.num_row_groups):
            described = opened.metadata.row_group(number)
            count, size = described.num_rows, described.total_byte_size
            if count < 0:
                raise ValueError(f"a group of {count} rows")
            if size > _LARGEST_GROUP:
                raise ValueError(
                    f"its row groups have {size / 1e9:.1f} GB, and are read whole: write it again with smaller ones"
                )
            found.append(Group(str(file), column, number, range(first, first + count)))
            first += count
        return found

    return [group for group in _reading(file, groups) if group.rows]


def _column_of(file: Path, schema: Any) -> str:
    """Return the column of the pictures. Raises SourceError without one, or with several of other names."""
    import pyarrow as pa

    def path(field: Any) -> str | None:
        if _is_binary(field.type):
            return str(field.name)
        if pa.types.is_struct(field.type):
            inner = field.type.get_field_index("bytes")
            return f"{field.name}.bytes" if inner >= 0 and _is_binary(field.type.field(inner).type) else None
        return None

    found = {field.name: where for field in schema if (where := path(field)) is not None}
    chosen = next((found[name] for name in _IMAGE_COLUMNS if name in found), None)
    if chosen is None and len(found) != 1:
        held = ", ".join(schema.names)
        raise SourceError(
            f"{file} has no column of pictures, or several: its columns are {held}. Rename the one to use to `image`"
        )
    return chosen or next(iter(found.values()))


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@functools.lru_cache(1)
def _pictures_of(group: Group) -> Any:
    """Return the pictures of a group, an array of pyarrow. Raises SourceError if it cannot be read."""

    def read() -> Any:
        table = _open(Path(group.file)).read_row_group(group.number, [group.column], use_threads=False)
        column = table.column(0).combine_chunks()
        if len(column) != len(group.rows):
            raise ValueError(f"{len(column)} rows in place of {len(group.rows)}")
        return column if _is_binary(column.type) else column.flatten()[0]

    return _reading(Path(group.file), read)


def _labels_of(file: Path) -> Labels | None:
    """Return the classes of a file's rows, if it has any."""
    opened = _open(file)
    schema = opened.schema_arrow
    column = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    if column is None:
        return None
    table = _reading(file, lambda: opened.read([column], use_threads=False))
    values = table.column(0).to_pylist()
    if all(value is None or type(value) is int for value in values):
        names = _names_of_classes(schema, column)
        numbers = np.array([UNLABELLED if value is None else value for value in values], np.int64)
        if not names and UNLABELLED in numbers:
            return _of_names(["" if number == UNLABELLED else str(number) for number in numbers])
        return labels_of_array(str(file), numbers, len(numbers), names)
    if all(value is None or type(value) is str for value in values):
        return _of_names([value or "" for value in values])
    raise SourceError(f"{file} has labels of type {schema.field(column).type}: give whole numbers or words")


def _of_names(names: list[str]) -> Labels:
    return labels_of_array("", np.array(names, np.str_), len(names))


def _names_of_classes(schema: Any, column: str) -> tuple[str, ...]:
    """Return the names of classes that Hugging Face's library wrote into the metadata; none without them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def _open(file: Path) -> Any:
    """Open a file. Raises MissingExtraError without pyarrow, and SourceError for a file that cannot be read."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"{file} needs pyarrow: pip install 'vaekit[bulk]'") from error
    if not is_regular(file):
        raise SourceError(f"{file} is a device or a pipe, not a file")
    return _reading(file, lambda: parquet.ParquetFile(file, memory_map=False))


def _reading(file: Path, read: Callable[[], T]) -> T:
    """Return what a function reads. Raises SourceError with its reason if it fails."""
    try:
        return read()
    except Exception as error:  # pyarrow's errors have no common base of their own
        raise SourceError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
