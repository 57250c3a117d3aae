"""Reading one picture: the one rule by which any file becomes an image of a given size."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vaekit.errors import SourceError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Pillow's names of the formats that vaekit opens; all others are refused before any of their code runs."""

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)

MAX_PIXELS = 100_000_000
"""Pictures of more pixels than this are refused before they are decoded."""

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about harmless metadata; what matters raises
            with _open(path) as picture:
                upright = ImageOps.exif_transpose(picture)
                if not resize:
                    check_form((upright.height, upright.width), 1 if _is_grey(upright) else 3, channels, size)
                return fit(_convert(upright, channels), size)
    except _READ_ERRORS as error:
        raise SourceError(f"{name or path}: {_reason(error)}") from error


def probe_image(path: str | Path | IO[bytes]) -> tuple[tuple[int, int], bool]:
    """(height, width) and whether a picture is grey, as it stands upright, from its header alone.

    Raises SourceError where it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(path) as picture:
                size = (picture.height, picture.width)
                turned = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
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
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS:,}")
    return picture


def _is_grey(picture: Image.Image) -> bool:
    return picture.mode in ("1", "L", "LA", "I", "I;16", "I;16B")


def _convert(picture: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if picture.mode.startswith("I"):  # 16 bits a pixel, held in 16 or 32
        values = np.asarray(picture).astype(np.float64)
        transparent = picture.info.get("transparency")
        picture = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
        if transparent is not None:
            picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range")
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
