"""The options that name a command's images, opening the images, and reporting unreadable ones."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from vaekit.errors import SourceError, UsageError

if TYPE_CHECKING:
    from vaekit.images.stream import Chunk, ImageStream

ImagesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGES...",
        help="Folders at any depth, pictures, quoted globs, .npy, .npz, .tar, .parquet, IDX, hf:NAME, or shapes, "
        "fashion-mnist, mnist.",
        show_default=False,
    ),
]
FromFileOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Paths of more pictures, one a line; - reads them from stdin.")
]
NoResizeOption = Annotated[
    bool, typer.Option("--no-resize", help="Refuse pictures of another size or colour than the bundle's.")
]
SkipErrorsOption = Annotated[
    bool, typer.Option("--skip-errors", help="Exit 0 even where some pictures could not be read.")
]


def open_stream(
    images: list[str] | None,
    from_file: str | None,
    shape: tuple[int, int, int],
    say: Callable[[str], None],
    *,
    no_resize: bool,
) -> ImageStream:
    """Open a command's images, and report hidden files that were skipped.

    Raises UsageError if no images were named, and SourceError if none were found.
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
    for line in stream.left_out:
        say(line)
    return stream


def _lines(file: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a list's non-empty lines, without a UTF-8 byte order mark."""
    for number, line in enumerate(file):
        if number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in line:
            raise SourceError("the list of paths is in UTF-16: save it as UTF-8")
        name = (line.removeprefix(codecs.BOM_UTF8) if number == 0 else line).rstrip(b"\r\n")
        if name:
            yield name


class Unreadable:
    """A count of unreadable pictures. Each is reported at once, and their number at the end."""

    def __init__(self, say: Callable[[str], None], *, already: int = 0) -> None:
        self.say, self.count, self.first = say, already, ""

    def note(self, chunk: Chunk) -> None:
        """Report and count a chunk's failures."""
        for failure in chunk.failures:
            self.first = self.first or failure
            self.say(f"skipped: {failure}")
        self.count += len(chunk.failures)

    def end(self, total: int, done: str, *, skip_errors: bool) -> None:
        """Raise SourceError if there were any, or only report them.

        ``done`` says what was made of the others. With ``skip_errors`` nothing is raised.
        """
        if not self.count:
            return
        first = f", the first: {self.first}" if self.first else ""
        counted = f"{self.count:,} of {total:,} images could not be read{first}"
        if not skip_errors:
            raise SourceError(f"{counted}; {done} (--skip-errors exits 0 instead)")
        self.say(counted)
