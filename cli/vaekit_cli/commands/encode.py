"""`vaekit encode`: encode images to latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import SourceError
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
    from vaekit.images.stream import ImageStream
    from vaekit.output.latents import Spill
    from vaekit.vae import VAE


@dataclass(frozen=True)
class Encoded:
    """The result of ``encode``."""

    output: str
    images: int
    failures: int
    """The number of images that could not be read."""
    provider: str
    model: str


@runs_a_bundle
def encode(
    runtime: Runtime,
    images: ImagesArgument = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The latents: .npz (mu, logvar, paths), .npy (mu) or .parquet.")
    ] = Path("latents.npz"),
    from_file: FromFileOption = None,
    no_resize: NoResizeOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted encode of the same images.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an interrupted encode and start again.")
    ] = False,
    skip_errors: SkipErrorsOption = False,
    attributes: Annotated[
        bool, typer.Option("--attributes", help="Also write how likely each label is, and known factors, read from mu.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode any number of images to mu and logvar of q(z|x).

    A deterministic encoder gives only mu.
    """
    from vaekit.output.latents import Spill

    say = speaker(quiet or as_json)
    vae = runtime.load(images or (), spinning=False)
    read_out = vae.attributes if attributes else None
    with open_stream(images, from_file, vae.image_shape, say, no_resize=no_resize) as stream:
        identity = _identity(vae, stream, no_resize)
        arrays = vae.manifest.encoder_outputs
        with Spill(
            output,
            vae.latent_shape,
            identity,
            resume=resume,
            overwrite=overwrite,
            arrays=arrays,
            read_out=read_out,
        ) as spill:
            if spill.consumed:
                say(f"resuming after {spill.consumed:,} of {len(stream):,} images")
            provider = say_where(vae, say, "encoder")
            unreadable = Unreadable(say, already=spill.failures)
            try:
                with progress_bar("encoding", len(stream), quiet or as_json, spill.consumed) as progress:
                    _encode(vae, stream, spill, unreadable, progress)
                if not spill.rows:
                    raise SourceError(
                        f"none of the {len(stream):,} images could be read; the first: {unreadable.first}"
                    )
                spill.finish()
            except BaseException:
                if spill.rows:
                    say(f"{spill.rows:,} latents are kept in {spill.folder}: add --resume to continue")
                raise
    done = f"{output} contains the latents of {spill.rows:,} images"
    if as_json:
        print_document(Encoded(str(output), spill.rows, unreadable.count, provider, str(runtime.model)))
    else:
        say(f"{done}, {vae.manifest.latent.describe()}, encoded on {provider}")
        say(f"next: {command_line('vaekit decode', ('', output, None), *runtime.again)}")
    unreadable.end(len(stream), done, skip_errors=skip_errors)


def _encode(
    vae: VAE, stream: ImageStream, spill: Spill, unreadable: Unreadable, progress: Callable[[int], None]
) -> None:
    for chunk in stream.chunks(spill.consumed):
        unreadable.note(chunk)
        spill.append(*vae.encode(chunk.images), chunk.paths, len(chunk.failures))
        progress(spill.consumed)


def _identity(vae: VAE, stream: ImageStream, no_resize: bool) -> str:
    """Return a fingerprint of the work: the images, the encoder and the resizing."""
    parts = (stream.fingerprint, vae.manifest.graphs["encoder"].sha256, vae.image_shape, no_resize)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
