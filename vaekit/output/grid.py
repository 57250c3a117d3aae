"""Arrange images in grids, and write pictures and animations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vaekit.errors import UsageError, VaekitError
from vaekit.images.pixels import to_uint8
from vaekit.system.files import check_file_target, check_new_folder, replacing_file, replacing_folder
from vaekit.types import Floats, Pixels

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Pillow's format names, by the file suffixes that pictures may have."""

ANIMATIONS = (".gif",)

_PNG = {"compress_type": Image.RLE}
"""zlib's strategy for PNG. Of grids and photographs it makes files of nearly the same size in a third of the time."""

if TYPE_CHECKING:
    from PIL import ImageFont

Progress = Callable[[int], None]

_COMFORTABLE_SIDE = 64  # pixels; smaller images are enlarged by an integer factor
_MAX_PIXELS = 100_000_000  # per picture; larger ones take gigabytes, and few programs open them
_TEXT_SIZE = 12  # pixels; the size of titles beside images with sides of _COMFORTABLE_SIDE
_LARGEST_TEXT = 30  # pixels
_GIF_MILLISECONDS = 90  # per frame
_GIF_PAUSE_MILLISECONDS = 600  # for the first and last image of an animation
_FEW = 256  # up to this many files, starting worker processes takes longer than writing the files


def grid(
    images: Floats | Pixels,
    columns: int | None = None,
    *,
    padding: int = 2,
    captions: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
) -> Pixels:
    """Arrange images (N, C, H, W), uint8 or in [0, 1], in a grid: uint8 (height, width, 3).

    The grid is filled row by row, with white space between images. ``columns`` defaults to the smallest square grid.
    Tiny images are enlarged by an integer factor. ``captions`` are drawn below each image, ``row_titles`` left of each
    row, ``column_titles`` above each column. Raises UsageError if the picture would exceed a hundred million pixels.
    """
    count, _, height, width = images.shape
    columns = columns or square(count)
    check_size(count, columns, (height, width))
    factor = _enlargement(height, width)
    high, wide = height * factor, width * factor
    line = _line_height(high)
    left = padding + (_text_width(row_titles, line) + 2 * padding if row_titles else 0)
    tops = _tops(
        padding + (line if column_titles else 0), high + padding, line, captions, -(-count // columns), columns
    )
    corners = [(tops[k // columns], left + k % columns * (wide + padding)) for k in range(count)]
    canvas = np.full((tops[-1], left + columns * (wide + padding), 3), 255, np.uint8)
    for image, (y, x) in zip(images, corners, strict=True):
        pixels = image if image.dtype == np.uint8 else to_uint8(image)
        canvas[y : y + high, x : x + wide] = pixels.repeat(factor, 1).repeat(factor, 2).transpose(1, 2, 0)
    middle = wide // 2
    texts = [
        *((x + middle, line // 2, "mm", title) for title, (_, x) in zip(column_titles, corners, strict=False)),
        *((left - 2 * padding, y + high // 2, "rm", title) for title, y in zip(row_titles, tops, strict=False)),
        *((x + middle, y + high + line // 2, "mm", text) for text, (y, x) in zip(captions, corners, strict=False)),
    ]
    return _written(canvas, texts, line) if texts else canvas


def _tops(first: int, pitch: int, line: int, captions: Sequence[str], rows: int, columns: int) -> list[int]:
    """Return the y of each row's top, and of the grid's bottom.

    A row with captions is one line of text taller.
    """
    tops = [first]
    for row in range(rows):
        captioned = any(captions[row * columns : (row + 1) * columns])
        tops.append(tops[-1] + pitch + (line if captioned else 0))
    return tops


def square(count: int) -> int:
    """Return the number of columns of the smallest square grid for ``count`` images."""
    return math.isqrt(count - 1) + 1


def check_size(
    count: int,
    columns: int | None,
    size: tuple[int, int],
    mend: str = "give a folder with -o, for one file each",
) -> None:
    """Raise UsageError if a grid of ``count`` images (height, width) is too large.

    The message ends with ``mend``, a suggestion.
    """
    columns = columns or square(count)
    factor = _enlargement(*size)
    pixels = -(-count // columns) * columns * size[0] * size[1] * factor**2
    if pixels > _MAX_PIXELS:
        raise UsageError(
            f"a picture of {count:,} images would have {pixels / 1e6:,.1f} million pixels, more than "
            f"{_MAX_PIXELS / 1e6:,.0f} million: {mend}"
        )


def save_picture(pixels: Pixels, path: Path) -> None:
    """Write pixels (height, width, 3) to a temporary file and rename it."""
    check_file_target(path, FORMATS)
    with replacing_file(path) as temporary:
        try:
            _save(pixels, temporary, FORMATS[path.suffix.lower()])
        except ValueError as error:  # Pillow's WebP encoder raises this if the picture is too large
            raise VaekitError(f"cannot write {path}: {error}") from error


def save_animation(images: Floats, path: Path) -> None:
    """Write images (N, C, H, W) in [0, 1] as a GIF that loops forward and back.

    The file is written under a temporary name and renamed.
    """
    check_file_target(path, ANIMATIONS)
    frames = [Image.fromarray(grid(image[None], 1, padding=0)) for image in images]
    loop = [*frames, *frames[-2:0:-1]]
    durations = [_GIF_MILLISECONDS] * len(loop)
    durations[0] = durations[len(frames) - 1] = _GIF_PAUSE_MILLISECONDS
    with replacing_file(path) as temporary:
        loop[0].save(temporary, "GIF", save_all=True, append_images=loop[1:], duration=durations, loop=0)


def save_images(
    batches: Iterable[Floats],
    count: int,
    folder: Path,
    progress: Progress = lambda done: None,
    *,
    subfolders: Sequence[str] = ("",),
) -> None:
    """Write each image to a PNG file in a new folder.

    ``batches`` yields images in [0, 1], (n, C, H, W) at a time: ``count`` for each of the ``subfolders``, in order. The
    files are named 000000.png and so on. The folder is written under a temporary name and renamed. ``progress`` is
    called with the number of images written. Raises VaekitError if the folder is not empty or cannot be written, and
    UsageError for a subfolder that is not a plain name, or several with a slash between them.
    """
    from vaekit.system.workers import ordered_map

    check_new_folder(folder)
    digits = max(6, len(str(count - 1)))
    with replacing_folder(folder, durable=False) as temporary:  # to sync each file would take far longer
        for subfolder in filter(None, subfolders):
            check_subfolder(subfolder)
            (temporary / subfolder).mkdir(parents=True, exist_ok=True)
        names = (str(temporary / part / f"{number:0{digits}}.png") for part in subfolders for number in range(count))
        pieces = ([(next(names), image) for image in to_uint8(batch)] for batch in batches)
        done = 0
        for written in ordered_map(_save_pngs, pieces, processes=None if count > _FEW else 1):
            done += written
            progress(done)


def check_subfolder(name: str) -> None:
    """Raise UsageError unless a name is safe as a folder inside another: plain names, with slashes between them."""
    if any(not part or part.startswith(".") or set(part) & set('\\:*?"<>|\0') for part in name.split("/")):
        raise UsageError(f"the label {name!r} cannot be the name of a folder: write a picture, such as -o grid.png")


def _save_pngs(images: list[tuple[str, Pixels]]) -> int:
    """Write images (C, H, W), grey or RGB. This runs in a worker process."""
    for path, image in images:
        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        _save(pixels, path, "PNG")
    return len(images)


def _save(pixels: Pixels, path: str | Path, form: str) -> None:
    """Write pixels (height, width, 3), or (height, width) if grey."""
    Image.fromarray(pixels).save(path, form, **(_PNG if form == "PNG" else {}))


def _enlargement(height: int, width: int) -> int:
    return max(1, _COMFORTABLE_SIDE // max(height, width))


def _line_height(high: int) -> int:
    """Return a text line's height in pixels, for images of height ``high``."""
    return round(1.4 * min(_LARGEST_TEXT, _TEXT_SIZE * max(1.0, high / (2 * _COMFORTABLE_SIDE))))


def _font(line: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(line / 1.4)


def _text_width(texts: Iterable[str], line: int) -> int:
    font = _font(line)
    return max(math.ceil(font.getlength(text)) for text in texts)


def _written(canvas: Pixels, texts: Iterable[tuple[int, int, str, str]], line: int) -> Pixels:
    """Draw texts, each (x, y, Pillow's anchor, words), on the canvas."""
    from PIL import ImageDraw

    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = _font(line)
    for x, y, anchor, text in texts:
        draw.text((x, y), text, fill="black", font=font, anchor=anchor)
    return np.asarray(picture)
