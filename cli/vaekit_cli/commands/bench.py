"""`vaekit bench`: how fast a bundle is on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaekit.errors import UsageError
from vaekit_cli.console import progress_bar, speaker, table
from vaekit_cli.options import (
    DEFAULT_MODEL,
    FallbackOption,
    JsonOption,
    ModelOption,
    ProviderOption,
    ProviderOptionsOption,
    QuietOption,
    parse_provider_options,
)

if TYPE_CHECKING:
    from vaekit.diagnose.bench import Timing


def bench(
    model: ModelOption = DEFAULT_MODEL,
    provider: ProviderOption = "auto",
    provider_option: ProviderOptionsOption = None,
    allow_fallback: FallbackOption = False,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="A batch size; may be given again.", show_default="1, 8 and 64")
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A number of threads; may be given again.", show_default="1, 2, 4 … all processors"),
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each setting is timed.")] = 1.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time encode and decode at several batch sizes and numbers of threads, each in a process of its own."""
    from vaekit.diagnose.bench import DEFAULT_BATCHES, best, default_threads, settings
    from vaekit.diagnose.bench import bench as run
    from vaekit.ort.providers import Selection
    from vaekit.vae import load

    if not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds must be positive, not {seconds:g}")
    selection = Selection(provider, parse_provider_options(provider_option), allow_fallback)
    say = speaker(quiet or as_json)
    vae = load(model, provider=provider, provider_options=selection.options, allow_fallback=allow_fallback)
    for name in ("encoder", "decoder"):
        for reason in vae.graph(name).fell_back:
            say(reason)
    chosen = settings(batch or DEFAULT_BATCHES, threads or default_threads())
    timings: list[Timing] = []
    with progress_bar("timing", len(chosen), quiet or as_json) as progress:
        for timing in run(model, selection, chosen, seconds=seconds):
            timings.append(timing)
            progress(len(timings))
    by_graph = {graph: [t for t in timings if t.setting.graph == graph] for graph in ("encode", "decode")}
    fastest = {graph: best(timings, graph) for graph in by_graph}
    if as_json:
        document = {"provider": timings[0].provider}
        rows = {graph: [_figures(t) for t in found] for graph, found in by_graph.items()}
        print(json.dumps(document | rows | {"best": {graph: _figures(t) for graph, t in fastest.items()}}))
        return
    for line in _lines(timings, fastest):
        print(line)


def _figures(timing: Timing) -> dict[str, Any]:
    return {
        "batch": timing.setting.batch,
        "threads": timing.setting.threads,
        "images_per_second": timing.images_per_second,
        "p50_ms": timing.p50_ms,
        "p95_ms": timing.p95_ms,
    }


def _lines(timings: list[Timing], fastest: dict[str, Timing]) -> list[str]:
    rows = [("", "batch", "threads", "images/s", "p50 ms", "p95 ms")]
    for t in timings:
        setting = t.setting
        figures = (f"{t.images_per_second:,.0f}", f"{t.p50_ms:.2f}", f"{t.p95_ms:.2f}")
        rows.append((setting.graph, str(setting.batch), str(setting.threads), *figures))
    advice = [
        f"{graph} is fastest with --batch-size {t.setting.batch} --threads {t.setting.threads}: "
        f"{t.images_per_second:,.0f} images/s on {t.provider}"
        for graph, t in fastest.items()
    ]
    return [*table(rows), *advice]
