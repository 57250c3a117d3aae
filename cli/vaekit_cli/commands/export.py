"""`vaekit export`: a run becomes a bundle, or nothing is published."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit_cli.console import command_line, speaker
from vaekit_cli.options import DEFAULT_MODEL, JsonOption, QuietOption

if TYPE_CHECKING:
    from vaekit_export.publish import Export


class Golden(StrEnum):
    """What the golden vectors are made of."""

    IMAGES = "images"
    SAMPLES = "samples"


def export(
    run: Annotated[Path, typer.Argument(help="The run that `vaekit train` wrote.")] = Path("vae"),
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="The bundle.")] = DEFAULT_MODEL,
    opset: Annotated[int, typer.Option(help="ONNX opset, from 17.")] = 17,
    atol: Annotated[float, typer.Option(min=0.0, help="Absolute part of the allowed difference.")] = 1e-5,
    rtol: Annotated[float, typer.Option(min=0.0, help="Part relative to PyTorch's result.")] = 1e-4,
    golden: Annotated[
        Golden, typer.Option(help="Golden vectors from held-out images, or samples, for data that must not travel.")
    ] = Golden.IMAGES,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Compare layer by layer, into BUNDLE.parity/; done anyway where parity fails."),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export encoder and decoder to ONNX, prove that they compute what PyTorch does, and write a bundle."""
    from vaekit_export.explain import table
    from vaekit_export.parity import Tolerances
    from vaekit_export.publish import export_run

    say = speaker(quiet or as_json)
    tolerances = Tolerances(atol, rtol)
    done = export_run(run, output, opset=opset, tolerances=tolerances, golden=golden.value, explained=explain, say=say)
    if as_json:
        document = {"output": str(output), "files": done.files, "nodes": done.nodes, "parity": done.manifest.parity}
        print(json.dumps(document | {"report": None if done.report is None else str(done.report)}))
        return
    for line in _table(done):
        say(line)
    for explanation in done.explanations:
        for line in table(explanation):
            say(line)
    if done.report is not None:
        say(f"layer by layer: {done.report}")
    graphs = done.manifest.graphs
    say(
        f"{output}: encoder and decoder at opset {graphs['encoder'].opset}, IR {graphs['encoder'].ir_version}, of "
        f"{' and '.join(map(str, done.nodes.values()))} nodes; "
        + ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in done.files.items())
    )
    say("next: " + command_line("vaekit sample -n 64 -o grid.png", ("-m", output, DEFAULT_MODEL)))


def _table(done: Export) -> list[str]:
    head = f"{'graph':<8} {'output':<7} {'inputs':<32} {'rows':>5}  {'max |a - b|':>11}  {'of allowed':>10}"
    rows = [
        f"{r.graph:<8} {r.output:<7} {r.inputs:<32} {r.count:>5}  {r.max_abs:>11.2e}  {r.max_ratio:>10.1%}"
        for r in done.results
    ]
    parity = done.manifest.parity
    return [
        head,
        *rows,
        f"parity holds at batch sizes {', '.join(map(str, parity['batch_sizes']))} "
        f"(atol {parity['atol']:g}, rtol {parity['rtol']:g}); "
        f"ELBO of held-out images {parity['elbo']:.2f} nats, in ONNX Runtime {done.delta_elbo:+.1e}",
    ]
