"""Conversions of pixel arrays. Pillow is imported only to resize images or turn them grey."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import SourceError
from vaekit.types import Floats, Pixels


def channel_axis(source: str, shape: tuple[int, ...]) -> int | None:
    """Return the axis of the channels; None for grey images (N, H, W).

    Raises SourceError for other shapes than those of images.
    """
    if len(shape) == 3:
        return None
    if len(shape) == 4 and shape[1] in (1, 3):
        return 1
    if len(shape) == 4 and shape[3] in (1, 3):
        return 3
    raise SourceError(
        f"{source} has the shape {shape}: images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
    )


def channels_first(source: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return images with the channels first, (N, C, H, W).

    They may be (N, H, W), (N, H, W, C) or (N, C, H, W). Raises SourceError for other shapes.
    """
    axis = channel_axis(source, array.shape)
    return array[:, None] if axis is None else np.moveaxis(array, axis, 1)


def check_pixel_type(source: str, dtype: np.dtype[Any]) -> None:
    """Raise SourceError unless pixels are uint8, bool or floats."""
    if dtype not in (np.uint8, np.bool_) and dtype.kind != "f":
        raise SourceError(f"{source} has pixels of type {dtype}: give uint8, bool, or floats in [0, 1]")


def array_to_pixels(source: str, array: NDArray[Any]) -> Pixels:
    """Convert uint8, bool, or floats in [0, 1] to uint8; any shape.

    Raises SourceError for other types, and for floats outside [0, 1].
    """
    check_pixel_type(source, array.dtype)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise SourceError(
            f"{source} has pixels from {array.min():g} to {array.max():g}: floats must lie in [0, 1] and be finite"
        )
    pixels: Pixels = np.rint(array * 255).astype(np.uint8)
    return pixels


def to_uint8(images: Floats) -> Pixels:
    """Convert floats in [0, 1] to uint8; any shape. Values outside are clipped."""
    pixels: Pixels = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize images (n, C, H, W) to ``size`` (height, width), as ``read_image`` does."""
    if pixels.shape[2:] == size:
        return pixels
    if not len(pixels):
        return np.empty((0, pixels.shape[1], *size), np.uint8)
    from PIL import Image

    from vaekit.images.picture import fit

    pictures = (Image.fromarray(p[0] if len(p) == 1 else np.ascontiguousarray(p.transpose(1, 2, 0))) for p in pixels)
    return np.stack([fit(picture, size) for picture in pictures])


def convert_channels(pixels: Pixels, channels: int) -> Pixels:
    """Convert images (n, C, H, W) between grey and RGB, as ``read_image`` does."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=1)
    from PIL import Image

    rows = (Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L") for image in pixels)
    return np.stack([np.asarray(row)[None] for row in rows]) if len(pixels) else pixels[:, :1]
