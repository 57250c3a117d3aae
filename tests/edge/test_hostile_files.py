"""Files that nobody makes by accident. `benchmarks/fuzz.py` found what is tested here, and goes on looking."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaekit.bundle.reading import read_bundle, read_golden, read_residuals
from vaekit.errors import BundleError, SourceError
from vaekit.images.picture import probe_image, read_image
from vaekit.images.stream import ImageStream
from vaekit.output.latents import open_latents
from vaekit.system.npz import NPZ_ERRORS, read_arrays


def npy(shape: tuple[int, ...], descr: str = "<f4", data: bytes = b"") -> bytes:
    """Return a .npy file whose header says what its data may not hold."""
    header = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


NO_ARRAYS = {
    "not an array": b"<html>",
    "nothing": b"",
    "a header alone": npy((3,)),
    "more than any memory holds": npy((1 << 62,)),
    "a product that overflows": npy((1 << 40, 1 << 40)),
    "a negative size": npy((-1,)),
    "pickled objects": npy((1,), "|O", b"\x80\x04N."),
    "too much data": npy((1,), data=bytes(8)),
    "numbers of no size": npy((1 << 40,), "|V0"),
}


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


@pytest.mark.parametrize("what", NO_ARRAYS)
def test_what_is_no_array_is_refused_before_memory_is_asked_for(what: str) -> None:
    with pytest.raises(NPZ_ERRORS):
        read_arrays(io.BytesIO(npz(a=NO_ARRAYS[what])), ("a",))


def test_arrays_are_read_as_numpy_reads_them() -> None:
    arrays: dict[str, Any] = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array(2.5),
        "d": np.empty((0, 3), np.uint8),
        "e": np.array(["one", "three"]),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    found = read_arrays(buffer, (*arrays, "absent"))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def replaced(bundle: Path, target: Path, file: str, key: str, data: bytes) -> Path:
    """Return a copy of a bundle with another file, whose hash fits."""
    copy = Path(shutil.copytree(bundle, target / "copy"))
    (copy / file).write_bytes(data)
    document = json.loads((copy / "manifest.json").read_text())
    document[key]["sha256"] = hashlib.sha256(data).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


@pytest.mark.parametrize("what", NO_ARRAYS)
@pytest.mark.parametrize(
    ("file", "key", "read"), [("golden.npz", "golden", read_golden), ("residuals.npz", "residuals", read_residuals)]
)
def test_arrays_of_a_bundle_that_are_none(
    bundles: Path, tmp_path: Path, file: str, key: str, read: Callable[..., object], what: str
) -> None:
    with zipfile.ZipFile(bundles / "labels" / file) as archive:
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    name = next(iter(members))
    copy = replaced(bundles / "labels", tmp_path, file, key, npz(**members | {name: NO_ARRAYS[what]}))
    with pytest.raises(BundleError, match=rf"{file} (cannot be read|is damaged)"):
        read(read_bundle(copy))


@pytest.mark.parametrize("shape", [(1 << 40, 0), (0, 0), (0, 1 << 40, 1 << 62, 0), (3, 0), (1 << 40,)])
def test_labels_of_any_shape_end_at_once(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = io.BytesIO()
    np.save(images, np.zeros((3, 8, 8), np.uint8))
    (tmp_path / "images.npz").write_bytes(npz(images=images.getvalue(), labels=npy(shape, "<i8")))
    with pytest.raises(SourceError, match=r"labels|shape|cut short"):
        ImageStream([str(tmp_path / "images.npz")], (1, 8, 8))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_tiff_whose_strips_begin_at_a_word() -> None:
    data = base64.b64decode("SUkqAAgAAAAIAAABBAABAAAABwAAAAEBBAABAAAACQAAABEBAgABAAAAAAAAAA==")
    probe_image(io.BytesIO(data))
    with pytest.raises(SourceError, match=r"scan\.tif: 'str' object"):
        read_image(io.BytesIO(data), 3, (8, 8), name="scan.tif")


def test_a_parquet_file_of_a_negative_number_of_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array([0.0] * 4 * 77, pyarrow.float32()), 4)
    parquet.write_table(pyarrow.table({"z": column}), tmp_path / "z.parquet", compression="none", use_dictionary=False)
    data = (tmp_path / "z.parquet").read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    rows = data.index(b"\x16\x9a\x01", footer)  # field of type i64, 77 as a zigzag varint: the rows of the file
    (tmp_path / "z.parquet").write_bytes(data[:rows] + b"\x16\x99\x01" + data[rows + 3 :])
    with pytest.raises(SourceError, match=r"z\.parquet is damaged: it says that it has -77 rows"):
        open_latents(tmp_path / "z.parquet", (4,))


def test_a_zip_of_zeros_is_refused_before_it_is_inflated(tiny_bundle: Path, tmp_path: Path) -> None:
    packed = tmp_path / "bomb.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in tiny_bundle.iterdir():
            if file.name != "golden.npz":
                archive.write(file, file.name)
        with archive.open("golden.npz", "w", force_zip64=True) as bomb:
            for _ in range(300):
                bomb.write(bytes(1 << 20))
    assert packed.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match=r"golden.npz in .*bomb.zip would be 1,0\d\d times as large"):
        read_bundle(packed)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems have such files")
def test_pipes_and_devices_are_not_read(tiny_bundle: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("L", (8, 8)).save(photos / "a.png")
    os.mkfifo(photos / "b.png")
    (photos / "c.png").symlink_to("/dev/zero")
    (photos / "d.png").symlink_to("a.png")
    with contextlib.closing(ImageStream([str(photos)], (1, 8, 8))) as images:
        chunks = list(images.chunks())
    assert [path[-5:] for chunk in chunks for path in chunk.paths] == [b"a.png", b"d.png"]
    failures = [failure for chunk in chunks for failure in chunk.failures]
    assert [failure.rpartition(": ")[2] for failure in failures] == ["it is a device or a pipe, not a file"] * 2

    for name in ("golden.npz", "decoder.onnx"):
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            bundle = Path(shutil.copytree(tiny_bundle, tmp_path / f"{name}-{make.__name__}"))
            (bundle / name).unlink()
            make(bundle / name)
            with pytest.raises(BundleError, match=rf"{name} is a device or a pipe"):
                read_bundle(bundle)


def test_a_file_that_is_too_large_is_not_read(copied_bundle: Path) -> None:
    with open(copied_bundle / "decoder.onnx", "r+b") as file:
        file.truncate((1 << 31) + 1)  # takes no room on the disk
    with pytest.raises(BundleError, match=r"decoder.onnx is larger than two gigabytes"):
        read_bundle(copied_bundle)


def test_of_two_entries_of_one_name_the_last_is_checked_and_used(tiny_bundle: Path, tmp_path: Path) -> None:
    for first, last, whole in ((b"other", None, True), (None, b"other", False)):
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
            warnings.simplefilter("ignore")  # of the name that is there twice
            for file in tiny_bundle.iterdir():
                if first is not None:
                    archive.writestr(file.name, first)
                archive.writestr(file.name, file.read_bytes())
                if last is not None and file.name == "decoder.onnx":
                    archive.writestr(file.name, last)
        if whole:
            assert (
                read_bundle(tmp_path / "twice.zip").files["decoder.onnx"] == (tiny_bundle / "decoder.onnx").read_bytes()
            )
        else:
            with pytest.raises(BundleError, match=r"decoder.onnx was changed"):
                read_bundle(tmp_path / "twice.zip")
