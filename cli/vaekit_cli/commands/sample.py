"""`vaekit sample`: images from the prior, in one picture or one file each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit_cli.bundle_options import Runtime, graphs_of_samples, runs_a_bundle, say_where
from vaekit_cli.console import command_line, print_document, progress_bar, speaker
from vaekit_cli.options import JsonOption, PriorOption, QuietOption, SeedOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaekit.vae import VAE

_CHUNK = 256  # images drawn and decoded at a time
_MAPS = "these latents are maps, and N(0, I) does not know which neighbours go together: expect textures, not pictures"


@dataclass(frozen=True)
class Sampled:
    """The result of ``sample``."""

    output: str
    count: int
    seed: int
    prior: str
    provider: str
    model: str


@runs_a_bundle
def sample(
    runtime: Runtime,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of images.")] = 64,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="One picture (.png, .jpg, .webp), or a folder for one PNG per image.")
    ] = Path("grid.png"),
    prior: PriorOption = None,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Factor for the prior's standard deviations, or the flow's noise; below 1 gives more typical images.",
        ),
    ] = 1.0,
    prior_steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Steps in which the flow is integrated.", show_default="the bundle's"),
    ] = None,
    columns: Annotated[
        int | None, typer.Option(min=1, help="Columns of the grid.", show_default="a square grid")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw images from the prior as a grid, or as one PNG file each."""
    from vaekit_cli.output import check_pictures_target, is_folder, write_pictures

    say = speaker(quiet or as_json)
    vae = runtime.load()
    check_pictures_target(output, count, columns, vae.image_shape)
    prior = prior or vae.priors[0]
    if len(vae.latent_shape) > 1 and prior == "normal":
        say(_MAPS)
    batches = _samples(vae, count, seed, prior, temperature, prior_steps)
    with progress_bar("sampling", count, quiet or as_json) as progress:
        write_pictures(batches, count, output, columns, progress)
    provider = say_where(vae, say, *graphs_of_samples(vae, prior))
    if as_json:
        print_document(Sampled(str(output), count, seed, prior, provider, str(runtime.model)))
        return
    say(f"{output}: {count} images from the {prior} prior of {runtime.model}, seed {seed}, on {provider}")
    if is_folder(output):
        say(f"next: {command_line('vaekit encode', ('', output, None), *runtime.again)}")
        return
    again = (
        *runtime.again,
        ("-n", count, None),
        ("-o", output, None),
        ("--seed", seed + 1, None),
    )
    say(f"next: {command_line('vaekit sample', *again)}")


def _samples(
    vae: VAE, count: int, seed: int, prior: str, temperature: float, prior_steps: int | None
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, count, _CHUNK):
        n = min(_CHUNK, count - start)
        z = vae.sample_latents(n, seed=seed, prior=prior, temperature=temperature, start=start, prior_steps=prior_steps)
        yield vae.decode(z)
