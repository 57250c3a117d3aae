"""Options shared by the commands that run a bundle, and messages about where it runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekit_cli.options import (
    DEFAULT_MODEL,
    BatchSizeOption,
    FallbackOption,
    ImageSizeOption,
    ModelOption,
    ProviderOption,
    ProviderOptionsOption,
    ThreadsOption,
    parse_provider_options,
    parse_size,
)

if TYPE_CHECKING:
    from vaekit.types import GraphName
    from vaekit.vae import VAE

Say = Callable[[str], None]


@dataclass(frozen=True)
class Runtime:
    """The options that choose a bundle and how to run it."""

    model: Path
    provider: str
    provider_option: list[str] | None
    allow_fallback: bool
    threads: int | None
    batch_size: int
    size: str | None

    @property
    def again(self) -> tuple[tuple[str, object, object], ...]:
        """Return the options that choose the model, for ``command_line``."""
        return ("-m", self.model, DEFAULT_MODEL), ("--size", self.size, None)

    def load(self, *, spinning: bool = True) -> VAE:
        """Load the bundle. Use ``spinning=False`` if other processes need the processors."""
        from vaekit.vae import load

        size = parse_size(self.size)
        vae = load(
            self.model,
            provider=self.provider,
            provider_options=parse_provider_options(self.provider_option),
            allow_fallback=self.allow_fallback,
            threads=self.threads,
            batch_size=self.batch_size,
            spinning=spinning,
        )
        return vae if size is None else vae.at(*size)


def _runtime_options(
    model: ModelOption = DEFAULT_MODEL,
    provider: ProviderOption = "auto",
    provider_option: ProviderOptionsOption = None,
    allow_fallback: FallbackOption = False,
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 64,
    size: ImageSizeOption = None,
) -> Runtime:
    return Runtime(model, provider, provider_option, allow_fallback, threads, batch_size, size)


def runs_a_bundle(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter ``runtime`` by the options of ``_runtime_options``."""
    shared = inspect.signature(_runtime_options, eval_str=True)
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in shared.parameters}
        command(runtime=_runtime_options(**chosen), **values)

    kept = [parameter for parameter in own.parameters.values() if parameter.name != "runtime"]
    signature = own.replace(parameters=[*kept, *shared.parameters.values()])
    with_options.__signature__ = signature  # type: ignore[attr-defined]  # typer reads it
    return with_options


def say_where(vae: VAE, say: Say, *graphs: GraphName) -> str:
    """Open graphs, report where they run, and return the provider's name.

    Nothing is reported if they run on the CPU, as requested.
    """
    opened = [vae.graph(name) for name in graphs]
    for graph in opened:
        for reason in graph.fell_back:
            say(reason)
    if any(graph.provider != "cpu" or graph.fell_back for graph in opened):
        for graph in opened:
            say(graph.describe())
    return " and ".join(dict.fromkeys(graph.provider for graph in opened))
