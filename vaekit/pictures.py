"""Laying images out for people, and writing them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaekit.errors import UsageError, VaekitError
from vaekit.files import check_writable, replacing_file

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

_COMFORTABLE_SIDE = 64  # images smaller than this are enlarged by a whole factor


def grid(images: NDArray[np.floating], columns: int | None = None, *, padding: int = 2) -> NDArray[np.uint8]:
    """Images (N, C, H, W) in [0, 1] side by side, row by row: uint8 (height, width, 3), white between them.

    ``columns`` defaults to the least square that holds them. Tiny images are enlarged by a whole factor.
    """
    count, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    factor = max(1, _COMFORTABLE_SIDE // max(height, width))
    high, wide = height * factor, width * factor
    canvas = np.full((rows * (high + padding) + padding, columns * (wide + padding) + padding, 3), 255, np.uint8)
    for number, image in enumerate(to_uint8(images)):
        top = padding + number // columns * (high + padding)
        left = padding + number % columns * (wide + padding)
        canvas[top : top + high, left : left + wide] = image.repeat(factor, 1).repeat(factor, 2).transpose(1, 2, 0)
    return canvas


def to_uint8(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Images in [0, 1] as bytes, rounded to the nearest."""
    pixels: NDArray[np.uint8] = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


def check_picture_path(path: Path) -> str:
    """Pillow's name of the format that a picture's suffix names, before any work is done.

    Raises UsageError for a suffix that names none, VaekitError for a folder that is not there or not writable.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"cannot write {path}: its name must end in one of {', '.join(FORMATS)}")
    check_writable(path)
    if not path.parent.is_dir():
        raise VaekitError(f"cannot write {path}: there is no folder {path.parent}")
    return FORMATS[path.suffix.lower()]


def save_picture(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write pixels (height, width, 3) to a picture file, whole or not at all."""
    kind = check_picture_path(path)
    with replacing_file(path) as temporary:
        try:
            Image.fromarray(pixels).save(temporary, kind)
        except ValueError as error:  # WebP's way of saying that the picture is too large
            raise VaekitError(f"cannot write {path}: {error}") from error
