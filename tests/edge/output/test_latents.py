from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vaekit.errors import MissingExtraError, SourceError, UsageError, VaekitError
from vaekit.output import latents as latent_files
from vaekit.output.latents import SUFFIXES, Spill, open_latents
from vaekit.types import Array

WIDTH = 3
PATHS: tuple[bytes, ...] = (
    b"a.png",
    "zwölf/ü.png".encode(),
    b"b/\xff\xfe.jpg",
    b"array.npy[17]",
    b"a b\n.png",
    b"x" * 300,
)


def latents(count: int = len(PATHS)) -> tuple[Array, Array]:
    """Return mu and logvar."""
    mu, logvar = np.random.default_rng(0).normal(size=(2, count, WIDTH)).astype(np.float32)
    return mu, logvar


def last_state(folder: Path) -> Any:
    return json.loads((folder / "state.json").read_text().splitlines()[-1])


def spill(output: Path, *, identity: str = "this work", resume: bool = False, overwrite: bool = False) -> Spill:
    return Spill(output, (WIDTH,), identity, resume=resume, overwrite=overwrite)


def add(work: Spill, *, first: int = 0, last: int = len(PATHS), batch: int = 4) -> None:
    """Append the latents with these numbers, in batches that start at the given numbers."""
    mu, logvar = latents()
    for start in range(first, last, batch):
        part = slice(start, min(start + batch, last))
        work.append(mu[part], logvar[part], PATHS[part], 0)


def write(output: Path, *, batch: int = 4) -> Path:
    """Write all latents without interruption."""
    with spill(output) as work:
        add(work, batch=batch)
        work.finish()
    return output


def interrupt(output: Path, rows: int = 4) -> Path:
    """Interrupt the work after this many rows; return the partial folder."""
    with spill(output) as work:
        add(work, last=rows)
    assert not output.exists()
    return work.folder


def load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as arrays:
        return dict(arrays)


def assert_holds_all(path: Path) -> None:
    """Read the file with other libraries than vaekit."""
    mu, logvar = latents()
    if path.suffix == ".npz":
        found = load(path)
        assert list(found) == ["mu", "logvar", "paths"]
        assert found["mu"].dtype == found["logvar"].dtype == np.float32
        assert np.array_equal(found["mu"], mu)
        assert np.array_equal(found["logvar"], logvar)
        assert found["paths"].dtype == np.dtype("S300")
        assert found["paths"].tolist() == list(PATHS)
    elif path.suffix == ".npy":
        assert np.load(path).dtype == np.float32
        assert np.array_equal(np.load(path), mu)
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        assert table.column_names == ["path", "mu", "logvar"]
        assert table["path"].to_pylist() == [path.decode("utf-8", "backslashreplace") for path in PATHS]
        for name, expected in (("mu", mu), ("logvar", logvar)):
            assert str(table.schema.field(name).type.value_type) == "float"
            assert np.array_equal(np.array(table[name].to_pylist(), np.float32), expected)


def needs(suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")


# Output


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_latents_are_written_and_nothing_else_stays(tmp_path: Path, suffix: str, batch: int) -> None:
    needs(suffix)
    path = write(tmp_path / f"latents{suffix}", batch=batch)
    assert_holds_all(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_latents_are_copied_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    needs(suffix)
    monkeypatch.setattr(latent_files, "_ROWS_AT_ONCE", 4)
    assert_holds_all(write(tmp_path / f"latents{suffix}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_latents_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    needs(suffix)
    one = write(tmp_path / f"one{suffix}", batch=2).read_bytes()
    interrupt(tmp_path / f"other{suffix}", rows=3)
    with spill(tmp_path / f"other{suffix}", resume=True) as work:
        add(work, first=3)
        work.finish()
    assert (tmp_path / f"other{suffix}").read_bytes() == one


def test_an_npz_is_a_sound_zip_archive_of_no_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(write(tmp_path / "a.npz")) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["mu.npy", "logvar.npy", "paths.npy"]
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_suffix_in_capitals_names_the_same_format(tmp_path: Path) -> None:
    assert list(load(write(tmp_path / "a.NPZ"))) == ["mu", "logvar", "paths"]


def test_an_older_file_is_replaced_when_all_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("old")
    with spill(tmp_path / "a.npz") as work:
        add(work)
        assert (tmp_path / "a.npz").read_text() == "old"
        work.finish()
    assert_holds_all(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_latents_are_an_empty_file(tmp_path: Path, suffix: str) -> None:
    needs(suffix)
    path = tmp_path / f"a{suffix}"
    with spill(path) as work:
        work.append(*latents(0), (), 3)
        work.finish()
        assert (work.rows, work.failures, work.consumed) == (0, 3, 3)
    assert list(tmp_path.iterdir()) == [path]
    match suffix:
        case ".npz":
            found = load(path)
            assert [found[name].shape for name in found] == [(0, WIDTH), (0, WIDTH), (0,)]
        case ".npy":
            assert np.load(path).shape == (0, WIDTH)
        case _:
            assert pytest.importorskip("pyarrow.parquet").read_table(path).num_rows == 0


def test_images_and_failures_are_counted(tmp_path: Path) -> None:
    mu, logvar = latents()
    with spill(tmp_path / "a.npy") as work:
        assert (work.rows, work.failures, work.consumed) == (0, 0, 0)
        work.append(mu[:4], logvar[:4], PATHS[:4], 2)
        work.append(mu[4:4], logvar[4:4], (), 1)
        assert (work.rows, work.failures, work.consumed) == (4, 3, 7)


# Write errors


@pytest.mark.parametrize("name", ["latents", "latents.csv", "latents.npz.txt", ".npz"])
def test_another_suffix_is_a_wrong_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.npz, \.npy, \.parquet"):
        spill(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named_beforehand(tmp_path: Path) -> None:
    with pytest.raises(VaekitError, match="there is no folder"):
        spill(tmp_path / "none" / "a.npz")


def test_a_file_where_the_latents_would_wait_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz.partial").write_text("mine")
    with pytest.raises(VaekitError, match=r"a\.npz\.partial"):
        spill(tmp_path / "a.npz")
    assert (tmp_path / "a.npz.partial").read_text() == "mine"


def test_without_pyarrow_the_extra_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vaekit\[bulk\]'"):
        spill(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.parquet").touch()
    with pytest.raises(MissingExtraError, match=r"pip install 'vaekit\[bulk\]'"):
        open_latents(tmp_path / "a.parquet", (WIDTH,))
    assert_holds_all(write(tmp_path / "a.npz"))


def test_a_disk_that_is_full_at_the_end_keeps_the_old_file_and_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npy"
    path.write_text("old")

    def full(*copied: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, spill(path) as work:
        add(work)
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(VaekitError, match=r"cannot write .*a\.npy: No space left"):
            work.finish()
    assert path.read_text() == "old"
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.npy", "a.npy.partial"}
    with spill(path, resume=True) as work:
        assert work.rows == len(PATHS)
        work.finish()
    assert_holds_all(path)


def test_a_disk_that_is_full_midway_is_told_and_keeps_what_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def run() -> None:
        with monkeypatch.context() as patch, spill(path) as work:
            add(work, last=4)
            patch.setattr(work, "_log", Full())
            add(work, first=4)

    with pytest.raises(VaekitError, match=r"cannot write .*No space left"):
        run()
    with spill(path, resume=True) as work:
        assert work.rows == 4
        add(work, first=4)
        work.finish()
    assert_holds_all(path)


def test_a_count_that_was_half_written_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    folder = interrupt(path)
    whole = (folder / "state.json").read_bytes()
    with spill(path, resume=True) as work:
        rows = work.rows
        add(work, first=rows)
    (folder / "state.json").write_bytes(whole + b'{"identity": "this wo')
    with spill(path, resume=True) as work:
        assert work.rows == rows
        add(work, first=rows)
        work.finish()
    assert_holds_all(path)


# Resuming


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rows", [1, 4, len(PATHS)])
def test_interrupted_work_is_resumed(tmp_path: Path, suffix: str, rows: int) -> None:
    needs(suffix)
    path = tmp_path / f"a{suffix}"
    folder = interrupt(path, rows)
    with spill(path, resume=True) as work:
        assert (work.rows, work.consumed) == (rows, rows)
        add(work, first=rows)
        work.finish()
    assert_holds_all(path)
    assert not folder.exists()


def test_failures_count_after_an_interruption_too(tmp_path: Path) -> None:
    mu, logvar = latents()
    with spill(tmp_path / "a.npy") as work:
        work.append(mu[:1], logvar[:1], PATHS[:1], 4)
    with spill(tmp_path / "a.npy", resume=True) as work:
        assert (work.rows, work.failures, work.consumed) == (1, 4, 5)


@pytest.mark.parametrize("part", ["mu", "logvar", "paths"])
def test_what_was_written_after_the_last_count_is_dropped(tmp_path: Path, part: str) -> None:
    path = tmp_path / "a.npz"
    folder = interrupt(path)
    with open(folder / part, "ab") as file:
        file.write(b"half a batch")
    with spill(path, resume=True) as work:
        add(work, first=4)
        work.finish()
    assert_holds_all(path)


@pytest.mark.parametrize("part", ["mu", "logvar", "paths"])
@pytest.mark.parametrize("lost", ["a byte", "all", "the file"])
def test_a_part_shorter_than_its_count_is_refused(tmp_path: Path, part: str, lost: str) -> None:
    folder = interrupt(tmp_path / "a.npz")
    match lost:
        case "a byte":
            (folder / part).write_bytes((folder / part).read_bytes()[:-1])
        case "all":
            (folder / part).write_bytes(b"")
        case _:
            (folder / part).unlink()
    with pytest.raises(VaekitError, match=rf"{part} is truncated: add --overwrite to start again"):
        spill(tmp_path / "a.npz", resume=True)
    with spill(tmp_path / "a.npz", overwrite=True) as work:
        add(work)
        work.finish()
    assert_holds_all(tmp_path / "a.npz")


STATES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "nothing": lambda state: b"",
    "half": lambda state: json.dumps(state).encode()[:20],
    "no JSON": lambda state: b"rows: 4",
    "no text": lambda state: b"\xff\xfe\0\0",
    "a list": lambda state: b"[1, 2]",
    "null": lambda state: b"null",
    "no identity": lambda state: json.dumps({key: state[key] for key in state if key != "identity"}).encode(),
    "no rows": lambda state: json.dumps({key: state[key] for key in state if key != "rows"}).encode(),
    "words for numbers": lambda state: json.dumps({**state, "rows": "many"}).encode(),
    "numbers without end": lambda state: json.dumps({**state, "rows": float("inf")}).encode(),
}


@pytest.mark.parametrize("what", STATES)
@pytest.mark.parametrize("resume", [False, True])
def test_a_damaged_count_is_refused_with_the_remedy(tmp_path: Path, what: str, resume: bool) -> None:
    folder = interrupt(tmp_path / "a.npz")
    state = last_state(folder)
    (folder / "state.json").write_bytes(STATES[what](state))
    with pytest.raises(VaekitError, match=r"state\.json is damaged: remove .*a\.npz\.partial"):
        spill(tmp_path / "a.npz", resume=resume)


def test_a_negative_count_is_refused(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "a.npz")
    state = last_state(folder)
    (folder / "state.json").write_text(json.dumps({**state, "rows": -4}))
    with pytest.raises(VaekitError, match=r"a\.npz\.partial"):
        spill(tmp_path / "a.npz", resume=True)


def test_other_work_is_not_resumed(tmp_path: Path) -> None:
    interrupt(tmp_path / "a.npz")
    with pytest.raises(VaekitError, match=r"other images, another bundle or other options.*--overwrite"):
        spill(tmp_path / "a.npz", identity="another work", resume=True)
    with spill(tmp_path / "a.npz", resume=True) as work:
        assert work.rows == 4


def test_unfinished_work_in_the_way_is_not_dropped_unasked(tmp_path: Path) -> None:
    interrupt(tmp_path / "a.npz")
    with pytest.raises(VaekitError, match=r"contains 4 latents of an interrupted encode: add --resume .* --overwrite"):
        spill(tmp_path / "a.npz")
    with spill(tmp_path / "a.npz", resume=True) as work:
        assert work.rows == 4


def test_unfinished_work_is_dropped_where_that_is_asked(tmp_path: Path) -> None:
    interrupt(tmp_path / "a.npz")
    with spill(tmp_path / "a.npz", identity="another work", overwrite=True) as work:
        assert work.consumed == 0
        add(work, batch=1)
        work.finish()
    assert_holds_all(tmp_path / "a.npz")


def test_without_unfinished_work_resuming_starts(tmp_path: Path) -> None:
    with spill(tmp_path / "a.npz", resume=True) as work:
        assert work.consumed == 0
        add(work)
        work.finish()
    assert_holds_all(tmp_path / "a.npz")


def test_a_folder_of_no_count_starts_again(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "a.npz")
    (folder / "state.json").unlink()
    with spill(tmp_path / "a.npz", resume=True) as work:
        assert work.consumed == 0
        add(work)
        work.finish()
    assert_holds_all(tmp_path / "a.npz")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_work_that_came_to_nothing_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with spill(tmp_path / "a.npz"):
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_midway_leaves_what_can_be_gone_on_with(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with spill(tmp_path / "a.npz") as work:
            add(work, last=4)
            raise error

    with pytest.raises(error):
        fail()
    assert not (tmp_path / "a.npz").exists()
    with spill(tmp_path / "a.npz", resume=True) as work:
        assert work.rows == 4


# Reading latents


def save(path: Path, array: NDArray[Any], name: str = "mu") -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: array})  # type: ignore[arg-type]  # of a name in a variable
    else:
        np.save(path, array)
    return path


def rows_of(path: Path, count: int = 4, width: int = WIDTH) -> Array:
    return np.concatenate(list(open_latents(path, (width,)).chunks(count)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [1, 4, 100])
def test_written_latents_are_read_back(tmp_path: Path, suffix: str, count: int) -> None:
    needs(suffix)
    rows = open_latents(write(tmp_path / f"a{suffix}"), (WIDTH,))
    assert (len(rows), rows.shape, rows.dtype) == (len(PATHS), (len(PATHS), WIDTH), np.dtype(np.float32))
    parts = list(rows.chunks(count))
    assert max(map(len, parts)) <= count
    assert np.array_equal(np.concatenate(parts), latents()[0])


def test_parquet_rows_are_read_across_its_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(".parquet")
    monkeypatch.setattr(latent_files, "_ROWS_AT_ONCE", 2)
    path = write(tmp_path / "a.parquet")
    for count in (1, 3, 5):
        assert np.array_equal(rows_of(path, count), latents()[0])


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_floats_of_any_width_are_latents(tmp_path: Path, suffix: str, dtype: str) -> None:
    z = latents()[0].astype(dtype)
    assert np.array_equal(rows_of(save(tmp_path / f"a{suffix}", z, "z")), z)


def test_latents_drawn_by_others_stand_under_z_or_mu(tmp_path: Path) -> None:
    z, mu = latents()
    np.savez(tmp_path / "a.npz", mu=mu, z=z, logvar=mu)
    assert np.array_equal(rows_of(tmp_path / "a.npz"), z)
    np.savez(tmp_path / "b.npz", logvar=z, mu=mu)
    assert np.array_equal(rows_of(tmp_path / "b.npz"), mu)


NO_LATENTS: dict[str, NDArray[Any]] = {
    "another width": np.zeros((5, WIDTH + 1), np.float32),
    "one latent": np.zeros(WIDTH, np.float32),
    "an axis too many": np.zeros((5, WIDTH, 1), np.float32),
    "integers": np.zeros((5, WIDTH), np.int64),
    "booleans": np.zeros((5, WIDTH), np.bool_),
    "complex numbers": np.zeros((5, WIDTH), np.complex64),
    "words": np.zeros((5, WIDTH), "U3"),
}


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("what", NO_LATENTS)
def test_arrays_that_are_no_latents_are_refused(tmp_path: Path, suffix: str, what: str) -> None:
    array = NO_LATENTS[what]
    path = save(tmp_path / f"a{suffix}", array)
    with pytest.raises(SourceError, match=rf"a{suffix} contains .*floats of shape \(N, {WIDTH}\)") as caught:
        open_latents(path, (WIDTH,))
    assert str(array.shape) in str(caught.value)
    assert str(array.dtype) in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_no_latents_is_refused(tmp_path: Path, suffix: str) -> None:
    needs(suffix)
    with spill(tmp_path / f"a{suffix}") as work:
        work.append(*latents(0), (), 1)
        work.finish()
    with pytest.raises(SourceError, match="contains no latents"):
        open_latents(tmp_path / f"a{suffix}", (WIDTH,))


@pytest.mark.parametrize("name", ["none.npz", "none.npy", "none.parquet"])
def test_a_file_that_is_not_there_says_what_writes_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        SourceError, match=rf"there is no file .*{name}: write one with `vaekit encode IMAGES -o .*{name}`"
    ):
        open_latents(tmp_path / name, (WIDTH,))


def test_a_file_of_another_kind_is_a_wrong_option(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3")
    with pytest.raises(UsageError, match=r"cannot read latents from .*a\.csv: .*\.npz, \.npy, \.parquet"):
        open_latents(tmp_path / "a.csv", (WIDTH,))


def test_pickled_latents_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.array([[None] * WIDTH]))
    with pytest.raises(SourceError, match="pickled objects"):
        open_latents(tmp_path / "a.npz", (WIDTH,))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("data", [b"", b"no latents", b"PK\x03\x04", b"PAR1"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, suffix: str, data: bytes) -> None:
    needs(suffix)
    (tmp_path / f"a{suffix}").write_bytes(data)
    with pytest.raises(SourceError, match=f"a{suffix} cannot be read") as caught:
        open_latents(tmp_path / f"a{suffix}", (WIDTH,))
    assert "\n" not in str(caught.value)


# Parquet files from other programs


def save_parquet(path: Path, **columns: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
    return path


def vectors(rows: list[list[float] | None], number: str = "float32", size: int | None = WIDTH) -> Any:
    """Return a parquet column of lists; without a size they may have any length."""
    pa = pytest.importorskip("pyarrow")
    kind = getattr(pa, number)()
    return pa.array(rows, pa.list_(kind, size) if size else pa.list_(kind))


@pytest.mark.parametrize("name", ["z", "mu"])
def test_parquet_columns_of_latents_are_read(tmp_path: Path, name: str) -> None:
    z = latents()[0]
    path = save_parquet(tmp_path / "a.parquet", **{"other": [1] * len(z), name: vectors(z.tolist())})
    assert np.array_equal(rows_of(path), z)


def test_of_parquet_columns_z_comes_first(tmp_path: Path) -> None:
    z, mu = latents()
    path = save_parquet(tmp_path / "a.parquet", mu=vectors(mu.tolist()), z=vectors(z.tolist()))
    assert np.array_equal(rows_of(path), z)


def test_parquet_of_doubles_is_read(tmp_path: Path) -> None:
    z = latents()[0]
    path = save_parquet(tmp_path / "a.parquet", z=vectors(z.tolist(), "float64"))
    assert np.array_equal(rows_of(path).astype(np.float32), z)


def test_parquet_without_such_a_column_says_which_there_are(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "a.parquet", x=[1.0], y=[2.0])
    with pytest.raises(SourceError, match="has the columns x, y: name the column of latents `z` or `mu`"):
        open_latents(path, (WIDTH,))


def test_parquet_of_another_width_is_refused(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "a.parquet", z=vectors([[1.0, 2.0]], size=2))
    with pytest.raises(SourceError, match=rf"shape \(1, 2\).*\(N, {WIDTH}\)"):
        open_latents(path, (WIDTH,))


def test_parquet_of_single_numbers_is_refused(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "a.parquet", z=[1.0, 2.0])
    with pytest.raises(SourceError, match=rf"\(N, {WIDTH}\)"):
        open_latents(path, (WIDTH,))


@pytest.mark.parametrize("number", ["int64", "bool_", "string"])
def test_parquet_of_other_types_is_refused(tmp_path: Path, number: str) -> None:
    value: Any = "1" if number == "string" else 1 if number == "int64" else True
    path = save_parquet(tmp_path / "a.parquet", z=vectors([[value] * WIDTH] * 2, number))
    with pytest.raises(SourceError, match=rf"(?i)contains .*floats of shape \(N, {WIDTH}\)"):
        open_latents(path, (WIDTH,))


@pytest.mark.parametrize("rows", [[[1.0, 2.0, 3.0], None], [None, [1.0, 2.0, 3.0]], [None, None]])
def test_parquet_with_rows_left_empty_is_refused(tmp_path: Path, rows: list[list[float] | None]) -> None:
    path = save_parquet(tmp_path / "a.parquet", z=vectors(rows))
    with pytest.raises(SourceError, match=r"a\.parquet"):
        rows_of(path)


def test_a_number_left_empty_in_parquet_is_not_a_number(tmp_path: Path) -> None:
    rows: Any = [[1.0, None, 3.0], [4.0, 5.0, 6.0]]
    path = save_parquet(tmp_path / "a.parquet", z=vectors(rows))
    assert np.array_equal(rows_of(path), np.array([[1, np.nan, 3], [4, 5, 6]], np.float32), equal_nan=True)


def test_parquet_with_damaged_pages_is_refused(tmp_path: Path) -> None:
    needs(".parquet")
    path = write(tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 3] = bytes(len(data) // 3 - 4)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.parquet"):
        rows_of(path)


def test_a_parquet_file_is_closed_after_each_use(tmp_path: Path) -> None:
    """Whoever holds it open keeps its space on the disk, and on Windows its name."""
    path = tmp_path / "z.parquet"
    pa = pytest.importorskip("pyarrow")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32)), 2)
    pa.parquet.write_table(pa.table({"z": vectors}), path)

    def held() -> bool:
        return path in [place.resolve() for place in Path("/proc/self/fd").iterdir()]

    rows = open_latents(path, (2,))
    assert not held()
    chunks = rows.chunks(3)
    assert next(chunks).shape == (3, 2)
    chunks.close()  # type: ignore[attr-defined]  # a generator
    assert not held()
    assert sum(len(chunk) for chunk in rows.chunks(3)) == 4
    assert not held()


def test_work_that_is_killed_as_it_cleans_up_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "latents.npz"
    unlink = os.unlink
    removed: list[str] = []

    def killed(path: str, *arguments: object, **rest: Any) -> None:
        if len(removed) == 2:
            raise KeyboardInterrupt
        removed.append(Path(path).name)
        unlink(path, **rest)

    with spill(output) as work:
        add(work)
        monkeypatch.setattr(os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            work.finish()
    monkeypatch.undo()
    assert len(removed) == 2
    whole = output.read_bytes()
    left = list((tmp_path / "latents.npz.partial").iterdir())
    assert left
    assert not any(path.name == "state.json" for path in left)
    with spill(output, resume=True) as work:
        assert work.rows == 0
        add(work)
        work.finish()
    assert output.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["latents.npz"]
