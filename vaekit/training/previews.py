"""Write pictures that show the progress of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vaekit.maths.prior import Mixture, draw_mixture
from vaekit.output.grid import grid, save_picture
from vaekit.training.device import to_device
from vaekit.training.networks import VAENetwork

_RECONSTRUCTED = 32
_SAMPLES = 64
_COLUMNS = 8


@torch.inference_mode()
def save_previews(
    folder: Path,
    name: str,
    network: VAENetwork,
    held_out: NDArray[np.uint8],
    mixture: Mixture | None,
    device: torch.device,
) -> None:
    """Write a picture of reconstructions and, given a mixture, one of samples.

    The files are ``reconstructions-NAME.png`` and ``samples-NAME.png``. ``held_out`` is uint8 (N, C, H, W).
    """
    network.eval()
    originals = to_device(held_out[:_RECONSTRUCTED], device)
    reconstructions = network.decoder(network.encoder(originals)[0])
    pairs = torch.stack((originals, reconstructions), 1).cpu().numpy()  # (N, 2, C, H, W)
    columns = min(_COLUMNS, len(pairs))
    save_picture(grid(_in_row_pairs(pairs, columns), columns), folder / f"reconstructions-{name}.png")
    if mixture is not None:
        samples = network.decoder(torch.from_numpy(draw_mixture(mixture, _SAMPLES)).to(device)).cpu().numpy()
        save_picture(grid(samples, _COLUMNS), folder / f"samples-{name}.png")


def _in_row_pairs(pairs: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Order pairs (N, 2, C, H, W) for a grid with alternating rows.

    Each row of originals is followed by the row of their reconstructions.
    """
    shape = pairs.shape[2:]
    rows = pairs[: len(pairs) // columns * columns].reshape(-1, columns, 2, *shape)
    return rows.swapaxes(1, 2).reshape(-1, *shape)
