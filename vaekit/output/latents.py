"""Read and write files of latents.

Writing can be interrupted and resumed. Until the output file is complete, latents are kept in ``OUT.partial/``: ``mu``
and ``logvar`` as raw float32 rows, ``paths`` as null-terminated strings, and ``state.json``. Each batch adds a line to
the state; the last whole one says how much of the other files is valid.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import MissingExtraError, SourceError, UsageError, VaekitError
from vaekit.images.arrays import RowFile, split_strings, write_header
from vaekit.system.files import check_file_target, is_about, only_writer, replacing_file

SUFFIXES = (".npz", ".npy", ".parquet")

_STATE = "state.json"
_PARQUET_SHAPE = b"latent_shape"
_ROWS_AT_ONCE = 16_384  # copied at a time, and in a row group of a .parquet
_NUMBERS_AT_ONCE = 1 << 22  # lowers the number of rows if latents are large
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same latents give the same bytes


def open_latents(path: Path, shape: tuple[int, ...]) -> RowFile | ParquetRows:
    """Open a file of latents (N, *shape) to read by rows.

    Reads ``z`` or ``mu`` from a .npz or .parquet, or a .npy. Raises UsageError for another suffix, and SourceError if
    the file is missing, unreadable, or does not contain latents of that shape.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"vaekit cannot read latents from {path}: give one of {', '.join(SUFFIXES)}")
    if not os.path.isfile(path):  # False for a name that is too long; Path.is_file would raise
        raise SourceError(f"there is no file {path}: write one with `vaekit encode IMAGES -o {path}`")
    rows = ParquetRows(path, shape) if path.suffix.lower() == ".parquet" else RowFile(path, ("z", "mu"))
    if rows.dtype.kind != "f" or rows.shape[1:] != shape:
        raise SourceError(
            f"{path} contains {rows.dtype} of shape {rows.shape}, but this bundle's latents are floats of shape "
            f"{_rows_of(shape)}"
        )
    if not len(rows):
        raise SourceError(f"{path} contains no latents")
    return rows


class ParquetRows:
    """The column ``z`` or ``mu`` of a .parquet file, read by rows.

    Each row is a list of floats. A latent map is stored flat, in C order.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        """Open the file. Raises SourceError if it is unreadable or lacks such a column."""
        _, parquet = _import_pyarrow()
        try:
            with parquet.ParquetFile(path) as file:
                columns, count = file.schema_arrow, file.metadata.num_rows
        except Exception as error:  # pyarrow's errors have no common base of their own
            raise SourceError(f"{path} cannot be read: {error}") from error
        self._column = next((name for name in ("z", "mu") if name in columns.names), None)
        if self._column is None:
            raise SourceError(
                f"{path} has the columns {', '.join(columns.names)}: name the column of latents `z` or `mu`"
            )
        kind = columns.field(self._column).type
        width = getattr(kind, "list_size", 0)
        if not width or str(kind.value_type) not in ("halffloat", "float", "double"):
            raise SourceError(
                f"column {self._column} of {path} contains {kind}, but this bundle's latents are floats of shape "
                f"{_rows_of(shape)}, in fixed-size lists"
            )
        self.path, self.dtype = path, np.dtype(np.float32)
        if count < 0:
            raise SourceError(f"{path} is damaged: it says that it has {count} rows")
        stated = (columns.metadata or {}).get(_PARQUET_SHAPE, b"").decode("utf-8", "replace")
        own = shape if width == math.prod(shape) and stated in ("", _shape_text(shape)) else (stated or width,)
        self.shape: tuple[Any, ...] = (count, *own)

    def __len__(self) -> int:
        return int(self.shape[0])

    def chunks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield up to ``rows`` latents at a time, float32 (n, *shape)."""
        _, parquet = _import_pyarrow()
        with parquet.ParquetFile(self.path) as file:
            batches = file.iter_batches(rows, columns=[self._column])
            while (batch := self._next(batches)) is not None:
                if batch.column(0).null_count:
                    raise SourceError(f"{self.path} has rows without latents")
                flat = batch.column(0).flatten().to_numpy(zero_copy_only=False).astype(np.float32)
                yield flat.reshape(len(batch), *self.shape[1:])

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches, None)
        except Exception as error:  # pyarrow's errors have no common base of their own
            raise SourceError(f"{self.path} cannot be read: {' '.join(str(error).split())}") from error


class ReadOut(Protocol):
    """A function of mu with several results, such as ``vaekit.maths.attributes.Attributes``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the results."""

    def read(self, mu: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the results for mu (N, …), float32 (N, names)."""


class Spill:
    """Latents that are collected on disk until they become one output file."""

    def __init__(
        self,
        output: Path,
        shape: tuple[int, ...],
        identity: str,
        *,
        resume: bool,
        overwrite: bool,
        arrays: tuple[str, ...] = ("mu", "logvar"),
        read_out: ReadOut | None = None,
    ) -> None:
        """Start collecting latents, or resume interrupted work.

        ``shape`` is the shape of one latent. ``identity`` is a fingerprint of the work; ``resume`` only continues work
        with the same fingerprint. ``arrays`` is ``("mu", "logvar")`` or ``("mu",)``. ``read_out`` is a function of mu
        whose results the file holds beside it.

        Raises VaekitError if unfinished work exists and neither ``resume`` nor ``overwrite`` is set, or if its
        fingerprint differs. Raises UsageError for a suffix not in SUFFIXES, or .npy with a read-out, and
        MissingExtraError for .parquet without pyarrow.
        """
        check_file_target(output, SUFFIXES)
        if read_out is not None and output.suffix.lower() == ".npy":
            raise UsageError(f"{output} can only hold mu: give a .npz or .parquet for --attributes")
        self._read_out = read_out
        if output.suffix.lower() == ".parquet":
            _import_pyarrow()
        self.output, self.shape, self.arrays = output, shape, arrays
        self.folder = output.with_name(f"{output.name}.partial")
        with ExitStack() as opening:
            opening.enter_context(only_writer(self.folder))
            self.state = self._state_to_begin_with(identity, resume, overwrite)
            self._open(opening)
            self._stack = opening.pop_all()

    def _state_to_begin_with(self, identity: str, resume: bool, overwrite: bool) -> dict[str, Any]:
        fresh = {"identity": identity, "rows": 0, "failures": 0, "longest": 0, "path_bytes": 0}
        found = _read_state(self.folder)
        if found is not None and resume and found["identity"] != identity:
            raise VaekitError(
                f"{self.folder} contains latents of other images, another bundle or other options: repeat the original "
                "command to resume, or add --overwrite to start again"
            )
        if found is not None and not resume and not overwrite:
            raise VaekitError(
                f"{self.folder} contains {found['rows']:,} latents of an interrupted encode: add --resume to continue, "
                "or --overwrite to start again"
            )
        return found if found is not None and resume else fresh

    @property
    def consumed(self) -> int:
        """Return the number of images processed: encoded or unreadable."""
        return int(self.state["rows"] + self.state["failures"])

    @property
    def rows(self) -> int:
        """Return the number of latents so far."""
        return int(self.state["rows"])

    @property
    def failures(self) -> int:
        """Return the number of unreadable images so far."""
        return int(self.state["failures"])

    def append(
        self, mu: NDArray[np.float32], logvar: NDArray[np.float32] | None, paths: tuple[bytes, ...], failures: int
    ) -> None:
        """Append latents (n, *shape) and the paths of their images.

        ``failures`` is the number of further images that could not be read.
        """
        joined = b"".join(path + b"\0" for path in paths)
        found = (mu,) if logvar is None else (mu, logvar)
        parts = (*(array.tobytes() for array in found), joined)
        for name, data in zip((*self.arrays, "paths"), parts, strict=True):
            self._files[name].write(data)
            self._files[name].flush()
        self.state["rows"] += len(paths)
        self.state["failures"] += failures
        self.state["path_bytes"] += len(joined)
        self.state["longest"] = max(self.state["longest"], *map(len, paths), 1)
        self._log.write(self._line())
        self._log.flush()

    def finish(self) -> None:
        """Write the output file and remove the partial folder.

        The file is written under a temporary name and renamed. Raises VaekitError if it cannot be written.
        """
        with replacing_file(self.output) as temporary:
            write = {".npz": self._write_npz, ".npy": self._write_npy, ".parquet": self._write_parquet}
            write[self.output.suffix.lower()](temporary)
        self.close()
        with suppress(OSError):  # first, so that what a kill leaves of the folder is not taken for unfinished work
            (self.folder / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Close the files, and remove the folder if it contains no latents."""
        with suppress(OSError):  # the disk may be full; everything that the state counts is already written
            self._stack.close()
        if not self.rows:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, OSError) and is_about(error, self.folder):
            raise VaekitError(f"cannot write {self.folder}: {error.strerror or error}") from error

    def _open(self, stack: ExitStack) -> None:
        """Open the partial files for appending, truncated to the lengths in the state."""
        sizes = dict.fromkeys(self.arrays, 4 * math.prod(self.shape) * self.rows)
        sizes["paths"] = int(self.state["path_bytes"])
        self._files: dict[str, IO[bytes]] = {}
        try:
            for name, size in sizes.items():
                file = stack.enter_context(open(self.folder / name, "a+b"))  # noqa: SIM115 — closed with the stack
                if file.seek(0, 2) < size:
                    raise VaekitError(f"{self.folder / name} is truncated: add --overwrite to start again")
                file.truncate(size)
                self._files[name] = file
            with replacing_file(self.folder / _STATE, durable=False) as temporary:
                temporary.write_bytes(self._line())
            self._log = stack.enter_context(open(self.folder / _STATE, "ab"))  # noqa: SIM115 — as above
        except OSError as error:
            raise VaekitError(f"cannot write {self.folder}: {error.strerror or error}") from error

    def _line(self) -> bytes:
        return json.dumps(self.state).encode() + b"\n"

    def _write_npz(self, path: Path) -> None:
        text = np.dtype(f"S{self.state['longest']}")
        float32 = np.dtype(np.float32)
        with zipfile.ZipFile(path, "w") as archive:
            for name in (*self.arrays, "paths"):
                entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME)
                with archive.open(entry, "w", force_zip64=True) as member:
                    if name == "paths":
                        write_header(member, text, (self.rows,))
                        member.writelines(np.array(paths, text).tobytes() for paths in self._paths())
                    else:
                        write_header(member, float32, (self.rows, *self.shape))
                        self._copy(name, member)
            if self._read_out is not None:
                names = np.array(self._read_out.names)
                with archive.open(zipfile.ZipInfo("attribute_names.npy", _ZIP_TIME), "w") as member:
                    write_header(member, names.dtype, names.shape)
                    member.write(names.tobytes())
                entry = zipfile.ZipInfo("attributes.npy", _ZIP_TIME)
                with archive.open(entry, "w", force_zip64=True) as member:
                    write_header(member, float32, (self.rows, len(names)))
                    member.writelines(self._read(flat).tobytes() for flat in self._rows("mu"))

    def _write_npy(self, path: Path) -> None:
        with open(path, "wb") as file:
            write_header(file, np.dtype(np.float32), (self.rows, *self.shape))
            self._copy("mu", file)

    def _write_parquet(self, path: Path) -> None:
        """Write the columns ``path``, ``mu`` and ``logvar``, one row group at a time.

        Latents are lists of float32; a map is flattened in C order. The file's metadata state the latent's shape. With
        a read-out there is a column of float32 for each of its names.
        """
        pa, parquet = _import_pyarrow()
        size = math.prod(self.shape)
        fields = [("path", pa.string()), *((name, pa.list_(pa.float32(), size)) for name in self.arrays)]
        named = () if self._read_out is None else self._read_out.names
        fields += [(f"attribute_{name}", pa.float32()) for name in named]
        schema = pa.schema(fields, metadata={_PARQUET_SHAPE: _shape_text(self.shape).encode()})
        with parquet.ParquetWriter(path, schema) as writer:
            for paths, *parts in zip(self._paths(), *map(self._rows, self.arrays), strict=True):
                names = pa.array([name.decode("utf-8", "backslashreplace") for name in paths], pa.string())
                vectors = [pa.FixedSizeListArray.from_arrays(pa.array(part), size) for part in parts]
                read = self._read(parts[0]).T if named else ()
                columns = [names, *vectors, *map(pa.array, read)]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    def _read(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the read-out of some rows of mu, given flattened."""
        assert self._read_out is not None
        return self._read_out.read(flat.reshape(-1, *self.shape))

    @property
    def _rows_at_once(self) -> int:
        return min(_ROWS_AT_ONCE, max(1, _NUMBERS_AT_ONCE // math.prod(self.shape)))

    def _copy(self, name: str, target: IO[bytes]) -> None:
        self._files[name].seek(0)
        shutil.copyfileobj(self._files[name], target, 1 << 20)

    def _rows(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield the numbers of some rows at a time, flattened."""
        file, row_bytes = self._files[name], 4 * math.prod(self.shape)
        file.seek(0)
        while data := file.read(self._rows_at_once * row_bytes):
            yield np.frombuffer(data, np.float32)

    def _paths(self) -> Iterator[list[bytes]]:
        paths = split_strings(self._files["paths"], 0)
        while some := list(islice(paths, self._rows_at_once)):
            yield some


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _rows_of(shape: tuple[int, ...]) -> str:
    return f"(N, {', '.join(map(str, shape))})"


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Return the state of unfinished work, if any. Raises VaekitError if it is damaged."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, this is False for a name that is too long
        return None
    try:
        lines = (folder / _STATE).read_bytes().split(b"\n")
        state = json.loads(lines[-2] if len(lines) > 1 else lines[0])  # what follows the last line's end is cut off
        counts = {key: int(state[key]) for key in ("rows", "failures", "longest", "path_bytes")}
        return {"identity": str(state["identity"]), **counts}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise VaekitError(f"{folder / _STATE} is damaged: remove {folder} to start again") from error


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("a .parquet file needs pyarrow: pip install 'vaekit[bulk]'") from error
    return pyarrow, parquet
