from __future__ import annotations

import gzip
import io
import math
import os
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vaekit.errors import SourceError, VaekitError
from vaekit.images.arrays import RowFile, split_strings, write_header

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)

DTYPES = ("|u1", "|i1", "<i2", ">i4", "<u8", "|b1", "<f2", "<f4", ">f4", "<f8", "<c8", "|S3", "<U2", "<M8[s]")


def numbers(dtype: str, *shape: int) -> NDArray[Any]:
    """An array of any type, whose rows differ."""
    integers = np.random.default_rng(0).integers(0, 100, shape)
    return integers.astype("<M8[s]") if "M8" in dtype else integers.astype(dtype)


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"") -> bytes:
    """Return a .npy file with an arbitrary header and this data."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def save(folder: Path, kind: str, array: NDArray[Any]) -> Path:
    """The array in a file of that kind."""
    path = folder / f"array.{kind}"
    match kind:
        case "npy":
            np.save(path, array)
        case "npz":
            np.savez(path, array)
        case "packed.npz":
            np.savez_compressed(path, array)
        case "npy.gz":
            path.write_bytes(gzip.compress(npy(array)))
        case "idx":
            path.write_bytes(idx(array))
        case _:
            path.write_bytes(gzip.compress(idx(array)))
    return path


def read(rows: RowFile, count: int = 3, start: int = 0) -> NDArray[Any]:
    """Return all rows from ``start`` on, read ``rows`` at a time."""
    parts = list(rows.chunks(count, start=start))
    return np.concatenate(parts) if parts else np.empty((0, *rows.shape[1:]), rows.dtype)


def read_whole(path: Path, *names: str) -> NDArray[Any]:
    return read(RowFile(path, names))


# Values are read unchanged


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["npy", "npz", "packed.npz"])
def test_rows_of_every_type_are_those_of_numpy(tmp_path: Path, kind: str, dtype: str) -> None:
    array = numbers(dtype, 8, 2, 3)
    rows = RowFile(save(tmp_path, kind, array))
    assert (len(rows), rows.shape, rows.dtype) == (8, (8, 2, 3), array.dtype)
    assert [len(part) for part in rows.chunks(3)] == [3, 3, 2]
    assert np.array_equal(read(rows), array)


@pytest.mark.parametrize("kind", ["npy", "npz", "packed.npz", "npy.gz", "idx", "idx.gz"])
@quick
@given(
    shape=st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(0, 4)) | st.tuples(st.integers(0, 9)),
    count=st.integers(1, 10),
    start=st.integers(0, 12),
)
def test_rows_from_any_start_are_the_rest(kind: str, shape: tuple[int, ...], count: int, start: int) -> None:
    array = numbers("|u1", *shape)
    with tempfile.TemporaryDirectory() as folder:
        rows = RowFile(save(Path(folder), kind, array))
        assert (rows.shape, rows.dtype) == (shape, np.dtype(np.uint8))
        assert np.array_equal(read(rows, count, start), array[start:])


def test_a_file_is_read_as_often_as_is_asked(tmp_path: Path) -> None:
    rows = RowFile(save(tmp_path, "npz", numbers("<f4", 5, 2)))
    first, second = rows.chunks(2), rows.chunks(2)
    assert np.array_equal(next(first), next(second))
    assert np.array_equal(np.concatenate(list(first)), numbers("<f4", 5, 2)[2:])
    assert np.array_equal(np.concatenate(list(second)), numbers("<f4", 5, 2)[2:])


def test_a_file_may_be_gone_on_with_after_it_was_left(tmp_path: Path) -> None:
    rows = RowFile(save(tmp_path, "npy.gz", numbers("<f4", 5, 2)))
    chunks = rows.chunks(2)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]  # a generator
    assert np.array_equal(read(rows), numbers("<f4", 5, 2))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, numbers("<f4", 5, 2), version)
    assert np.array_equal(read_whole(tmp_path / "a.npy"), numbers("<f4", 5, 2))


@pytest.mark.parametrize("suffix", [".npz", ".NPZ"])
def test_the_first_of_the_wanted_arrays_is_taken(tmp_path: Path, suffix: str) -> None:
    path = (tmp_path / "a.npz").with_suffix(suffix)
    with open(path, "wb") as file:
        np.savez(file, other=numbers("<f8", 2), mu=numbers("<f4", 5, 2), z=numbers("<f4", 3, 4))
    assert np.array_equal(read_whole(path, "z", "mu"), numbers("<f4", 3, 4))
    assert np.array_equal(read_whole(path, "none", "mu"), numbers("<f4", 5, 2))


def test_the_only_array_may_have_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", whatever=numbers("<f4", 5, 2))
    assert np.array_equal(read_whole(tmp_path / "a.npz", "mu"), numbers("<f4", 5, 2))


def test_of_an_npz_what_is_no_array_is_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "latents of cats")
        archive.writestr("mu.npy", npy(numbers("<f4", 5, 2)))
    assert np.array_equal(read_whole(tmp_path / "a.npz"), numbers("<f4", 5, 2))


def test_arrays_of_one_dimension_are_rows_in_either_order(tmp_path: Path) -> None:
    in_order = npy(numbers("<f4", 5))
    for data in (in_order, in_order.replace(b"False", b"True ")):
        (tmp_path / "a.npy").write_bytes(data)
        assert np.array_equal(read_whole(tmp_path / "a.npy"), numbers("<f4", 5))


@pytest.mark.parametrize("kind", ["npy", "npz", "packed.npz", "npy.gz"])
def test_arrays_stored_column_by_column_are_read_by_rows(tmp_path: Path, kind: str) -> None:
    array = numbers("<f4", 8, 2, 3)
    rows = RowFile(save(tmp_path, kind, np.asfortranarray(array)))
    assert [len(part) for part in rows.chunks(3)] == [3, 3, 2]
    assert all(part.flags.c_contiguous for part in rows.chunks(3))
    assert np.array_equal(read(rows), array)
    assert np.array_equal(read(rows, start=2), array[2:])


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
@pytest.mark.parametrize("kind", ["npy", "npz", "packed.npz", "npy.gz", "idx", "idx.gz"])
def test_a_mapped_array_is_the_whole_one(tmp_path: Path, kind: str, layout: Callable[..., NDArray[Any]]) -> None:
    rows = RowFile(save(tmp_path, kind, layout(numbers("|u1", 8, 2, 3))))
    assert np.array_equal(rows.mapped()[[5, 0, 5]], numbers("|u1", 8, 2, 3)[[5, 0, 5]])
    assert np.array_equal(rows.whole(), numbers("|u1", 8, 2, 3))


def test_a_mapped_array_may_have_no_rows(tmp_path: Path) -> None:
    rows = RowFile(save(tmp_path, "npy", numbers("<f4", 0, 4)))
    assert rows.mapped().shape == rows.whole().shape == (0, 4)


# Errors


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
@pytest.mark.parametrize("kind", ["npy", "npy.gz"])
def test_a_mapped_array_that_is_cut_short_is_refused(
    tmp_path: Path, kind: str, layout: Callable[..., NDArray[Any]]
) -> None:
    path = tmp_path / f"a.{kind}"
    data = npy(layout(numbers("<f4", 8, 2, 3)))[:-1]
    path.write_bytes(gzip.compress(data) if kind == "npy.gz" else data)
    with pytest.raises(SourceError, match=r"is cut short: it (holds 191 of 192 bytes|ends within row 7)"):
        RowFile(path).mapped()


def test_a_temporary_folder_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    path = save(tmp_path, "packed.npz", numbers("<f4", 5, 2))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full())
    with pytest.raises(VaekitError, match=r"cannot unpack .* in the temporary folder .*No space left.*TMPDIR"):
        RowFile(path).mapped()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_that_goes_on_is_refused_at_its_end(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a"
    path.write_bytes(pack(idx(numbers("|u1", 5, 2)) + b"\0"))
    for read_it in (RowFile(path).mapped, RowFile(path).whole, lambda: read_whole(path)):
        with pytest.raises(SourceError, match="damaged: it holds more than the 5 rows"):
            read_it()


def test_a_single_number_is_no_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.float32(3))
    with pytest.raises(SourceError, match=r"a\.npy holds a single number"):
        RowFile(tmp_path / "a.npy")


def test_an_idx_file_without_axes_is_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(bytes((0, 0, 8, 0, 7)))
    with pytest.raises(SourceError, match=r"a\.idx"):
        RowFile(tmp_path / "a.idx")


class Exploding:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


OBJECTS = {
    "objects": np.array([Exploding()], dtype=object),
    "objects in a field": np.array([(1, Exploding())], dtype=[("number", "i4"), ("thing", "O")]),
}


@pytest.mark.parametrize("what", OBJECTS)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_pickles_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, kind, OBJECTS[what])
    with pytest.raises(SourceError, match="pickled objects"):
        RowFile(path)
    assert not Path("exploded").exists()
    np.load(path, allow_pickle=True)["arr_0" if kind == "npz" else ...]
    assert Path("exploded").exists()  # so it would have run


def test_a_pickle_under_an_arrays_name_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.chdir(tmp_path)
    Path("a.npy").write_bytes(pickle.dumps(Exploding()))
    with pytest.raises(SourceError, match=r"a\.npy cannot be read"):
        RowFile(Path("a.npy"))
    assert not Path("exploded").exists()


def test_an_npz_of_several_arrays_says_what_it_holds_and_what_to_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=numbers("<f4", 5, 2), y=numbers("<f4", 5, 2))
    with pytest.raises(SourceError, match=r"a\.npz holds x, y: name the array `z` or `mu`"):
        RowFile(tmp_path / "a.npz", ("z", "mu"))


def test_an_npz_of_nothing_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz")
    with pytest.raises(SourceError, match=r"a\.npz holds nothing"):
        RowFile(tmp_path / "a.npz", ("z",))


@pytest.mark.parametrize("name", ["none.npy", "none.npz", "none"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=f"{name} cannot be read as an array: .*No such file"):
        RowFile(tmp_path / name)


def test_an_array_that_ends_early_says_in_which_row(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(header((9, 10), data=bytes(42)))
    chunks = RowFile(path).chunks(3)
    assert next(chunks).shape == (3, 10)
    with pytest.raises(SourceError, match=r"a\.npy is cut short: it ends within row 4"):
        next(chunks)


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 5, 9, 12, 60, 100, 130, 200])
@pytest.mark.parametrize("kind", ["npy", "npz", "packed.npz", "npy.gz", "idx", "idx.gz"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, kind: str, keep: int) -> None:
    path = save(tmp_path, kind, np.random.default_rng(1).integers(0, 256, (40, 5, 6), np.uint8))
    assert path.stat().st_size > keep
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=path.name):
        read_whole(path)


@pytest.mark.parametrize("kind", ["npz", "packed.npz"])
def test_an_archive_whose_data_was_altered_is_refused(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, kind, np.zeros((5, 9, 11), np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=f"{path.name} cannot be read as an array"):
        read_whole(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "npz", numbers("<f4", 5, 2))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x03\x04") + 6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="encrypted"):
        read_whole(path)


HEADERS = {
    "text": b"1 2 3",
    "another magic": b"\x93NUMPZ\x01\x00",
    "an unknown version": b"\x93NUMPY\x09\x00" + npy(np.zeros(3))[8:],
    "an open bracket": npy(np.zeros((3, 2))).replace(b"(3, 2)", b"(3, 2,"),
    "an open string": npy(np.zeros((3, 2))).replace(b"'shape'", b"'shape "),
    "octal numbers": npy(np.zeros((3, 2))).replace(b"(3, 2)", b"(03,2)"),
    "a call": npy(np.zeros((3, 2))).replace(b"(3, 2)", b"exit()"),
    "no type": npy(np.zeros((3, 2))).replace(b"<f8", b"zzz"),
    "no key": npy(np.zeros((3, 2))).replace(b"shape", b"ehape"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_damaged_header_is_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.npy").write_bytes(HEADERS[what])
    with pytest.raises(SourceError, match=r"a\.npy cannot be read as an array: ") as caught:
        RowFile(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)


HUGE = [(10**15, 8), (5, 10**12), (5, 10**9, 10**9), (5, 10**18, 10**18), (2**63, 8), (2**70, 8)]


@pytest.mark.parametrize("shape", HUGE)
@pytest.mark.parametrize("kind", ["npy", "npz", "npy.gz"])
def test_a_header_that_promises_the_moon_is_refused_and_takes_no_memory(
    tmp_path: Path, kind: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / f"a.{kind}"
    data = header(shape, data=bytes(50))
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mu.npy", data)
    else:
        path.write_bytes(gzip.compress(data) if kind == "npy.gz" else data)
    assert_refused_in_little_memory(path)


def test_an_idx_header_that_promises_the_moon_is_refused_and_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.idx"
    path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", *[2**32 - 1] * 3) + bytes(50))
    assert_refused_in_little_memory(path)


def assert_refused_in_little_memory(path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=path.name):
            read_whole(path)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(-1, 8), (5, -8), (-5, -8)])
def test_a_header_of_negative_lengths_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "a.npy").write_bytes(header(shape, data=bytes(40)))
    with pytest.raises(SourceError, match=r"a\.npy"):
        RowFile(tmp_path / "a.npy")


# Writing


@pytest.mark.parametrize(("dtype", "shape"), [("<f4", (5, 2)), ("|S7", (3,)), ("<f4", (0, 4)), ("|u1", (2, 3, 4))])
def test_a_written_header_and_rows_are_an_array_for_numpy(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = numbers(dtype, *shape)
    with open(tmp_path / "a.npy", "wb") as file:
        write_header(file, array.dtype, shape)
        file.write(array.tobytes())
    loaded = np.load(tmp_path / "a.npy")
    assert (loaded.dtype, loaded.shape) == (array.dtype, shape)
    assert np.array_equal(loaded, array)
    assert np.array_equal(read_whole(tmp_path / "a.npy"), array)


# Strings


@quick
@given(st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"")), max_size=20), st.binary(max_size=9))
def test_strings_are_split_where_they_end(strings: list[bytes], before: bytes) -> None:
    file = io.BytesIO(before + b"".join(string + b"\0" for string in strings))
    assert list(split_strings(file, len(before))) == strings


def test_strings_across_blocks_come_out_whole() -> None:
    strings = [b"%d" % number * (number % 90 + 1) for number in range(5_000)]
    strings.insert(70, b"long" * 100_000)
    data = b"".join(string + b"\0" for string in strings)
    assert len(data) > 1_000_000
    assert list(split_strings(io.BytesIO(data), 0)) == strings


def test_others_may_move_in_the_file_while_strings_are_read() -> None:
    strings = [b"%d" % number for number in range(60_000)]
    file = io.BytesIO(b"".join(string + b"\0" for string in strings))
    one, other = split_strings(file, 0), split_strings(file, 0)
    for expected in strings:
        file.seek(math.isqrt(len(expected)))
        assert next(one) == expected
        assert next(other) == expected
