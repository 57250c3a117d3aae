"""Running a command of the user's for each flagged picture (`vaekit score --on-flag`)."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from vaekit.errors import UsageError

MOST_AT_A_TIME = 4
LIMIT_SECONDS = 30.0
"""A command that runs longer is killed, with all that it started."""

_PAUSE_SECONDS = 0.05


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    path: str
    started: float


class OnFlag:
    """Runs a command for each flagged picture, at most four at a time, without a shell."""

    def __init__(self, command: str, say: Callable[[str], None]) -> None:
        """Parse the command. Raises UsageError if it cannot be parsed, or is not there."""
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"--on-flag {command!r} is no command: {error}") from error
        if not self._words or shutil.which(self._words[0]) is None:
            name = self._words[0] if self._words else ""
            raise UsageError(f"--on-flag: there is no program {name!r} that can be run; a shell's line needs sh -c")
        self._say = say
        self._running: list[_Running] = []

    def start(self, path: str, line: bytes) -> None:
        """Run the command with the picture's path as its last argument and its JSON line on stdin.

        Waits while as many run as may. Failures are reported, not raised.
        """
        while len(self._running) >= MOST_AT_A_TIME:
            time.sleep(_PAUSE_SECONDS)
            self.tend()
        try:
            process = subprocess.Popen(  # noqa: S603 — the user's own command
                [*self._words, path],
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno(),  # stdout is for the scores
                start_new_session=True,
            )
        except OSError as error:
            self._say(f"--on-flag failed for {path}: {error.strerror or error}")
            return
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it does not read its input
            process.stdin.write(line)
        with suppress(BrokenPipeError):
            process.stdin.close()
        self._running.append(_Running(process, path, time.monotonic()))

    def tend(self) -> None:
        """Report commands that have failed, and kill those that have run for too long."""
        for running in list(self._running):
            code = running.process.poll()
            if code is None and time.monotonic() - running.started < LIMIT_SECONDS:
                continue
            if code is None:
                _kill(running.process)
                self._say(f"--on-flag was killed for {running.path}: it ran for more than {LIMIT_SECONDS:g} s")
            elif code:
                how = f"exit code {code}" if code > 0 else f"signal {-code}"
                self._say(f"--on-flag failed for {running.path}: {how}")
            self._running.remove(running)

    def finish(self) -> None:
        """Wait for the commands that still run."""
        while self._running:
            self.tend()
            time.sleep(_PAUSE_SECONDS)

    def kill(self) -> None:
        """Kill the commands that still run."""
        for running in self._running:
            _kill(running.process)
        self._running.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
