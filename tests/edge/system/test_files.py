from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vaekit.errors import UsageError, VaekitError
from vaekit.system import files
from vaekit.system.files import (
    check_file_target,
    check_new_folder,
    check_writable,
    recover_folder,
    replacing_file,
    replacing_folder,
    write_text,
)

Replacing = Callable[[Path], AbstractContextManager[Path]]


def fail_halfway(file: Path, error: type[BaseException]) -> None:
    file.write_text("half")
    raise error


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_text_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "zwölf\n")
    assert (tmp_path / "a.txt").read_bytes() == "zwölf\n".encode()
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == {"a.txt"}


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing_file(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == {"a.txt"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_no_temporary_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing_file(path) as temporary:
        fail_halfway(temporary, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_failure_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing_file(tmp_path / "a.txt") as temporary:
        fail_halfway(temporary, RuntimeError)
    assert names(tmp_path) == set()


def test_a_file_is_written_by_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("a.txt"), "here")
    assert (tmp_path / "a.txt").read_text() == "here"


@pytest.mark.parametrize("name", ["none/a.txt", "file/a.txt", "folder", "n" * 300])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VaekitError, match="cannot write") as caught:
        write_text(tmp_path / name, "text")
    assert str(tmp_path / name) in str(caught.value)
    assert names(tmp_path) == {"file", "folder"}
    assert names(tmp_path / "folder") == set()


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "b"
    with replacing_folder(path) as temporary:
        (temporary / "new").write_text("new")
        assert not path.exists()
    assert names(path) == {"new"}
    assert names(path.parent) == {"b"}


def test_a_folder_takes_the_olds_place_contents_and_all(tmp_path: Path) -> None:
    path = tmp_path / "b"
    (path / "within").mkdir(parents=True)
    (path / "old").write_text("old")
    with replacing_folder(path) as temporary:
        (temporary / "new").write_text("new")
        assert names(path) == {"within", "old"}
    assert names(path) == {"new"}
    assert names(tmp_path) == {"b"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_folder_and_no_temporary_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "b"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(error), replacing_folder(path) as temporary:
        fail_halfway(temporary / "new", error)
    assert (path / "old").read_text() == "old"
    assert names(tmp_path) == {"b"}


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b"
    path.mkdir()
    (path / "old").write_text("old")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if source.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    with pytest.raises(VaekitError, match=r"cannot write .*No space left"), replacing_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert names(path) == {"old"}
    assert names(tmp_path) == {"b"}


def test_a_folder_in_the_place_of_a_file_or_link_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target", target_is_directory=True)
    for name in ("file", "link"):
        with replacing_folder(tmp_path / name) as temporary:
            (temporary / "new").write_text("new")
        assert names(tmp_path / name) == {"new"}
    assert names(tmp_path) == {"file", "link", "target"}
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "target") == {"new"}


@pytest.mark.parametrize("name", ["file/b", "file/deep/b", "n" * 300])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(VaekitError, match="cannot write") as caught, replacing_folder(tmp_path / name):
        pass
    assert str(tmp_path / name) in str(caught.value)
    assert names(tmp_path) == {"file"}


def test_what_can_be_written_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path / "a", tmp_path / "none" / "deep" / "a", tmp_path / "file", Path("a"), Path("b/c")):
        check_writable(path)
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("name", ["file/a", "file/deep/a"])
def test_what_lies_under_a_file_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VaekitError, match="is a file, not a folder"):
        check_writable(tmp_path / name)


def test_what_lies_in_a_folder_that_is_not_ours_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    for path in (tmp_path / "a", tmp_path / "none" / "a"):
        with pytest.raises(VaekitError, match="not writable") as caught:
            check_writable(path)
        assert str(tmp_path) in str(caught.value)


def test_a_file_that_can_be_written_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.npz").touch()
    for path in (tmp_path / "new.npz", tmp_path / "new.NPY", tmp_path / "old.npz", Path("here.npz")):
        check_file_target(path, (".npz", ".npy"))
    assert names(tmp_path) == {"old.npz"}


@pytest.mark.parametrize("name", ["a", "a.txt", "a.npz.txt", ".npz", "none/a.txt"])
def test_a_suffix_that_is_none_of_those_asked_for_is_a_wrong_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"must end in one of \.npz, \.npy") as caught:
        check_file_target(tmp_path / name, (".npz", ".npy"))
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none/a.npz", "there is no folder"),
        ("none/deep/a.npz", "there is no folder"),
        ("file/a.npz", "is a file, not a folder"),
        ("folder.npz", "it is a folder"),
    ],
)
def test_a_file_that_could_not_be_written_is_refused_beforehand(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(VaekitError, match=f"cannot write .*{reason}") as caught:
        check_file_target(tmp_path / name, (".npz",))
    assert str(tmp_path / name) in str(caught.value)
    assert names(tmp_path) == {"file", "folder.npz"}


def test_a_new_or_empty_folder_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty", target_is_directory=True)
    for path in (tmp_path / "new", tmp_path / "deep" / "new", tmp_path / "empty", tmp_path / "link", Path("here")):
        check_new_folder(path)
    assert names(tmp_path) == {"empty", "link"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("full", "the folder is not empty"),
        ("linked", "the folder is not empty"),
        ("file", "it is a file"),
        ("dangling", "it is a file"),
        ("file/new", "is a file, not a folder"),
    ],
)
def test_a_folder_with_something_in_its_way_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    (tmp_path / "file").touch()
    (tmp_path / "linked").symlink_to("full", target_is_directory=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(VaekitError, match=f"cannot write .*{reason}") as caught:
        check_new_folder(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert names(tmp_path) == {"full", "file", "linked", "dangling"}
    assert names(tmp_path / "full") == {".hidden"}


def test_a_folder_where_nothing_may_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(VaekitError, match="not writable"):
        check_new_folder(tmp_path / "new")
    with pytest.raises(VaekitError, match="not writable"):
        check_file_target(tmp_path / "a.npz", (".npz",))


# Links


@pytest.mark.parametrize("stands", ["a file", "nothing"])
def test_a_file_is_written_through_a_link(tmp_path: Path, stands: str) -> None:
    real = tmp_path / "elsewhere" / "real.txt"
    real.parent.mkdir()
    if stands == "a file":
        real.write_text("old")
    (tmp_path / "link.txt").symlink_to(Path("elsewhere") / "real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert real.read_text() == "new"
    assert names(real.parent) == {"real.txt"}
    assert names(tmp_path) == {"elsewhere", "link.txt"}


def test_a_folder_is_written_through_a_link_to_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path("deep") / "real")
    with replacing_folder(tmp_path / "link") as temporary:
        (temporary / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "deep" / "real") == {"new"}


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(VaekitError, match="a device or a pipe"):
        check_file_target(tmp_path / "pipe.npz", (".npz",))
    with pytest.raises(VaekitError, match="a device or a pipe"):
        check_file_target(Path(os.devnull))


# Killed processes


def killed(code: str, folder: Path) -> None:
    """Run Python in a folder, in a process that kills itself."""
    head = "import os, signal\nfrom pathlib import Path\nfrom vaekit.system import files\n"
    done = subprocess.run([sys.executable, "-c", head + code], cwd=folder, check=False)
    assert done.returncode == -signal.SIGKILL


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def test_what_a_killed_process_left_is_cleared_by_the_next_write(tmp_path: Path) -> None:
    for kind in ("file", "folder"):
        killed(f"with files.replacing_{kind}(Path('{kind}')) as it:\n    it.touch()\n    {KILL}", tmp_path)
    assert len(names(tmp_path)) == 2
    foreign = [".file.12-1.tmp", ".file.tmp", ".file.txt.tmp", ".other.12.tmp"]
    for name in foreign:
        (tmp_path / name).touch()
    write_text(tmp_path / "file", "new")
    with replacing_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == {"file", "folder", *foreign}


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    living = files._temporary_name(tmp_path / "a", "tmp").name.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    (tmp_path / living).touch()
    write_text(tmp_path / "a", "new")
    assert names(tmp_path) == {"a", living}


def test_the_number_of_a_dead_process_may_be_this_ones(tmp_path: Path) -> None:
    """As in a container that starts again."""
    for kind in ("tmp", "old"):
        left = files._temporary_name(tmp_path / "a", kind)
        left.mkdir()
        (left / "half").touch()
    (tmp_path / "a").mkdir()
    with replacing_folder(tmp_path / "a") as temporary:
        assert names(temporary) == set()
    assert names(tmp_path) == {"a"}


def stop_between_renames(folder: Path, exchange: str) -> None:
    """Replace the folder ``b`` in a process that is killed as soon as the old one has stepped aside."""
    killed(
        "replace = os.replace\n"
        f"def stop(one, other):\n    replace(one, other)\n    {KILL}\n"
        f"os.replace = stop\n{exchange}\n"
        "with files.replacing_folder(Path('b')) as it:\n    (it / 'new').touch()\n"
        f"{KILL}",
        folder,
    )


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_kill_between_two_renames_is_put_right(tmp_path: Path, how: str) -> None:
    """Where the file system cannot let two folders change places."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").touch()
    stop_between_renames(tmp_path, "files._exchange = lambda one, other: False")
    assert not (tmp_path / "b").exists()
    if how == "read":
        recover_folder(tmp_path / "b")
    else:
        with pytest.raises(RuntimeError), replacing_folder(tmp_path / "b"):
            raise RuntimeError
    assert names(tmp_path) == {"b"}
    assert names(tmp_path / "b") == {"old"}


def test_folders_change_places_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    if not files._exchange(tmp_path / "a", tmp_path):  # a folder cannot take the place of what it lies in
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "old").touch()
        if not files._exchange(tmp_path / "a", tmp_path / "b"):
            pytest.skip("not on this file system")
        assert names(tmp_path / "a") == {"old"}
        assert names(tmp_path / "b") == set()
        stop_between_renames(tmp_path, "")
        assert names(tmp_path / "b") == {"new"}


# Errors of other files


@pytest.mark.parametrize("replacing", [replacing_file, replacing_folder])
def test_an_error_about_another_file_is_not_one_of_writing(tmp_path: Path, replacing: Replacing) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), replacing(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "a"):
        tmp_path.read_bytes()
    for error in (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), TimeoutError(), OSError(errno.EIO, "broken")):
        with pytest.raises(type(error)), replacing(tmp_path / "a"):
            raise error
    assert names(tmp_path) == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("replacing", [replacing_file, replacing_folder])
def test_a_disk_that_is_full_is_one_of_writing(tmp_path: Path, replacing: Replacing, number: int) -> None:
    with pytest.raises(VaekitError, match=r"cannot write .*a: "), replacing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(VaekitError, match=r"cannot write .*a: no such mode"), replacing(tmp_path / "a"):
        raise OSError("no such mode")


# Power failures


@pytest.mark.parametrize("durable", [True, False])
def test_contents_are_on_the_disk_before_their_name_is(
    tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def note_replace(one: Path, other: Path) -> None:
        order.append("renamed")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    with replacing_file(tmp_path / "a", durable=durable) as temporary:
        temporary.write_text("whole")
    with replacing_folder(tmp_path / "b", durable=durable) as folder:
        (folder / "within").mkdir()
        (folder / "within" / "file").touch()
    synced = [temporary.name, "renamed", tmp_path.name, folder.name, "within", "file", "renamed", tmp_path.name]
    if durable:
        assert sorted(order[:3]) == sorted(synced[:3])
        assert order.index("renamed") == 1
        assert sorted(order[3:6]) == sorted(synced[3:6])
        assert order[6:] == synced[6:]
    else:
        assert order == ["renamed"] * 2
