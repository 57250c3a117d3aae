"""`vaekit compress`: a bundle becomes a smaller one, or nothing is published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaekit.errors import UsageError
from vaekit.output.table import text_table
from vaekit_cli.console import command_line, speaker
from vaekit_cli.options import DEFAULT_MODEL, JsonOption, QuietOption

if TYPE_CHECKING:
    from vaekit_export.compress.compress import Compression, Half
    from vaekit_export.compress.speed import Speed

_GAIN = 1.05  # images a second over the parent's that count as faster


def compress(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to compress.")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Images that calibrate INT8 and measure the ELBO.",
            show_default="the bundle's own samples",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The smaller bundle.")] = Path(
        "vae-small"
    ),
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers, scaled for each channel.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="16-bit floats; inputs and outputs stay float32.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Take out latent dimensions that carry nothing: z shrinks.")
    ] = False,
    dead_below: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="With --prune: a KL under which a dimension is dead.", show_default="0.01"),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="What prior samples must reach against BUNDLE's.",
            show_default="42 for INT8, 60 for float16",
        ),
    ] = None,
    max_delta_elbo: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="What the ELBO may fall by.", show_default="5 for INT8, 0.1 for the others"),
    ] = None,
    weights_only: Annotated[
        bool | None,
        typer.Option(
            "--weights-only/--no-weights-only",
            help="With --int8 or --fp16: lower the weights alone, and compute in float32; or the activations too.",
            show_default="whichever is faster here",
        ),
    ] = None,
    keep_transposed: Annotated[
        bool,
        typer.Option(
            "--keep-transposed",
            help="With --int8 of activations: leave transposed convolutions, which no integer kernel runs.",
        ),
    ] = False,
    seconds: Annotated[
        float, typer.Option(help="How long each half is timed, three times at two batch sizes; 0 times nothing.")
    ] = 0.5,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a smaller bundle, if it is good enough: INT8 or float16, and without dead latent dimensions."""
    if int8 and fp16:
        raise UsageError("--int8 and --fp16 contradict each other: choose one")
    if dead_below is not None and not prune:
        raise UsageError("--dead-below says which dimensions --prune takes out: give that too")
    if weights_only is not None and not (int8 or fp16):
        raise UsageError("--weights-only says what --int8 and --fp16 lower: give one of them too")
    if keep_transposed and (weights_only or not int8):
        raise UsageError("--keep-transposed says something of --int8 alone, where activations are lowered too")
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
        print(json.dumps(_document(done, output), allow_nan=False))
        return
    for line in (*text_table(_rows(done)), *_verdicts(done)):
        say(line)
    say("next: " + command_line("vaekit verify", ("-m", output, DEFAULT_MODEL)))


def _document(done: Compression, output: Path) -> dict[str, Any]:
    record = done.manifest.provenance["compression"]
    sizes = [(half.bytes, half.parent_bytes) for half in done.halves.values()]
    return {
        "output": str(output),
        "latent": done.manifest.latent.shape[0],
        "pruned": list(done.pruned),
        "psnr": done.psnr if math.isfinite(done.psnr) else None,
        "min_psnr": record["min_psnr"],
        "delta_elbo": record["delta_elbo"],
        "delta_elbo_standard_error": record["delta_elbo_standard_error"],
        "max_delta_elbo": record["max_delta_elbo"],
        "measured_on": done.measured_on,
        "bytes": sum(size for size, _ in sizes),
        "parent_bytes": sum(size for _, size in sizes),
        "ratio": _ratio(done),
        "graphs": {
            name: {
                "precision": half.precision,
                "bytes": half.bytes,
                "parent_bytes": half.parent_bytes,
                "ratio": half.parent_bytes / half.bytes,
                "nodes": half.nodes,
                "parent_nodes": half.parent_nodes,
                "in_float": list(half.in_float),
                "rewritten_transposed": half.rewritten,
                "speed": _speeds(half.speed),
                "tried": {precision: _speeds(speeds) for precision, speeds in half.tried.items()},
            }
            for name, half in done.halves.items()
        },
        "processor": record["processor"],
        "notes": _notes(done),
    }


def _speeds(speeds: dict[int, Speed]) -> dict[str, dict[str, float]]:
    return {
        str(batch): {"median": speed.median, "min": speed.least, "max": speed.largest}
        for batch, speed in speeds.items()
    }


def _rows(done: Compression) -> list[tuple[str, ...]]:
    batches = list(next(iter(done.halves.values())).speed)
    rows = [("graph", "precision", "MB", "was", "smaller", "nodes", "was", *(f"speed, batch {b}" for b in batches))]
    for name, half in done.halves.items():
        speeds = [f"x{s.median:.2f} ({s.least:.2f}-{s.largest:.2f})" for s in half.speed.values()]
        sizes = (f"{half.bytes / 1e6:.3f}", f"{half.parent_bytes / 1e6:.3f}", f"x{half.parent_bytes / half.bytes:.2f}")
        rows.append((name, half.precision, *sizes, str(half.nodes), str(half.parent_nodes), *speeds))
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
    processor = done.manifest.provenance["compression"]["processor"]
    measured = f"measured on {processor['name']} ({' '.join(processor['flags']) or 'flags unknown'})"
    return [quality, *pruned, f"both graphs are x{_ratio(done):.2f} smaller", *_notes(done), measured]


def _ratio(done: Compression) -> float:
    halves = done.halves.values()
    return sum(half.parent_bytes for half in halves) / sum(half.bytes for half in halves)


def _notes(done: Compression) -> list[str]:
    """What was left in float, and where there was no gain, with the reason where it is known."""
    notes = []
    for name, half in done.halves.items():
        if half.in_float:
            layers = ", ".join(half.in_float)
            kept = f"float16 weights in {layers}" if half.precision == "int8-weights" else f"{layers} stayed in float32"
            notes.append(f"{name}: {kept}, as the most sensitive")
        if half.rewritten:
            became = "transposed convolutions became ordinary ones"
            if half.rewritten == 1:
                became = "transposed convolution became an ordinary one"
            notes.append(f"{name}: {half.rewritten} {became} for integer kernels")
        if half.precision != "fp32" and half.bytes >= half.parent_bytes:
            notes.append(
                f"{name}: is no smaller; what {half.precision} adds to so small a graph is as large as it saves"
            )
        for precision, speeds in half.tried.items():
            notes.append(f"{name}: {half.precision} was taken, as {precision} runs at {_told(speeds)} here")
        no_gain = {batch: speed for batch, speed in half.speed.items() if speed.median < _GAIN}
        if no_gain:
            told = "is slower" if any(_is_slower(speed) for speed in no_gain.values()) else "gains no speed"
            notes.append(f"{name}: {told} here, {_told(no_gain)}{_reason(half, done)}")
    return notes


def _is_slower(speed: Speed) -> bool:
    """Beyond what timing the same thing twice gives: in every round, and clearly in the median."""
    return speed.median < 1 / _GAIN and speed.largest < 1


def _told(speeds: dict[int, Speed]) -> str:
    return ", ".join(f"x{speed.median:.2f} at batch size {batch}" for batch, speed in speeds.items())


def _reason(half: Half, done: Compression) -> str:
    from vaekit.system.machine import has_fast_int8

    flags = frozenset(done.manifest.provenance["compression"]["processor"]["flags"])
    if half.precision in ("fp16-weights", "int8-weights"):
        return ": it computes in float32, as the bundle that it was made from"
    if half.precision == "fp16":
        return ": on most processors ONNX Runtime computes float16 in float32"
    if half.precision != "int8":
        return ""
    if half.transposed:
        return ": ONNX Runtime has no integer transposed convolution for processors"
    if not has_fast_int8(flags):
        return ": this processor has no VNNI or dot product for 8-bit integers"
    return ": at that size, turning numbers into integers and back costs what it saves"
