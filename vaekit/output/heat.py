"""Pictures of maps of surprise: an image, its reconstruction, and where they differ more than is usual."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vaekit.images.pixels import to_uint8
from vaekit.output.grid import grid
from vaekit.types import Array, Pixels

HOTTEST = 6.0
"""Standard deviations from which the colour no longer changes."""

_COLOURS = np.array([(0, 0, 0), (90, 20, 110), (190, 55, 85), (250, 140, 20), (252, 255, 165)], np.float32)
_BAR, _TEXT = 10, 11  # pixels


def heat(shares: Array) -> Pixels:
    """Colour numbers from 0 to 1, black to light yellow: (…) → uint8 (…, 3)."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(shares, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def overlay(image: Array, decoded: Array, surprise: Array) -> Pixels:
    """Draw an image (C, H, W), its reconstruction and its surprise (H, W), with a bar of colours: (height, width, 3).

    In the third panel the image is grey, and covered by colour the more, the more surprising a pixel is.
    """
    share = np.clip(surprise / HOTTEST, 0, 1)
    grey = to_uint8(image.mean(axis=0))[..., None]
    mixed = np.rint(grey * (1 - share[..., None]) + heat(share) * share[..., None]).astype(np.uint8)
    panels = [np.broadcast_to(to_uint8(part), (3, *part.shape[1:])) for part in (image, decoded)]
    picture = grid(np.stack([*panels, mixed.transpose(2, 0, 1)]), 3, column_titles=("original", "decoded", "surprise"))
    return np.concatenate((picture, _bar(len(picture))), axis=1)


def _bar(height: int) -> Pixels:
    """Draw the bar of colours, with its ends in standard deviations."""
    font, texts = ImageFont.load_default(_TEXT), (f"{HOTTEST:g} sd", "0")
    width = _BAR + 8 + round(max(font.getlength(text) for text in texts))
    canvas = np.full((height, width, 3), 255, np.uint8)
    margin = min(_TEXT, height // 4)
    rows = np.linspace(1, 0, height - 2 * margin, dtype=np.float32)
    canvas[margin : height - margin, 2 : 2 + _BAR] = heat(rows)[:, None]
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for text, y, anchor in ((texts[0], margin, "lt"), (texts[1], height - margin, "lb")):
        draw.text((_BAR + 5, y), text, fill="black", font=font, anchor=anchor)
    return np.asarray(picture)
