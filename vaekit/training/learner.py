"""One step of training from a batch, and the evaluation of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaekit.errors import UsageError
from vaekit.training.checkpoint import Checkpoint, optimiser_tensors, restore_optimiser
from vaekit.training.config import Config
from vaekit.training.cuda_graph import CudaGraph
from vaekit.training.device import move, to_device, to_float, torch_seed
from vaekit.training.networks import VAENetwork
from vaekit.training.objective import (
    Draws,
    TrainingLikelihood,
    draw,
    kl_standard_normal,
    likelihood_of,
    objective_of,
    terms_of,
)
from vaekit.training.processes import ProcessGroup

EVALUATION_BATCH = 250
"""The number of images decoded at a time in an evaluation; fewer if they are larger than 128x128."""

_EVALUATED_PIXELS = EVALUATION_BATCH * 128 * 128  # in all images decoded at a time, which bounds the memory

_VARIANCE_DECAY = 0.98  # of the running variance, per step
_GRADIENT_NORM = 1e5  # large enough to clip only gradients that would ruin the weights
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def images_at_once(height: int, width: int) -> int:
    """Return how many images of a size to decode at a time."""
    return max(1, min(EVALUATION_BATCH, _EVALUATED_PIXELS // (height * width)))


class Learner:
    """A network with its optimiser and the running statistics of its training."""

    def __init__(self, config: Config, network: VAENetwork, device: torch.device, group: ProcessGroup) -> None:
        self.config, self.device, self.group = config, device, group
        self.objective, self.likelihood = objective_of(config), likelihood_of(config)
        self.shared_objective = dataclasses.replace(self.objective, mean=group.mean)  # means over all processes
        self.network = network
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
        # A capture was tried neither with GradScaler nor with several processes.
        captures = device.type == "cuda" and group.size == 1 and config.precision != "fp16"
        self.optimiser = torch.optim.AdamW(
            network.parameters(), config.lr, fused=device.type != "mps", capturable=captures
        )
        self._compute = CudaGraph(self._step_on_device, device) if captures else self._step_on_device
        if config.precision == "fp16" and device.type == "mps":
            raise UsageError("--precision fp16 needs gradient scaling, which PyTorch does not support on mps: use bf16")
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.variance = torch.zeros((), device=device)
        """Running mean of the Gaussian's variance fitted to each batch, for validation."""
        self.diverged = torch.full((), -1, device=device)
        """The first step whose loss or gradient was not finite; -1 without one."""

    def step(
        self, step: int, pixels: NDArray[np.uint8], noise: NDArray[np.float32], learning_rate: float, kl_weight: float
    ) -> tuple[Draws, TrainingLikelihood]:
        """Take a training step on this process's rows of a batch.

        ``pixels`` are uint8 (B, C, H, W), ``noise`` is eps (S, B, d). The method does not wait for the device. The
        next step may overwrite the results.
        """
        self.network.train()
        image, eps = move(np.ascontiguousarray(pixels), self.device), move(noise, self.device)
        return self._compute(image, eps, learning_rate, kl_weight, step)

    def _step_on_device(
        self, pixels: Tensor, eps: Tensor, learning_rate: Tensor | float, kl_weight: Tensor | float, step: Tensor | int
    ) -> tuple[Draws, TrainingLikelihood]:
        """Take the step; everything here can be captured in a CUDA graph."""
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        compute = self._whole_batch if self.config.accumulate == 1 else self._batch_in_parts
        draws, likelihood, loss = compute(to_float(pixels), eps, kl_weight)
        norm = self._descend()
        # Under fp16, a step whose gradient overflows is skipped and the scale is lowered.
        witness = loss if self.scaler.is_enabled() else loss + norm
        bad = (self.diverged < 0) & ~witness.isfinite()
        self.diverged.copy_(torch.where(bad, step, self.diverged))
        if likelihood.variance is not None:
            batch = torch.zeros_like(self.variance) + likelihood.variance
            self.variance.copy_(torch.where(self.variance == 0, batch, batch.lerp(self.variance, _VARIANCE_DECAY)))
        return Draws(*(part.detach() for part in draws)), likelihood

    def _whole_batch(
        self, image: Tensor, eps: Tensor, kl_weight: Tensor | float
    ) -> tuple[Draws, TrainingLikelihood, Tensor]:
        """Compute the gradient from all images at once; return draws, likelihood and loss."""
        draws = self._draw(image, eps)
        likelihood = self.shared_objective.fitted(self.likelihood, draws)
        loss = -self.shared_objective.value(draws, likelihood, kl_weight)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return draws, likelihood, loss.detach()

    def _batch_in_parts(
        self, image: Tensor, eps: Tensor, kl_weight: Tensor | float
    ) -> tuple[Draws, TrainingLikelihood, Tensor]:
        """Compute the gradient part by part, as ``_whole_batch`` does but for batch normalisation.

        The variance and the free bits depend on the whole batch, so all parts are computed twice: first without a
        gradient.
        """
        count = self.config.accumulate
        parts = list(zip(image.chunk(count), eps.chunk(count, dim=1), strict=True))
        with torch.no_grad():
            draws = Draws.joined([self._draw(*part) for part in parts])
        likelihood = self.shared_objective.fitted(self.likelihood, draws)
        whole_kl = self.shared_objective.mean(kl_standard_normal(draws.mu, draws.logvar).mean(0))
        objective = dataclasses.replace(self.objective, mean=lambda _: whole_kl)
        loss = torch.zeros((), device=self.device)
        for part in parts:
            of_part = -objective.value(self._draw(*part), likelihood, kl_weight) / count
            self.scaler.scale(of_part).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            loss = loss + of_part.detach()
        return draws, likelihood, loss

    def _draw(self, image: Tensor, eps: Tensor) -> Draws:
        """Encode and decode in the training's precision."""
        with torch.autocast(
            self.device.type, _DTYPES.get(self.config.precision), self.config.precision in _DTYPES, cache_enabled=False
        ):
            return draw(self.network, self.likelihood, image, eps)

    def _descend(self) -> Tensor:
        """Take an optimiser step with the gradient and return its norm.

        The gradient is the mean over the processes.
        """
        self.group.average(parameter.grad for parameter in self.network.parameters() if parameter.grad is not None)
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return norm

    def share_statistics(self) -> None:
        """Average the running batch statistics over the processes.

        Each process has those of its own share of the batches. They depend linearly on the batches, so the result does
        not depend on how often this is done.
        """
        self.group.average(buffer for buffer in self.network.buffers() if buffer.is_floating_point())

    def current_likelihood(self) -> TrainingLikelihood:
        """Return p(x|z), with the running variance unless the settings fix one."""
        return likelihood_of(self.config, self.variance.item() or 1.0)  # before the first batch any value will do

    @torch.inference_mode()
    def evaluate(self, parts: Iterable[NDArray[np.uint8]]) -> Draws:
        """Return draws for images in parts of any size, without training.

        The noise is the same in every call.
        """
        self.network.eval()
        noise = torch.Generator(self.device).manual_seed(torch_seed(self.config.seed + 1))
        _, height, width = self.config.image_shape
        size = max(1, images_at_once(height, width) // self.objective.samples)
        return Draws.joined(
            [
                draw(self.network, self.likelihood, to_device(pixels, self.device), self._eps(len(pixels), noise))
                for part in parts
                for pixels in (part[first : first + size] for first in range(0, len(part), size))
            ]
        )

    def _eps(self, images: int, noise: torch.Generator) -> Tensor:
        """Draw noise for images, (S, images, d)."""
        return torch.randn(
            self.objective.samples, images, self.config.latent_numbers, device=self.device, generator=noise
        )

    @torch.inference_mode()
    def figures(self, draws: Draws, likelihood: TrainingLikelihood) -> dict[str, float]:
        """Return the ELBO, its terms and the objective in nats per image.

        The KL has its full weight.
        """
        reconstruction, kl = (part.mean().item() for part in terms_of(draws, likelihood))
        objective = self.objective.value(draws, likelihood).item()
        return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl, "objective": objective}

    @torch.inference_mode()
    def batch_figures(self, draws: Draws, likelihood: TrainingLikelihood) -> dict[str, float]:
        """Return a batch's figures, averaged over the processes that share it."""
        local = self.figures(draws, likelihood)
        if self.group.size == 1:
            return local
        means = self.group.mean(torch.tensor(list(local.values()), device=self.device))
        return dict(zip(local, means.tolist(), strict=True))

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the network's state."""
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def state(self) -> Mapping[str, Any]:
        """Return the checkpoint's fields with the training state."""
        return {
            "network": self.network.state_dict(),
            "optimiser": optimiser_tensors(self.optimiser, self.network),
            "variance": self.variance,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint.

        Raises RuntimeError or KeyError if it belongs to another network.
        """
        self.network.load_state_dict(dict(checkpoint.network))
        restore_optimiser(self.optimiser, self.network, checkpoint.optimiser)
        if checkpoint.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(checkpoint.scaler))
        self.variance.copy_(checkpoint.variance)
