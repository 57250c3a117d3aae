"""Where PyTorch computes, and what its last bits depend on there: devices, threads and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaekit.errors import VaekitError
from vaekit.system.machine import usable_cpus
from vaekit.training.config import Device, DeviceChoice


def choose_device(name: DeviceChoice) -> Device:
    """Return the named device, or for ``auto`` the best one. Raise VaekitError if this machine lacks it."""
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
    """Return an array as a tensor on the device; to a GPU the copy runs while the processor continues."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_device(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return uint8 images (N, C, H, W) as float32 in [0, 1] on the device; they are copied there as bytes."""
    moved = move(np.ascontiguousarray(pixels), device)
    return moved.to(torch.float32, memory_format=torch.channels_last).div_(255)


def torch_seed(seed: int) -> int:
    """Return a seed that PyTorch's generators accept: they know 63 bits."""
    return seed % 2**63


def share_threads(processes: int = 1) -> None:
    """Let PyTorch use this process's share of the usable CPUs, one of ``processes`` on the machine."""
    torch.set_num_threads(max(1, usable_cpus() // processes))


def current_setting() -> dict[str, str]:
    """Return what the last bits of a training depend on beside its config and its images."""
    return {"torch": torch.__version__, "numpy": np.__version__, "threads": str(torch.get_num_threads())}
