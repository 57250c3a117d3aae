"""Words for people go to stderr; stdout is for results alone."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable


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
