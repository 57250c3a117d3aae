"""`vaekit train`: from images to a run."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import UsageError
from vaekit_cli.console import command_line, no_bar, speaker, stderr
from vaekit_cli.options import QuietOption, SeedOption, parse_sigma, parse_size

if TYPE_CHECKING:
    from vaekit.sources import Images
    from vaekit.training.trainer import Outcome

DEFAULT_RUN = Path("vae")

_BATCH_SIZE = 64
_NAMED_FILES = 10  # of those left out; the rest is counted


class LikelihoodName(StrEnum):
    """p(x|z)."""

    GAUSSIAN = "gaussian"
    BERNOULLI = "bernoulli"


class Device(StrEnum):
    """Where training runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


def train(
    source: Annotated[
        str,
        typer.Argument(
            help="Images: a folder, a picture or glob, .npy, .npz, IDX, or shapes, fashion-mnist, mnist.",
        ),
    ] = "shapes",
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="The run.")] = DEFAULT_RUN,
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Height and width.", show_default="the images' own, or 64")
    ] = None,
    latent: Annotated[int, typer.Option(min=1, help="Dimensions of the latent.")] = 16,
    likelihood: Annotated[LikelihoodName, typer.Option(help="p(x|z).")] = LikelihoodName.GAUSSIAN,
    sigma: Annotated[str, typer.Option(metavar="optimal|FLOAT", help="Of the Gaussian likelihood.")] = "optimal",
    beta: Annotated[float, typer.Option(min=0.0, help="Weight of the KL; 1 is the ELBO.")] = 1.0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Length in passes over the training images.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length in batches.", show_default="1600")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Length of the whole command.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images a step.", show_default=f"{_BATCH_SIZE}, or all if fewer")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate at its peak.")] = 1.2e-2,
    seed: SeedOption = 0,
    device: Annotated[Device, typer.Option(help="auto takes cuda, then mps, then cpu.")] = Device.AUTO,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is already there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Train a VAE and write a run. Ctrl-C ends early and keeps what was learnt."""
    started = time.monotonic()
    _check_numbers(epochs, steps, max_minutes, lr, beta, likelihood, sigma)
    image_size, fixed_sigma = parse_size(size), parse_sigma(sigma)

    from vaekit.training.run import Config, check_target
    from vaekit.training.trainer import Trainer, choose_device, split, steps_of

    check_target(output, overwrite)
    chosen_device = choose_device(device.value)
    say = speaker(quiet)
    images = _open(source, image_size, quiet)
    training, holdout = split(len(images), seed)
    batch = batch_size or min(_BATCH_SIZE, len(training))
    _describe(images, len(training), len(holdout), chosen_device, say)
    config = Config(
        source=source,
        channels=images.shape[0],
        height=images.shape[1],
        width=images.shape[2],
        latent=latent,
        likelihood=likelihood.value,
        sigma=fixed_sigma if likelihood is LikelihoodName.GAUSSIAN else None,
        beta=beta,
        steps=steps_of(len(training), batch, epochs=epochs, steps=steps),
        batch_size=batch,
        lr=lr,
        seed=seed,
    )
    deadline = None if max_minutes is None else started + 60 * max_minutes
    with _interrupts(say) as stop, _progress_bar(quiet) as report:
        trainer = Trainer(config, images, output, device=chosen_device, deadline=deadline, stop=stop, report=report)
        outcome = trainer.run()
    _summarise(outcome, output, say)


def _check_numbers(
    epochs: int | None,
    steps: int | None,
    max_minutes: float | None,
    lr: float,
    beta: float,
    likelihood: LikelihoodName,
    sigma: str,
) -> None:
    if sum(length is not None for length in (epochs, steps, max_minutes)) > 1:
        raise UsageError("--epochs, --steps and --max-minutes each set the length: give one of them")
    if max_minutes is not None and not 0 < max_minutes < float("inf"):
        raise UsageError(f"--max-minutes must be positive, not {max_minutes:g}")
    if not 0 < lr < float("inf"):
        raise UsageError(f"--lr must be positive, not {lr:g}")
    if not 0 <= beta < float("inf"):
        raise UsageError(f"--beta must be 0 or more, not {beta:g}")
    if likelihood is LikelihoodName.BERNOULLI and sigma != "optimal":
        raise UsageError("--sigma belongs to the gaussian likelihood; bernoulli has none")


def _open(source: str, size: tuple[int, int] | None, quiet: bool) -> Images:
    from rich.progress import Progress

    from vaekit.sources import open_source

    with Progress(console=stderr(), transient=True, disable=no_bar(quiet)) as bar:
        task = bar.add_task(f"reading {source}", total=None)
        return open_source(
            source, size=size, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


def _describe(images: Images, training: int, held_out: int, device: str, say: Callable[[str], None]) -> None:
    channels, height, width = images.shape
    colours = "grey" if channels == 1 else "RGB"
    where = "in memory" if images.in_memory else "read while training, as they do not fit in memory"
    say(
        f"{images.name}: {len(images):,} images, {height} x {width} {colours}, {where}; "
        f"{training:,} to train on, {held_out:,} held out; training on {device}"
    )
    if images.resized_from:
        say(f"images of {images.resized_from} are resized to cover {height} x {width} and centre-cropped")
    if images.skipped:
        say(f"left out {len(images.skipped)} files that cannot be read:")
        for line in images.skipped[:_NAMED_FILES]:
            say(f"  {line}")
        if len(images.skipped) > _NAMED_FILES:
            say(f"  and {len(images.skipped) - _NAMED_FILES} more")


@contextmanager
def _interrupts(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C or SIGTERM asked to stop; the second time stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping: keeping what was learnt and fitting the prior (once more to stop at once)")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress_bar(quiet: bool) -> Iterator[Callable[..., None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vaekit.training.trainer import Progress as Figures

    # Narrow enough for a terminal of 80 columns.
    columns = (BarColumn(10), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=stderr(), disable=no_bar(quiet)) as bar:
        task = bar.add_task("", total=None)

        def report(now: Figures) -> None:
            terms = f"ELBO {now.elbo:.1f} (reconstruction {now.reconstruction:.1f}, KL {now.kl:.1f}) nats"
            bar.update(task, completed=now.step, total=now.total, description=terms)

        yield report


def _summarise(outcome: Outcome, run: Path, say: Callable[[str], None]) -> None:
    sigma = "" if outcome.sigma is None else f"; sigma {outcome.sigma:.4f}"
    prior = (
        f"mixture of {outcome.components} Gaussians" if outcome.components else "N(0, I): too few images for a mixture"
    )
    stopped = "stopped early, " if outcome.interrupted else ""
    say(
        f"{run}: {stopped}{outcome.steps} steps; held out: ELBO {outcome.elbo:.1f} = reconstruction "
        f"{outcome.reconstruction:.1f} - KL {outcome.kl:.1f} nats per image{sigma}; prior: {prior}"
    )
    say(f"next: {command_line('vaekit export', ('', run, DEFAULT_RUN))}")
