"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vaekit.errors import UsageError, VaekitError


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


def check_new_folder(path: Path) -> None:
    """Find out whether a new folder can be written. Raises VaekitError where something stands there already."""
    if os.path.isdir(path) and any(path.iterdir()):
        raise VaekitError(f"cannot write {path}: the folder is not empty; choose another, or remove it first")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise VaekitError(f"cannot write {path}: it is a file; choose another place for the folder")
    check_writable(path)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, renamed to it when the block ends well and removed when it does not.

    Raises VaekitError where the file cannot be written.
    """
    temporary = _temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        _remove(temporary)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty folder beside ``path`` that takes its place, and its old contents', when the block ends well.

    Raises VaekitError where the folder cannot be written; whatever stood at ``path`` is then still there.
    """
    temporary, retired = _temporary_name(path), _temporary_name(path, "old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if os.path.lexists(path):
            os.replace(path, retired)
        try:
            os.replace(temporary, path)
        except BaseException:
            if os.path.lexists(retired):
                os.replace(retired, path)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        _remove(temporary)
    _remove(retired)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    """Remove a file, link or folder, or what can be removed of it."""
    import shutil  # here, as a cold start that only writes a picture should not pay for it

    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _temporary_name(path: Path, kind: str = "tmp") -> Path:
    absolute = Path(os.path.abspath(path))
    return absolute.with_name(f".{absolute.name}.{os.getpid()}.{kind}")


def _cannot_write(path: Path, error: OSError) -> VaekitError:
    return VaekitError(f"cannot write {path}: {error.strerror or error}")
