"""`vaekit export`: export a run, or any other VAE, to a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from vaekit.defaults import ATOL, OPSET, RTOL, SMOOTH
from vaekit.errors import UsageError
from vaekit.output.table import text_table
from vaekit_cli.commands.train import DEFAULT_RUN
from vaekit_cli.console import command_line, progress_bar, speaker
from vaekit_cli.options import DEFAULT_MODEL, JsonOption, QuietOption, parse_size

if TYPE_CHECKING:
    from vaekit_export.parity import Tolerances
    from vaekit_export.publish import Export


class Options(TypedDict):
    """The options that every export has."""

    opset: int
    tolerances: Tolerances
    golden: str
    smooth: float
    explained: bool
    say: Callable[[str], None]
    progress: Callable[[int, int | None], object]


class Golden(StrEnum):
    """The source of the golden vectors."""

    IMAGES = "images"
    SAMPLES = "samples"


@dataclass(frozen=True)
class Foreign:
    """The options for a VAE from another library. At most one of the first three is set."""

    module: str | None
    diffusers: Path | None
    pythae: Path | None
    images: str | None
    weights: Path | None
    trust_pickle: bool
    size: str | None
    sigma: float | None
    free_size: bool


def export(
    run: Annotated[
        Path | None, typer.Argument(help="The run that `vaekit train` wrote.", show_default=str(DEFAULT_RUN))
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="BUNDLE", help="The bundle to write.")
    ] = DEFAULT_MODEL,
    opset: Annotated[int, typer.Option(help="ONNX opset, 17 or later.")] = OPSET,
    atol: Annotated[float, typer.Option(min=0.0, help="Allowed absolute difference from PyTorch's results.")] = ATOL,
    rtol: Annotated[float, typer.Option(min=0.0, help="Allowed difference relative to PyTorch's results.")] = RTOL,
    golden: Annotated[
        Golden,
        typer.Option(
            help="What golden vectors hold: held-out images, or the model's samples if images must stay private."
        ),
    ] = Golden.IMAGES,
    smooth: Annotated[
        float,
        typer.Option(metavar="PIXELS", help="How far residuals are smoothed for the maps of vaekit score --maps."),
    ] = SMOOTH,
    module: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:FACTORY",
            help="Export what this function returns, instead of a run: encoder, decoder and VAEDescription.",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE.safetensors", help="With --module: weights to load into its modules.")
    ] = None,
    diffusers: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Instead of a run, diffusers' AutoencoderKL or AutoencoderTiny."),
    ] = None,
    pythae: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Instead of a run, a model that pythae saved.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="With --module, --diffusers or --pythae: images to check the model on."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="With --diffusers: size of the images.", show_default="the model's"),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(help="With --diffusers: sigma of a Gaussian likelihood, needed for scores."),
    ] = None,
    free_size: Annotated[
        bool,
        typer.Option(
            "--free-size", help="With --diffusers: let the bundle accept other image sizes; --size sets its default."
        ),
    ] = False,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="With --pythae: allow pickle files, which can run any code.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Compare layer by layer and write a report to BUNDLE.parity/. Done anyway if parity fails.",
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export a model to ONNX, check it against PyTorch, and write a bundle."""
    foreign = Foreign(module, diffusers, pythae, images, weights, trust_pickle, size, sigma, free_size)
    _check_options(run, foreign)

    from vaekit_export.parity import Tolerances
    from vaekit_export.publish import export_run
    from vaekit_export.report import table

    say = speaker(quiet or as_json)
    options: Options = {
        "opset": opset,
        "tolerances": Tolerances(atol, rtol),
        "golden": golden.value,
        "smooth": smooth,
        "explained": explain,
        "say": say,
        "progress": lambda rows, total: None,
    }
    with progress_bar("checking rows", None, quiet or as_json) as advance:
        options["progress"] = advance
        if foreign.images is None:
            done = export_run(run or DEFAULT_RUN, output, **options)
        else:
            done = _export_foreign(foreign, foreign.images, output, options)
    if as_json:
        print(json.dumps(done.to_json()))
        return
    for line in _table(done):
        say(line)
    for explanation in done.explanations:
        for line in table(explanation):
            say(line)
    if done.report is not None:
        say(f"comparison layer by layer: {done.report}")
    encoder = done.manifest.graphs["encoder"]
    nodes = ", ".join(f"{name} of {count} nodes" for name, count in done.nodes.items())
    say(
        f"{output}: {nodes}; opset {encoder.opset}, IR {encoder.ir_version}; "
        + ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in done.files.items())
    )
    say("next: " + command_line("vaekit sample -n 64 -o grid.png", ("-m", output, DEFAULT_MODEL)))


def _check_options(run: Path | None, foreign: Foreign) -> None:
    """Raise UsageError for options that cannot be combined."""
    others = {"--module": foreign.module, "--diffusers": foreign.diffusers, "--pythae": foreign.pythae}
    named = [*(["RUN"] if run is not None else []), *(name for name, value in others.items() if value is not None)]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} each name a model to export: give only one of them")
    belong = {
        "--weights": (foreign.weights, "--module"),
        "--size": (foreign.size, "--diffusers"),
        "--sigma": (foreign.sigma, "--diffusers"),
        "--free-size": (foreign.free_size or None, "--diffusers"),
        "--trust-pickle": (foreign.trust_pickle or None, "--pythae"),
    }
    for option, (value, owner) in belong.items():
        if value is not None and others[owner] is None:
            raise UsageError(f"{option} only applies to {owner}")
    is_foreign = bool(named) and named != ["RUN"]
    if is_foreign and foreign.images is None:
        raise UsageError(f"{named[0]} needs --images SOURCE: images to check the export on, not used for training")
    if foreign.images is not None and not is_foreign:
        raise UsageError(
            "--images only applies to --module, --diffusers and --pythae: a run already has held-out images"
        )


def _export_foreign(foreign: Foreign, images: str, output: Path, options: Options) -> Export:
    from vaekit_export.foreign import export_vae
    from vaekit_export.images import read_held_out
    from vaekit_export.loading import call_factory, load_weights
    from vaekit_export.publish import check_request

    check_request(output, options["opset"], options["golden"], options["smooth"])
    if foreign.diffusers is not None:
        from vaekit_export.adapters.diffusers import load_diffusers

        vae = load_diffusers(
            foreign.diffusers, parse_size(foreign.size), sigma=foreign.sigma, free_size=foreign.free_size
        )
    elif foreign.pythae is not None:
        from vaekit_export.adapters.pythae import load_pythae

        vae = load_pythae(foreign.pythae, trust_pickle=foreign.trust_pickle)
    else:
        assert foreign.module is not None
        vae = call_factory(foreign.module)
        if foreign.weights is not None:
            load_weights(vae, foreign.weights)
    pixels = read_held_out(images, vae.description.image_shape, options["say"])
    dataset = Path(images).resolve().name
    return export_vae(vae.encoder, vae.decoder, vae.description, pixels, output, dataset=dataset, **options)


def _table(done: Export) -> list[str]:
    rows = [("graph", "output", "inputs", "rows", "max |a - b|", "of allowed")]
    for result in done.results:
        figures = (str(result.count), f"{result.max_abs:.2e}", f"{result.max_ratio:.1%}")
        rows.append((result.graph, result.output, result.inputs, *figures))
    parity = done.manifest.parity
    if done.delta_elbo is None:
        elbo = f"no scores: {done.manifest.why_no_elbo}"
    else:
        elbo = f"ELBO of held-out images {parity['elbo']:.2f} nats, {done.delta_elbo:+.1e} in ONNX Runtime"
    return [
        *text_table(rows),
        f"parity holds at batch sizes {', '.join(map(str, parity['batch_sizes']))} "
        f"(atol {parity['atol']:g}, rtol {parity['rtol']:g}); {elbo}",
    ]
