"""`vaekit.images.watch`: pictures that appear in a folder, with inotify and without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaekit.errors import SourceError
from vaekit.images import watch
from vaekit.images.watch import FolderWatch, NewPicture

ENOUGH = 600  # tries of a tenth of a second


@pytest.fixture(params=["inotify", "listing"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "listing":
        monkeypatch.setitem(sys.modules, "inotify_simple", None)
    else:
        pytest.importorskip("inotify_simple")
    monkeypatch.setattr(watch, "LIST_SECONDS", 0.1)
    monkeypatch.setattr(watch, "LIST_SECONDS_WITH_EVENTS", 0.5)
    monkeypatch.setattr(watch, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.5)
    made = tmp_path / "in"
    made.mkdir()
    return made


@pytest.fixture
def pictures(folder: Path) -> Iterator[FolderWatch]:
    with FolderWatch(folder) as found:
        yield found


def take(pictures: FolderWatch) -> tuple[NewPicture, bool]:
    for _ in range(ENOUGH):
        if (found := pictures.take(0.1)) is not None:
            return found
    pytest.fail("no picture was found")


def test_each_picture_is_found_once(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"a")
    with FolderWatch(folder) as pictures:
        names = [take(pictures)[0].name]
        for name in ("b.JPG", "c.png"):
            (folder / name).write_bytes(b"b")
            names.append(take(pictures)[0].name)
    assert names == ["a.png", "b.JPG", "c.png"]


def test_pictures_found_by_listing_come_in_the_order_of_their_times(folder: Path) -> None:
    for name, seconds in (("b.png", 1), ("c.png", 3), ("a.png", 2)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (seconds, seconds))
    with FolderWatch(folder) as pictures:
        assert [take(pictures)[0].name for _ in range(3)] == ["b.png", "a.png", "c.png"]


def test_a_picture_is_found_when_it_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUIET_SECONDS", 5.0)
    with FolderWatch(folder) as pictures, open(folder / "a.png", "wb") as file:
        file.write(b"half")
        file.flush()
        assert pictures.take(0.2) is None
        file.write(b" and the rest")
        file.close()
        assert take(pictures)[0].size == 17


def test_a_renamed_file_is_found(folder: Path, pictures: FolderWatch) -> None:
    (folder / "a.png.part").write_bytes(b"abc")
    assert pictures.take(0.1) is None
    (folder / "a.png.part").rename(folder / "a.png")
    assert take(pictures)[0].name == "a.png"


def test_a_changed_picture_is_found_again(folder: Path, pictures: FolderWatch) -> None:
    (folder / "a.png").write_bytes(b"a")
    first, _ = take(pictures)
    (folder / "a.png").write_bytes(b"changed")
    second, last = take(pictures)
    assert (first.size, second.size, last) == (1, 7, False)


def test_a_picture_to_retry_comes_once_more(folder: Path, pictures: FolderWatch) -> None:
    (folder / "a.png").write_bytes(b"a")
    picture, last = take(pictures)
    assert not last
    pictures.retry(picture)
    assert take(pictures) == (picture, True)
    (folder / "b.png").write_bytes(b"b")
    assert take(pictures)[0].name == "b.png"


def test_a_picture_to_retry_that_changes_has_another_try(folder: Path, pictures: FolderWatch) -> None:
    (folder / "a.png").write_bytes(b"a")
    pictures.retry(take(pictures)[0])
    (folder / "a.png").write_bytes(b"whole")
    picture, last = take(pictures)
    assert (picture.size, last) == (5, False)


def test_a_picture_that_is_gone_is_forgotten(folder: Path, pictures: FolderWatch) -> None:
    (folder / "a.png").write_bytes(b"a")
    pictures.retry(take(pictures)[0])
    (folder / "a.png").unlink()
    (folder / "b.png").write_bytes(b"b")
    assert take(pictures)[0].name == "b.png"


def test_known_pictures_are_left_out_unless_they_changed(folder: Path) -> None:
    known = []
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"x")
        status = (folder / name).stat()
        known.append(NewPicture(name, status.st_size, status.st_mtime_ns))
    (folder / "b.png").write_bytes(b"other")
    with FolderWatch(folder) as pictures:
        pictures.skip(known)
        assert take(pictures)[0].name == "b.png"
        (folder / "d.png").write_bytes(b"x")
        assert take(pictures)[0].name == "d.png"


def test_only_pictures_of_the_folder_itself_are_found(folder: Path, pictures: FolderWatch) -> None:
    for name in (".hidden.png", "notes.txt", "png"):
        (folder / name).write_bytes(b"x")
    (folder / "sub.png").mkdir()
    (folder / "sub.png" / "a.png").write_bytes(b"x")
    os.mkfifo(folder / "pipe.png")
    (folder / "last.png").write_bytes(b"x")
    assert take(pictures)[0].name == "last.png"
    assert pictures.take(0.1) is None


@pytest.mark.parametrize("removed", [True, False])
def test_a_folder_that_is_removed_or_moved_is_an_error(folder: Path, pictures: FolderWatch, removed: bool) -> None:
    assert pictures.take(0.1) is None
    if removed:
        folder.rmdir()
    else:
        folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(SourceError, match=r"cannot watch .*in"):
        take(pictures)


def test_a_folder_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot watch .*nothing: No such file"):
        FolderWatch(folder / "nothing")


def test_no_picture_is_lost_when_the_system_loses_events(folder: Path, pictures: FolderWatch) -> None:
    assert pictures.take(0.1) is None
    count = 20_000  # more than Linux keeps for a reader: /proc/sys/fs/inotify/max_queued_events is 16,384
    for number in range(count):
        (folder / f"{number}.png").touch()
    assert len({take(pictures)[0].name for _ in range(count)}) == count
