"""A checkpoint: everything that a training needs to resume, in one file.

Its format is safetensors with a JSON header; nothing is pickled. A new checkpoint replaces the old one only when it is
complete. There are no states of random generators, because a step's random numbers are a function of the seed and the
step (``vaekit.training.batches``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vaekit.errors import RunError
from vaekit.system.files import replacing_file
from vaekit.training.config import Knot

CHECKPOINT = "checkpoint.safetensors"
_FORMAT_VERSION = 1
_NETWORK, _BEST, _OPTIMISER, _VARIANCE = "network.", "best.", "optimiser.", "variance"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after ``step`` steps."""

    step: int
    """The number of steps done."""
    network: Mapping[str, Tensor]
    """The network's state, by name."""
    optimiser: Mapping[str, Tensor]
    """The optimiser's state, by ``PARAMETER/QUANTITY``."""
    variance: Tensor
    """The running variance of the Gaussian likelihood, a scalar."""
    best: Mapping[str, float]
    """The figures of the best validation so far, with its step; empty before the first."""
    best_weights: Mapping[str, Tensor]
    """The network's state at the best validation."""
    validated: int
    """The step of the last validation; -1 before the first."""
    metrics_bytes: int
    """The length of metrics.jsonl."""
    fingerprint: str
    """The fingerprint of the images (``Images.fingerprint``)."""
    scaler: Mapping[str, float]
    """The state of gradient scaling; empty without fp16."""
    setting: Mapping[str, str]
    """Versions and the number of threads, on which the last bits of the results depend."""
    seconds_left: float | None = None
    """The time left until the deadline; None without one."""
    knots: tuple[Knot, ...] = ()
    """The schedule so far of a training under a deadline; empty for others."""


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write a run's checkpoint.

    The last one stays until the new one is completely on the disk. Raises VaekitError if it cannot be written.
    """
    tensors = {_NETWORK + name: tensor for name, tensor in checkpoint.network.items()}
    tensors |= {_BEST + name: tensor for name, tensor in checkpoint.best_weights.items()}
    tensors |= {_OPTIMISER + name: tensor for name, tensor in checkpoint.optimiser.items()}
    tensors[_VARIANCE] = checkpoint.variance
    header = {
        "format_version": _FORMAT_VERSION,
        "step": checkpoint.step,
        "best": dict(checkpoint.best),
        "validated": checkpoint.validated,
        "metrics_bytes": checkpoint.metrics_bytes,
        "fingerprint": checkpoint.fingerprint,
        "scaler": dict(checkpoint.scaler),
        "setting": dict(checkpoint.setting),
    }
    if checkpoint.seconds_left is not None:
        header |= {"seconds_left": checkpoint.seconds_left, "knots": checkpoint.knots}
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, _metadata(header))
    with replacing_file(run / CHECKPOINT) as temporary:
        temporary.write_bytes(data)


def load_checkpoint(run: Path) -> Checkpoint | None:
    """Read a run's checkpoint; None if it has none.

    Raises RunError for a damaged one.
    """
    path = run / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a dict
            header = json.loads((file.metadata() or {})["checkpoint"])
        if header["format_version"] > _FORMAT_VERSION:
            raise RunError(f"{path} was written by a newer vaekit: upgrade this one (pip install -U vaekit)")
        return Checkpoint(
            step=header["step"],
            network=_below(_NETWORK, tensors),
            optimiser=_below(_OPTIMISER, tensors),
            variance=tensors[_VARIANCE],
            best=header["best"],
            best_weights=_below(_BEST, tensors),
            validated=header["validated"],
            metrics_bytes=header["metrics_bytes"],
            fingerprint=header["fingerprint"],
            scaler=header["scaler"],
            setting=header["setting"],
            seconds_left=header.get("seconds_left"),
            knots=tuple((step, share) for step, share in header.get("knots", ())),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}. Train again, with --overwrite.") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's state by ``PARAMETER/QUANTITY``; empty before its first step."""
    return {
        f"{name}/{quantity}": tensor
        for name, parameter in network.named_parameters()
        for quantity, tensor in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimiser's state from ``optimiser_tensors``.

    Raises KeyError for an unknown parameter.
    """
    parameters = dict(network.named_parameters())
    for key, tensor in tensors.items():
        name, _, quantity = key.rpartition("/")
        parameter = parameters[name]
        # Fused optimisers require the parameter's memory format, which the file does not keep.
        like = parameter if tensor.shape == parameter.shape else tensor
        restored = torch.empty_like(like, dtype=tensor.dtype, device=_device(quantity, optimiser, parameter))
        optimiser.state[parameter][quantity] = restored.copy_(tensor)


def _device(quantity: str, optimiser: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Return the device of a quantity.

    An optimiser that is not fused counts its steps on the CPU. Everything else is on the parameter's device.
    """
    on_device = quantity != "step" or optimiser.defaults["fused"]
    return parameter.device if on_device else torch.device("cpu")


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    """Return the header as metadata.

    It has a single key because safetensors does not fix the order of several.
    """
    return {"checkpoint": json.dumps(header, sort_keys=True, allow_nan=False)}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
