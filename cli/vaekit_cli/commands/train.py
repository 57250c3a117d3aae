"""`vaekit train`: from images to a run."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaekit.errors import UsageError
from vaekit.system.files import only_writer
from vaekit.system.machine import is_first_process
from vaekit.training import check_extra
from vaekit.training.config import (
    Config,
    DeviceChoice,
    ObjectiveName,
    PixelLikelihood,
    map_defaults,
    objective_defaults,
    requirement,
    setting_of,
)
from vaekit_cli.config_file import given, overridden, use_config
from vaekit_cli.console import Advance, announced, command_line, progress_bar, speaker
from vaekit_cli.learning_flow import learn_flow
from vaekit_cli.options import QuietOption, parse_sigma, parse_size
from vaekit_cli.stopping import stop_asked
from vaekit_cli.training_options import (
    SOURCE_HELP,
    DeviceOption,
    read_source,
    read_validation,
    takes_settings,
)

if TYPE_CHECKING:
    from vaekit.images.dataset import Images
    from vaekit.training.checkpoint import Checkpoint
    from vaekit.training.holdout import Split
    from vaekit.training.trainer import Outcome, Progress

DEFAULT_RUN = Path("vae")

_LENGTHS = ("epochs", "steps", "max_minutes")
_STOPPING = "stopping: keeping what was learnt and fitting the prior (once more to stop at once)"
_FLOW_SHARE = 0.25  # of --max-minutes, if a flow is learned
_NAMED_FILES = 10  # skipped files that are named; the others are only counted


@takes_settings
def train(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)] = "shapes",
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="RUN", help="The folder to write the run to.")
    ] = DEFAULT_RUN,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW", help="Resize the images to this height and width.", show_default="the images' own, or 64"
        ),
    ] = None,
    *,
    settings: dict[str, Any],
    sigma: Annotated[
        str | None,
        typer.Option(
            metavar="optimal|FLOAT",
            help="Standard deviation of the likelihood; optimal fits it.",
            show_default="optimal",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Length in passes over the training images.")] = None,
    device: DeviceOption = "auto",
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            is_eager=True,
            callback=use_config,
            help="A run's config.json: train with its settings. Options on the command line replace them.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Continue an interrupted run from its last checkpoint."),
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
        _resume(resume, new_source, device if given(context, "device") else None, quiet, started)
        return
    asked = _asked_for(context, settings | {"sigma": sigma, "epochs": epochs})
    _check_options(asked)
    if asked.get("init") is not None:
        size = _take_network(context, Path(asked["init"]), asked) or size
    image_size, asked["sigma"] = parse_size(size), parse_sigma(asked.get("sigma", "optimal"))
    check_extra()

    with announced("loading PyTorch", speaker(quiet)):
        from vaekit.training.device import choose_device
        from vaekit.training.run import check_run_target
        from vaekit.training.tracking import check_tracker

    check_tracker(asked.get("track"))
    if is_first_process():  # the first process may already have started the run when others check
        check_run_target(output, overwrite)
    asked["device"] = choose_device(device)
    split = _read_images(source, image_size, asked, quiet)
    _run(_settle(source, split, asked), split, output, None, quiet, started)


def _asked_for(context: typer.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with values, without values of ``--config`` that were replaced.

    An option on the command line also replaces values that it excludes.
    """
    unfit = _unfit(options["objective"], options["likelihood"])
    gone = overridden(context, unfit, (*_LENGTHS, "schedule"))
    options = {**options, "schedule": (context.default_map or {}).get("schedule")}  # has no option of its own
    return {name: value for name, value in options.items() if value is not None and name not in gone}


def _take_network(context: typer.Context, init: Path, asked: dict[str, Any]) -> str | None:
    """Set the settings of the network to those of a run, where they are not given; return its images' size likewise."""
    from vaekit.training.config import NETWORK_SETTINGS, load_config

    given_before = load_config(init)

    def is_free(name: str) -> bool:
        found = context.get_parameter_source(name)
        return found is None or found.name == "DEFAULT"

    asked |= {name: getattr(given_before, name) for name in NETWORK_SETTINGS if is_free(name)}
    asked["init"] = str(init)
    return f"{given_before.height}x{given_before.width}" if is_free("size") else None


def _read_images(source: str, size: tuple[int, int] | None, asked: Mapping[str, Any], quiet: bool) -> Split:
    """Open the images and hold some out."""
    from vaekit.training.holdout import hold_out

    crop, val = asked["crop"], asked.get("val")
    images = read_source(source, size, quiet, crop=crop)
    return hold_out(images, asked["seed"], val, read_validation(val, images.shape, quiet, crop=crop))


def _settle(source: str, split: Split, asked: Mapping[str, Any]) -> Config:
    """Make the settings: options, and defaults that depend on images and objective."""
    from vaekit.training.schedule import steps_of

    channels, height, width = split.images.shape
    _check_downscale(asked.get("downscale"), height, width)
    count = len(split.training)
    of_maps = map_defaults(asked.get("downscale"))
    batch_size = asked.get("batch_size") or min(of_maps.get("batch_size", Config.batch_size), count)
    length = {"steps": steps_of(count, batch_size, epochs=asked.get("epochs"), steps=asked.get("steps"))}
    chosen = {name: value for name, value in asked.items() if name != "epochs"}
    settled = objective_defaults(asked["objective"]) | of_maps | chosen | length | {"batch_size": batch_size}
    return Config(source=source, channels=channels, height=height, width=width, **settled)


def _run(
    config: Config, split: Split, output: Path, checkpoint: Checkpoint | None, quiet: bool, started: float
) -> None:
    """Train, from the checkpoint if there is one.

    ``started`` is the time.monotonic at which the command started.
    """
    from vaekit.training.processes import join_process_group
    from vaekit.training.trainer import Trainer

    say = speaker(quiet)
    if checkpoint is None:
        _describe(split, config, say)
        say(loss_in_words(config))
    with (
        join_process_group(config.device) as (group, device),
        stop_asked(lambda: say(_STOPPING)) as stop,
        progress_bar("", None, quiet) as bar,
    ):
        trainer = Trainer(
            config,
            split,
            output,
            device=device,
            group=group,
            checkpoint=checkpoint,
            deadline=_deadline(config, checkpoint, started),
            stop=stop,
            report=lambda now: _show(now, bar),
            working=lambda what: announced(what, say),
        )
        if changed := trainer.changed_setting():
            say(f"started with {'; '.join(changed)}: results may differ in their last bits")
        outcome = trainer.run()
    learns = config.prior == "flow" and not outcome.interrupted
    _summarise(outcome, output, say, ends=not learns)
    if learns and group.first:
        used = time.monotonic() - started if checkpoint is None else 60 * (1 - _FLOW_SHARE) * (config.max_minutes or 0)
        seconds = None if config.max_minutes is None else 60 * config.max_minutes - used
        _learn_flow(config, split, output, seconds, quiet, say)


def _learn_flow(
    config: Config, split: Split, run: Path, seconds: float | None, quiet: bool, say: Callable[[str], None]
) -> None:
    """Learn the flow of a run that is trained, in the seconds that are left, or in the default number of steps."""
    from vaekit.training.run import load_run

    with only_writer(run):
        fitted = learn_flow(
            load_run(run), split, steps=None, seconds=seconds, seed=config.seed, resume=False, quiet=quiet, say=say
        )
    if not fitted.stopped:
        say(f"next: {command_line('vaekit export', ('', run, DEFAULT_RUN))}")


def _deadline(config: Config, checkpoint: Checkpoint | None, started: float) -> float | None:
    """Return the time.monotonic at which the training must end; None without a limit.

    A flow that is learned after it has a part of the time. A resumed training has the time that was left at its
    checkpoint.
    """
    if config.max_minutes is None:
        return None
    left = None if checkpoint is None else checkpoint.seconds_left
    share = 1 - _FLOW_SHARE if config.prior == "flow" else 1.0
    return started + (60 * share * config.max_minutes if left is None else left)


def _resume(run: Path, source: str | None, device: DeviceChoice | None, quiet: bool, started: float) -> None:
    """Continue a run from its last checkpoint.

    ``source`` and ``device`` replace those of the run if given.
    """
    check_extra()

    say = speaker(quiet)
    with announced("loading PyTorch", say):
        from vaekit.training.checkpoint import load_checkpoint
        from vaekit.training.config import load_config
        from vaekit.training.device import choose_device
        from vaekit.training.holdout import hold_out
        from vaekit.training.run import is_finished

    config = load_config(run)
    if is_finished(run):
        say(f"{run} is finished: there is nothing left to train")
        say(f"next: {command_line('vaekit export', ('', run, DEFAULT_RUN))}")
        return
    checkpoint = load_checkpoint(run)
    config = dataclasses.replace(config, source=source or config.source, device=choose_device(device or config.device))
    images = read_source(config.source, (config.height, config.width), quiet, crop=config.crop)
    validation = read_validation(config.val, config.image_shape, quiet, crop=config.crop)
    if checkpoint is None:
        say(f"{run} has no checkpoint yet: starting again from its config.json")
    else:
        say(f"{run}: resuming after step {checkpoint.step:,} {_rest_in_words(config, checkpoint)}, on {config.device}")
    _run(config, hold_out(images, config.seed, config.val, validation), run, checkpoint, quiet, started)


def _rest_in_words(config: Config, checkpoint: Checkpoint) -> str:
    if config.max_minutes is None or checkpoint.seconds_left is None:
        return f"of {config.steps:,}"
    return f"with {checkpoint.seconds_left / 60:.1f} of {config.max_minutes:g} minutes left"


def _check_resume(context: typer.Context) -> None:
    """Raise UsageError for options that cannot be combined with ``--resume``."""
    names = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name}
    others = sorted(names[name] for name in given(context, *names) - {"resume", "source", "device", "quiet"})
    if others:
        raise UsageError(f"--resume continues a run with its own settings: leave out {', '.join(others)}")


def _unfit(objective: ObjectiveName, likelihood: str) -> set[str]:
    """Return the options that have no meaning under this objective and likelihood."""
    unfit = {name for name, objectives in _objectives().items() if objective not in objectives}
    return unfit | ({"sigma"} if likelihood == "bernoulli" else set())


def _objectives() -> dict[str, tuple[ObjectiveName, ...]]:
    """Return the options that only some objectives allow, with these objectives."""
    settings = {known.name: setting_of(known.name) for known in dataclasses.fields(Config)}
    return {name: setting.objectives for name, setting in settings.items() if setting.objectives}


def _check_options(asked: Mapping[str, Any]) -> None:
    """Raise UsageError for values out of range and for contradictory options."""
    if sum(name in asked for name in _LENGTHS) > 1:
        raise UsageError("--epochs, --steps and --max-minutes each set the length: give one of them")
    for name in ("max_minutes", "lr", "beta", "free_bits"):
        if name in asked and (needed := requirement(name, asked[name])):
            raise UsageError(f"{_option_name(name)} must be {needed}, not {asked[name]:g}")
    beta_warmup = asked.get("beta_warmup")
    if beta_warmup is not None and not 0 < beta_warmup <= 1:
        raise UsageError(f"--beta-warmup is a share of the steps, above 0 and up to 1, not {beta_warmup:g}")
    if asked.get("beta") == 0 and asked.keys() & {"beta_warmup", "free_bits"}:
        raise UsageError("--beta 0 leaves out the KL: --beta-warmup and --free-bits need one")
    _check_share(asked.get("val"))
    _check_objective(asked["objective"], asked)
    if asked["likelihood"] == "bernoulli" and "sigma" in asked:
        raise UsageError("--sigma belongs to the gaussian and laplace likelihoods; bernoulli has none")


def _check_share(val: str | None) -> None:
    from vaekit.training.holdout import share_of

    share = share_of(val)
    if share is not None and not 0 < share < 1:
        raise UsageError(f"--val {val} leaves no images to measure or to train on: give a share between 0 and 1")


def _check_objective(objective: ObjectiveName, asked: Collection[str]) -> None:
    """Raise UsageError for an option that the objective does not allow."""
    for name, objectives in _objectives().items():
        if name in asked and objective not in objectives:
            names = " or ".join(f"--objective {fitting}" for fitting in objectives)
            raise UsageError(f"{_option_name(name)} belongs to {names}, not to {objective}")


def _check_downscale(downscale: int | None, height: int, width: int) -> None:
    """Raise UsageError for a downscale that is no power of two, or does not divide the size."""
    if downscale is None:
        return
    if downscale.bit_count() != 1:
        raise UsageError(f"--downscale must be 2, 4, 8, 16 or 32, not {downscale}")
    if height % downscale or width % downscale:
        below, above = (
            "x".join(str(max(8, downscale, (side + more) // downscale * downscale)) for side in (height, width))
            for more in (0, downscale - 1)
        )
        raise UsageError(
            f"--downscale {downscale} does not divide {height}x{width}: resize the images with --size {above}"
            + (f" or {below}" if below != above else "")
        )


def _option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def loss_in_words(config: Config) -> str:
    """Describe the loss and the weights of its terms."""
    if config.objective == "prior-only":
        return "loss in nats per image: 1 x KL, and nothing else: the decoder stays as it is"
    error = _error_in_words(config.likelihood, config.sigma)
    if config.objective == "iwae":
        draws = f"-log of the mean of exp(-m) over {config.iwae_samples} draws of z"
        return f"loss in nats per image: {draws}, m = {error} + 1 x (log q(z|x) - log p(z))"
    parts = [f"loss in nats per image: {error} + {config.beta:g} x KL"]
    if config.beta_warmup:
        whole = "steps" if config.max_minutes is None and config.schedule is None else "time"
        parts.append(f"the KL's weight rises from 0 over the first {config.beta_warmup:.0%} of the {whole}")
    if config.free_bits:
        parts.append(f"each dimension's KL counts at least {config.free_bits:g} nats")
    if config.mc_samples > 1:
        parts.append(f"averaged over {config.mc_samples} draws of z")
    return "; ".join(parts)


def _error_in_words(likelihood: PixelLikelihood, sigma: float | None) -> str:
    if likelihood == "bernoulli":
        return "cross-entropy"
    laplace = likelihood == "laplace"
    formula, error = ("sqrt(2)/sigma", "absolute error") if laplace else ("1/(2 sigma^2)", "squared error")

    def weight(at: float) -> str:
        return f"{2**0.5 / at if laplace else 0.5 / at**2:g}"

    if sigma is None:
        return f"{formula} x {error} (sigma: each batch's best; at 0.1 the weight is {weight(0.1)})"
    return f"{weight(sigma)} x {error} ({formula}, sigma {sigma:g})"


def _describe(split: Split, config: Config, say: Callable[[str], None]) -> None:
    """Print the number and kind of images, and what was changed."""
    held_out = f"{len(split.holdout):,} held out"
    if split.has_own_validation:
        held_out = f"{len(split.holdout):,} of {split.measured.name} to measure"
    training = f"{len(split.training):,} to train on"
    say(f"{_statistics(split.images)}; {training}, {held_out}; training on {config.device}")
    _describe_changes(split.images, say)
    if split.has_own_validation:
        say(_statistics(split.measured))
        _describe_changes(split.measured, say)
    _describe_small_classes(split, say)


def _describe_small_classes(split: Split, say: Callable[[str], None]) -> None:
    """Name the classes that cannot be drawn, if others can."""
    from vaekit.training.classes import FEWEST_IMAGES, classes_of

    classes = classes_of(split)
    if classes is not None and (small := classes.too_small):
        more = f" and {len(small) - _NAMED_FILES:,} more" if len(small) > _NAMED_FILES else ""
        say(
            f"classes with fewer than {FEWEST_IMAGES} images to train on cannot be drawn by --label: "
            f"{', '.join(small[:_NAMED_FILES])}{more}"
        )


def _statistics(images: Images) -> str:
    channels, height, width = images.shape
    colours = "grey" if channels == 1 else "RGB"
    count = images.class_count
    classes = f", {count:,} class{'es' * (count > 1)}" if count else ""
    where = "in memory" if images.in_memory else "read while training, as they do not fit in memory"
    return f"{images.name}: {len(images):,} images, {height} x {width} {colours}{classes}, {where}"


def _describe_changes(images: Images, say: Callable[[str], None]) -> None:
    _, height, width = images.shape
    if images.left_out:
        say(images.left_out)
    if images.made_rgb:
        say(f"{images.made_rgb:,} grey images are read as RGB, because others are in colour")
    if images.resized_from:
        say(f"images of {images.resized_from} are resized to cover {height} x {width} and centre-cropped")
    if images.skipped:
        say(f"skipped {len(images.skipped)} files that cannot be read:")
        for line in images.skipped[:_NAMED_FILES]:
            say(f"  {line}")
        if len(images.skipped) > _NAMED_FILES:
            say(f"  and {len(images.skipped) - _NAMED_FILES} more")


def _show(now: Progress, bar: Advance) -> None:
    text = f"ELBO {now.elbo:.1f} (reconstruction {now.reconstruction:.1f}, KL {now.kl:.1f}) nats"
    bar(now.step, now.total, text)


def _summarise(outcome: Outcome, run: Path, say: Callable[[str], None], *, ends: bool) -> None:
    sigma = (
        "" if outcome.sigma is None else f"; sigma {outcome.sigma:.4f}: 1/(2 sigma^2) = {0.5 / outcome.sigma**2:.4g}"
    )
    samples = outcome.config.iwae_samples
    bound = "" if samples is None else f", IWAE bound of {samples} draws {outcome.objective:.1f}"
    prior = (
        f"mixture of {outcome.components} Gaussians" if outcome.components else "N(0, I): too few images for a mixture"
    )
    if outcome.config.prior == "none":
        prior = "N(0, I)"
    elif outcome.config.downscale is not None:
        prior = "N(0, I): no mixture is fitted to maps"
    stopped = "stopped early, " if outcome.interrupted else ""
    say(
        f"{run}: {stopped}{outcome.steps} steps; held out: ELBO {outcome.elbo:.1f} = reconstruction "
        f"{outcome.reconstruction:.1f} - KL {outcome.kl:.1f} nats per image{bound}{sigma}; prior: {prior}"
    )
    if outcome.interrupted:
        say(f"resume it with: vaekit train --resume {shlex.quote(str(run))}")
    if ends:
        say(f"next: {command_line('vaekit export', ('', run, DEFAULT_RUN))}")
