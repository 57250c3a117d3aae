"""Worker processes. They run only standard-library functions, because they cannot import a test module."""

from __future__ import annotations

import math
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vaekit.errors import VaekitError
from vaekit.system import workers
from vaekit.system.workers import ordered_map

Call = Callable[[], Any]


class Pulled:
    """An iterator of numbers that counts how many were consumed."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.total):
            self.count += 1
            yield number


def run(*pieces: Call, processes: int = 2) -> list[Any]:
    """Call each piece in a process and return the results."""
    return list(ordered_map(operator.call, pieces, processes=processes))


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_results_come_in_the_order_of_the_pieces() -> None:
    slow_first = [partial(math.factorial, size) for size in (20_000, 1, 5_000, 2, 3, 4, 9_000, 5)]
    assert run(*slow_first) == [call() for call in slow_first]


def test_work_is_done_in_other_processes() -> None:
    ids = set(run(*[os.getpid] * 6, processes=2))
    assert os.getpid() not in ids
    assert 1 <= len(ids) <= 2


@pytest.mark.parametrize("processes", [-1, 0, 1])
def test_with_fewer_than_two_processes_the_work_is_done_here(processes: int) -> None:
    assert run(os.getpid, os.getpid, processes=processes) == [os.getpid()] * 2


@pytest.mark.parametrize("usable", [1, 2])
def test_as_many_processes_as_may_be_used_are_the_default(monkeypatch: pytest.MonkeyPatch, usable: int) -> None:
    monkeypatch.setattr(workers, "usable_cpus", lambda: usable)
    ids = set(ordered_map(operator.call, [os.getpid] * 4))
    assert (os.getpid() in ids) is (usable == 1)
    assert len(ids) <= usable


@pytest.mark.parametrize(("processes", "ahead"), [(1, 1), (2, 6)])
def test_pieces_are_taken_only_a_few_ahead(processes: int, ahead: int) -> None:
    pulled = Pulled(40)
    results = ordered_map(operator.neg, pulled, processes=processes)
    assert pulled.count == 0
    received = []
    for result in results:
        received.append(result)
        assert len(received) <= pulled.count <= len(received) + ahead
    assert received == [-number for number in range(40)]


@pytest.mark.parametrize("processes", [1, 2])
def test_no_pieces_give_no_results(processes: int) -> None:
    assert run(processes=processes) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_work_raises_is_raised_in_its_turn(processes: int) -> None:
    results = ordered_map(int, ["7", "seven", "8"], processes=processes)
    assert next(results) == 7
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_pieces_raise_is_raised(processes: int) -> None:
    def pieces() -> Iterator[Call]:
        yield os.getpid
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(ordered_map(operator.call, pieces(), processes=processes))


def test_a_process_that_dies_is_told_in_one_line() -> None:
    with pytest.raises(VaekitError, match=r"process .*died") as caught:
        run(os.getpid, partial(os._exit, 3), os.getpid, os.getpid)
    assert "\n" not in str(caught.value)


def test_a_killed_process_is_told_too() -> None:
    with pytest.raises(VaekitError, match=r"process .*died"):
        run(*[partial(signal.raise_signal, signal.SIGKILL)] * 9)


def test_closing_early_stops_the_work() -> None:
    pulled = Pulled(40)
    results = ordered_map(operator.neg, pulled, processes=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]  # a generator
    assert pulled.count < 40
    assert multiprocessing.active_children() == []


def test_the_keyboards_interrupt_is_left_to_who_asked_for_the_work() -> None:
    assert run(*[partial(signal.getsignal, signal.SIGINT)] * 2) == [signal.SIG_IGN] * 2
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_processes_end_with_the_one_that_asked_for_the_work() -> None:
    code = """
import operator, os, time
from functools import partial
from pathlib import Path
from vaekit.system.workers import ordered_map
for _ in ordered_map(operator.call, [os.getpid, *[partial(time.sleep, 600)] * 2], processes=2):
    print("at work", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "at work\n"
        asking.kill()
        rest, _ = asking.communicate(timeout=60)  # ends when the last process closes the pipe
    assert rest == ""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("error", [TimeoutError(110, "timed out"), TimeoutError(), InterruptedError()])
def test_a_timeout_of_the_work_itself_is_raised(error: OSError, processes: int) -> None:
    with pytest.raises(type(error)) as caught:
        run(partial(exec, f"raise {error!r}"), processes=processes)
    assert repr(caught.value) == repr(error)


HOSTILE = "open('executed', 'w').close()\nraise SystemExit('code in the current folder was run')\n"


def test_nothing_in_the_current_folder_is_imported(tmp_path: Path) -> None:
    """Python starts processes with ``-c``, which would look there before it looks in its own library."""
    for name in ("multiprocessing", "platform", "pickle", "socket", "struct", "numpy", "PIL"):
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    code = """
import operator, os
from vaekit.system.workers import ordered_map
if __name__ == "__main__":
    print(sorted(ordered_map(operator.neg, range(4), processes=2)), os.environ.get("PYTHONSAFEPATH"))
"""
    command = [sys.executable, "-c", f"import sys; del sys.path[0]; {code.strip()}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout == "[-3, -2, -1, 0] None\n", done.stderr
    assert done.stderr == ""
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("as_module", [False, True])
def test_a_program_without_a_guard_runs_once(tmp_path: Path, as_module: bool) -> None:
    (tmp_path / "program.py").write_text("""
import operator
from vaekit.system.workers import ordered_map
print(sorted(ordered_map(operator.neg, range(4), processes=2)), flush=True)
print(__file__.rpartition("program")[2], __spec__ and __spec__.name)
""")
    command = [sys.executable, *(["-m", "program"] if as_module else ["program.py"])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout == f"[-3, -2, -1, 0]\n.py {'program' if as_module else None}\n", done.stderr
    assert done.stderr == ""


def test_a_handler_that_was_not_installed_from_python_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a one reads as None, which ``signal.signal`` does not take."""
    set_handler, changed = signal.signal, []

    def record(number: int, handler: Any) -> Any:
        changed.append(number)
        return set_handler(number, handler)

    foreign = signal.SIGTERM
    known = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == foreign else known(number))
    monkeypatch.setattr(signal, "signal", record)
    assert run(os.getpid)
    assert foreign not in changed
    assert signal.SIGINT in changed
