"""The pictures that training writes to its run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vaekit.training.run import PREVIEWS
from vaekit.training.trainer import Outcome


def test_previews_are_pictures_that_people_can_look_at(trained: tuple[Path, Outcome]) -> None:
    previews = sorted((trained[0] / PREVIEWS).iterdir())
    names = [preview.name for preview in previews]
    assert {"reconstructions-final.png", "samples-final.png", "reconstructions-000060.png"} <= set(names)
    for preview in previews:
        with Image.open(preview) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert all(100 <= side <= 2000 for side in picture.size)
            assert np.asarray(picture).std() > 1
