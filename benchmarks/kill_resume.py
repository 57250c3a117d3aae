"""Does training that is killed and resumed many times give the same model as training without a break?

    python benchmarks/kill_resume.py [--kills 12] [--steps 800] [--source shapes] [--seed 0] [--json FILE]

Trains once without a break. Then trains again, kills the process with SIGKILL after a random time, and resumes with
`vaekit train --resume`. This repeats --kills times; then training may finish. Both runs must have the same files, byte
for byte; otherwise the exit code is 1.
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
    """Train with and without kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--source", default="shapes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times")
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
            sys.exit(f"the training without kills exited with {training.returncode}")
        seconds = time.monotonic() - started
        print(f"without kills: {options.steps} steps in {seconds:.0f} s, {start_seconds:.0f} s of them for start-up")
        # Start-up time plus twice one kill's share of the training time, so that training advances between kills.
        longest = start_seconds + 2 * (seconds - start_seconds) / options.kills
        moments = kill_often(begin, broken, options.kills, longest, random.Random(options.seed))
        differing = [name for name in names_in(unbroken) | names_in(broken) if not same(unbroken / name, broken / name)]
    print(f"{len(moments)} kills; files that differ: {', '.join(sorted(differing)) or 'none'}")
    write_json(options.json, {"kills": moments, "steps": options.steps, "differing": sorted(differing)})
    sys.exit(1 if differing else 0)


def kill_often(begin: list[str], run: Path, kills: int, longest: float, moments: random.Random) -> list[float]:
    """Start a run, kill and resume it ``kills`` times, then finish it.

    Returns the seconds after which each process was killed.
    """
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
            sys.exit(f"{' '.join(command)} exited with {training.returncode} before it was killed: use more --steps")
        lived.append(time.monotonic() - started)
        print(f"killed after {lived[-1]:.1f} s; steps kept: {steps_kept(run)}", flush=True)
        command = [*vaekit(), "train", "--resume", str(run), "--quiet"]
    subprocess.run(command, check=True)
    return lived


def wait_until_begun(training: subprocess.Popen[bytes], run: Path) -> None:
    """Wait until the run's folder exists; before that there is nothing to resume."""
    deadline = time.monotonic() + _FIRST_FILES_SECONDS
    while not (run / "config.json").exists() and training.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def steps_kept(run: Path) -> int | str:
    """Return the step of the run's checkpoint."""
    from vaekit.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    return "no checkpoint" if checkpoint is None else checkpoint.step


def vaekit() -> list[str]:
    """Return the `vaekit` command of this environment."""
    return [str(Path(sys.executable).with_name("vaekit"))]


def names_in(folder: Path) -> set[str]:
    """List the files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def same(one: Path, other: Path) -> bool:
    """Return whether both files exist and have the same bytes."""
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    main()
