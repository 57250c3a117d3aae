"""What share of a training is not training? The whole command `vaekit train fashion-mnist --max-minutes 3`.

    python benchmarks/fixed_costs.py [--minutes 3] [--json FILE]

Runs the command in a process whose functions are timed, each without those it calls. What is left are the steps. Aim:
everything else takes at most a tenth.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timing import write_json

from vaekit.output.table import text_table

TIMED = {
    "_validate": "validations",
    "_fit_prior": "fitting the mixture",
    "_preview": "previews",
    "_save_model": "writing the model",
    "_save_checkpoint": "checkpoints",
    "_report": "reports",
    "_finish": "measuring training images at the end",
}
"""Methods of the trainer, and what they do."""
STEPS, START, LEAVING = "steps", "start, and reading the images", "the process's end"


class Stopwatch:
    """Measures how long functions take, each without those it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys((*TIMED.values(), START, STEPS), 0.0)
        self._open: list[list[float]] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with its time added to ``name``."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            self._open.append([0.0])
            try:
                return function(*arguments, **options)
            finally:
                spent = time.perf_counter() - began
                (within,) = self._open.pop()
                self.seconds[name] += spent - within
                if self._open:
                    self._open[-1][0] += spent

        return run


def run_alone(report: Path, output: str, minutes: float, began: float) -> None:
    """Run the command in this process, and write the seconds of each kind of work."""
    from vaekit.training.trainer import Trainer
    from vaekit_cli.main import main as command

    watch = Stopwatch()
    for method, name in TIMED.items():
        setattr(Trainer, method, watch.timed(name, getattr(Trainer, method)))
    whole = Trainer._train

    @functools.wraps(whole)
    def train(*arguments: Any) -> Any:
        watch.seconds[START] = time.time() - began
        return watch.timed(STEPS, whole)(*arguments)

    setattr(Trainer, "_train", train)  # noqa: B010 — mypy refuses the assignment
    sys.argv = ["vaekit", "train", "fashion-mnist", "--max-minutes", str(minutes), "-o", output, "-q"]
    try:
        command()
    finally:
        report.write_text(json.dumps({**watch.seconds, "ended": time.time()}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.alone:
        report, output, began = options.alone
        run_alone(Path(report), output, options.minutes, float(began))
        return
    with tempfile.TemporaryDirectory() as folder:
        report, began = Path(folder, "report.json"), time.time()
        limits = ["--minutes", str(options.minutes), "--alone", str(report), str(Path(folder, "run")), str(began)]
        subprocess.run([sys.executable, __file__, *limits], check=True)
        ended = time.time()
        seconds: dict[str, float] = json.loads(report.read_text())
    total = ended - began
    seconds[LEAVING] = ended - seconds.pop("ended")
    seconds["other work"] = total - sum(seconds.values())
    rows = [("", "seconds", "share")]
    rows += [
        (name, f"{spent:.1f}", f"{spent / total:.1%}") for name, spent in sorted(seconds.items(), key=lambda i: -i[1])
    ]
    print("\n".join(text_table(rows)))
    print(f"the whole command: {total:.1f} s; all but the steps {1 - seconds[STEPS] / total:.1%}, aim 10 %")
    write_json(options.json, {"minutes": options.minutes, "total": total, "seconds": seconds})


if __name__ == "__main__":
    main()
