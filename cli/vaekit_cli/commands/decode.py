"""`vaekit decode`: decode latents to images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import SourceError
from vaekit_cli.bundle_options import Runtime, runs_a_bundle, say_where
from vaekit_cli.console import command_line, print_document, progress_bar, speaker
from vaekit_cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaekit.images.arrays import RowFile
    from vaekit.output.latents import ParquetRows
    from vaekit.vae import VAE


@dataclass(frozen=True)
class Decoded:
    """The result of ``decode``."""

    output: str
    count: int
    provider: str
    model: str


@runs_a_bundle
def decode(
    runtime: Runtime,
    latents: Annotated[Path, typer.Argument(help="Latents z or mu: .npz, .npy or .parquet.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="One picture (.png, .jpg, .webp), or a folder for one PNG per row.")
    ] = Path("decoded.png"),
    columns: Annotated[
        int | None, typer.Option(min=1, help="Columns of the grid.", show_default="a square grid")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Decode latents to a grid, or to one PNG file per row."""
    from vaekit.output.latents import open_latents
    from vaekit_cli.output import check_pictures_target, write_pictures

    say = speaker(quiet or as_json)
    vae = runtime.load(spinning=False)
    rows = open_latents(latents, vae.latent_shape)
    check_pictures_target(output, len(rows), columns, vae.image_shape)
    provider = say_where(vae, say, "decoder")
    with progress_bar("decoding", len(rows), quiet or as_json) as progress:
        write_pictures(_decoded(vae, rows), len(rows), output, columns, progress)
    if as_json:
        print_document(Decoded(str(output), len(rows), provider, str(runtime.model)))
        return
    say(f"{output}: {len(rows):,} images decoded from {latents} on {provider}")
    say(f"next: {command_line('vaekit traverse', *runtime.again)}")


def _decoded(vae: VAE, rows: RowFile | ParquetRows) -> Iterator[NDArray[np.float32]]:
    import numpy as np

    from vaekit.images.parts import chunk_images

    first = 0
    for part in rows.chunks(chunk_images(vae.image_shape)):
        with np.errstate(over="ignore"):  # overflow gives infinity, which is reported
            bad = ~np.isfinite(part.astype(np.float32)).reshape(len(part), -1).all(axis=1)
        if bad.any():
            raise SourceError(
                f"{rows.path} contains NaN or infinity in row {first + int(np.argmax(bad))}: nothing was written"
            )
        yield vae.decode(part)
        first += len(part)
