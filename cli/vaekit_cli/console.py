"""Messages, results and progress bars. Messages go to stderr; stdout is only for results."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from vaekit.output.table import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PATIENCE_SECONDS = 2.0


def speaker(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints a line on stderr unless ``quiet``."""

    def say(line: str) -> None:
        if not quiet:
            print(printable(line), file=sys.stderr, flush=True)

    return say


@contextmanager
def announced(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say what is being done if it takes longer than two seconds."""
    import threading

    timer = threading.Timer(_PATIENCE_SECONDS, say, (f"{what} …",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def command_line(command: str, *options: tuple[str, object, object]) -> str:
    """Format a command with its options (name, value, default).

    Options at their default are left out.
    """
    words: list[str] = []
    for name, value, default in options:
        if value != default:
            words.extend([name, str(value)] if name else [str(value)])
    return f"{command} {shlex.join(words)}" if words else command


def print_document(result: DataclassInstance) -> None:
    """Print a result as the JSON document of ``--json``."""
    print(json.dumps(dataclasses.asdict(result)))


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int | None = None, text: str = "") -> None:
        """Show the number done, and a ``text`` behind the bar.

        ``total`` sets the total once it is known.
        """


@contextmanager
def progress_bar(what: str, total: int | None, quiet: bool, done: int = 0) -> Iterator[Advance]:
    """Show a progress bar on stderr, if it is a terminal; yield an ``Advance``.

    ``total`` is None while it is unknown. ``done`` is the number already done.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total=None, text="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None or task.fields["text"] else f"{task.speed:,.0f}/s")

    # With a text but no description, the bar fits a terminal of 80 columns.
    described, text = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
    columns = (described, BarColumn(10), MofNCompleteColumn(), Rate(), TimeRemainingColumn(), text)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done, text="")

        def advance(done: int, total: int | None = None, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)  # a total of None changes nothing

        yield advance
