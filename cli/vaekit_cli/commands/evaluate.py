"""`vaekit evaluate`: measure a trained model, in nats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import SourceError, UsageError
from vaekit.training import check_extra
from vaekit.training.config import Binarize
from vaekit_cli.anomalies import AnomalyRequest, evaluate_anomalies
from vaekit_cli.commands.train import DEFAULT_RUN
from vaekit_cli.console import command_line, progress_bar, speaker
from vaekit_cli.options import JsonOption, QuietOption, parse_size
from vaekit_cli.scoring import MapBy, ScoreBy
from vaekit_cli.training_options import SOURCE_HELP, DeviceOption, read_source

if TYPE_CHECKING:
    from vaekit.training.config import Config
    from vaekit.training.evaluation import Evaluation, Read
    from vaekit.training.run import Run


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="The run that `vaekit train` wrote; with --anomalies, a bundle.")
    ] = DEFAULT_RUN,
    source: Annotated[
        str | None,
        typer.Argument(help=SOURCE_HELP, show_default="the test part of fashion-mnist and mnist, else held-out images"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use at most N images, evenly spaced.", show_default="all")
    ] = None,
    iwae_samples: Annotated[int, typer.Option(min=1, metavar="K", help="Draws of z per image.")] = 50,
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Resize SOURCE's images.", show_default="their own size")
    ] = None,
    binarize: Annotated[
        Binarize | None,
        typer.Option(
            help="Binarise pixels: fixed is always the same, dynamic depends on --seed.", show_default="as in training"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Seed of the draws.")] = 0,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images that the network processes at a time.")] = 250,
    anomalies: Annotated[
        bool,
        typer.Option(
            "--anomalies", help="Measure how well a bundle finds defects in SOURCE's folders. Needs no PyTorch."
        ),
    ] = False,
    normal: Annotated[
        str, typer.Option(metavar="NAME", help="The folder of good pictures, with --anomalies.")
    ] = "good",
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Masks of the defects, KIND/NAME_mask.png or KIND/NAME.png, with --anomalies.",
            show_default="ground_truth beside SOURCE",
        ),
    ] = None,
    worst: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the worst misses and false alarms there, with --anomalies."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Plot ROC curves and histograms of scores there, with --anomalies; extra plot."
        ),
    ] = None,
    score_by: Annotated[
        ScoreBy, typer.Option(help="The score that --worst and --plot draw, as in vaekit score.")
    ] = ScoreBy.MAP,
    map_by: Annotated[
        MapBy | None, typer.Option(help="What maps compare with, as in vaekit score.", show_default="as there")
    ] = None,
    provider: Annotated[
        str, typer.Option(envvar="VAEKIT_PROVIDER", metavar="NAME", help="The provider, with --anomalies.")
    ] = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a run's ELBO, likelihood and latent dimensions on new images, or how well a bundle finds defects."""
    from vaekit.bundle.reading import is_bundle

    image_size = parse_size(size)
    if anomalies:
        if source is None:
            raise UsageError("--anomalies needs SOURCE, with a folder of pictures for each kind, such as good")
        if limit is not None or binarize is not None:
            raise UsageError("--limit and --binarize do not apply to --anomalies: it measures every image as it is")
        if not (run.suffix == ".zip" or is_bundle(run)):
            raise UsageError(
                f"--anomalies measures a bundle, not {run}: {command_line('vaekit export', ('', run, None))}"
            )
        request = AnomalyRequest(
            run,
            source,
            normal,
            masks,
            image_size,
            provider,
            seed,
            None if map_by is None else map_by.value,
            score_by.value,
            worst,
            plot,
        )
        evaluate_anomalies(request, as_json=as_json, quiet=quiet)
        return
    if masks is not None or worst is not None or plot is not None or map_by is not None:
        raise UsageError("--masks, --map-by, --worst and --plot only apply to --anomalies")
    if is_bundle(run):
        raise UsageError(f"{run} is a bundle: name the run it was exported from, or add --anomalies to find defects")
    check_extra()

    from vaekit.training.device import choose_device
    from vaekit.training.evaluation import evaluate as measure
    from vaekit.training.holdout import spread
    from vaekit.training.run import load_run

    silent = quiet or as_json
    say = speaker(silent)
    trained = load_run(run)
    chosen_device = choose_device(device)
    name, count, read = _open_images(trained, source, image_size, silent)
    mode = trained.config.binarize if binarize is None else binarize
    indices = spread(count, limit)
    say(f"{run} on {name}: {len(indices):,} images, {iwae_samples} draws of z each, on {chosen_device}")
    with progress_bar("evaluating", None, silent) as progress:
        figures = measure(
            trained,
            _binarised(read, mode, seed),
            indices,
            samples=iwae_samples,
            seed=seed,
            device=chosen_device,
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        print(json.dumps(figures.to_json(), allow_nan=False))
        return
    for label, value in _rows(figures):
        print(f"{label:<14} {value}")
    for warning in _warnings(figures, trained.config):
        say(f"warning: {warning}")
    say(f"next: {command_line('vaekit export', ('', run, DEFAULT_RUN))}")


def _open_images(run: Run, source: str | None, size: tuple[int, int] | None, quiet: bool) -> tuple[str, int, Read]:
    """Open the images to measure: their name, number and reader.

    Raises SourceError if they do not fit the run.
    """
    from vaekit.images.source import find_test_part
    from vaekit.training.run import load_holdout

    config = run.config
    if source is None:
        test_part = find_test_part(config.source)
        if test_part is None:
            held_out = load_holdout(run)
            return "its held-out images", len(held_out), held_out.__getitem__
        test_images = read_source(test_part, (config.height, config.width), quiet, crop=config.crop)
        return f"the test part of {config.source}", len(test_images), test_images.read
    own_size = (config.height, config.width)
    images = read_source(source, size or (own_size if config.crop else None), quiet, crop=config.crop)
    _check_fit(source, images.shape, run)
    return source, len(images), images.read


def _check_fit(source: str, shape: tuple[int, int, int], run: Run) -> None:
    wanted = run.config.image_shape
    if shape == wanted:
        return
    colours = "grey" if wanted[0] == 1 else "RGB"
    mend = f"convert them to {colours}" if shape[0] != wanted[0] else f"--size {wanted[1]}x{wanted[2]} resizes them"
    raise SourceError(
        f"{source} has {_in_words(shape)} images, but {run.path} was trained on {_in_words(wanted)} ones: {mend}"
    )


def _in_words(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} x {shape[2]} {'grey' if shape[0] == 1 else 'RGB'}"


def _binarised(read: Read, mode: Binarize, seed: int) -> Read:
    import numpy as np

    from vaekit.training.binarise import binarise_dynamic, binarise_fixed

    if mode == "fixed":
        return lambda indices: binarise_fixed(read(indices), indices)
    if mode == "dynamic":
        generator = np.random.default_rng(seed)
        return lambda indices: binarise_dynamic(read(indices), generator)
    return read


def _rows(figures: Evaluation) -> list[tuple[str, str]]:
    from vaekit.training.evaluation import ACTIVE_VARIANCE

    units = len(figures.kl_per_dimension)
    named = "" if figures.aggregate_kl is not None else " channels"
    active = "unknown for one image" if figures.active_units is None else f"{figures.active_units} of {units}{named}"
    bits = figures.bits_per_dimension
    per_pixel = "none: Bernoulli" if bits is None else f"{bits:.3f} bits, if the density is constant within a 256th"
    aggregate = []
    if figures.aggregate_kl is not None:
        told = f"{figures.aggregate_kl:.2f} or more of the KL separates all codes together from N(0, I)"
        aggregate = [("aggregate KL", told)]
    return [
        ("images", f"{figures.images:,}; the results are means over them, in nats per image"),
        ("ELBO", f"{figures.elbo:.2f} = reconstruction {figures.reconstruction:.2f} - KL {figures.kl:.2f}"),
        ("NLL", f"{figures.nll:.2f}, -log p(x) by {figures.nll_samples} importance samples per image"),
        ("each number", per_pixel),
        ("active units", f"{active} (the mean of q(z_j|x) has a variance over images above {ACTIVE_VARIANCE:g})"),
        ("KL of each", " ".join(f"{kl:.2f}" for kl in figures.kl_per_dimension)),
        *aggregate,
        ("at z = mu", f"PSNR {figures.psnr:.2f} dB, MSE {figures.mse:.3g} per pixel"),
        ("sigma", "none: Bernoulli" if figures.sigma is None else f"{figures.sigma:.4f}"),
    ]


def _warnings(figures: Evaluation, config: Config) -> Iterator[str]:
    if config.likelihood == "bernoulli" and not figures.binary:
        yield (
            "the Bernoulli likelihood has no density for grey pixels: ELBO and NLL are cross-entropies and cannot be "
            "compared with published values of log p(x). --binarize fixed or dynamic makes pixels 0 or 1"
        )
    if figures.active_units == 0:
        yield (
            "the posterior has collapsed: no latent dimension depends on the image, and the decoder always draws the "
            "same mean image. Train with --sigma optimal, a lower --beta, --beta-warmup 0.3 or --free-bits 0.1"
        )
    elif figures.active_units is not None and figures.dead:
        yield (
            f"{len(figures.dead)} of {config.latent} latent dimensions are dead (from 0: "
            f"{', '.join(map(str, figures.dead))}): they do not depend on the image. A smaller --latent may be enough; "
            "--beta-warmup 0.3 or --free-bits 0.1 may activate them"
        )
