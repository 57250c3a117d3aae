"""`vaekit bench`: measure how fast this machine runs a bundle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import UsageError
from vaekit.output.table import text_table
from vaekit_cli.console import progress_bar, speaker
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
    from vaekit.diagnose.bench import Results, Timing


def bench(
    model: ModelOption = DEFAULT_MODEL,
    provider: ProviderOption = "auto",
    provider_option: ProviderOptionsOption = None,
    allow_fallback: FallbackOption = False,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="A batch size; may be repeated.", show_default="1, 8 and 64")
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="A number of threads; may be repeated.",
            show_default="1, 2, 4 … all processors; on a GPU only all",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds to time each setting.")] = 1.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time encode and decode at several batch sizes and thread counts.

    Each setting runs in a separate process.
    """
    from vaekit.diagnose.bench import DEFAULT_BATCHES, Results, default_threads, settings
    from vaekit.diagnose.bench import bench as run
    from vaekit.ort.providers import Selection
    from vaekit.types import GRAPHS
    from vaekit.vae import load

    if not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds must be positive, not {seconds:g}")
    selection = Selection(provider, parse_provider_options(provider_option), allow_fallback)
    say = speaker(quiet or as_json)
    vae = load(model, provider=provider, provider_options=selection.options, allow_fallback=allow_fallback)
    for name in GRAPHS:
        for reason in vae.graph(name).fell_back:
            say(reason)
    chosen = settings(batch or DEFAULT_BATCHES, threads or default_threads(vae.graph("decoder").provider))
    timings: list[Timing] = []
    with progress_bar("timing", len(chosen), quiet or as_json) as progress:
        for timing in run(model, selection, chosen, seconds=seconds):
            timings.append(timing)
            progress(len(timings))
    results = Results(timings)
    if as_json:
        print(json.dumps(results.to_json()))
        return
    for line in _lines(results):
        print(line)


def _lines(results: Results) -> list[str]:
    from vaekit.diagnose.bench import OPERATIONS

    rows = [("", "batch", "threads", "images/s", "p50 ms", "p95 ms")]
    for t in results.timings:
        setting = t.setting
        figures = (f"{t.images_per_second:,.0f}", f"{t.p50_ms:.2f}", f"{t.p95_ms:.2f}")
        rows.append((setting.operation, str(setting.batch), str(setting.threads), *figures))
    advice = [
        f"{t.setting.operation} is fastest with --batch-size {t.setting.batch} --threads {t.setting.threads}: "
        f"{t.images_per_second:,.0f} images/s on {t.provider}"
        for t in map(results.best, OPERATIONS)
    ]
    return [*text_table(rows), *advice]
