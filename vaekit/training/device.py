"""Devices, threads and seeds, on which PyTorch's speed and the last bits of its results depend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaekit.errors import VaekitError
from vaekit.system.machine import usable_cpus
from vaekit.training.config import Device, DeviceChoice


def choose_device(name: DeviceChoice) -> Device:
    """Return the named device, or for ``auto`` the best one.

    Raises VaekitError if this machine does not have the device.
    """
    available: dict[Device, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, found in available.items() if found)
    if not available[name]:
        raise VaekitError(f"PyTorch finds no {name} device on this machine: use --device auto")
    return name


def move(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on the device.

    The copy to a GPU is asynchronous.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_device(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return uint8 images (N, C, H, W) as float32 in [0, 1] on the device.

    They are copied as bytes and converted on the device.
    """
    return to_float(move(np.ascontiguousarray(pixels), device))


def to_float(pixels: Tensor) -> Tensor:
    """Convert uint8 images (N, C, H, W) to float32 in [0, 1], in the memory format that convolutions like best."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Within this context, cuDNN repeats its results bit for bit, and float32 is not rounded to TF32."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def torch_seed(seed: int) -> int:
    """Return the seed modulo 2**63, which PyTorch's generators accept."""
    return seed % 2**63


def share_threads(processes: int = 1) -> int:
    """Limit PyTorch's threads to this process's share of the usable CPUs, and return their number.

    ``processes`` is the number of processes on the machine.
    """
    threads = max(1, usable_cpus() // processes)
    torch.set_num_threads(threads)
    return threads


def current_setting(threads: int) -> dict[str, str]:
    """Return the versions and the number of threads.

    The last bits of a training's results depend on these, in addition to its config and images.
    """
    return {"torch": torch.__version__, "numpy": np.__version__, "threads": str(threads)}
