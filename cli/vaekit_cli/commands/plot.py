"""`vaekit plot`: plot the latent space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import SourceError, UsageError
from vaekit_cli.bundle_options import Runtime, runs_a_bundle, say_where
from vaekit_cli.console import command_line, print_document, progress_bar, speaker
from vaekit_cli.image_input import (
    FromFileOption,
    ImagesArgument,
    NoResizeOption,
    SkipErrorsOption,
    Unreadable,
    open_stream,
)
from vaekit_cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from vaekit.images.stream import ImageStream
    from vaekit.output.plots import Projection
    from vaekit.vae import VAE

_INCHES = 6.0
_CHANNEL_MEANS = "channel means of mu"


@dataclass(frozen=True)
class Plotted:
    """The result of ``plot``."""

    output: str
    images: int
    classes: int
    axes: list[str]
    """The axes' labels."""
    failures: int
    """The number of images that could not be read."""
    provider: str
    model: str


@runs_a_bundle
def plot(
    runtime: Runtime,
    images: ImagesArgument = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The plot: .png, .pdf, .svg, .jpg or .webp.")] = Path(
        "latent.png"
    ),
    limit: Annotated[int, typer.Option(min=1, help="Draw at most this many images, evenly spaced.")] = 5000,
    reach: Annotated[
        float, typer.Option(help="With two latent dimensions: extent of the decoded plane, from -REACH to REACH.")
    ] = 3.0,
    from_file: FromFileOption = None,
    no_resize: NoResizeOption = False,
    skip_errors: SkipErrorsOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw mu of each image, coloured by label. Labels are subfolders, or an array's own labels.

    A latent with two dimensions is drawn directly, beside its decoded plane. A latent with more dimensions is projected
    to its first two principal components. For a latent map, the means of its channels are drawn.
    """
    from vaekit.output.plots import FORMATS, new_figure, project, save_figure
    from vaekit.system.files import check_file_target

    if not 0 < reach < float("inf"):
        raise UsageError(f"--reach must be positive, not {reach:g}")
    say = speaker(quiet or as_json)
    check_file_target(output, FORMATS)
    new_figure(1, 1)  # fails now, before any work, if matplotlib is missing
    vae = runtime.load(images or (), spinning=False)
    with open_stream(images, from_file, vae.image_shape, say, no_resize=no_resize) as stream:
        total = len(stream)
        unreadable = Unreadable(say)
        with progress_bar("encoding", min(limit, total), quiet or as_json) as progress:
            mu, labels = _encoded(vae, stream, limit, unreadable, progress)
    if not len(mu):
        raise SourceError(f"none of the {total:,} images could be read; the first: {unreadable.first}")
    provider = say_where(vae, say, "encoder")
    what = _CHANNEL_MEANS if vae.manifest.latent.is_map else "mu"
    projection = project(mu, what)
    if not save_figure(_drawn(vae, projection, labels, reach), output):
        say("the font lacks some characters of the class names: they are drawn as boxes")
    classes = len(set(labels or ()) - {""})
    done = f"{output} shows {len(mu):,} images"
    if as_json:
        axes, model = list(projection.names), str(runtime.model)
        print_document(Plotted(str(output), len(mu), classes, axes, unreadable.count, provider, model))
    else:
        several = len(set(labels or ())) > 1  # unlabelled images have a colour of their own
        coloured = f"{classes:,} class{'es' * (classes > 1)}" if several else "no classes, so in one colour"
        say(f"{output}: {what} of {len(mu):,} images, {coloured}, on {' and '.join(projection.names)}; on {provider}")
        say(f"next: {command_line('vaekit traverse', *runtime.again)}")
    unreadable.end(total, done, skip_errors=skip_errors)


def _encoded(
    vae: VAE, stream: ImageStream, limit: int, unreadable: Unreadable, progress: Callable[[int], None]
) -> tuple[NDArray[np.float32], list[str] | None]:
    """Encode up to ``limit`` images, evenly spaced, to mu (n, d).

    A map (c, h, w) is reduced to its channels' means, (n, c). Also returns the labels, or None unless all images have
    one.
    """
    import numpy as np

    parts, labels, missing = [np.empty((0, vae.latent_shape[0]), np.float32)], list[str](), False
    done = 0
    for chunk in stream.chunks(every=-(-len(stream) // limit)):
        unreadable.note(chunk)
        mu, _ = vae.encode(chunk.images)
        parts.append(mu.mean(axis=(2, 3)) if vae.manifest.latent.is_map else mu)
        labels += chunk.labels or ()
        missing = missing or chunk.labels is None
        done += len(chunk.images)
        progress(done)
    return np.concatenate(parts), None if missing else labels


def _drawn(vae: VAE, projection: Projection, labels: list[str] | None, reach: float) -> Figure:
    from vaekit.output.plots import decoded_plane, legend, new_figure, scatter

    two = vae.latent_shape == (2,)
    figure = new_figure((2.3 if two else 1.35) * _INCHES, _INCHES)
    left, *right = figure.subplots(1, 2 if two else 1, squeeze=False)[0]
    scatter(left, projection, labels)
    legend(left)
    left.set_title(f"{len(projection.points):,} images")
    if right:
        decoded_plane(right[0], vae.decode, reach)
        right[0].set_title("decoded plane")
    return figure
