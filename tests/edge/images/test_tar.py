"""Pictures in .tar files."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from vaekit.errors import SourceError
from vaekit.images.dataset import open_source
from vaekit.images.labels import UNLABELLED
from vaekit.images.parts import Chunk
from vaekit.images.source import open_part
from vaekit.images.stream import ImageStream

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SHAPE = (1, 8, 8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 10), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, files: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> Path:
    """Write an archive with files of these names, in this order."""
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def read(source: Path | str) -> list[Chunk]:
    with contextlib.closing(ImageStream([str(source)], SHAPE)) as stream:
        return list(stream.chunks())


def test_pictures_are_those_of_a_folder(tmp_path: Path) -> None:
    files = {f"{folder}/{number:02}.png": png(number) for number, folder in enumerate(["cat", "dog"] * 5)}
    for name, data in files.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    packed = pack(tmp_path / "photos.tar", dict(sorted(files.items())))
    (loose,), (chunk,) = read(tmp_path / "photos"), read(packed)
    np.testing.assert_array_equal(chunk.pixels, loose.pixels)
    assert chunk.labels == loose.labels == ("cat",) * 5 + ("dog",) * 5
    assert chunk.paths[0] == os.fsencode(f"{packed}/cat/00.png")
    part, folder = open_part(str(packed)), open_part(str(tmp_path / "photos"))
    assert part.labels is not None
    assert folder.labels is not None
    assert part.labels.names == folder.labels.names
    np.testing.assert_array_equal(part.labels.classes, folder.labels.classes)
    assert part.form() == folder.form()
    np.testing.assert_array_equal(part.read(np.array([7, 0]), SHAPE), folder.read(np.array([7, 0]), SHAPE))
    np.testing.assert_array_equal(part.read_whole(3, 1), folder.read_whole(3, 1))


def test_the_classes_of_webdataset(tmp_path: Path) -> None:
    files = {"a.cls": b"10\n", "a.png": png(0), "b.png": png(1), "b.cls": b"2", "c.left.png": png(2), "c.cls": b"none"}
    packed = pack(tmp_path / "shard.tar", files)
    labels = open_part(str(packed)).labels
    assert labels is not None
    assert labels.names == ("2", "10")
    assert labels.classes.tolist() == [1, 0, UNLABELLED]
    (chunk,) = read(packed)
    assert chunk.labels == ("10", "2", "")


def test_shards_in_a_folder_and_by_a_pattern(tmp_path: Path) -> None:
    for shard in range(3):
        pack(tmp_path / f"shard-{shard}.tar", {f"{number}.png": png(10 * shard + number) for number in range(4)})
    for source in (tmp_path, tmp_path / "shard-*.tar"):
        part = open_part(str(source))
        assert len(part) == 12
        assert part.name(5) == f"{tmp_path}/shard-1.tar/1.png"
        assert part.labels is None
        chunks = list(part.chunks(SHAPE, 1, 3))
        assert [os.fsdecode(path)[-13:] for chunk in chunks for path in chunk.paths] == [
            "ard-0.tar/1.png"[-13:],
            "ard-1.tar/0.png"[-13:],
            "ard-1.tar/3.png"[-13:],
            "ard-2.tar/2.png"[-13:],
        ]
    assert len(open_source(str(tmp_path))) == 12


def test_many_pictures_are_decoded_in_processes(tmp_path: Path) -> None:
    packed = pack(tmp_path / "many.tar", {f"{number:04}.png": png(number) for number in range(300)})
    pixels = np.concatenate([chunk.pixels for chunk in read(packed)])
    np.testing.assert_array_equal(pixels, open_part(str(packed)).read(np.arange(300), SHAPE))


def test_what_is_no_picture_is_left_out(tmp_path: Path) -> None:
    files = {"./a.png": png(0), "notes.txt": b"", "._a.png": png(1), "__MACOSX/a.png": png(1), ".x/b.png": png(2)}
    packed = pack(tmp_path / "mixed.tar", files)
    with tarfile.open(packed, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            header = tarfile.TarInfo(f"{kind.decode()}.png")
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
    part = open_part(str(packed))
    assert [part.name(number) for number in range(len(part))] == [f"{packed}/a.png"]
    assert part.left_out == "skipped 3 pictures (names with a leading dot, or __MACOSX)"


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path: Path) -> None:
    packed = pack(tmp_path / "out.tar", {"../../etc/x.png": png(0), "/abs/y.png": png(1)})
    (chunk,) = read(packed)
    assert chunk.paths == (os.fsencode(f"{packed}/abs/y.png"),)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar"]


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    packed = pack(tmp_path / "bad.tar", {"a.png": png(0), "b.png": b"no picture"})
    (chunk,) = read(packed)
    assert len(chunk.paths) == 1
    assert chunk.failures[0].startswith(f"{packed}/b.png: ")


def test_an_archive_that_is_cut_short_is_named_or_its_last_picture_is(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.tar", {f"{number}.png": png(number) for number in range(3)}).read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with contextlib.suppress(SourceError):
            for chunk in read(tmp_path / "cut.tar"):
                assert all(str(tmp_path / "cut.tar") in failure for failure in chunk.failures)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: pack(path, {"a.png": png(0)}, "w:gz"), "damaged, or compressed"),
        (lambda path: path.write_bytes(b""), "damaged, or compressed"),
        (lambda path: path.write_bytes(b"x" * 2000), "damaged, or compressed"),
        (lambda path: pack(path, {"a.txt": b""}), "holds no images"),
        (os.mkfifo, "a device or a pipe|not a source"),
    ],
)
def test_what_is_no_archive_of_pictures_is_named(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "bad.tar")
    with pytest.raises(SourceError, match=words):
        open_part(str(tmp_path / "bad.tar"))


def test_a_compressed_archive_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"photos.tar.gz is compressed: .* decompress it first"):
        open_part(str(pack(tmp_path / "photos.tar.gz", {"a.png": png(0)}, "w:gz")))


def test_encode(vaekit: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    packed = pack(tmp_path / "photos.tar", {f"{number}.png": png(number) for number in range(9)})
    assert vaekit("encode", packed, "-m", tiny_bundle, "-o", "tar.npz").returncode == 0
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "photos", filter="data")
    assert vaekit("encode", "photos", "-m", tiny_bundle, "-o", "folder.npz").returncode == 0
    packed_codes, codes = np.load(tmp_path / "tar.npz"), np.load(tmp_path / "folder.npz")
    np.testing.assert_array_equal(packed_codes["mu"], codes["mu"])
    assert packed_codes["paths"][3].decode() == f"{packed}/3.png"
