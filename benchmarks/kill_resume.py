"""Does a training that is killed again and again come to the same model as one that never is?

    python benchmarks/kill_resume.py [--kills 12] [--steps 800] [--source shapes] [--seed 0] [--json FILE]

Trains once without a break. Then trains again, kills that with SIGKILL after a random time, goes on with `vaekit train
--resume`, and so on, until it has been killed so many times; then lets it finish. Both runs must have the same files,
byte for byte; it exits 1 where they do not.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import write_json

_FIRST_FILES_SECONDS = 120.0
_POLL_SECONDS = 0.02


def main() -> None:
    """Train unbroken and broken, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--source", default="shapes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        unbroken, broken = Path(scratch, "unbroken"), Path(scratch, "broken")
        length = ("--steps", str(options.steps), "--checkpoint-every", str(max(1, options.steps // 40)))
        begin = ["train", options.source, *length, "--device", "cpu", "--quiet", "-o"]
        started = time.monotonic()
        with subprocess.Popen([*vaekit(), *begin, str(unbroken)]) as training:
            wait_until_begun(training, unbroken)
            start_seconds = time.monotonic() - started
        if training.returncode:
            sys.exit(f"the unbroken training ended with {training.returncode}")
        seconds = time.monotonic() - started
        print(f"unbroken: {options.steps} steps in {seconds:.0f} s, {start_seconds:.0f} of them before the first")
        # As long as it takes to start, and twice a kill's share of the rest: half of them fall into that rest.
        longest = start_seconds + 2 * (seconds - start_seconds) / options.kills
        moments = kill_often(begin, broken, options.kills, longest, random.Random(options.seed))
        differing = [name for name in names_in(unbroken) | names_in(broken) if not same(unbroken / name, broken / name)]
    print(f"{len(moments)} kills; files that differ: {', '.join(sorted(differing)) or 'none'}")
    write_json(options.json, {"kills": moments, "steps": options.steps, "differing": sorted(differing)})
    sys.exit(1 if differing else 0)


def kill_often(begin: list[str], run: Path, kills: int, longest: float, moments: random.Random) -> list[float]:
    """Begin a run, kill it that many times, each time going on with it, and finish it; the seconds that each lived."""
    lived: list[float] = []
    command = [*vaekit(), *begin, str(run)]
    while len(lived) < kills:
        with subprocess.Popen(command) as training:
            started = time.monotonic()
            if not (run / "config.json").exists():
                wait_until_begun(training, run)
            try:
                training.wait(moments.uniform(0.0, longest))
            except subprocess.TimeoutExpired:
                training.kill()
        if training.returncode >= 0:
            sys.exit(f"{' '.join(command)} ended with {training.returncode} before it could be killed: more --steps")
        lived.append(time.monotonic() - started)
        print(f"killed after {lived[-1]:.1f} s; steps kept: {steps_kept(run)}", flush=True)
        command = [*vaekit(), "train", "--resume", str(run), "--quiet"]
    subprocess.run(command, check=True)
    return lived


def wait_until_begun(training: subprocess.Popen[bytes], run: Path) -> None:
    """Until the run's folder is there: before that there is nothing to go on with."""
    deadline = time.monotonic() + _FIRST_FILES_SECONDS
    while not (run / "config.json").exists() and training.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def steps_kept(run: Path) -> int | str:
    """Of the run's checkpoint."""
    from vaekit.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    return "no checkpoint" if checkpoint is None else checkpoint.step


def vaekit() -> list[str]:
    """The command of this environment."""
    return [str(Path(sys.executable).with_name("vaekit"))]


def names_in(folder: Path) -> set[str]:
    """Files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def same(one: Path, other: Path) -> bool:
    """Whether two files are there with the same bytes."""
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    main()
