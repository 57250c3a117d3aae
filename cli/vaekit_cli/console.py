"""Words for people go to stderr; stdout is for results alone."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.console import Console


def speaker(quiet: bool) -> Callable[[str], None]:
    """A function that says a line on stderr, or nothing when quiet."""

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return say


def command_line(command: str, *options: tuple[str, object, object]) -> str:
    """A command to type next, with those of its options (name, value, default) that are not at their default."""
    words: list[str] = []
    for name, value, default in options:
        if value != default:
            words.extend([name, str(value)] if name else [str(value)])
    return f"{command} {shlex.join(words)}" if words else command


def print_document(result: DataclassInstance) -> None:
    """Print a result as the JSON document of ``--json``."""
    print(json.dumps(dataclasses.asdict(result)))


@contextmanager
def progress_bar(what: str, total: int, quiet: bool, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with rate and time left, where stderr is a terminal: call what it yields with the number done."""
    if no_bar(quiet):
        yield lambda number: None
        return
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
            return Text("" if task.speed is None else f"{task.speed:,.0f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda number: bar.update(task, completed=number)


def stderr() -> Console:
    """Rich's console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def no_bar(quiet: bool) -> bool:
    """Whether to draw no progress bar: when quiet, and where stderr is no terminal."""
    return quiet or not sys.stderr.isatty()
