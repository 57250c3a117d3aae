"""Reading one picture: the one rule by which any file becomes an image of a given size.

Pillow warns about harmless metadata. Nothing here touches Python's filters of warnings, which threads share: the
command ignores Pillow's (``vaekit_cli.main``), and a host program hears of them.
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

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Pillow's names of the formats that vaekit opens; all others are refused before any of their code runs."""

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)

MAX_PIXELS = 100_000_000
"""Pictures of more pixels than this are refused before they are decoded."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0

_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def preprocessing_rule(channels: int, height: int, width: int) -> str:
    """The rule of ``read_image`` in words, for manifests and people."""
    colours = "grey (ITU-R 601-2 luma)" if channels == 1 else "RGB"
    return (
        "first frame; EXIF orientation applied; transparency over white; 16 bits scaled to 8; "
        f"converted to {colours}; resized with Pillow's bicubic filter to cover {height}x{width} (height x width) "
        "and centre-cropped; divided by 255"
    )


def read_image(
    path: str | Path | IO[bytes], channels: int, size: tuple[int, int], *, resize: bool = True, name: str = ""
) -> NDArray[np.uint8]:
    """Read a picture by the rule: uint8 (channels, height, width); ``size`` is (height, width).

    ``name`` is what to call one that is no file of its own.

    Raises SourceError with the reason where it cannot be read, and without ``resize`` where it is of another size or
    grey where the model takes colours or the reverse.
    """
    try:
        with _open(path) as picture:
            black_and_white = _black_and_white(picture)
            upright = ImageOps.exif_transpose(picture)
            if not resize:
                check_form((upright.height, upright.width), 1 if _is_grey(upright) else 3, channels, size)
            return fit(_convert(upright, channels, *black_and_white), size)
    except _READ_ERRORS as error:
        raise SourceError(f"{name or path}: {_reason(error)}") from error


def probe_image(path: str | Path | IO[bytes]) -> tuple[tuple[int, int], bool]:
    """(height, width) and whether a picture is grey, as it stands upright, from its header alone.

    Raises SourceError where it cannot be read.
    """
    try:
        with _open(path) as picture:
            size = (picture.height, picture.width)
            turned = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            if picture.format == "TIFF":
                turned = False  # Pillow states their size as it is once upright
            return size[::-1] if turned else size, _is_grey(picture)
    except _READ_ERRORS as error:
        raise SourceError(f"{path}: {_reason(error)}") from error


def check_form(own_size: tuple[int, int], own_channels: int, channels: int, size: tuple[int, int]) -> None:
    """Raise ValueError where images are not of the size (height, width) and number of channels asked for."""
    if own_size != size:
        raise ValueError(f"it is {own_size[0]}x{own_size[1]}, not {size[0]}x{size[1]}, and --no-resize refuses that")
    if own_channels != channels:
        colours = {1: "grey", 3: "in colour"}
        raise ValueError(
            f"it is {colours[own_channels]}, the model's images are {colours[channels]}, and --no-resize refuses that"
        )


def fit(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a grey or RGB picture to cover ``size`` (height, width) and crop its centre: uint8 (C, H, W)."""
    height, width = size
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _open(path: str | Path | IO[bytes]) -> Image.Image:
    picture = Image.open(path, formats=FORMATS)
    if isinstance(picture, ImageFile.ImageFile) and picture.format == "TIFF":
        picture.filename = ""  # else Pillow maps the file into memory, rows and columns mixed up where it lies sideways
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS:,}")
    if unknown := _of_no_known_range(picture):
        picture.close()
        raise ValueError(f"its pixels are {unknown} of no known range: save them with 8 or 16 unsigned bits")
    return picture


def _of_no_known_range(picture: Image.Image) -> str:
    """What a picture's pixels are where black and white are not known; empty where they are."""
    if picture.mode == "F":
        return "floating-point numbers"
    if picture.mode == "I" and picture.format == "TIFF":  # of others, Pillow holds unsigned 16 bits so
        return "32-bit or signed integers"
    return ""


def _black_and_white(picture: Image.Image) -> tuple[int, int]:
    """The values of black and white in a picture of more than 8 bits a pixel."""
    tags: Mapping[int, Any] = getattr(picture, "tag_v2", {})  # of a TIFF
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    return (white, 0) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (0, white)


def _is_grey(picture: Image.Image) -> bool:
    return picture.mode in ("1", "L", "LA", "I", "I;16", "I;16B")


def _convert(picture: Image.Image, channels: int, black: int, white: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if picture.mode.startswith("I"):  # 16 bits a pixel, held in 16 or 32
        values = np.asarray(picture).astype(np.float64)
        transparent = picture.info.get("transparency")
        picture = Image.fromarray(np.clip(np.rint((values - black) * 255 / (white - black)), 0, 255).astype(np.uint8))
        if transparent is not None:
            picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit is higher
        return f"it has more than {MAX_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a format that vaekit reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
