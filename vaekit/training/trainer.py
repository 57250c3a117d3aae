"""The training loop: from a source of images to a finished run."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaekit.errors import SourceError, UsageError, VaekitError
from vaekit.machine import usable_cpus
from vaekit.pictures import grid, save_picture
from vaekit.prior import Mixture, draw_mixture
from vaekit.sources import Images
from vaekit.training.mixture import fit_mixture
from vaekit.training.networks import VAENetwork, reparameterise
from vaekit.training.objective import Likelihood, Terms, elbo_terms, optimal_variance
from vaekit.training.run import METRICS, PREVIEWS, Config, save_config, save_holdout, save_model, start_folder

DEFAULT_STEPS = 1600
HOLDOUT_IMAGES = 1000
FINISH_IMAGES = 12_000
"""Training images, evenly spread, that the frozen variance and the prior are fitted on."""

_WARMUP_IMAGES = 10_000  # over which the learning rate rises
_VALIDATIONS = 10  # in a training, evenly spaced; each may write a checkpoint
_LEAST_INTERVAL = 50  # steps between two validations
_REPORT_EVERY = 10  # steps between two figures: reading them waits for the device
_VARIANCE_DECAY = 0.98  # of the running variance, a step
_GRADIENT_NORM = 1e5  # cuts only what would throw the weights far off
_EVALUATION_BATCH = 250
_PREVIEW_IMAGES = 32

_TIMED_STEPS = 30  # before a deadline becomes a number of steps; the first third is not timed
_EVALUATION_COST = 0.4  # of an image's share of a training step
_MIXTURE_SECONDS = 15.0  # kept back from a deadline for fitting the prior and drawing previews
_SLACK = 0.05  # of the steps that a deadline seems to allow


@dataclass(frozen=True)
class Progress:
    """Where a training stands; its figures are of the last batch, in nats per image."""

    step: int
    total: int | None
    """None until a deadline has become a number of steps."""
    elbo: float
    reconstruction: float
    kl: float


@dataclass(frozen=True)
class Outcome:
    """What a training came to; figures are of the held-out images and the model that was kept, in nats per image."""

    config: Config
    steps: int
    interrupted: bool
    elbo: float
    reconstruction: float
    kl: float
    sigma: float | None
    components: int
    """Of the fitted mixture prior; 0 where the images were too few to fit one."""


def choose_device(name: str) -> str:
    """The device that ``auto`` means here, or the one named. Raises VaekitError for one that is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, available in here.items() if available)
    if not here[name]:
        raise VaekitError(f"PyTorch finds no {name} device here: use --device auto")
    return name


def steps_of(training: int, batch_size: int, *, epochs: int | None = None, steps: int | None = None) -> int:
    """The length in steps: as given, or of so many passes over the training images, or else DEFAULT_STEPS."""
    if epochs is not None:
        return epochs * max(1, training // batch_size)
    return steps or DEFAULT_STEPS


def split(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the training and of the held-out images: a tenth, at most HOLDOUT_IMAGES, drawn by the seed.

    Raises SourceError for fewer than three images.
    """
    if count < 3:
        raise SourceError(f"{count} images are too few to train on: give at least 3, better thousands")
    order = np.random.default_rng(seed).permutation(count)
    held_out = min(HOLDOUT_IMAGES, max(1, count // 10))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def learning_rate(step: int, total: int | None, warmup: int) -> float:
    """The learning rate's share of its peak at a step: a linear rise, then half a cosine down to zero."""
    rise = min(1.0, (step + 1) / warmup)
    return rise if total is None else rise * 0.5 * (1.0 + math.cos(math.pi * step / total))


class Trainer:
    """One training. Everything that follows from the step alone is a function of the step."""

    def __init__(
        self,
        config: Config,
        images: Images,
        path: Path,
        *,
        device: str = "cpu",
        deadline: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """``deadline`` (of time.monotonic) becomes the number of steps after a warm-up; ``stop`` ends it early.

        Raises UsageError for a batch larger than the training part, SourceError for too few images.
        """
        self.config, self.images, self.path = config, images, path
        self.device, self.deadline, self.stop, self.report = torch.device(device), deadline, stop, report
        self.total = config.steps if deadline is None else None
        self.training, self.holdout = split(len(images), config.seed)
        if not 2 <= config.batch_size <= len(self.training):
            raise UsageError(
                f"the batch size must be from 2 to the number of training images, {len(self.training)}, "
                f"not {config.batch_size}"
            )
        torch.set_num_threads(usable_cpus())
        torch.manual_seed(_torch_seed(config.seed))
        self.network = VAENetwork(config.image_shape, config.latent)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
        self.noise = torch.Generator(self.device).manual_seed(_torch_seed(config.seed))
        self.optimiser = torch.optim.AdamW(self.network.parameters(), config.lr, fused=self.device.type != "mps")
        self.variance = torch.zeros((), device=self.device)  # running mean over batches, for validation
        self.best: dict[str, float] = {"elbo": -math.inf}
        self.best_weights: dict[str, Tensor] = {}

    def run(self) -> Outcome:
        """Train, keep the best weights by validation ELBO, freeze sigma, fit the prior, and write the run."""
        start_folder(self.path)
        self.holdout_images = self.images.read(self.holdout)
        labels = None if self.images.labels is None else self.images.labels[self.holdout]
        save_holdout(self.path, self.holdout_images, labels)
        save_config(self.path, self.config)
        (self.path / METRICS).touch()
        steps = self._train()
        if steps != self.best.get("step"):
            self._validate(steps)
        self.network.load_state_dict(self.best_weights)
        return self._finish(steps)

    def _train(self) -> int:
        """Steps done."""
        started = time.monotonic()
        warmup = max(1, _WARMUP_IMAGES // self.config.batch_size)
        for step, pixels in enumerate(self._batches()):
            if self.total is None and step == _TIMED_STEPS // 3:
                started = time.monotonic()
            if self.total is None and step == _TIMED_STEPS:
                self._settle_steps((time.monotonic() - started) / (step - _TIMED_STEPS // 3))
            if step == self.total or self.stop() or self._late():
                return step
            if self.total is not None:
                warmup = min(warmup, max(1, self.total // 5))
            self._set_learning_rate(learning_rate(step, self.total, warmup))
            terms = self._step(self._to_device(pixels))
            if (step + 1) % _REPORT_EVERY == 0 or step + 1 == self.total:
                self._report(step + 1, terms)
            if self.total is not None and (step + 1) % max(_LEAST_INTERVAL, self.total // _VALIDATIONS) == 0:
                self._validate(step + 1)
        raise AssertionError("batches never end")

    def _step(self, image: Tensor) -> Terms:
        eps = torch.randn(len(image), self.config.latent, device=self.device, generator=self.noise)
        self.network.train()
        terms = elbo_terms(self.network, self._likelihood(), image, eps)
        loss = (self.config.beta * terms.kl - terms.reconstruction).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
        self.optimiser.step()
        batch = optimal_variance(terms.squared_error.detach(), image[0].numel())
        self.variance = torch.where(self.variance == 0, batch, batch.lerp(self.variance, _VARIANCE_DECAY))
        return terms

    def _set_learning_rate(self, share: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * share

    def _settle_steps(self, step_seconds: float) -> None:
        """Turn the deadline into a number of steps, once, and record it."""
        assert self.deadline is not None
        evaluated = min(len(self.training), FINISH_IMAGES) + _VALIDATIONS * len(self.holdout)
        finish = evaluated * _EVALUATION_COST * step_seconds / self.config.batch_size + _MIXTURE_SECONDS
        self.finish_by = self.deadline - finish
        left = self.finish_by - time.monotonic()
        self.total = _TIMED_STEPS + max(1, int(left / step_seconds * (1 - _SLACK)))
        self.config = dataclasses.replace(self.config, steps=self.total)
        save_config(self.path, self.config)

    def _late(self) -> bool:
        """Whether a machine that grew slower has used up the time kept for training."""
        return self.deadline is not None and self.total is not None and time.monotonic() > self.finish_by

    def _report(self, step: int, terms: Terms) -> None:
        elbo, reconstruction, kl = (part.mean().item() for part in (terms.elbo, terms.reconstruction, terms.kl))
        self._check_finite(step, elbo)
        self._log({"step": step, "split": "training", "elbo": elbo, "reconstruction": reconstruction, "kl": kl})
        self.report(Progress(step, self.total, elbo, reconstruction, kl))

    def _check_finite(self, step: int, elbo: float) -> None:
        if not math.isfinite(elbo):
            kept = f"the last good checkpoint is in {self.path}" if self.best_weights else "nothing was saved yet"
            raise VaekitError(f"training diverged at step {step}: the loss is not finite. Lower --lr; {kept}.")

    def _validate(self, step: int) -> None:
        """Measure the held-out images, draw the previews, and keep the weights where they are the best yet."""
        likelihood = self._frozen_likelihood(self.variance.item() or 1.0)  # no batch yet: any will do
        figures, latents, _ = self._evaluate(self.holdout_images, likelihood)
        self._check_finite(step, figures["elbo"])
        self._log({"step": step, "split": "validation", **figures, "variance": likelihood.variance})
        self._preview(f"{step:06d}", fit_mixture(latents, seed=self.config.seed))
        if figures["elbo"] > self.best["elbo"]:
            self.best = figures | {"step": step}
            self.best_weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
            save_model(self.path, self.network, likelihood.variance, None, self._summary(step))

    def _finish(self, steps: int) -> Outcome:
        """Freeze the variance and fit the prior over training data, and write the model a last time."""
        chosen = self.training[:: -(-len(self.training) // FINISH_IMAGES)]
        parts = [
            self._evaluate(self.images.read(chosen[first : first + _EVALUATION_BATCH]), Likelihood("gaussian", 1.0))
            for first in range(0, len(chosen), _EVALUATION_BATCH)
        ]
        latents, errors = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        fitted = optimal_variance(torch.from_numpy(errors).double(), math.prod(self.config.image_shape)).item()
        likelihood = self._frozen_likelihood(fitted)
        figures, _, _ = self._evaluate(self.holdout_images, likelihood)
        self.best = figures | {"step": self.best["step"]}
        mixture = fit_mixture(latents, seed=self.config.seed)
        save_model(self.path, self.network, likelihood.variance, mixture, self._summary(steps))
        self._preview("final", mixture)
        return Outcome(
            config=self.config,
            steps=steps,
            interrupted=steps != self.total,
            elbo=figures["elbo"],
            reconstruction=figures["reconstruction"],
            kl=figures["kl"],
            sigma=None if likelihood.variance is None else math.sqrt(likelihood.variance),
            components=0 if mixture is None else len(mixture.weights),
        )

    @torch.inference_mode()
    def _evaluate(
        self, pixels: NDArray[np.uint8], likelihood: Likelihood
    ) -> tuple[dict[str, float], NDArray[np.float32], NDArray[np.float32]]:
        """Mean terms of images, their latents drawn from q (N, d), and their squared errors (N,); one fixed eps."""
        self.network.eval()
        noise = torch.Generator(self.device).manual_seed(_torch_seed(self.config.seed + 1))
        terms, latents = [], []
        for first in range(0, len(pixels), _EVALUATION_BATCH):
            image = self._to_device(pixels[first : first + _EVALUATION_BATCH])
            eps = torch.randn(len(image), self.config.latent, device=self.device, generator=noise)
            terms.append(elbo_terms(self.network, likelihood, image, eps))
            mu, logvar = self.network.encoder(image)
            latents.append(reparameterise(mu, logvar, eps))
        reconstruction, kl, errors = (torch.cat(parts) for parts in zip(*terms, strict=True))
        figures = {"reconstruction": reconstruction.mean().item(), "kl": kl.mean().item()}
        figures = {"elbo": figures["reconstruction"] - figures["kl"], **figures}
        return figures, torch.cat(latents).cpu().numpy(), errors.cpu().numpy()

    @torch.inference_mode()
    def _preview(self, name: str, mixture: Mixture | None) -> None:
        """Write held-out images above their reconstructions, and samples from a mixture of the latents."""
        self.network.eval()
        originals = self._to_device(self.holdout_images[:_PREVIEW_IMAGES])
        reconstructions = self.network.decoder(self.network.encoder(originals)[0])
        rows = torch.stack((originals, reconstructions), 1).cpu().numpy()  # (N, 2, C, H, W)
        columns = min(8, len(rows))
        rows = rows[: len(rows) // columns * columns].reshape(-1, columns, 2, *self.config.image_shape)
        pairs = rows.swapaxes(1, 2).reshape(-1, *self.config.image_shape)
        save_picture(grid(pairs, columns), self.path / PREVIEWS / f"reconstructions-{name}.png")
        if mixture is not None:
            z = torch.from_numpy(draw_mixture(mixture, 64)).to(self.device)
            samples = self.network.decoder(z).cpu().numpy()
            save_picture(grid(samples, 8), self.path / PREVIEWS / f"samples-{name}.png")

    def _likelihood(self) -> Likelihood:
        sigma = self.config.sigma
        return Likelihood(self.config.likelihood, None if sigma is None else sigma**2)

    def _frozen_likelihood(self, fitted_variance: float) -> Likelihood:
        """The likelihood with the variance that was fixed, or else the one fitted; Bernoulli has none."""
        likelihood = self._likelihood()
        if likelihood.name == "bernoulli" or likelihood.variance is not None:
            return likelihood
        return Likelihood("gaussian", fitted_variance)

    def _batches(self) -> Iterator[NDArray[np.uint8]]:
        """Shuffled batches without end, each epoch in an order of its own; the rest short of a batch is left out."""
        if self.images.in_memory:
            yield from map(self.images.read, self._batch_indices())
            return
        indices = self._batch_indices()
        with ThreadPoolExecutor(1) as pool:  # reads the next batch while this one is trained on
            ahead = pool.submit(self.images.read, next(indices))
            while True:
                batch = ahead.result()
                ahead = pool.submit(self.images.read, next(indices))
                yield batch

    def _batch_indices(self) -> Iterator[NDArray[np.int64]]:
        size = self.config.batch_size
        epoch = 0
        while True:
            order = np.random.default_rng((self.config.seed, epoch)).permutation(self.training)
            yield from (order[first : first + size] for first in range(0, len(order) - size + 1, size))
            epoch += 1

    def _to_device(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 (N, C, H, W) → float32 in [0, 1] on the device; it travels as bytes."""
        moved = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, non_blocking=True)
        return moved.to(torch.float32, memory_format=torch.channels_last).div_(255)

    def _summary(self, step: int) -> dict[str, object]:
        return {"steps": step, "kept_step": self.best["step"], "validation": {k: self.best[k] for k in _TERMS}}

    def _log(self, record: dict[str, object]) -> None:
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _torch_seed(seed: int) -> int:
    """A seed that PyTorch takes: its generators know 63 bits."""
    return seed % 2**63


_TERMS = ("elbo", "reconstruction", "kl")
