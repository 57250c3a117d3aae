"""`vaekit prior`: fit the prior of a run again, or learn one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import RunError, UsageError
from vaekit.system.files import only_writer
from vaekit.training import check_extra
from vaekit.training.config import PriorKind
from vaekit_cli.commands.train import DEFAULT_RUN
from vaekit_cli.console import announced, command_line, progress_bar, speaker
from vaekit_cli.learning_flow import learn_flow
from vaekit_cli.options import QuietOption
from vaekit_cli.training_options import SOURCE_HELP, read_source, read_validation

if TYPE_CHECKING:
    from vaekit.training.run import Run


def prior(
    run: Annotated[Path, typer.Argument(help="The run that `vaekit train` wrote.")] = DEFAULT_RUN,
    source: Annotated[str | None, typer.Argument(help=SOURCE_HELP, show_default="the run's own")] = None,
    kind: Annotated[
        PriorKind,
        typer.Option(help="flow: learn where the codes lie; mixture: fit Gaussians to them; none: keep N(0, I) alone."),
    ] = "flow",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Length of learning the flow in batches.", show_default="4000")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Length in minutes instead.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from where an earlier command stopped.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same prior.", show_default="the run's"),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Fit the prior that `vaekit sample` draws from, to the codes of a run's training images.

    A flow is a small network, which export puts into the bundle as prior.onnx. Images and weights stay as they are.
    """
    check_extra()
    if steps is not None and max_minutes is not None:
        raise UsageError("--steps and --max-minutes both set the length: give one of them")
    if max_minutes is not None and not 0 < max_minutes < float("inf"):
        raise UsageError(f"--max-minutes must be above 0, not {max_minutes:g}")
    if kind != "flow" and (steps is not None or max_minutes is not None or resume):
        raise UsageError("--steps, --max-minutes and --resume belong to --kind flow")
    say = speaker(quiet)
    with announced("loading PyTorch", say):
        from vaekit.training.prior import remove_prior
        from vaekit.training.run import is_finished, load_run

    trained = load_run(run)
    if not is_finished(run):
        raise RunError(f"{run} is not finished: {command_line('vaekit train', ('--resume', run, None))}")
    with only_writer(run):
        if kind == "none":
            remove_prior(trained)
            say(f"{run}: the prior is N(0, I)")
        elif not _fit(trained, kind, source, steps, max_minutes, resume, seed, quiet, say):
            return
    say(f"next: {command_line('vaekit export', ('', run, DEFAULT_RUN))}")


def _fit(
    run: Run,
    kind: str,
    source: str | None,
    steps: int | None,
    max_minutes: float | None,
    resume: bool,
    seed: int | None,
    quiet: bool,
    say: Callable[[str], None],
) -> bool:
    """Fit a prior to the codes of a run's training images; return whether it was finished."""
    from vaekit.training.holdout import hold_out
    from vaekit.training.prior import refit_mixture, training_codes

    config = run.config
    images = read_source(source or config.source, (config.height, config.width), quiet, crop=config.crop)
    validation = read_validation(config.val, config.image_shape, quiet, crop=config.crop)
    split = hold_out(images, config.seed, config.val, validation)
    split.check(config)
    chosen = config.seed if seed is None else seed
    if kind == "mixture":
        with progress_bar("encoding", None, quiet) as bar:
            codes = training_codes(run, split, bar)
        with announced("fitting the mixture", say):
            components = refit_mixture(run, codes, chosen)
        say(f"{run.path}: a mixture of {components} Gaussians, fitted to the codes of {len(codes.mu):,} images")
        return True
    seconds = None if max_minutes is None else 60 * max_minutes
    fitted = learn_flow(run, split, steps=steps, seconds=seconds, seed=chosen, resume=resume, quiet=quiet, say=say)
    return not fitted.stopped
