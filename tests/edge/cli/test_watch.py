"""`vaekit score --watch`, through the console script."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaekit_cli import on_flag
from vaekit_cli.on_flag import OnFlag

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Fails = Callable[..., None]
WithResiduals = Callable[..., Path]

SECONDS = 120  # long enough for a machine with other work


class Watcher:
    """`vaekit score --watch in` in a folder, as a process of its own."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.bundle = folder, bundle
        self.input = folder / "in"
        self.input.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        script = Path(sys.executable).with_name("vaekit")
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            command: list[str | Path] = [script, "score", "--watch", "in", "-m", self.bundle, *options]
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=err)
        self.wait_until(lambda: "watching in" in self.stderr)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def rows(self, name: str = "scores.jsonl") -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def wait_until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not done():
            assert self.process is not None
            if time.monotonic() > end or self.process.poll() is not None:
                pytest.fail(f"waited in vain: {self.process.poll()} {self.stderr}")
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS)


@pytest.fixture
def watcher(tmp_path: Path, with_residuals: WithResiduals) -> Iterator[Watcher]:
    found = Watcher(tmp_path, with_residuals())
    yield found
    if found.process is not None:
        found.process.kill()
        found.process.wait()


def picture(path: Path, level: int = 128) -> Path:
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_new_pictures_are_scored_until_a_signal(watcher: Watcher, vaekit: Run, number: int) -> None:
    picture(watcher.input / "before.png", 10)
    watcher.start("-o", "scores.jsonl", "--maps", "maps", "--flag-above", "p99")
    picture(watcher.input / "after.png", 250)
    watcher.wait_until(lambda: len(watcher.rows()) == 2)
    assert watcher.stop(number) == 0
    assert "scores.jsonl: 2 pictures scored" in watcher.stderr
    found = {row["path"]: row for row in watcher.rows()}
    plain = vaekit("score", "in", "-m", watcher.bundle, "--json", "--flag-above", "p99", cwd=watcher.folder)
    expected = {row["path"]: row for row in map(json.loads, plain.stdout.splitlines())}
    assert set(found) == set(expected) == {"in/before.png", "in/after.png"}
    for path, row in found.items():
        status = (watcher.folder / path).stat()
        assert (row["bytes"], row["modified_ns"]) == (status.st_size, status.st_mtime_ns)
        assert row["score"] == pytest.approx(expected[path]["score"], rel=1e-5)
        assert row["flagged"] is expected[path]["flagged"]
    assert sorted(file.name for file in (watcher.folder / "maps").iterdir()) == [
        "after.png.npy", "after.png.png", "before.png.npy", "before.png.png",
    ]  # fmt: skip
    assert np.load(watcher.folder / "maps" / "after.png.npy").shape == (8, 8)


def test_lines_go_to_stdout_without_a_file(watcher: Watcher) -> None:
    watcher.start()
    picture(watcher.input / "a.png")
    watcher.wait_until(lambda: len(watcher.rows("stdout")) == 1)
    assert watcher.stop() == 0
    assert watcher.rows("stdout")[0]["path"] == "in/a.png"


def test_bad_and_half_written_pictures_stop_nothing(watcher: Watcher) -> None:
    watcher.start("-o", "scores.jsonl")
    whole = picture(watcher.folder / "whole.png").read_bytes()
    (watcher.input / "bad.png").write_bytes(b"this is no picture")
    (watcher.input / "mended.png").write_bytes(whole[:40])
    with open(watcher.input / "slow.png", "wb") as file:
        file.write(whole[:40])
        file.flush()
        time.sleep(1)
        file.write(whole[40:])
    (watcher.input / "mended.png").write_bytes(whole)
    watcher.wait_until(lambda: len(watcher.rows()) == 3)
    assert watcher.stop() == 0
    found = {row["path"]: row for row in watcher.rows()}
    assert "in/bad.png: " in found.pop("in/bad.png")["error"]
    assert set(found) == {"in/mended.png", "in/slow.png"}
    assert all("score" in row for row in found.values())
    assert "2 pictures scored; 1 could not be read" in watcher.stderr


def test_a_restart_scores_only_what_is_new(watcher: Watcher) -> None:
    picture(watcher.input / "a.png")
    picture(watcher.input / "b.png")
    watcher.start("-o", "scores.jsonl")
    watcher.wait_until(lambda: len(watcher.rows()) == 2)
    assert watcher.process is not None
    watcher.process.kill()
    watcher.process.wait()
    first = watcher.rows()
    with open(watcher.folder / "scores.jsonl", "ab") as file:
        file.write(b"no line of ours\n")
        file.write(b'{"path": "in/c.p')
    picture(watcher.input / "b.png", 7)
    picture(watcher.input / "c.png")
    watcher.start("-o", "scores.jsonl")
    lines = watcher.folder / "scores.jsonl"
    watcher.wait_until(lambda: lines.read_bytes().count(b"\n") == 5)
    assert watcher.stop() == 0
    kept = [json.loads(line) for line in lines.read_bytes().splitlines() if line.startswith(b"{")]
    assert kept[:2] == first
    assert {row["path"] for row in kept[2:]} == {"in/b.png", "in/c.png"}
    assert "1 lines cannot be read" in watcher.stderr


def test_a_command_runs_for_each_flagged_picture(watcher: Watcher) -> None:
    script = 'cat > "$1.json"; echo seen'
    command = shlex.join(["sh", "-c", script, "sh"])
    watcher.start("-o", "scores.jsonl", "--flag-above=-1e9", "--on-flag", command)
    picture(watcher.input / "with space.png")
    copy = watcher.input / "with space.png.json"
    watcher.wait_until(lambda: copy.exists() and copy.read_bytes().endswith(b"\n"))
    assert watcher.stop() == 0
    assert json.loads(copy.read_bytes()) == watcher.rows()[0]
    assert watcher.rows()[0]["flagged"] is True
    assert "1 pictures scored, 1 flagged" in watcher.stderr
    assert (watcher.folder / "stdout").read_bytes() == b""


def test_a_command_that_fails_is_reported(watcher: Watcher) -> None:
    watcher.start("-o", "scores.jsonl", "--flag-above=-1e9", "--on-flag", "false")
    picture(watcher.input / "a.png")
    watcher.wait_until(lambda: "--on-flag failed for in/a.png: exit code 1" in watcher.stderr)
    picture(watcher.input / "b.png")
    watcher.wait_until(lambda: len(watcher.rows()) == 2)
    assert watcher.stop() == 0


def test_a_command_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_flag, "LIMIT_SECONDS", 0.2)
    said: list[str] = []
    runner = OnFlag("sleep 1000", said.append)
    for number in range(6):
        runner.start(str(number), b"{}\n")
    runner.finish()
    assert len(said) == 6
    assert "--on-flag was killed for 0: it ran for more than 0.2 s" in said


def test_a_folder_that_vanishes_ends_the_watch(watcher: Watcher) -> None:
    watcher.start("-o", "scores.jsonl")
    watcher.input.rmdir()
    assert watcher.process is not None
    assert watcher.process.wait(SECONDS) == 1
    assert watcher.stderr.splitlines()[-1].startswith("error: cannot watch in")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--watch", "nowhere"], 1, ["cannot watch nowhere"]),
        (["--watch", "in", "in"], 2, ["leave out IMAGES, --from-file and --skip-errors"]),
        (["--watch", "in", "--from-file", "-"], 2, ["leave out IMAGES"]),
        (["--watch", "in", "--skip-errors"], 2, ["leave out IMAGES"]),
        (["--watch", "in", "--maps", "in"], 2, ["--maps needs another folder"]),
        (["--watch", "in", "--maps", "foreign.csv"], 2, ["it is a file, not a folder"]),
        (["--watch", "in", "--on-flag", "true"], 2, ["--on-flag needs --watch, and --flag-above or --false-alarms"]),
        (["in", "--flag-above", "1", "--on-flag", "true"], 2, ["--on-flag needs --watch"]),
        (["--watch", "in", "--flag-above", "1", "--on-flag", "no-such-program x"], 2, ["'no-such-program'"]),
        (["--watch", "in", "--flag-above", "1", "--on-flag", "'"], 2, ["is no command: No closing quotation"]),
        (["--watch", "in", "--flag-above", "1", "--on-flag", ""], 2, ["there is no program"]),
        (["--watch", "in", "-o", "foreign.csv"], 1, ["foreign.csv does not hold the lines of", "choose another"]),
        (["--watch", "in", "-o", "torn.csv"], 1, ["torn.csv does not hold the lines of"]),
    ],
)
def test_what_does_not_go_together_is_one_line(
    watcher: Watcher, vaekit: Run, assert_fails: Fails, options: list[str], code: int, words: list[str]
) -> None:
    (watcher.folder / "foreign.csv").write_text("path,score\na.png,1\n")
    (watcher.folder / "torn.csv").write_text("path,score")
    assert_fails(vaekit("score", "-m", watcher.bundle, *options, cwd=watcher.folder), code, *words)
    assert (watcher.folder / "foreign.csv").read_text() == "path,score\na.png,1\n"
    assert (watcher.folder / "torn.csv").read_text() == "path,score"
