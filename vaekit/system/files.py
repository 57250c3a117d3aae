"""Files and folders that appear whole or not at all, also where the process is killed or the power fails.

They are written beside their place under a name ``.NAME.MACHINE-PROCESS.tmp`` or, while an older folder steps aside,
``.NAME.MACHINE-PROCESS.old``. Those of processes that have died are put right by the next that writes there.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vaekit.errors import UsageError, VaekitError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def check_writable(path: Path) -> None:
    """Raise VaekitError, before any work is done, where ``path`` could not be written: its folder is tried.

    Folders that do not exist yet do not count against it; the nearest one that does is what must be writable.
    """
    nearest = next(folder for folder in Path(os.path.abspath(path)).parents if folder.exists())
    if not nearest.is_dir():
        raise VaekitError(f"cannot write {path}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise VaekitError(f"cannot write {path}: the folder {nearest} is not writable")


def check_file_target(path: Path, suffixes: Iterable[str] | None = None) -> None:
    """Find out whether a file can be written, before any work is done.

    Raises UsageError for a suffix not in ``suffixes``, VaekitError for a folder that is not there or writable.
    """
    if suffixes is not None and path.suffix.lower() not in suffixes:
        raise UsageError(f"cannot write {path}: its name must end in one of {', '.join(suffixes)}")
    check_writable(path)
    if not path.parent.is_dir():
        raise VaekitError(f"cannot write {path}: there is no folder {path.parent}")
    if os.path.isdir(path):  # which, unlike Path's, says no to a name that is too long
        raise VaekitError(f"cannot write {path}: it is a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise VaekitError(f"cannot write {path}: it is a device or a pipe, not a file")


def check_new_folder(path: Path) -> None:
    """Find out whether a new folder can be written. Raises VaekitError where something stands there already."""
    if os.path.isdir(path) and any(path.iterdir()):
        raise VaekitError(f"cannot write {path}: the folder is not empty; choose another, or remove it first")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise VaekitError(f"cannot write {path}: it is a file; choose another place for the folder")
    check_writable(path)


@contextmanager
def replacing_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, renamed to it when the block ends well and removed when it does not.

    A link is followed: what it points to is replaced. With ``durable`` the contents are on the disk before the name is.
    Raises VaekitError where the file cannot be written; an OSError of the block about another file is left as it is.
    """
    target = _target(path)
    temporary = _temporary_name(target, "tmp")
    _put_right(target)
    try:
        with _block(path, temporary):
            yield temporary
        with _cannot_write(path):
            if durable:
                _sync(temporary)
            os.replace(temporary, target)
            if durable:
                _sync(target.parent)
    finally:
        _remove(temporary)


@contextmanager
def replacing_folder(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a new empty folder beside ``path`` that takes its place, and its old contents', when the block ends well.

    A link is followed: what it points to is replaced. With ``durable`` the contents are on the disk before the name is.
    Raises VaekitError where the folder cannot be written; whatever stood at ``path`` is then still there. An OSError of
    the block about another file is left as it is.
    """
    target = _target(path)
    temporary, retired = _temporary_name(target, "tmp"), _temporary_name(target, "old")
    _put_right(target)
    try:
        with _cannot_write(path):
            temporary.mkdir(parents=True)
        with _block(path, temporary):
            yield temporary
        with _cannot_write(path):
            if durable:
                _sync_below(temporary)
            _take_place(temporary, target, retired)
            if durable:
                _sync(target.parent)
    finally:
        _remove(temporary)
    _remove(retired)


def recover_folder(path: Path) -> None:
    """Put a folder back in its place where a process died between retiring it and putting the new one there."""
    _put_right(_target(path))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_error_of_writing(error: OSError) -> bool:
    """Whether an error that names no file is one that only writing meets, such as a full disk."""
    if error.errno is None:
        return type(error) is OSError  # Pillow's way of saying that it cannot write such a picture
    return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", None))


def is_about(error: OSError, *paths: Path) -> bool:
    """Whether an error is about writing one of these, or what lies below, rather than about a file that was read."""
    if error.filename is None:
        return is_error_of_writing(error)
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return False
    named = Path(os.fsdecode(error.filename))
    return any(named == path or path in named.parents for path in paths)


def _remove(path: Path) -> None:
    """Remove a file, link or folder, or what can be removed of it."""
    import shutil  # here, as a cold start that only writes a picture should not pay for it

    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _target(path: Path) -> Path:
    """Where a path's file or folder really lies."""
    return Path(os.path.realpath(path))


def _temporary_name(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{_machine()}-{os.getpid()}.{kind}")


def _machine() -> str:
    """What tells this machine, or container, from others that may write to the same folder."""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{zlib.crc32(name.encode(errors='surrogateescape')):08x}"


def _put_right(target: Path) -> None:
    """Clear up after processes of this machine that died: put back what they had retired, remove what else they left.

    A folder that cannot be read is left as it is.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{_machine()}-(\d+)\.(tmp|old)")
    with suppress(OSError):
        with os.scandir(target.parent) as entries:
            left = [match for entry in entries if (match := pattern.fullmatch(entry.name))]
        for match in left:
            leftover = target.with_name(match[0])
            if _is_at_work(int(match[1])):
                continue
            if match[2] == "old" and not os.path.lexists(target):
                os.replace(leftover, target)
            else:
                _remove(leftover)


def _is_at_work(process: int) -> bool:
    """Whether another process of that number runs; one of this one's number, as containers give again, has died."""
    if os.name != "posix":  # where this would end it
        return True
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def _take_place(temporary: Path, target: Path, retired: Path) -> None:
    """Rename a folder to ``target``; what stood there is then ``temporary`` or ``retired``."""
    if not os.path.lexists(target):
        os.replace(temporary, target)
        return
    if _exchange(temporary, target):
        return
    os.replace(target, retired)  # here a kill leaves nothing at its place: recover_folder
    try:
        os.replace(temporary, target)
    except BaseException:
        os.replace(retired, target)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places at once; whether this system and file system can."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _sync_below(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name != "posix":  # Windows opens no folders, and syncs nothing that was opened to be read
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that do not know it
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


@contextmanager
def _block(path: Path, temporary: Path) -> Iterator[None]:
    """Say that ``path`` cannot be written, but only of errors about it: the block may read other files."""
    try:
        yield
    except OSError as error:
        if is_about(error, path, temporary):
            raise _unwritable(path, error) from error
        raise


@contextmanager
def _cannot_write(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> VaekitError:
    return VaekitError(f"cannot write {path}: {error.strerror or error}")
