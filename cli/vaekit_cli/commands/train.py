"""`vaekit train`: from images to a run."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vaekit.errors import UsageError
from vaekit.system.machine import is_first_process
from vaekit_cli.config_file import given, overridden, use_config
from vaekit_cli.console import command_line, no_bar, speaker, stderr
from vaekit_cli.options import QuietOption, SeedOption, parse_sigma, parse_size
from vaekit_cli.training_options import SOURCE_HELP, Binarize, Device, DeviceOption, read_source, read_validation

if TYPE_CHECKING:
    from vaekit.images.dataset import Images
    from vaekit.training.checkpoint import Checkpoint
    from vaekit.training.run import Config
    from vaekit.training.trainer import Outcome

T = TypeVar("T")

DEFAULT_RUN = Path("vae")

DEFAULT_BATCH_SIZE = 128
DEFAULT_LR = 1e-2

_IWAE_SAMPLES = 8
_NAMED_FILES = 10  # of those left out; the rest is counted


class LikelihoodName(StrEnum):
    """p(x|z)."""

    GAUSSIAN = "gaussian"
    BERNOULLI = "bernoulli"


class PresetName(StrEnum):
    """Sizes of the network."""

    TINY = "tiny"
    SMALL = "small"
    BASE = "base"


class Posterior(StrEnum):
    """q(z|x): a variance for each dimension, or one for all."""

    DIAGONAL = "diagonal"
    ISOTROPIC = "isotropic"


class ObjectiveName(StrEnum):
    """What is maximised."""

    ELBO = "elbo"
    IWAE = "iwae"
    AUTOENCODER = "autoencoder"
    PRIOR_ONLY = "prior-only"


class Augment(StrEnum):
    """How images are changed each time that they are seen."""

    NONE = "none"
    FLIP = "flip"


class Precision(StrEnum):
    """What the networks compute in while training."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Tracker(StrEnum):
    """Experiment trackers."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


_OBJECTIVES_OF = {  # the options that not every objective has
    "--beta": (ObjectiveName.ELBO,),
    "--beta-warmup": (ObjectiveName.ELBO,),
    "--free-bits": (ObjectiveName.ELBO,),
    "--mc-samples": (ObjectiveName.ELBO, ObjectiveName.AUTOENCODER),
    "--iwae-samples": (ObjectiveName.IWAE,),
}


def train(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(help=SOURCE_HELP),
    ] = "shapes",
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="The run.")] = DEFAULT_RUN,
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Height and width.", show_default="the images' own, or 64")
    ] = None,
    latent: Annotated[int, typer.Option(min=1, help="Dimensions of the latent.")] = 16,
    preset: Annotated[PresetName, typer.Option(help="How large the network is.")] = PresetName.SMALL,
    posterior: Annotated[
        Posterior, typer.Option(help="q(z|x): a variance for each dimension, or one for all.")
    ] = Posterior.DIAGONAL,
    likelihood: Annotated[LikelihoodName, typer.Option(help="p(x|z).")] = LikelihoodName.GAUSSIAN,
    sigma: Annotated[
        str | None,
        typer.Option(metavar="optimal|FLOAT", help="Of the Gaussian likelihood.", show_default="optimal"),
    ] = None,
    objective: Annotated[
        ObjectiveName,
        typer.Option(help="elbo; iwae, its importance-weighted kin; the reconstruction alone; or the KL alone."),
    ] = ObjectiveName.ELBO,
    beta: Annotated[float | None, typer.Option(min=0.0, help="Weight of the ELBO's KL.", show_default="1")] = None,
    beta_warmup: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the steps, to 1, over which the KL's weight rises from 0."),
    ] = None,
    free_bits: Annotated[
        float | None, typer.Option(min=0.0, metavar="NATS", help="What each dimension's KL counts at least.")
    ] = None,
    mc_samples: Annotated[
        int | None, typer.Option(min=1, metavar="L", help="Draws of z an image and step.", show_default="1")
    ] = None,
    iwae_samples: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Draws of z in the IWAE's bound.", show_default="8")
    ] = None,
    binarize: Annotated[
        Binarize, typer.Option(help="Draw pixels 0 or 1 with their grey as probability: once, or each time seen.")
    ] = Binarize.NONE,
    augment: Annotated[Augment, typer.Option(help="flip: swap left and right in half of the images.")] = Augment.NONE,
    val: Annotated[
        str | None,
        typer.Option(metavar="SHARE|SOURCE", help="Images to measure.", show_default="a tenth, at most 1000"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Length in passes over the training images.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length in batches.", show_default="2400")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Length of the whole command.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images a step.", show_default=f"{DEFAULT_BATCH_SIZE}, or all if fewer")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate at its peak.")] = DEFAULT_LR,
    seed: SeedOption = 0,
    device: DeviceOption = Device.AUTO,
    precision: Annotated[
        Precision, typer.Option(help="What the networks compute in while training; figures are float32's.")
    ] = Precision.FP32,
    track: Annotated[Tracker | None, typer.Option(help="Tell figures to an experiment tracker, too.")] = None,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, metavar="STEPS", help="Steps between two checkpoints, which --resume goes on from.")
    ] = 200,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            is_eager=True,
            callback=use_config,
            help="A run's config.json: train as it did, but for options given beside it.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with a run that was killed or stopped, as if it had not been."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is already there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Train a VAE and write a run. Ctrl-C ends early and keeps what was learnt."""
    started = time.monotonic()
    quiet = quiet or not is_first_process()
    if resume is not None:
        _check_resume(context)
        new_source = source if given(context, "source") else None
        _resume(resume, new_source, device.value if given(context, "device") else None, quiet, started)
        return
    gone = overridden(context, _unfit(objective, likelihood))

    def kept(name: str, value: T | None) -> T | None:
        return None if name in gone else value

    epochs, steps, max_minutes = kept("epochs", epochs), kept("steps", steps), kept("max_minutes", max_minutes)
    sigma, beta, beta_warmup = kept("sigma", sigma), kept("beta", beta), kept("beta_warmup", beta_warmup)
    free_bits, mc_samples = kept("free_bits", free_bits), kept("mc_samples", mc_samples)
    iwae_samples = kept("iwae_samples", iwae_samples)
    _check_numbers(epochs, steps, max_minutes, lr)
    _check_weights(beta, beta_warmup, free_bits)
    _check_share(val)
    weights = {
        "--beta": beta,
        "--beta-warmup": beta_warmup,
        "--free-bits": free_bits,
        "--mc-samples": mc_samples,
        "--iwae-samples": iwae_samples,
    }
    _check_objective(objective, {option for option, value in weights.items() if value is not None})
    if likelihood is LikelihoodName.BERNOULLI and sigma is not None:
        raise UsageError("--sigma belongs to the gaussian likelihood; bernoulli has none")
    image_size, fixed_sigma = parse_size(size), parse_sigma(sigma or "optimal")

    from vaekit.images.dataset import share_of
    from vaekit.training.run import Config, check_target
    from vaekit.training.tracking import check_tracker
    from vaekit.training.trainer import choose_device, split, steps_of

    check_tracker(None if track is None else track.value)
    if is_first_process():  # the others may come when it has begun the run
        check_target(output, overwrite)
    chosen_device = choose_device(device.value)
    images = read_source(source, image_size, quiet)
    validation = read_validation(val, images.shape, quiet)
    training = len(images) if validation else len(split(len(images), seed, share_of(val))[0])
    batch = batch_size or min(DEFAULT_BATCH_SIZE, training)
    config = Config(
        source=source,
        channels=images.shape[0],
        height=images.shape[1],
        width=images.shape[2],
        latent=latent,
        likelihood=likelihood.value,
        sigma=fixed_sigma,
        beta=_kl_weight(objective, beta),
        steps=steps_of(training, batch, epochs=epochs, steps=steps),
        batch_size=batch,
        lr=lr,
        seed=seed,
        preset=preset.value,
        posterior=posterior.value,
        objective=objective.value,
        mc_samples=mc_samples or 1,
        iwae_samples=(iwae_samples or _IWAE_SAMPLES) if objective is ObjectiveName.IWAE else None,
        beta_warmup=beta_warmup or 0.0,
        free_bits=free_bits or 0.0,
        binarize=binarize.value,
        val=val,
        augment=augment.value,
        max_minutes=max_minutes,
        checkpoint_every=checkpoint_every,
        device=chosen_device,
        precision=precision.value,
        track=None if track is None else track.value,
    )
    _run(config, images, validation, output, None, quiet, started)


def _run(
    config: Config,
    images: Images,
    validation: Images | None,
    output: Path,
    checkpoint: Checkpoint | None,
    quiet: bool,
    started: float,
) -> None:
    """Train, from a checkpoint where there is one; ``started`` is when the command was, by time.monotonic."""
    from vaekit.training.processes import join_team
    from vaekit.training.trainer import Trainer

    say = speaker(quiet)
    if checkpoint is None:
        _describe(images, validation, config, say)
        say(loss_in_words(config))
    deadline = None if config.max_minutes is None else started + 60 * config.max_minutes
    with join_team(config.device) as (team, device), _interrupts(say) as stop, _progress_bar(quiet) as report:
        trainer = Trainer(
            config,
            images,
            output,
            validation=validation,
            device=device,
            team=team,
            checkpoint=checkpoint,
            deadline=deadline,
            stop=stop,
            report=report,
        )
        if changed := trainer.changed_setting():
            say(f"begun with {'; '.join(changed)}: results may differ in their last bits")
        outcome = trainer.run()
    _summarise(outcome, output, say)


def _resume(run: Path, source: str | None, device: str | None, quiet: bool, started: float) -> None:
    """Go on with a run where its last checkpoint was written; on another device or from another place if asked."""
    from vaekit.training.checkpoint import load_checkpoint
    from vaekit.training.run import is_finished, load_config
    from vaekit.training.trainer import choose_device

    say = speaker(quiet)
    config = load_config(run)
    if is_finished(run):
        say(f"{run} is finished: there is nothing left to train")
        say(f"next: {command_line('vaekit export', ('', run, DEFAULT_RUN))}")
        return
    checkpoint = load_checkpoint(run)
    config = dataclasses.replace(config, source=source or config.source, device=choose_device(device or config.device))
    images = read_source(config.source, (config.height, config.width), quiet)
    validation = read_validation(config.val, config.image_shape, quiet)
    if checkpoint is None:
        say(f"{run} has no checkpoint yet: starting again from its config.json")
    else:
        say(f"{run}: going on after step {checkpoint.step:,} of {config.steps:,}, on {config.device}")
    _run(config, images, validation, run, checkpoint, quiet, started)


def _check_resume(context: typer.Context) -> None:
    """Raise UsageError for options that would make the rest of a run another than its beginning."""
    names = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name}
    others = sorted(names[name] for name in given(context, *names) - {"resume", "source", "device", "quiet"})
    if others:
        raise UsageError(f"--resume goes on with a run as it was begun: leave out {', '.join(others)}")


def _unfit(objective: ObjectiveName, likelihood: LikelihoodName) -> set[str]:
    """Parameters that say nothing under this objective and likelihood."""
    unfit = {
        option.removeprefix("--").replace("-", "_") for option, fit in _OBJECTIVES_OF.items() if objective not in fit
    }
    return unfit | ({"sigma"} if likelihood is LikelihoodName.BERNOULLI else set())


def _check_numbers(epochs: int | None, steps: int | None, max_minutes: float | None, lr: float) -> None:
    if sum(length is not None for length in (epochs, steps, max_minutes)) > 1:
        raise UsageError("--epochs, --steps and --max-minutes each set the length: give one of them")
    if max_minutes is not None and not 0 < max_minutes < float("inf"):
        raise UsageError(f"--max-minutes must be positive, not {max_minutes:g}")
    if not 0 < lr < float("inf"):
        raise UsageError(f"--lr must be positive, not {lr:g}")


def _check_share(val: str | None) -> None:
    from vaekit.images.dataset import share_of

    share = share_of(val)
    if share is not None and not 0 < share < 1:
        raise UsageError(f"--val {val} leaves no images to measure or to train on: give a share between 0 and 1")


def _check_weights(beta: float | None, beta_warmup: float | None, free_bits: float | None) -> None:
    for option, value in (("--beta", beta), ("--free-bits", free_bits)):
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"{option} must be 0 or more, not {value:g}")
    if beta_warmup is not None and not 0 < beta_warmup <= 1:
        raise UsageError(f"--beta-warmup is a share of the steps, above 0 and up to 1, not {beta_warmup:g}")
    if beta == 0 and (beta_warmup or free_bits):
        raise UsageError("--beta 0 leaves out the KL: --beta-warmup and --free-bits need one")


def _check_objective(objective: ObjectiveName, given: set[str]) -> None:
    """Raise UsageError where one of the options given says nothing under this objective."""
    for option, objectives in _OBJECTIVES_OF.items():
        if option in given and objective not in objectives:
            names = " or ".join(f"--objective {name.value}" for name in objectives)
            raise UsageError(f"{option} belongs to {names}, not to {objective.value}")


def _kl_weight(objective: ObjectiveName, beta: float | None) -> float:
    if objective is ObjectiveName.AUTOENCODER:
        return 0.0
    return 1.0 if beta is None else beta


def loss_in_words(config: Config) -> str:
    """What a training minimises, with the weights of its terms."""
    if config.objective == "prior-only":
        return "loss in nats per image: 1 x KL, and nothing else: the decoder stays as it is"
    misfit = "cross-entropy" if config.likelihood == "bernoulli" else _squared_error_in_words(config.sigma)
    if config.objective == "iwae":
        draws = f"-log of the mean of exp(-m) over {config.iwae_samples} draws of z"
        return f"loss in nats per image: {draws}, m = {misfit} + 1 x (log q(z|x) - log p(z))"
    parts = [f"loss in nats per image: {misfit} + {config.beta:g} x KL"]
    if config.beta_warmup:
        parts.append(f"the KL's weight rises from 0 over the first {config.beta_warmup:.0%} of the steps")
    if config.free_bits:
        parts.append(f"each dimension's KL counts at least {config.free_bits:g} nats")
    if config.mc_samples > 1:
        parts.append(f"averaged over {config.mc_samples} draws of z")
    return "; ".join(parts)


def _squared_error_in_words(sigma: float | None) -> str:
    if sigma is None:
        return "1/(2 sigma^2) x squared error (sigma: each batch's best; at 0.1 the weight is 50)"
    return f"{0.5 / sigma**2:g} x squared error (1/(2 sigma^2), sigma {sigma:g})"


def _describe(images: Images, validation: Images | None, config: Config, say: Callable[[str], None]) -> None:
    """What is trained on, and what was left out of it and why."""
    from vaekit.training.trainer import parts_of

    training, held_out = map(len, parts_of(images, validation, config))
    measured = f"{held_out:,} held out" if validation is None else f"{held_out:,} of {validation.name} to measure"
    say(f"{_statistics(images)}; {training:,} to train on, {measured}; training on {config.device}")
    _describe_changes(images, say)
    if validation is not None:
        say(_statistics(validation))
        _describe_changes(validation, say)


def _statistics(images: Images) -> str:
    channels, height, width = images.shape
    colours = "grey" if channels == 1 else "RGB"
    classes = f", {len(images.label_names)} classes" if images.label_names else ""
    where = "in memory" if images.in_memory else "read while training, as they do not fit in memory"
    return f"{images.name}: {len(images):,} images, {height} x {width} {colours}{classes}, {where}"


def _describe_changes(images: Images, say: Callable[[str], None]) -> None:
    _, height, width = images.shape
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
    sigma = (
        "" if outcome.sigma is None else f"; sigma {outcome.sigma:.4f}: 1/(2 sigma^2) = {0.5 / outcome.sigma**2:.4g}"
    )
    samples = outcome.config.iwae_samples
    bound = "" if samples is None else f", IWAE bound of {samples} draws {outcome.objective:.1f}"
    prior = (
        f"mixture of {outcome.components} Gaussians" if outcome.components else "N(0, I): too few images for a mixture"
    )
    stopped = "stopped early, " if outcome.interrupted else ""
    say(
        f"{run}: {stopped}{outcome.steps} steps; held out: ELBO {outcome.elbo:.1f} = reconstruction "
        f"{outcome.reconstruction:.1f} - KL {outcome.kl:.1f} nats per image{bound}{sigma}; prior: {prior}"
    )
    if outcome.interrupted:
        say(f"it can go on: vaekit train --resume {shlex.quote(str(run))}")
    say(f"next: {command_line('vaekit export', ('', run, DEFAULT_RUN))}")
