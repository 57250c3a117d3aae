"""`vaekit interpolate`: draw the path between two images through the latent space."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import UsageError
from vaekit_cli.bundle_options import Runtime, graphs_of_samples, runs_a_bundle, say_where
from vaekit_cli.console import command_line, print_document, speaker
from vaekit_cli.image_input import NoResizeOption
from vaekit_cli.options import JsonOption, PriorOption, QuietOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaekit.vae import VAE

_WIDEST = 16  # images in one row of a strip
_SEED = typer.Option(
    min=0, max=2**64 - 1, help="Use sample 0 of this seed instead of a picture; needs the other seed too."
)


class Mode(StrEnum):
    """The kind of interpolation."""

    LINEAR = "linear"
    SLERP = "slerp"


@dataclass(frozen=True)
class Interpolated:
    """The result of ``interpolate``."""

    output: str
    steps: int
    mode: str
    provider: str
    model: str


@runs_a_bundle
def interpolate(
    runtime: Runtime,
    ends: Annotated[list[Path] | None, typer.Argument(metavar="A B", help="Two pictures.", show_default=False)] = None,
    from_seed: Annotated[int | None, _SEED] = None,
    to_seed: Annotated[int | None, _SEED] = None,
    steps: Annotated[int, typer.Option(min=2, help="Number of images, including both ends.")] = 8,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A strip (.png, .jpg, .webp), or a .gif that loops.")
    ] = Path("strip.png"),
    mode: Annotated[
        Mode, typer.Option(help="linear: a straight line between the latents; slerp: along a great circle.")
    ] = (Mode.LINEAR),
    prior: PriorOption = None,
    no_resize: NoResizeOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Decode latents between two images, or between the samples of two seeds."""
    from vaekit.output.grid import ANIMATIONS, FORMATS, check_size, save_animation, save_picture
    from vaekit.system.files import check_file_target
    from vaekit.types import GRAPHS

    say = speaker(quiet or as_json)
    pictures = _check_ends(ends or [], from_seed, to_seed, prior, no_resize)
    check_file_target(output, (*FORMATS, *ANIMATIONS))
    vae = runtime.load([str(path) for path in pictures])
    check_size(steps + len(pictures), _WIDEST, vae.image_shape[1:], "use fewer --steps")
    originals = _read(vae, pictures, no_resize)
    if pictures:
        a, b = vae.encode(originals)[0]
    else:
        a, b = (vae.sample_latents(1, seed=seed or 0, prior=prior)[0] for seed in (from_seed, to_seed))
    images = vae.interpolate(a, b, steps, mode=mode.value, latents=True)
    provider = say_where(vae, say, *(GRAPHS if pictures else graphs_of_samples(vae, prior)))
    if output.suffix.lower() in ANIMATIONS:
        save_animation(images, output)
    else:
        save_picture(_strip(images, originals), output)
    if as_json:
        print_document(Interpolated(str(output), steps, mode.value, provider, str(runtime.model)))
        return
    between = " and ".join(map(str, pictures)) if pictures else f"the samples of seeds {from_seed} and {to_seed}"
    say(f"{output}: {steps} images between {between}, {mode.value}, on {provider}")
    say(f"next: {_animate(runtime, pictures, from_seed, to_seed, mode, prior)}")


def _check_ends(
    ends: list[Path], from_seed: int | None, to_seed: int | None, prior: str | None, no_resize: bool
) -> list[Path]:
    seeds = sum(seed is not None for seed in (from_seed, to_seed))
    if (len(ends), seeds) not in ((2, 0), (0, 2)):
        raise UsageError("give two pictures, or --from-seed and --to-seed, to interpolate between")
    if ends and prior is not None:
        raise UsageError("--prior only applies to seeds: pictures are encoded, not drawn from a prior")
    if seeds and no_resize:
        raise UsageError("--no-resize only applies to pictures: seeds have no size")
    return ends


def _read(vae: VAE, pictures: list[Path], no_resize: bool) -> NDArray[np.float32]:
    """Read the two pictures as (2, C, H, W) in [0, 1], or none as (0, C, H, W)."""
    import numpy as np

    from vaekit.images.picture import read_image

    channels, height, width = vae.image_shape
    pixels = [read_image(path, channels, (height, width), resize=not no_resize) for path in pictures]
    return np.array(pixels, np.float32).reshape(-1, *vae.image_shape) / np.float32(255)


def _strip(images: NDArray[np.float32], originals: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Arrange the images in a row, between the originals if there are any.

    The caption of each image is its position from 0 to 1.
    """
    import numpy as np

    from vaekit.output.grid import grid

    shares = [f"{share:.2f}" for share in np.linspace(0, 1, len(images))]
    if len(originals):
        images = np.concatenate((originals[:1], images, originals[1:]))
        shares = ["A", *shares, "B"]
    return grid(images, min(_WIDEST, len(images)), captions=shares)


def _animate(
    runtime: Runtime, pictures: list[Path], from_seed: int | None, to_seed: int | None, mode: Mode, prior: str | None
) -> str:
    named = (("", path, None) for path in pictures)
    seeds = (("--from-seed", from_seed, None), ("--to-seed", to_seed, None))
    return command_line(
        "vaekit interpolate",
        *named,
        *seeds,
        ("--mode", mode.value, Mode.LINEAR.value),
        ("--prior", prior, None),
        ("--steps", 32, None),
        ("-o", "way.gif", None),
        *runtime.again,
    )
