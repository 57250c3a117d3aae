"""Options shared by the commands that run a bundle, and messages about where it runs."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekit.errors import UsageError
from vaekit_cli.console import progress_bar
from vaekit_cli.options import (
    DEFAULT_MODEL,
    OWN_SIZE,
    BatchSizeOption,
    FallbackOption,
    ImageSizeOption,
    MemoryLimitOption,
    ModelOption,
    ProviderOption,
    ProviderOptionsOption,
    ThreadsOption,
    TileOption,
    TimeLimitOption,
    UntrustedOption,
    parse_provider_options,
    parse_size,
)

if TYPE_CHECKING:
    from vaekit.images.stream import Chunk, ImageStream
    from vaekit.types import GraphName
    from vaekit.vae import VAE

Say = Callable[[str], None]


@dataclass
class Runtime:
    """The options that choose a bundle and how to run it."""

    model: Path
    provider: str
    provider_option: list[str] | None
    allow_fallback: bool
    threads: int | None
    batch_size: int
    size: str | None
    """HxW, N or ``own``, which ``load`` replaces by the size that it finds."""
    tile: int | None
    untrusted: bool
    memory_limit: float | None
    time_limit: float | None
    signed_by: str | None = None
    """The public key, or a file with one, that must have signed the bundle."""

    @property
    def again(self) -> tuple[tuple[str, object, object], ...]:
        """Return the options that choose the model, for ``command_line``."""
        return (
            ("-m", self.model, DEFAULT_MODEL),
            ("--size", self.size, None),
            ("--tile", self.tile, None),
            ("", "--untrusted" if self.untrusted else None, None),
            ("--memory-limit", self.memory_limit, None),
            ("--time-limit", self.time_limit, None),
        )

    def load(self, images: Sequence[str] = (), *, spinning: bool = True) -> VAE:
        """Load the bundle, for images of the size that the options ask for.

        ``images`` are the sources whose size ``--size own`` takes. Use ``spinning=False`` if other processes need the
        processors. Raises UsageError for a size that the bundle does not accept.
        """
        return self._at_size(self._load(spinning=spinning), images)

    def load_for_each(self, images: Sequence[str], *, spinning: bool = True) -> tuple[VAE, bool]:
        """Load the bundle, and say whether each image keeps its own size.

        That is what ``--size own`` asks for. If the bundle has one size only, all images must have it. Raises as
        ``load`` does.
        """
        vae = self._load(spinning=spinning)
        if self.size == OWN_SIZE and vae.manifest.image.multiple_of is not None:
            return vae, True
        return self._at_size(vae, images), False

    def _at_size(self, vae: VAE, images: Sequence[str]) -> VAE:
        if self.size == OWN_SIZE:
            self.size = "x".join(map(str, own_size(images)))
        size = parse_size(self.size)
        return vae if size is None else vae.at(*size)

    def _load(self, *, spinning: bool) -> VAE:
        from vaekit.vae import load

        return load(
            self.model,
            provider=self.provider,
            provider_options=parse_provider_options(self.provider_option),
            allow_fallback=self.allow_fallback,
            threads=self.threads,
            batch_size=self.batch_size,
            spinning=spinning,
            tile=self.tile,
            signed_by=self.signed_by,
            untrusted=self.untrusted,
            memory_limit=self.memory_limit,
            time_limit=self.time_limit,
        )


def _runtime_options(
    model: ModelOption = DEFAULT_MODEL,
    provider: ProviderOption = "auto",
    provider_option: ProviderOptionsOption = None,
    allow_fallback: FallbackOption = False,
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 64,
    size: ImageSizeOption = None,
    tile: TileOption = None,
    untrusted: UntrustedOption = False,
    memory_limit: MemoryLimitOption = None,
    time_limit: TimeLimitOption = None,
) -> Runtime:
    return Runtime(
        model=model,
        provider=provider,
        provider_option=provider_option,
        allow_fallback=allow_fallback,
        threads=threads,
        batch_size=batch_size,
        size=size,
        tile=tile,
        untrusted=untrusted,
        memory_limit=memory_limit,
        time_limit=time_limit,
    )


def own_size(images: Sequence[str]) -> tuple[int, int]:
    """Return the size (height, width) that all images of these sources have.

    Raises UsageError without sources, or if the sizes differ.
    """
    from vaekit.images.source import open_part

    if not images:
        raise UsageError("--size own is the size of pictures that the command line names: name them, or give HxW")
    forms = [open_part(source).form() for source in images]
    found = dict.fromkeys(size for form in forms for size in form.found or (form.size,))
    if len(found) > 1:
        first, second = ("x".join(map(str, size)) for size in list(found)[:2])
        raise UsageError(f"--size own needs pictures of one size, and these are {first}, {second} and so on: give HxW")
    return next(iter(found))


def at_own_sizes(vae: VAE, stream: ImageStream) -> Iterator[tuple[VAE, Chunk]]:
    """Yield each image at its own size, with the model for that size. A size that is refused is a failure."""
    for chunk in stream.whole_chunks():
        if not chunk.paths:
            yield vae, chunk
            continue
        try:
            model = vae.at(*chunk.pixels.shape[2:])
        except UsageError as error:
            failure = f"{os.fsdecode(chunk.paths[0])}: {error}"
            yield vae, replace(chunk, pixels=chunk.pixels[:0], paths=(), failures=(failure,))
        else:
            yield model, chunk


@contextmanager
def tiles_shown(vae: VAE, quiet: bool) -> Iterator[None]:
    """Show a progress bar where the model computes images in tiles."""
    if vae.tiling() is None:
        yield
        return
    with progress_bar("tiles", None, quiet) as advance:
        vae.follow = advance
        yield


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


def graphs_of_samples(vae: VAE, prior: str | None = None) -> tuple[GraphName, ...]:
    """Return the graphs that compute samples from a prior, by default the bundle's own."""
    return ("prior", "decoder") if (prior or vae.priors[0]) == "flow" else ("decoder",)


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
