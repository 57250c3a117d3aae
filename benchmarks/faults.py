"""Does a command that is killed, interrupted, or refused by its disk leave anything half written?

    python benchmarks/faults.py [--job NAME ...] [--moments 200] [--calls 60] [--seed 0] [--json FILE]

Each job is a real command on tiny inputs. First it runs undisturbed. Then it runs again and again, and each time

- it is killed, terminated or interrupted at a random moment, or its inputs vanish then (--moments times for train and
  encode, a seventh of it for the others), or
- one of its calls to write, sync, rename or read fails, with ENOSPC or EROFS from then on, or with EIO or ETIMEDOUT, or
  the process is killed there, or the wall clock jumps by a day (at --calls of the calls, evenly spaced).

faults.c, which is compiled and preloaded, does the latter; so no special rights are needed. Linux only.

Afterwards the older output must be whole or the new one complete, with one line `error:` and its exit code, and no
traceback. Then the same command, or with --resume the rest of it, must give the bytes of the undisturbed run, and
leave no other file behind.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from timing import write_json

from vaekit.system.machine import usable_cpus

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "bundles" / "tiny"
LONGEST_SECONDS = 300.0
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
A_DAY = 86_400
COMPILER = shutil.which("cc") or "cc"

Tree = dict[str, str]
"""The SHA-256 of each file, by its path below a folder."""


@dataclass(frozen=True)
class Job:
    """A command, and how it goes on after a fault."""

    name: str
    command: str
    """Its words; {in} is the folder of the inputs, beside the one that it runs in."""
    outputs: tuple[str, ...]
    older: str | None = None
    """A command that has left an older output there."""
    checkpoint: str = ""
    """A file that shows that there is something to resume."""
    resume: str = ""
    """The command that resumes it."""
    begin: str = ""
    """A folder of the inputs that the command changes, so that it works on a copy."""
    often: bool = False
    skips: bool = False
    """Whether a picture that cannot be read is named and left out, so that the results are others."""


TRAIN = "--size 16 --preset tiny --steps 12 --checkpoint-every 3 -q"
ENCODE = "encode {in}/pictures -m {in}/tiny -q"
JOBS = (
    Job(
        "train",
        f"train {{in}}/pictures {TRAIN} -o run",
        ("run",),
        checkpoint="run/config.json",
        resume="train --resume run -q",
        often=True,
        skips=True,
    ),
    Job(
        "encode",
        f"{ENCODE} -o out.npz",
        ("out.npz",),
        older="encode {in}/others -m {in}/tiny -q -o out.npz",
        checkpoint="out.npz.partial",
        resume=f"{ENCODE} -o out.npz --resume --overwrite",
        often=True,
    ),
    Job("encode-parquet", f"{ENCODE} -o out.parquet --overwrite", ("out.parquet",)),
    Job(
        "sample",
        "sample -m {in}/tiny -n 64 -o grid.png -q",
        ("grid.png",),
        older="sample -m {in}/tiny -n 9 -o grid.png",
    ),
    Job("sample-folder", "sample -m {in}/tiny -n 20 -o out -q", ("out",)),
    Job("decode", "decode {in}/codes.npy -m {in}/tiny -o out -q", ("out",)),
    Job("reconstruct", "reconstruct {in}/pictures -m {in}/tiny -o out.png -q", ("out.png",)),
    Job(
        "interpolate",
        "interpolate --from-seed 1 --to-seed 2 -m {in}/tiny -o out.png -q",
        ("out.png",),
        older="interpolate --from-seed 3 --to-seed 4 -m {in}/tiny -o out.png -q",
    ),
    Job("traverse", "traverse -m {in}/tiny -o out.png -q", ("out.png",)),
    Job("score", "score {in}/pictures -m {in}/tiny -o out.csv -q", ("out.csv",)),
    Job("sign", "sign out --key {in}/own.key -q --comment signed", ("out",), begin="tiny"),
    Job(
        "prior",
        "prior run {in}/pictures --kind flow --steps 12 -q",
        (),
        begin="run",
        checkpoint="run/prior-checkpoint.safetensors",
        resume="prior run {in}/pictures --kind flow --steps 12 -q --resume",
        skips=True,
    ),
    Job("export", "export {in}/run -o out -q", ("out",), older="export {in}/run -o out -q --golden samples"),
    Job("compress", "compress {in}/exported -o out --fp16 --weights-only --min-psnr 1 -q", ("out",)),
)


@dataclass
class Found:
    """What became of a job."""

    faults: Counter[str] = field(default_factory=Counter)
    """Faults by kind."""
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """One disturbance."""

    kind: str
    moment: float = 0.0
    """Seconds after which a signal is sent, or the inputs vanish."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What faults.c reads."""


class Trial:
    """A job and its undisturbed results."""

    def __init__(self, job: Job, inputs: Path, work: Path, shim: Path) -> None:
        self.job, self.inputs, self.work, self.shim = job, inputs, work, shim
        self.new, self.seconds = self.undisturbed("first")
        again, _ = self.undisturbed("second")
        if again != self.new:
            sys.exit(f"{job.name}: two undisturbed runs differ: {differing(again, self.new)}")

    def undisturbed(self, name: str) -> tuple[Tree, float]:
        """Run the job; return what it leaves, and its seconds."""
        with self.place(name) as (folder, _):
            started = time.monotonic()
            self.checked(folder, self.job.command)
            return tree(folder), time.monotonic() - started

    def folder(self, inputs: Path) -> Path:
        """Return a new folder for one run, as it is before the command."""
        folder = inputs.with_name("out")
        folder.mkdir(parents=True)
        if self.job.begin:
            shutil.copytree(inputs / self.job.begin, folder / ("out" if "out" in self.job.outputs else self.job.begin))
        if self.job.older:
            self.checked(folder, self.job.older)
        return folder

    def checked(self, folder: Path, command: str) -> None:
        """Run a command that must succeed."""
        done = run(folder, command)
        if done.returncode:
            sys.exit(f"{self.job.name}: {command} exited with {done.returncode}: {done.stderr}")

    def calls(self, kind: str) -> int:
        """Return how many calls there are that may fail."""
        with self.place(f"count-{kind}") as (folder, inputs):
            root = folder if kind == "write" else inputs
            environment = self.environment(root, {"FAULT_KIND": kind, "FAULT_AT": "0"})
            run(folder, self.job.command, environment)
            return int.from_bytes(Path(environment["FAULT_COUNTER"]).read_bytes(), "little")

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[tuple[Path, Path]]:
        """Yield a folder for a run and a copy of its inputs, and remove both."""
        place = self.work / self.job.name / name
        shutil.copytree(self.inputs, inputs := place / "in")
        try:
            yield self.folder(inputs), inputs
        finally:
            shutil.rmtree(place)

    def environment(self, root: Path, settings: Mapping[str, str]) -> dict[str, str]:
        """Return what faults.c reads."""
        counter = root.with_name("counter")
        counter.write_bytes(bytes(8))
        where = {"LD_PRELOAD": str(self.shim), "FAULT_ROOT": str(root), "FAULT_COUNTER": str(counter)}
        return {**where, **settings}

    def moments(self, count: int, random_numbers: random.Random) -> list[Fault]:
        """Return disturbances at random moments."""
        kinds = [*SIGNALS, "inputs vanish"]
        return [Fault(kinds[k % len(kinds)], random_numbers.uniform(0, self.seconds)) for k in range(count)]

    def failing_calls(self, most: int) -> list[Fault]:
        """Return disturbances at calls that are evenly spaced."""
        writes, reads = self.calls("write"), self.calls("read")
        kinds: dict[str, tuple[str, int, dict[str, str]]] = {
            "killed at a write": ("write", writes, {"FAULT_ERRNO": "0"}),
            "ENOSPC from a write on": ("write", writes, {"FAULT_ERRNO": str(errno.ENOSPC), "FAULT_STICKY": "1"}),
            "EROFS from a write on": ("write", writes, {"FAULT_ERRNO": str(errno.EROFS), "FAULT_STICKY": "1"}),
            "EIO of a write": ("write", writes, {"FAULT_ERRNO": str(errno.EIO)}),
            "EIO of a read": ("read", reads, {"FAULT_ERRNO": str(errno.EIO)}),
            "ETIMEDOUT of a read": ("read", reads, {"FAULT_ERRNO": str(errno.ETIMEDOUT)}),
            "a jump of the clock": ("write", min(writes, 4), {"FAULT_JUMP": str(A_DAY)}),
            "a jump of the clock back": ("write", min(writes, 4), {"FAULT_JUMP": str(-A_DAY)}),
        }
        return [
            Fault(name, environment=settings | {"FAULT_KIND": kind, "FAULT_AT": str(at)})
            for name, (kind, calls, settings) in kinds.items()
            for at in sorted({round(1 + k * (calls - 1) / max(1, most - 1)) for k in range(min(most, calls))})
        ]

    def disturb(self, number: int, fault: Fault) -> str:
        """Run the job with one disturbance, and once more; return what is wrong, or ""."""
        with self.place(str(number)) as (folder, inputs):
            before = tree(folder)
            done = self.disturbed(folder, inputs, fault)
            wrong = self.complaint(fault, folder, before, done)
            if not wrong:
                wrong = self.complaint_afterwards(folder, reads="read" in fault.kind)
            words = " ".join(f"{key}={value}" for key, value in fault.environment.items())
            at = words or f"after {fault.moment:.3f} s"
            return f"{self.job.name}: {fault.kind} {at}: {wrong}" if wrong else ""

    def disturbed(self, folder: Path, inputs: Path, fault: Fault) -> subprocess.CompletedProcess[str]:
        """Run the job with one disturbance."""
        if fault.environment:
            root = folder if fault.environment["FAULT_KIND"] == "write" else inputs
            return run(folder, self.job.command, self.environment(root, fault.environment))
        with subprocess.Popen(
            words_of(self.job.command), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(fault.moment)
            if fault.kind in SIGNALS:
                process.send_signal(SIGNALS[fault.kind])
            else:
                inputs.rename(inputs.with_name(f"{inputs.name}-gone"))
            out, told = process.communicate(timeout=LONGEST_SECONDS)
        if fault.kind not in SIGNALS:
            inputs.with_name(f"{inputs.name}-gone").rename(inputs)
        return subprocess.CompletedProcess([], process.returncode, out, told)

    def complaint(self, fault: Fault, folder: Path, before: Tree, done: subprocess.CompletedProcess[str]) -> str:
        """Return what is wrong right after the disturbance."""
        code, errors = done.returncode, [line for line in done.stderr.splitlines() if line.startswith("error:")]
        after = tree(folder)
        # Before the command's own first line runs, and after its last, Python itself answers a signal.
        of_python = -code in (signal.SIGINT, signal.SIGTERM) and after in (before, self.new)
        if "Traceback" in done.stderr and not of_python:
            return f"a traceback: {done.stderr[-600:]}"
        if code not in (0, 1, 130, 143, -signal.SIGKILL) and not of_python:
            return f"exit code {code}: {done.stderr[-300:]}"
        if code in (1, 130, 143) and len(errors) != 1:
            return f"exit code {code} with {len(errors)} lines `error:`: {done.stderr[-300:]}"
        reads = "read" in fault.kind or "vanish" in fault.kind  # what can be read is done
        for output in self.job.outputs:
            found, old, new = (below(files, output) for files in (after, before, self.new))
            if code == 0 and not reads and fault.kind not in SIGNALS and found != new:
                return f"exit code 0, but {output} is not whole: {differing(found, new)}"
            if self.job.name != "train" and found not in (old, new) and not (reads and code == 1):
                return f"{output} is neither the older nor the new one: {differing(found, new)}"
        return ""

    def complaint_afterwards(self, folder: Path, *, reads: bool) -> str:
        """Return what is wrong once the command has run again undisturbed, if there is anything left to do."""
        if tree(folder) == self.new:
            return ""
        resumes = self.job.checkpoint and (folder / self.job.checkpoint).exists()
        command = self.job.resume if resumes else self.job.command
        done = run(folder, command)
        if done.returncode:
            return f"afterwards `{command}` exits with {done.returncode}: {done.stderr[-300:]}"
        after = tree(folder)
        if reads and self.job.skips and after.keys() == self.new.keys():
            return ""
        return "" if after == self.new else f"after `{command}`: {differing(after, self.new)}"


def run(folder: Path, command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of vaekit in a folder."""
    return subprocess.run(
        words_of(command),
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST_SECONDS,
    )


def words_of(command: str) -> list[str]:
    """Return the words of a command."""
    program = str(Path(sys.executable).with_name("vaekit"))
    return [program, *(word.replace("{in}", "../in") for word in command.split())]


def tree(folder: Path) -> Tree:
    """Return the hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def below(files: Tree, output: str) -> Tree:
    """Return an output's own files."""
    return {
        name: digest
        for name, digest in files.items()
        if (name == output or name.startswith(f"{output}/")) and not name.endswith(".tmp")  # one of a killed process
    }


def differing(found: Tree, wanted: Tree) -> str:
    """Say how two folders differ."""
    parts = {
        "missing": sorted(wanted.keys() - found.keys()),
        "too many": sorted(found.keys() - wanted.keys()),
        "other bytes": sorted(name for name in found.keys() & wanted.keys() if found[name] != wanted[name]),
    }
    return "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in parts.items() if names) or "nothing differs"


def make_inputs(folder: Path) -> None:
    """Make what the jobs read."""
    numbers = np.random.default_rng(0)
    for name, count in (("pictures", 40), ("others", 10)):
        (folder / name).mkdir()
        for k in range(count):
            Image.fromarray(numbers.integers(0, 255, (16, 16), np.uint8)).save(folder / name / f"{k:02}.png")
    shutil.copytree(TINY, folder / "tiny")
    np.save(folder / "codes.npy", numbers.standard_normal((20, 4)).astype(np.float32))
    for command in (f"train pictures {TRAIN} -o run", "export run -o exported -q", "sign --new-key own.key -q"):
        done = run(folder, command)
        if done.returncode:
            sys.exit(f"{command}: {done.stderr}")


def chosen(names: Sequence[str] | None) -> Iterable[Job]:
    """Return the jobs of these names, all of them by default."""
    return [job for job in JOBS if not names or job.name in names]


def main() -> None:
    """Disturb all jobs and print a table; exit with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", choices=[job.name for job in JOBS])
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored, also by the commands
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    results: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(os.path.realpath(scratch))
        (inputs := work / "inputs").mkdir()
        make_inputs(inputs)
        shim = work / "faults.so"
        subprocess.run(
            [COMPILER, "-shared", "-fPIC", "-O2", "-o", shim, Path(__file__).with_suffix(".c"), "-ldl"], check=True
        )
        for job in chosen(options.job):
            trial = Trial(job, inputs, work, shim)
            moments = options.moments if job.often else -(-options.moments // 7)
            faults = [*trial.moments(moments, random.Random(options.seed)), *trial.failing_calls(options.calls)]
            wrong = []
            with ThreadPoolExecutor(usable_cpus()) as pool:
                for text in filter(None, pool.map(trial.disturb, range(len(faults)), faults)):
                    print(text, flush=True)
                    wrong.append(text)
            found = results[job.name] = Found(Counter(fault.kind for fault in faults), wrong)
            print(f"{job.name:16} {found.faults.total():>5} faults, {len(wrong)} survived badly", flush=True)
    print(f"{sum(found.faults.total() for found in results.values()):,} faults in all")
    write_json(
        options.json, {name: {"faults": found.faults, "failures": found.failures} for name, found in results.items()}
    )
    if any(found.failures for found in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
