"""What the commands that run a bundle share: the options that choose and run it, and the images that go through it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekit.errors import SourceError, UsageError
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
    from vaekit.images.stream import Chunk, ImageStream
    from vaekit.vae import VAE

Say = Callable[[str], None]


@dataclass(frozen=True)
class Runtime:
    """The options that choose a bundle and what runs it."""

    model: Path
    provider: str
    provider_option: list[str] | None
    allow_fallback: bool
    threads: int | None
    batch_size: int
    size: str | None

    @property
    def again(self) -> tuple[tuple[str, object, object], ...]:
        """The options that name the model, for ``command_line``."""
        return ("-m", self.model, DEFAULT_MODEL), ("--size", self.size, None)

    def load(self, *, spinning: bool = True) -> VAE:
        """Load the bundle; ``spinning=False`` where other processes work beside the graphs."""
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
    """Give a command the options of ``_runtime_options`` instead of its parameter ``runtime``."""
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


def say_where(vae: VAE, say: Say, *graphs: str) -> str:
    """Open graphs, say where they run if it is not simply the CPU, and return the provider's name for messages."""
    opened = [vae.graph(name) for name in graphs]
    for graph in opened:
        for reason in graph.fell_back:
            say(reason)
    if any(graph.provider != "cpu" or graph.fell_back for graph in opened):
        for graph in opened:
            say(graph.describe())
    return " and ".join(dict.fromkeys(graph.provider for graph in opened))


def open_stream(
    images: list[str] | None, from_file: str | None, shape: tuple[int, int, int], *, no_resize: bool
) -> ImageStream:
    """The images that a command was given.

    Raises UsageError where none were named, SourceError where none are there.
    """
    from vaekit.images.stream import ImageStream

    if not images and from_file is None:
        raise UsageError("name the images: folders, pictures or quoted globs, or a list of them with --from-file")
    if from_file in (None, "-"):
        listed: Iterable[bytes] = _lines(sys.stdin.buffer) if from_file else ()
        stream = ImageStream(images or [], shape, listed=listed, resize=not no_resize)
    else:
        try:
            with open(from_file, "rb") as file:
                stream = ImageStream(images or [], shape, listed=_lines(file), resize=not no_resize)
        except OSError as error:
            raise SourceError(f"cannot read {from_file}: {error.strerror or error}") from error
    if not len(stream):
        stream.close()
        raise SourceError(f"there are no images {'on stdin' if from_file == '-' else f'in {from_file}'}")
    return stream


def _lines(file: Iterable[bytes]) -> Iterable[bytes]:
    return filter(None, (line.rstrip(b"\r\n") for line in file))


class Unreadable:
    """Pictures that could not be read: each is named as it comes, and all count at the end."""

    def __init__(self, say: Say, *, already: int = 0) -> None:
        self.say, self.count, self.first = say, already, ""

    def note(self, chunk: Chunk) -> None:
        """Name the failures among a chunk's images."""
        for failure in chunk.failures:
            self.first = self.first or failure
            self.say(f"left out: {failure}")
        self.count += len(chunk.failures)

    def end(self, total: int, done: str, *, skip_errors: bool) -> None:
        """Raise SourceError where there were any; ``done`` says what the others came to."""
        if not self.count:
            return
        first = f", the first: {self.first}" if self.first else ""
        counted = f"{self.count:,} of {total:,} images could not be read{first}"
        if not skip_errors:
            raise SourceError(f"{counted}; {done} (--skip-errors makes that no failure)")
        self.say(counted)
