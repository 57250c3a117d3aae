"""`vaekit sample`: images from the prior, in one picture or one file each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import UsageError
from vaekit_cli.bundle_options import Runtime, graphs_of_samples, runs_a_bundle, say_where
from vaekit_cli.console import command_line, print_document, progress_bar, speaker
from vaekit_cli.options import JsonOption, PriorOption, QuietOption, SeedOption, chosen_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaekit.vae import VAE

_CHUNK = 256  # images drawn and decoded at a time
_COUNT, _PER_LABEL = 64, 8  # images, if -n does not say
_MAPS = "these latents are maps, and N(0, I) does not know which neighbours go together: expect textures, not pictures"


@dataclass(frozen=True)
class Sampled:
    """The result of ``sample``."""

    output: str
    count: int
    seed: int
    prior: str
    labels: list[str]
    """The classes that were asked for; empty for all as frequent as in training."""
    provider: str
    model: str


@runs_a_bundle
def sample(
    runtime: Runtime,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--count",
            min=1,
            help="Number of images of each label.",
            show_default="64; 8 if there are several labels",
        ),
    ] = None,
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
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="NAME",
            help="Draw images of this class. Repeat it, or give all, for a row or folder of each class.",
            show_default="classes as frequent as in training",
        ),
    ] = None,
    guidance: Annotated[
        float,
        typer.Option(help="With --label and the flow: above 1, images more typical of their class, and less varied."),
    ] = 1.0,
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
    chosen = chosen_names(labels or [], vae.labels)
    for label in chosen:
        vae.check_label(label)
    several = chosen if len(chosen) > 1 else ()
    if several and columns is not None:
        raise UsageError("several labels have a row each: leave out --columns, and set their number with -n")
    count = count or (_PER_LABEL if several else _COUNT)
    columns = count if several else columns
    check_pictures_target(output, count, columns, vae.image_shape, several)
    asked, prior = prior, prior or vae.priors[0]
    if len(vae.latent_shape) > 1 and prior == "normal":
        say(_MAPS)
    batches = (
        batch
        for label in chosen or (None,)
        for batch in _samples(vae, count, seed, prior, temperature, prior_steps, label, guidance)
    )
    total = count * max(1, len(chosen))
    with progress_bar("sampling", total, quiet or as_json) as progress:
        write_pictures(batches, count, output, columns, progress, several)
    provider = say_where(vae, say, *graphs_of_samples(vae, prior))
    if as_json:
        print_document(Sampled(str(output), total, seed, prior, list(chosen), provider, str(runtime.model)))
        return
    of_labels = f" of {', '.join(chosen)}" if chosen else ""
    say(f"{output}: {total} images{of_labels} from the {prior} prior of {runtime.model}, seed {seed}, on {provider}")
    if is_folder(output):
        say(f"next: {command_line('vaekit encode', ('', output, None), *runtime.again)}")
        return
    again = (
        *runtime.again,
        *(("--label", label, None) for label in labels or []),
        ("--prior", asked, None),
        ("--prior-steps", prior_steps, None),
        ("--temperature", temperature, 1.0),
        ("--guidance", guidance, 1.0),
        ("-n", count, None),
        ("-o", output, None),
        ("--seed", seed + 1, None),
    )
    say(f"next: {command_line('vaekit sample', *again)}")


def _samples(
    vae: VAE,
    count: int,
    seed: int,
    prior: str,
    temperature: float,
    prior_steps: int | None,
    label: str | None,
    guidance: float,
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, count, _CHUNK):
        n = min(_CHUNK, count - start)
        z = vae.sample_latents(
            n,
            seed=seed,
            prior=prior,
            temperature=temperature,
            start=start,
            prior_steps=prior_steps,
            label=label,
            guidance=guidance,
        )
        yield vae.decode(z)
