"""Reading one picture: the rule that turns any file into an image of a given size.

Pillow warns about harmless metadata. This module leaves Python's warning filters alone, because all threads share
them. The command line ignores Pillow's warnings (``vaekit_cli.main``); a program that uses vaekit receives them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from vaekit.errors import SourceError
from vaekit.system.files import is_regular

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""The formats that vaekit opens, by Pillow's names. Pillow's code for other formats never runs."""

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)

MAX_PIXELS = 100_000_000
"""The largest picture that is decoded, in pixels. Larger ones are errors."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0

# Pillow's readers meet a damaged file with many exceptions, also with those of a mistake in a program.
_READ_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
)


def preprocessing_rule(channels: int, height: int, width: int, multiple_of: int | None = None) -> str:
    """Describe the rule of ``read_image`` in words, for manifests and people.

    ``multiple_of`` is that of a model with free sizes, which pads images to it.
    """
    colours = "grey (ITU-R 601-2 luma)" if channels == 1 else "RGB"
    rule = (
        "first frame; EXIF orientation applied; transparency over white; 16 bits scaled to 8; "
        f"converted to {colours}; resized with Pillow's bicubic filter to cover {height}x{width} (height x width) "
        "and centre-cropped; divided by 255"
    )
    if multiple_of is None or multiple_of == 1:
        return rule
    return (
        f"{rule}; at a size that is no multiple of {multiple_of}, padded to the next one by reflection (without "
        "repeating the edge) at the bottom and on the right, and results cropped"
    )


def read_image(
    path: str | Path | IO[bytes], channels: int, size: tuple[int, int] | None, *, resize: bool = True, name: str = ""
) -> NDArray[np.uint8]:
    """Read a picture by the rule, as uint8 (channels, height, width).

    ``size`` is (height, width), or None for the picture's own. ``name`` is used in messages for a picture that is not
    a file. Raises SourceError if the picture cannot be read. Without ``resize``, raises it for a picture of another
    size, and for grey instead of colour or colour instead of grey.
    """
    try:
        with _open(path) as picture:
            black_and_white = _black_and_white(picture)
            ImageOps.exif_transpose(picture, in_place=True)  # otherwise upright pictures are copied
            if size is not None and not resize:
                check_form((picture.height, picture.width), 1 if _is_grey(picture) else 3, channels, size)
            return fit(_convert(picture, channels, *black_and_white), size or (picture.height, picture.width))
    except _READ_ERRORS as error:
        raise SourceError(f"{name or path}: {_reason(error)}") from error


def probe_image(path: str | Path | IO[bytes]) -> tuple[tuple[int, int], bool]:
    """Read a picture's size, and whether it is grey, from its header.

    Returns (height, width) and whether it is grey.
    The size is that of the upright picture. Raises SourceError if the header cannot be read.
    """
    try:
        with _open(path) as picture:
            size = (picture.height, picture.width)
            turned = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            if picture.format == "TIFF":
                turned = False  # for TIFF, Pillow already gives the upright size
            return size[::-1] if turned else size, _is_grey(picture)
    except _READ_ERRORS as error:
        raise SourceError(f"{path}: {_reason(error)}") from error


def check_form(own_size: tuple[int, int], own_channels: int, channels: int, size: tuple[int, int]) -> None:
    """Raise ValueError for images of another size or number of channels.

    Sizes are (height, width).
    """
    if own_size != size:
        raise ValueError(f"it is {own_size[0]}x{own_size[1]}, not {size[0]}x{size[1]}, and --no-resize refuses that")
    if own_channels != channels:
        colours = {1: "grey", 3: "in colour"}
        raise ValueError(
            f"it is {colours[own_channels]}, the model's images are {colours[channels]}, and --no-resize refuses that"
        )


def fit(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a grey or RGB picture to cover ``size`` and crop its centre.

    ``size`` is (height, width). Returns uint8 (C, H, W).
    """
    height, width = size
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _open(path: str | Path | IO[bytes]) -> Image.Image:
    if isinstance(path, str | Path) and not is_regular(path):
        raise ValueError("it is a device or a pipe, not a file")
    picture = Image.open(path, formats=FORMATS)
    if isinstance(picture, ImageFile.ImageFile) and picture.format == "TIFF":
        picture.filename = ""  # otherwise Pillow maps the file, and confuses rows and columns if it is rotated
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS:,}")
    if unknown := _of_no_known_range(picture):
        picture.close()
        raise ValueError(f"its pixels are {unknown} of no known range: save it with 8 or 16 unsigned bits a channel")
    return picture


def _of_no_known_range(picture: Image.Image) -> str:
    """Return the type of pixels without a known black and white; empty for others."""
    if picture.mode == "F":
        return "floating-point numbers"
    if picture.mode == "I" and picture.format == "TIFF":  # in other formats, mode I holds unsigned 16-bit values
        return "32-bit or signed integers"
    return ""


def _black_and_white(picture: Image.Image) -> tuple[int, int]:
    """Return the values of black and white in a 16-bit picture."""
    tags: Mapping[int, Any] = getattr(picture, "tag_v2", {})  # only TIFF has tags
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    return (white, 0) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (0, white)


def _is_grey(picture: Image.Image) -> bool:
    return picture.mode in ("1", "L", "LA", "I", "I;16", "I;16B")


def _convert(picture: Image.Image, channels: int, black: int, white: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if picture.mode.startswith("I"):  # 16-bit pixels, held in 16 or 32 bits
        values = np.asarray(picture).astype(np.float64)
        transparent = picture.info.get("transparency")
        picture = Image.fromarray(np.clip(np.rint((values - black) * 255 / (white - black)), 0, 255).astype(np.uint8))
        if transparent is not None:
            picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == mode else picture.convert(mode)  # which copies one of that mode


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's limit is higher than MAX_PIXELS
        return f"it has more than {MAX_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a format that vaekit reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
