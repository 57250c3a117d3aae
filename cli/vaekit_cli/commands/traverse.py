"""`vaekit traverse`: show the effect of each latent dimension."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import UsageError
from vaekit_cli.bundle_options import Runtime, graphs_of_samples, runs_a_bundle, say_where
from vaekit_cli.console import command_line, print_document, speaker
from vaekit_cli.image_input import NoResizeOption
from vaekit_cli.options import JsonOption, QuietOption, SeedOption, chosen_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vaekit.types import Array, Pixels
    from vaekit.vae import VAE


@dataclass(frozen=True)
class Traversed:
    """The result of ``traverse``."""

    output: str
    dimensions: list[int]
    """In the order of their rows; none with labels."""
    labels: list[str]
    """In the order of their rows."""
    steps: int
    provider: str
    model: str


@runs_a_bundle
def traverse(
    runtime: Runtime,
    image: Annotated[
        Path | None, typer.Argument(help="A picture to start from.", show_default="sample 0 of --seed")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture: .png, .jpg or .webp.")] = Path(
        "traverse.png"
    ),
    dimensions: Annotated[
        int | None,
        typer.Option("-n", "--dimensions", min=1, help="Number of dimensions, most active first.", show_default="all"),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Images per row.")] = 9,
    span: Annotated[float, typer.Option(help="Range on each side of the centre, in standard deviations.")] = 2.5,
    toward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Move IMAGE towards this label, or along a known factor, instead; repeat it, or give all.",
            show_default="each dimension",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How far --toward goes: at 1, the label's mean has taken the place of the image's own label's. "
            "Factors move by this many standard deviations or periods.",
            show_default="1",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="ROW,COL", help="Shift a map at this position only.", show_default="all positions"),
    ] = None,
    seed: SeedOption = 0,
    no_resize: NoResizeOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Vary each latent dimension in turn, in a row of images. The most active dimension comes first.

    If the latent is a map, each row shows one channel, shifted at all positions at once or at one of them. With
    --toward, each row moves the image towards a label instead.
    """
    from vaekit.output.grid import FORMATS, check_size, save_picture
    from vaekit.system.files import check_file_target

    say = speaker(quiet or as_json)
    check_file_target(output, FORMATS)
    place = None if at is None else _position(at)
    if toward and (image is None or dimensions is not None or at is not None):
        raise UsageError("--toward moves an IMAGE, and has no --dimensions and no --at")
    if strength is not None and not toward:
        raise UsageError("--strength belongs to --toward; --span is the range of the dimensions")
    vae = runtime.load([] if image is None else [str(image)])
    if toward and image is not None:
        start, share = _read(vae, image, no_resize), 1.0 if strength is None else strength
        _move(runtime, vae, image, start, toward, steps, share, output, say, as_json=as_json)
        return
    if dimensions is not None and dimensions > len(vae.dimensions):
        raise UsageError(f"--dimensions {dimensions} is too many: the latent has {len(vae.dimensions)}")
    chosen = vae.dimensions[:dimensions]
    check_size(len(chosen) * steps, steps, vae.image_shape[1:], "use fewer --steps or --dimensions")
    base = None if image is None else _read(vae, image, no_resize)
    images = vae.traverse(base, dimensions=chosen, steps=steps, span=span, seed=seed, latents=False, at=place)
    provider = say_where(vae, say, *(graphs_of_samples(vae) if base is None else ("decoder",)))
    save_picture(_picture(vae, images, chosen, span), output)
    if as_json:
        print_document(Traversed(str(output), list(chosen), [], steps, provider, str(runtime.model)))
        return
    parts, middle = ("channels", "its original value") if vae.manifest.latent.is_map else ("dimensions", "its mean")
    say(
        f"{output}: {len(chosen)} of {len(vae.dimensions)} {parts}, most active first, each up to {span:g} standard "
        f"deviations to either side of {middle}, on {provider}"
    )
    following = ("--from-seed", 0, None), ("--to-seed", 1, None), *runtime.again
    say(f"next: {command_line('vaekit interpolate', *following)}")


def _move(
    runtime: Runtime,
    vae: VAE,
    image: Path,
    base: Array,
    toward: list[str],
    steps: int,
    strength: float,
    output: Path,
    say: Callable[[str], None],
    *,
    as_json: bool,
) -> None:
    """Write the picture of an image (C, H, W) that moves towards labels."""
    from vaekit.output.grid import check_size, save_picture

    labels = chosen_names(toward, vae.attributes.names)
    check_size(len(labels) * steps, steps, vae.image_shape[1:], "use fewer --steps or labels")
    moved = vae.toward(base, labels, steps=steps, strength=strength, latents=False)
    provider = say_where(vae, say, "encoder", "decoder")
    save_picture(_picture_of_labels(vae, moved, labels, strength), output)
    if as_json:
        print_document(Traversed(str(output), [], list(labels), steps, provider, str(runtime.model)))
        return
    say(f"{output}: {image} moved towards {', '.join(labels)} in {steps} steps, up to {strength:g}, on {provider}")
    following = (("--label", labels[0], None), *runtime.again) if labels[0] in vae.labels else runtime.again
    say(f"next: {command_line('vaekit sample', *following)}")


def _position(text: str) -> tuple[int, int]:
    """Parse a row and a column. Raises UsageError for anything else."""
    row, comma, column = (part.strip() for part in text.partition(","))
    if not (comma and row.isdecimal() and column.isdecimal()):
        raise UsageError(f"--at {text} is not a position: give ROW,COL, such as 0,3")
    return int(row), int(column)


def _read(vae: VAE, image: Path, no_resize: bool) -> Array:
    """Read a picture, (C, H, W) in [0, 1]."""
    import numpy as np

    from vaekit.images.picture import read_image

    channels, *size = vae.image_shape
    return np.asarray(read_image(image, channels, (size[0], size[1]), resize=not no_resize) / np.float32(255))


def _picture_of_labels(vae: VAE, images: Array, labels: Sequence[str], strength: float) -> Pixels:
    """Arrange images (labels, steps, C, H, W) in rows, with titles for rows and columns."""
    import numpy as np

    from vaekit.output.grid import grid

    steps = images.shape[1]
    return grid(
        images.reshape(-1, *vae.image_shape),
        steps,
        row_titles=labels,
        column_titles=[f"{share:+.2g}" if share else "original" for share in np.linspace(0, strength, steps)],
    )


def _picture(vae: VAE, images: Array, dimensions: Sequence[int], span: float) -> Pixels:
    """Arrange images (dimensions, steps, C, H, W) in rows, with titles for rows and columns."""
    import numpy as np

    from vaekit.output.grid import grid

    latent, steps = vae.manifest.latent, images.shape[1]
    return grid(
        images.reshape(-1, *vae.image_shape),
        steps,
        row_titles=[f"z{j}: {latent.kl[j]:.1f} nats" if latent.kl else f"z{j}" for j in dimensions],
        column_titles=[_column(offset, latent.is_map) for offset in np.linspace(-span, span, steps)],
    )


def _column(offset: float, is_map: bool) -> str:
    return f"{offset:+.1f} sd" if offset else "original" if is_map else "mean"
