"""`vaekit compress`: make a smaller bundle, if it passes its checks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import UsageError
from vaekit.output.table import text_table
from vaekit_cli.console import command_line, speaker
from vaekit_cli.options import DEFAULT_MODEL, JsonOption, QuietOption

if TYPE_CHECKING:
    from vaekit_export.compress.report import Compression


def compress(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to compress.")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Images to calibrate INT8 and to measure the ELBO.",
            show_default="the bundle's own samples",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The bundle to write.")] = Path(
        "vae-small"
    ),
    int8: Annotated[bool, typer.Option("--int8", help="Use 8-bit integers with a scale per channel.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Use 16-bit floats; inputs and outputs stay float32.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove latent dimensions that carry no information; z gets smaller.")
    ] = False,
    dead_below: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="With --prune: remove dimensions with a KL below this.", show_default="0.01"),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Lowest allowed PSNR between the new and the old bundle's prior samples.",
            show_default="42 for INT8, 60 for float16",
        ),
    ] = None,
    max_delta_elbo: Annotated[
        float | None,
        typer.Option(
            metavar="NATS", help="Largest allowed fall of the mean ELBO.", show_default="5 for INT8, 0.1 for the others"
        ),
    ] = None,
    weights_only: Annotated[
        bool | None,
        typer.Option(
            "--weights-only/--no-weights-only",
            help="With --int8 or --fp16: convert only the weights, and compute in float32. --no-weights-only converts "
            "the activations too.",
            show_default="whichever is faster on this machine",
        ),
    ] = None,
    keep_transposed: Annotated[
        bool,
        typer.Option(
            "--keep-transposed",
            help="With --int8 --no-weights-only: keep transposed convolutions, which cannot run in INT8, as they are.",
        ),
    ] = False,
    seconds: Annotated[
        float,
        typer.Option(help="Seconds for each timing; 0 skips them. Each graph is timed three times at two batch sizes."),
    ] = 0.5,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a smaller bundle with INT8, float16 or fewer latent dimensions.

    Nothing is written unless the quality is good enough.
    """
    if int8 and fp16:
        raise UsageError("--int8 and --fp16 contradict each other: choose one")
    if dead_below is not None and not prune:
        raise UsageError("--dead-below only applies to --prune: add --prune")
    if weights_only is not None and not (int8 or fp16):
        raise UsageError("--weights-only only applies to --int8 and --fp16: add one of them")
    if keep_transposed and (weights_only or not int8):
        raise UsageError("--keep-transposed only applies to --int8 with activations: add --int8, drop --weights-only")
    from vaekit_export.compress.compress import DEAD_BELOW, compress_bundle

    say = speaker(quiet or as_json)
    done = compress_bundle(
        bundle,
        output,
        source,
        precision="int8" if int8 else "fp16" if fp16 else None,
        prune=prune,
        dead_below=DEAD_BELOW if dead_below is None else dead_below,
        min_psnr=min_psnr,
        max_delta_elbo=max_delta_elbo,
        weights_only=weights_only,
        keep_transposed=keep_transposed,
        seconds=seconds,
        say=say,
    )
    if as_json:
        print(json.dumps(done.to_json(), allow_nan=False))
        return
    for line in (*text_table(_rows(done)), *_verdicts(done)):
        say(line)
    say("next: " + command_line("vaekit verify", ("-m", output, DEFAULT_MODEL)))


def _rows(done: Compression) -> list[tuple[str, ...]]:
    batches = list(next(iter(done.graphs.values())).speed)
    rows = [("graph", "precision", "MB", "was", "smaller", "nodes", "was", *(f"speed, batch {b}" for b in batches))]
    for name, graph in done.graphs.items():
        speeds = [f"x{speed.median:.2f} ({speed.min:.2f}-{speed.max:.2f})" for speed in graph.speed.values()]
        sizes = (f"{graph.bytes / 1e6:.3f}", f"{graph.parent_bytes / 1e6:.3f}", f"x{graph.ratio:.2f}")
        rows.append((name, graph.precision, *sizes, str(graph.nodes), str(graph.parent_nodes), *speeds))
    return rows


def _verdicts(done: Compression) -> list[str]:
    quality = f"prior samples: {'equal' if math.isinf(done.psnr) else f'{done.psnr:.1f} dB'} against the bundle's"
    if done.delta_elbo is not None:
        delta = done.delta_elbo
        quality += f"; ELBO {delta.nats:+.3g} nats (standard error {delta.standard_error:.1g}) on {done.measured_on}"
    pruned = (
        [f"pruned dimensions {', '.join(map(str, done.pruned))}: z has {done.manifest.latent.shape[0]} left"]
        if done.pruned
        else []
    )
    processor = done.record["processor"]
    measured = f"measured on {processor['name']} ({' '.join(processor['flags']) or 'flags unknown'})"
    return [quality, *pruned, f"both graphs are x{done.ratio:.2f} smaller", *done.notes(), measured]
