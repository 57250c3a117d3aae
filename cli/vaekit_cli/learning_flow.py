"""Learning a flow with a progress bar and messages, for `vaekit prior` and `vaekit train --prior flow`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vaekit_cli.console import command_line, progress_bar
from vaekit_cli.stopping import stop_asked

if TYPE_CHECKING:
    from vaekit.training.holdout import Split
    from vaekit.training.prior import Fitted
    from vaekit.training.run import Run

_STOPPING = "stopping: keeping a checkpoint (once more to stop at once)"


def learn_flow(
    run: Run,
    split: Split,
    *,
    steps: int | None,
    seconds: float | None,
    seed: int,
    resume: bool,
    quiet: bool,
    say: Callable[[str], None],
) -> Fitted:
    """Encode a run's training images, learn a flow from their codes, and say how it went.

    It lasts a number of ``steps``, or ``seconds`` in all; with neither, the default number of steps.
    """
    from vaekit.training.flow import STEPS
    from vaekit.training.prior import fit_flow, training_codes
    from vaekit.training.run import PRIOR

    started = time.monotonic()
    with progress_bar("encoding", None, quiet) as bar:
        codes = training_codes(run, split, bar)
    of_classes = f" of {len(codes.names):,} classes" if codes.names else ""
    say(f"{run.path}: learning the flow from the codes of {len(codes.mu):,} images{of_classes}")
    length = None if seconds is not None else steps or STEPS
    left = None if seconds is None else max(0.0, seconds - (time.monotonic() - started))
    with stop_asked(lambda: say(_STOPPING)) as stop, progress_bar("", length, quiet) as bar:
        fitted = fit_flow(run, codes, steps=length, seconds=left, seed=seed, resume=resume, stop=stop, advance=bar)
    if fitted.stopped:
        say(f"{run.path}: stopped after {fitted.steps:,} steps; the prior is as before")
        say(f"next: {command_line('vaekit prior', ('', run.path, None))} --resume")
    else:
        say(f"{run.path / PRIOR}: a flow, {fitted.steps:,} steps; loss of held-out images {fitted.loss:.4f}")
    return fitted
