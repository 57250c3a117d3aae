"""A checkpoint: all that a training needs to go on where it stood, in one file that is replaced whole.

It is safetensors with a JSON header; nothing is pickled. Generators have no state to keep: what a step draws is a
function of the seed and the step (``vaekit.training.batches``).
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

CHECKPOINT = "checkpoint.safetensors"
_FORMAT_VERSION = 1
_NETWORK, _BEST, _OPTIMISER, _VARIANCE = "network.", "best.", "optimiser.", "variance"


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands after so many steps."""

    step: int
    """Steps done."""
    network: Mapping[str, Tensor]
    """The network's state, by name."""
    optimiser: Mapping[str, Tensor]
    """The optimiser's, by ``PARAMETER/QUANTITY``."""
    variance: Tensor
    """The running variance of the Gaussian likelihood, a scalar."""
    best: Mapping[str, float]
    """Figures of the best validation yet, with its step; empty before the first."""
    best_weights: Mapping[str, Tensor]
    """The network's state then."""
    validated: int
    """The step of the last validation; -1 before the first."""
    metrics_bytes: int
    """The length of metrics.jsonl."""
    fingerprint: str
    """Of the images (``Images.fingerprint``)."""
    scaler: Mapping[str, float]
    """The state of the loss's scale; empty but for fp16."""
    setting: Mapping[str, str]
    """What the last bits of results depend on besides: versions and threads."""


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write a run's checkpoint; until it is whole on the disk, the one before stays. Raises VaekitError."""
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
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, _metadata(header))
    with replacing_file(run / CHECKPOINT) as temporary:
        temporary.write_bytes(data)


def load_checkpoint(run: Path) -> Checkpoint | None:
    """A run's checkpoint; None where it has none. Raises RunError where it is damaged."""
    path = run / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — it is no dict
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
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}. Train again, with --overwrite.") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state by ``PARAMETER/QUANTITY``; empty before its first step."""
    return {
        f"{name}/{quantity}": tensor
        for name, parameter in network.named_parameters()
        for quantity, tensor in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state that ``optimiser_tensors`` read. Raises KeyError for an unknown parameter."""
    parameters = dict(network.named_parameters())
    for key, tensor in tensors.items():
        name, _, quantity = key.rpartition("/")
        parameter = parameters[name]
        # In the parameter's memory format, which the fused optimisers take for granted and a file does not keep.
        like = parameter if tensor.shape == parameter.shape else tensor
        restored = torch.empty_like(like, dtype=tensor.dtype, device=_device(quantity, optimiser, parameter))
        optimiser.state[parameter][quantity] = restored.copy_(tensor)


def _device(quantity: str, optimiser: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Steps are counted on the device where the optimiser is fused, else on the CPU."""
    on_device = quantity != "step" or optimiser.defaults["fused"]
    return parameter.device if on_device else torch.device("cpu")


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    """One key: safetensors does not promise an order among several."""
    return {"checkpoint": json.dumps(header, sort_keys=True, allow_nan=False)}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
