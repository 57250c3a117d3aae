"""Pictures in Parquet files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaekit.errors import SourceError
from vaekit.images import parquet_parts
from vaekit.images.dataset import open_source
from vaekit.images.labels import UNLABELLED
from vaekit.images.parts import Chunk
from vaekit.images.source import open_part
from vaekit.images.stream import ImageStream

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SHAPE = (1, 8, 8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 10), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, columns: dict[str, Any], group: int = 4, metadata: dict[str, str] | None = None) -> Path:
    """Write a file with row groups of that many rows."""
    table = pa.table(columns)
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def pictures(count: int, first: int = 0) -> Any:
    return pa.array([png(number) for number in range(first, first + count)], pa.binary())


def structs(count: int) -> Any:
    """Return pictures as Hugging Face's library writes them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": png(number), "path": f"{number}.png"} for number in range(count)], kind)


def read(source: Path | str) -> list[Chunk]:
    with contextlib.closing(ImageStream([str(source)], SHAPE)) as stream:
        return list(stream.chunks())


def in_a_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(png(number))
    return folder


@pytest.mark.parametrize("make", [pictures, structs, lambda count: pictures(count).cast(pa.large_binary())])
def test_pictures_are_those_of_a_folder(tmp_path: Path, make: Callable[[int], Any]) -> None:
    packed = pack(tmp_path / "photos.parquet", {"number": range(10), "image": make(10)})
    (loose,), chunks = read(in_a_folder(tmp_path / "photos", 10)), read(packed)
    assert [len(chunk.pixels) for chunk in chunks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([chunk.pixels for chunk in chunks]), loose.pixels)
    assert [os.fsdecode(path) for chunk in chunks for path in chunk.paths] == [f"{packed}[{row}]" for row in range(10)]
    part, folder = open_part(str(packed)), open_part(str(tmp_path / "photos"))
    assert part.labels is None
    assert part.form() == folder.form()
    chosen = np.array([7, 0, 9, 7])
    np.testing.assert_array_equal(part.read(chosen, SHAPE), folder.read(chosen, SHAPE))
    np.testing.assert_array_equal(part.read_whole(5, 1), folder.read_whole(5, 1))
    images = open_source(str(packed), size=(8, 8))
    np.testing.assert_array_equal(images.read(np.arange(10)), loose.pixels)


@pytest.mark.parametrize("start", [0, 1, 5, 11])
@pytest.mark.parametrize("every", [1, 3])
def test_some_of_the_rows_of_several_files(tmp_path: Path, start: int, every: int) -> None:
    for file in range(3):
        pack(tmp_path / f"part-{file}.parquet", {"img": pictures(4, 10 * file), "label": [0, 1, 2, file]}, group=3)
    for source in (tmp_path, tmp_path / "part-*.parquet"):
        part = open_part(str(source))
        assert len(part) == 12
        names = [part.name(number) for number in range(12)]
        assert names[5] == f"{tmp_path}/part-1.parquet[1]"
        chunks = list(part.chunks(SHAPE, start, every))
        assert [os.fsdecode(path) for chunk in chunks for path in chunk.paths] == names[start::every]
        numbers = np.arange(12)[start::every]
        np.testing.assert_array_equal(np.concatenate([c.pixels for c in chunks]), part.read(numbers, SHAPE))
        assert part.labels is not None
        assert [label for chunk in chunks for label in chunk.labels or ()] == list(part.labels.names_of(numbers))


def test_many_pictures_are_decoded_in_processes(tmp_path: Path) -> None:
    packed = pack(tmp_path / "many.parquet", {"image": pictures(300), "other": pictures(300)}, group=120)
    pixels = np.concatenate([chunk.pixels for chunk in read(packed)])
    np.testing.assert_array_equal(pixels, open_part(str(packed)).read(np.arange(300), SHAPE))


FEATURES = {"info": {"features": {"label": {"names": ["cat", "dog", "bird"], "_type": "ClassLabel"}}}}


@pytest.mark.parametrize(
    ("values", "metadata", "names", "classes"),
    [
        ([2, 0, 1], None, (), [2, 0, 1]),
        ([2, 0, None], {"huggingface": json.dumps(FEATURES)}, ("cat", "dog", "bird"), [2, 0, UNLABELLED]),
        ([2, 0, None], {"huggingface": "{"}, ("0", "2"), [1, 0, UNLABELLED]),
        (["dog", "cat", None], None, ("cat", "dog"), [1, 0, UNLABELLED]),
    ],
)
def test_classes(
    tmp_path: Path, values: list[Any], metadata: dict[str, str] | None, names: tuple[str, ...], classes: list[int]
) -> None:
    packed = pack(tmp_path / "a.parquet", {"image": pictures(3), "label": values}, metadata=metadata)
    labels = open_part(str(packed)).labels
    assert labels is not None
    assert (labels.names, labels.classes.tolist()) == (names, classes)


def test_classes_that_files_name_differently_go_by_their_names(tmp_path: Path) -> None:
    for name, words in (("a", ["dog", "cat"]), ("b", ["cat", "eel"])):
        pack(tmp_path / f"{name}.parquet", {"image": pictures(2), "label": words})
    labels = open_part(str(tmp_path)).labels
    assert labels is not None
    assert labels.names_of(range(4)) == ("dog", "cat", "cat", "eel")


def test_rows_without_a_picture_and_bad_pictures_are_named(tmp_path: Path) -> None:
    rows = pa.array([png(0), None, b"no picture", b""], pa.binary())
    packed = pack(tmp_path / "bad.parquet", {"image": rows, "label": ["a", "b", "c", "d"]})
    (chunk,) = read(packed)
    assert chunk.paths == (os.fsencode(f"{packed}[0]"),)
    assert chunk.labels == ("a",)
    assert chunk.failures[0] == f"{packed}[1]: the row has no picture"
    assert [failure.partition(": ")[0] for failure in chunk.failures[1:]] == [f"{packed}[2]", f"{packed}[3]"]
    images = open_source(str(packed), size=(8, 8))
    assert (len(images), len(images.skipped)) == (1, 3)
    missing = pa.array([None, {"bytes": png(0), "path": ""}], structs(1).type)
    (chunk,) = read(pack(tmp_path / "none.parquet", {"image": missing}))
    assert chunk.failures == (f"{tmp_path}/none.parquet[0]: the row has no picture",)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"PAR1" * 100), "cannot be read"),
        (lambda path: pack(path, {"image": ["a.png"]}), "no column of pictures, or several: its columns are image"),
        (lambda path: pack(path, {"a": pictures(1), "b": pictures(1)}), "or several: its columns are a, b"),
        (lambda path: pack(path, {"image": pictures(0)}), "holds no images"),
        (os.mkfifo, "a device or a pipe|not a source"),
    ],
)
def test_what_holds_no_pictures_is_named(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "bad.parquet")
    with pytest.raises(SourceError, match=words):
        open_part(str(tmp_path / "bad.parquet"))


def test_labels_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a.parquet", {"image": pictures(1), "label": [[1, 2]]})
    part = open_part(str(packed))
    with pytest.raises(SourceError, match=r"a.parquet has labels of type list.*: give whole numbers or words"):
        _ = part.labels
    pack(tmp_path / "b.parquet", {"image": pictures(1)})
    part = open_part(str(tmp_path))
    pack(tmp_path / "a.parquet", {"image": pictures(1), "label": [1]})
    with pytest.raises(SourceError, match="some of its files have labels, and others have none"):
        _ = part.labels


def test_row_groups_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_parts, "_LARGEST_GROUP", 1000)
    packed = pack(tmp_path / "a.parquet", {"image": pictures(20)}, group=20)
    with pytest.raises(
        SourceError, match=r"its row groups have .* GB, and are read whole: write it again with smaller"
    ):
        open_part(str(packed))


def test_a_file_that_is_cut_short_or_changed_is_named(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a.parquet", {"image": pictures(8)})
    whole = packed.read_bytes()
    for length in range(0, len(whole), 211):
        packed.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"a\.parquet"):
            read(packed)
    for place in range(4, len(whole), 97):
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(SourceError):
            for chunk in read(packed):
                assert all(str(packed) in failure for failure in chunk.failures)


def test_encode(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    packed = pack(tmp_path / "photos.parquet", {"image": pictures(9)})
    in_a_folder(tmp_path / "photos", 9)
    assert vaekit("encode", packed, "-m", tiny_bundle, "-o", "packed.npz").returncode == 0
    assert vaekit("encode", "photos", "-m", tiny_bundle, "-o", "folder.npz").returncode == 0
    codes, loose = np.load(tmp_path / "packed.npz"), np.load(tmp_path / "folder.npz")
    np.testing.assert_allclose(codes["mu"], loose["mu"], rtol=1e-4, atol=1e-5)  # batches of 4, and one of 9
    assert codes["paths"][3].decode() == f"{packed}[3]"
