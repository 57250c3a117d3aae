"""Write a command's images to one grid, or to a folder with one PNG per image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaekit.output.grid import FORMATS, check_size, check_subfolder, grid, save_images, save_picture
from vaekit.system.files import check_file_target, check_new_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def check_pictures_target(
    output: Path, count: int, columns: int | None, image_shape: tuple[int, int, int], labels: Sequence[str] = ()
) -> None:
    """Check, before any work, that ``count`` images can be written, or as many for each of several labels.

    Raises UsageError or VaekitError.
    """
    if is_folder(output):
        check_new_folder(output)
        for label in labels:
            check_subfolder(label)
        return
    check_file_target(output, FORMATS)
    check_size(count * max(1, len(labels)), columns, image_shape[1:])


def write_pictures(
    batches: Iterable[NDArray[np.float32]],
    count: int,
    output: Path,
    columns: int | None,
    progress: Callable[[int], None],
    labels: Sequence[str] = (),
) -> None:
    """Write ``count`` images in [0, 1], in batches (n, C, H, W), to a folder or grid.

    If there are labels, there are as many images for each: in a subfolder, or a row of the grid.
    """
    import numpy as np

    if is_folder(output):
        save_images(batches, count, output, progress, subfolders=labels or ("",))
        return
    save_picture(grid(np.concatenate(list(batches)), columns, row_titles=labels), output)


def is_folder(output: Path) -> bool:
    """Return whether an output is a folder: an existing one, or a name without suffix."""
    return output.suffix.lower() not in FORMATS and (os.path.isdir(output) or not output.suffix)
