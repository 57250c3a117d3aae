"""Watching a folder for new pictures, each of which is found once it is whole.

With inotify (Linux, extra ``watch``), the system says when a writer closes a picture, or when one is moved into the
folder. Without it the folder is listed again and again. The folder is also listed at the start, when the system has
lost events, and now and then besides, because inotify does not see what other machines write to a network file system.
A listed picture counts as whole when its size and time have not changed for two seconds.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vaekit.errors import SourceError
from vaekit.images.picture import SUFFIXES

QUIET_SECONDS = 2.0
"""For so long a listed picture must be unchanged."""

GRACE_SECONDS = 10.0
"""For so long a picture that could not be read must be unchanged until it is given up."""

LIST_SECONDS = 1.0
LIST_SECONDS_WITH_EVENTS = 10.0
"""Time between two listings. It is ten times as long as a listing takes if that is more."""


class NewPicture(NamedTuple):
    """A picture that is new in the folder, or has changed."""

    name: str
    """Its name in the folder."""
    size: int
    """In bytes."""
    modified_ns: int
    """The time of its last change, in nanoseconds since 1970."""

    @property
    def key(self) -> int:
        """Return a hash. It differs from process to process."""
        return hash(tuple(self))


class _Waiting(NamedTuple):
    picture: NewPicture
    due: float
    """On the monotonic clock, in seconds."""
    last: bool


class FolderWatch:
    """The pictures of a folder, as they appear. Hidden files and subfolders are left out.

    Memory: a hash for each picture that is in the folder, and the names of those that wait.
    """

    def __init__(self, folder: Path) -> None:
        """Begin to watch. Raises SourceError if there is no such folder."""
        self.folder = folder
        self._seen: set[int] = set()
        self._closed: deque[str] = deque()  # names from events
        self._waiting: dict[str, _Waiting] = {}
        self._queue: list[tuple[float, int, str]] = []  # a heap of (due, time of change, name) for _waiting
        self._next_listing = 0.0
        self._open().close()  # fails now if there is no such folder
        self._events, self.without_events = _events(folder)
        """``without_events`` says why there are no events; None if there are."""

    def __enter__(self) -> FolderWatch:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._events is not None:
            self._events.close()

    def skip(self, known: Iterable[NewPicture]) -> None:
        """Leave out pictures that are known, unless they have changed."""
        here = {picture.key for picture in _pictures(self._open())}
        self._seen = {key for picture in known if (key := picture.key) in here}

    def take(self, wait: float) -> tuple[NewPicture, bool] | None:
        """Return the next picture, and whether this is its last try; None if no picture comes within ``wait`` seconds.

        Raises SourceError if the folder is gone.
        """
        if time.monotonic() >= self._next_listing:
            self._list()
        found = self._next()
        if found is None:
            self._listen(wait)
            found = self._next()
        return found

    def retry(self, picture: NewPicture) -> None:
        """Find a picture again, once it has changed or after ten seconds."""
        self._seen.discard(picture.key)
        self._wait_for(picture, time.monotonic() + GRACE_SECONDS, last=True)

    def _next(self) -> tuple[NewPicture, bool] | None:
        while self._closed:
            picture = self._look_at(self._closed.popleft())
            if picture is not None and picture.key not in self._seen:
                return self._hand_out(picture), False
        while self._queue and self._queue[0][0] <= time.monotonic():
            due, _, name = heapq.heappop(self._queue)
            waiting = self._waiting.get(name)
            if waiting is None or waiting.due != due:  # it was found by an event, or waits anew
                continue
            picture = self._look_at(name)
            if picture is None:
                del self._waiting[name]
            elif picture != waiting.picture:
                self._wait_for(picture, time.monotonic() + QUIET_SECONDS)
            else:
                return self._hand_out(picture), waiting.last
        return None

    def _hand_out(self, picture: NewPicture) -> NewPicture:
        self._waiting.pop(picture.name, None)
        self._seen.add(picture.key)
        return picture

    def _wait_for(self, picture: NewPicture, due: float, *, last: bool = False) -> None:
        self._waiting[picture.name] = _Waiting(picture, due, last)
        heapq.heappush(self._queue, (due, picture.modified_ns, picture.name))

    def _list(self) -> None:
        started = time.monotonic()
        kept = set()
        for picture in _pictures(self._open()):
            if picture.key in self._seen:
                kept.add(picture.key)
            elif (waiting := self._waiting.get(picture.name)) is None or waiting.picture != picture:
                self._wait_for(picture, started + QUIET_SECONDS)
        self._seen = kept
        ended = time.monotonic()
        pause = LIST_SECONDS if self._events is None else LIST_SECONDS_WITH_EVENTS
        self._next_listing = ended + max(pause, 10 * (ended - started))

    def _open(self) -> Any:
        try:
            return os.scandir(self.folder)
        except OSError as error:
            raise SourceError(f"cannot watch {self.folder}: {error.strerror or error}") from error

    def _look_at(self, name: str) -> NewPicture | None:
        path = self.folder / name
        try:
            found = path.stat()
        except OSError:
            return None
        return NewPicture(name, found.st_size, found.st_mtime_ns) if path.is_file() else None

    def _listen(self, wait: float) -> None:
        """Read events. Without events, sleep."""
        due = self._queue[0][0] if self._queue else self._next_listing
        seconds = max(0.0, min(wait, due - time.monotonic(), self._next_listing - time.monotonic()))
        if self._events is None:
            time.sleep(seconds)
            return
        from inotify_simple import flags

        for event in self._events.read(timeout=int(seconds * 1000) + 1):
            if event.mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED):
                raise SourceError(f"cannot watch {self.folder} any longer: it was removed or moved")
            if event.mask & flags.Q_OVERFLOW:
                self._next_listing = 0.0
            elif _is_watched(event.name):
                self._closed.append(event.name)


def _events(folder: Path) -> tuple[Any, str | None]:
    """Return inotify's events of a folder, or None and why there are none."""
    try:
        from inotify_simple import INotify, flags
    except ImportError:
        return None, "inotify-simple is not installed: pip install 'vaekit[watch]', on Linux"
    events = None
    try:
        events = INotify()
        events.add_watch(folder, flags.CLOSE_WRITE | flags.MOVED_TO | flags.DELETE_SELF | flags.MOVE_SELF)
    except OSError as error:  # the system's limits for watches are used up, or the file system has no events
        if events is not None:
            events.close()
        return None, f"inotify does not work here: {error.strerror or error}"
    return events, None


def _pictures(entries: Any) -> Iterator[NewPicture]:
    with entries:
        for entry in entries:
            try:
                if _is_watched(entry.name) and entry.is_file():
                    found = entry.stat()
                    yield NewPicture(entry.name, found.st_size, found.st_mtime_ns)
            except OSError:  # it was removed meanwhile
                continue


def _is_watched(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
