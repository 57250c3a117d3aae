"""`vaekit sample`: images from the prior, in one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vaekit_cli.console import command_line, speaker
from vaekit_cli.options import (
    DEFAULT_MODEL,
    BatchSizeOption,
    JsonOption,
    ModelOption,
    ProviderOption,
    QuietOption,
    SeedOption,
    ThreadsOption,
)


def sample(
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many images.")] = 64,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture: .png, .jpg or .webp.")] = Path(
        "grid.png"
    ),
    model: ModelOption = DEFAULT_MODEL,
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="mixture|normal",
            help="mixture, fitted to the encoded training images, or normal, N(0, I).",
            show_default="mixture where the bundle has one",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Scales standard deviations.")] = 1.0,
    columns: Annotated[int | None, typer.Option(min=1, help="Images in a row.", show_default="a square grid")] = None,
    seed: SeedOption = 0,
    provider: ProviderOption = "auto",
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 64,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw images from the prior into one grid."""
    from vaekit.pictures import check_picture_path, grid, save_picture
    from vaekit.runtime import load

    check_picture_path(output)
    vae = load(model, provider=provider, threads=threads, batch_size=batch_size)
    prior = prior or vae.priors[0]
    images = vae.sample(count, seed=seed, prior=prior, temperature=temperature)
    save_picture(grid(images, columns), output)
    if as_json:
        print(json.dumps({"output": str(output), "count": count, "seed": seed, "prior": prior, "model": str(model)}))
        return
    say = speaker(quiet)
    say(f"{output}: {count} images from the {prior} prior of {model}, seed {seed}")
    again = (("-m", model, DEFAULT_MODEL), ("-n", count, None), ("-o", output, None), ("--seed", seed + 1, None))
    say(f"next: {command_line('vaekit sample', *again)}")
