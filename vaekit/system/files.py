"""Writing files and folders so that no half-written one appears, even after a kill or a power failure.

A file or folder is first written beside its place as ``.NAME.MACHINE-PROCESS.tmp``, and then renamed. While a folder
is replaced, the older one is called ``.NAME.MACHINE-PROCESS.old``. The next process that writes to the same place
cleans up after processes that have died.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vaekit.errors import UsageError, VaekitError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux's constants for renameat2


def check_writable(path: Path) -> None:
    """Raise VaekitError, before any work, if ``path`` cannot be written.

    Its folder may be missing. The nearest folder above that exists must be writable.
    """
    nearest = next(folder for folder in Path(os.path.abspath(path)).parents if folder.exists())
    if not nearest.is_dir():
        raise VaekitError(f"cannot write {path}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise VaekitError(f"cannot write {path}: the folder {nearest} is not writable")


def check_file_target(path: Path, suffixes: Iterable[str] | None = None) -> None:
    """Raise, before any work, if a file cannot be written.

    Raises UsageError for a suffix not in ``suffixes``, and VaekitError for a folder that is missing or read-only.
    """
    if suffixes is not None and path.suffix.lower() not in suffixes:
        raise UsageError(f"cannot write {path}: its name must end in one of {', '.join(suffixes)}")
    check_writable(path)
    if not path.parent.is_dir():
        raise VaekitError(f"cannot write {path}: there is no folder {path.parent}")
    if os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        raise VaekitError(f"cannot write {path}: it is a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise VaekitError(f"cannot write {path}: it is a device or a pipe, not a file")


def check_new_folder(path: Path) -> None:
    """Raise VaekitError if a new folder cannot be written.

    An empty folder may be there already, but nothing else.
    """
    if os.path.isdir(path) and any(path.iterdir()):
        raise VaekitError(f"cannot write {path}: the folder is not empty; choose another, or remove it first")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise VaekitError(f"cannot write {path}: it is a file; choose another place for the folder")
    check_writable(path)


def is_regular(path: str | Path) -> bool:
    """Return False for a device, pipe or socket, which might be read without end.

    A folder is let be, because reading one fails at once. Raises OSError if there is no such file.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 — the path may be text
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


@contextmanager
def replacing_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name, which replaces ``path`` when the block succeeds.

    If the block raises, the temporary file is removed. A link is followed: its target is replaced. With ``durable``,
    the contents reach the disk before the rename. Raises VaekitError if the file cannot be written. An OSError of the
    block about another file passes through.
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
    """Yield a new empty folder, which replaces ``path`` when the block succeeds.

    If the block raises, the new folder is removed and ``path`` stays as it was. A link is followed: its target is
    replaced. With ``durable``, the contents reach the disk before the rename. Raises VaekitError if the folder cannot
    be written. An OSError of the block about another file passes through.
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


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other commands from writing to a folder within the block. It is made if it is missing.

    Raises VaekitError if another command is writing to it, or if it cannot be made. The lock ends with the process,
    even if that is killed. Where folders cannot be locked, as on Windows and on some network disks, nothing is kept
    away.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    except OSError as error:
        raise _unwritable(folder, error) from error
    if descriptor is None:
        yield
        return
    try:
        _lock(folder, descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise VaekitError(f"another command is writing {folder}: wait until it has ended, or end it") from None
    except OSError:
        return  # this file system has no locks


def recover_folder(path: Path) -> None:
    """Restore a folder that a process had moved aside before it died."""
    _put_right(_target(path))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file under a temporary name and rename it."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_error_of_writing(error: OSError) -> bool:
    """Return whether an error can only come from writing.

    A full disk is an example. ``error`` names no file.
    """
    if error.errno is None:
        return type(error) is OSError  # Pillow raises this for a picture that it cannot write
    return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", None))


def is_about(error: OSError, *paths: Path) -> bool:
    """Return whether an error comes from writing one of the paths.

    Files inside a path count as part of it. An error about a file that was read does not count.
    """
    if error.filename is None:
        return is_error_of_writing(error)
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return False
    named = Path(os.fsdecode(error.filename))
    return any(named == path or path in named.parents for path in paths)


def _remove(path: Path) -> None:
    """Remove a file, link or folder, as far as possible."""
    import shutil  # imported late: a command that only writes a picture starts faster without it

    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _target(path: Path) -> Path:
    """Return the path with all links resolved."""
    return Path(os.path.realpath(path))


def _temporary_name(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{_machine()}-{os.getpid()}.{kind}")


def _machine() -> str:
    """Return a hash of this machine's or container's name."""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{zlib.crc32(name.encode(errors='surrogateescape')):08x}"


def _put_right(target: Path) -> None:
    """Clean up after processes of this machine that died while writing ``target``.

    A folder that they had moved aside is moved back. Their other temporary files are removed. If the containing folder
    cannot be read, nothing happens.
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
    """Return whether another process with that number is running.

    This process's own number means a dead one: containers use the same numbers again.
    """
    if os.name != "posix":  # os.kill would end the process on Windows
        return True
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        return True
    return True


def _take_place(temporary: Path, target: Path, retired: Path) -> None:
    """Rename a folder to ``target``; an older folder there becomes ``temporary`` or ``retired``."""
    if not os.path.lexists(target):
        os.replace(temporary, target)
        return
    if _exchange(temporary, target):
        return
    os.replace(target, retired)  # after a kill at this point nothing is at ``target``: see recover_folder
    try:
        os.replace(temporary, target)
    except BaseException:
        os.replace(retired, target)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; return False if the system or file system cannot."""
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
    """Wait until a file or a folder's list of names is on disk."""
    if os.name != "posix":  # Windows cannot open folders, and cannot sync a file opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems do not support fsync
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


@contextmanager
def _block(path: Path, temporary: Path) -> Iterator[None]:
    """Turn an OSError about ``path`` into a VaekitError; others pass through."""
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
