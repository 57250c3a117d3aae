"""The training loop: from a source of images to a finished run."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaekit.errors import RunError, SourceError, UsageError, VaekitError
from vaekit.images.dataset import Images, share_of
from vaekit.maths.prior import Mixture, draw_mixture
from vaekit.output.grid import grid, save_picture
from vaekit.system.machine import usable_cpus
from vaekit.training.batches import Batches, read_to_measure
from vaekit.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from vaekit.training.mixture import fit_mixture
from vaekit.training.networks import VAENetwork
from vaekit.training.objective import Draws, Likelihood, Objective, draw, elbo_terms
from vaekit.training.processes import Team
from vaekit.training.run import (
    CONFIG,
    METRICS,
    PREVIEWS,
    Config,
    rewind_folder,
    save_config,
    save_holdout,
    save_model,
    start_folder,
)
from vaekit.training.tracking import Track, tracking

DEFAULT_STEPS = 2400
HOLDOUT_IMAGES = 1000
FINISH_IMAGES = 12_000
"""Training images, evenly spread, that the frozen variance and the prior are fitted on."""

_WARMUP_IMAGES = 10_000  # over which the learning rate rises
_VALIDATIONS = 10  # in a training, evenly spaced; each may write a checkpoint
_LEAST_INTERVAL = 50  # steps between two validations
_REPORT_EVERY = 10  # steps between two figures: reading them waits for the device
_VARIANCE_DECAY = 0.98  # of the running variance, a step
_GRADIENT_NORM = 1e5  # cuts only what would throw the weights far off
_EVALUATION_BATCH = 250  # decoded images
_PREVIEW_IMAGES = 32
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NAMED_IMAGES = 3  # of a batch on which the loss was not finite

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
    objective: float
    """What was maximised: the ELBO, IWAE's bound, or what else ``config.objective`` names."""
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


def split(count: int, seed: int, share: float | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the training and of the held-out images, drawn by the seed.

    Held out is that share of them, by default a tenth, but at most HOLDOUT_IMAGES. Raises SourceError for fewer than
    three images, UsageError for a share that leaves no image to measure or fewer than two to train on.
    """
    if count < 3:
        raise SourceError(f"{count} images are too few to train on: give at least 3, better thousands")
    held_out = min(HOLDOUT_IMAGES, max(1, count // 10)) if share is None else round(count * share)
    if not 1 <= held_out <= count - 2:
        raise UsageError(
            f"--val {share:g} of {count:,} images leaves {held_out:,} to measure and {count - held_out:,} to train on: "
            "there must be at least 1 and 2"
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def parts_of(images: Images, validation: Images | None, config: Config) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the images to train on, and of those to measure: of ``validation`` where there is one.

    Of more than HOLDOUT_IMAGES to measure, so many are taken, evenly spread. Raises as ``split`` does.
    """
    if validation is None:
        training, holdout = split(len(images), config.seed, share_of(config.val))
    else:
        training, holdout = np.arange(len(images), dtype=np.int64), np.arange(len(validation), dtype=np.int64)
    chosen = min(len(holdout), HOLDOUT_IMAGES)
    return training, holdout[np.arange(chosen) * len(holdout) // chosen]


def objective_of(config: Config) -> Objective:
    """What a training with these settings maximises."""
    return Objective(config.objective, config.iwae_samples or config.mc_samples, config.beta, config.free_bits)


def likelihood_of(config: Config, variance: float | None = None) -> Likelihood:
    """p(x|z) of a model with these settings, with this fitted ``variance`` where the settings fix none."""
    if config.likelihood == "bernoulli":
        variance = None
    elif config.sigma is not None:
        variance = config.sigma**2
    return Likelihood(config.likelihood, math.prod(config.image_shape), variance)


def kl_warmth(step: int, total: int | None, share: float) -> float:
    """The share of the KL's weight in force at a step: a linear rise from 0 over that ``share`` of the steps.

    (Sønderby et al., "Ladder Variational Autoencoders", 2016.) While the number of steps is unknown it is 0.
    """
    if share == 0:
        return 1.0
    return 0.0 if total is None else min(1.0, step / (share * total))


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
        network: VAENetwork | None = None,
        validation: Images | None = None,
        device: str = "cpu",
        team: Team | None = None,
        checkpoint: Checkpoint | None = None,
        deadline: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """``deadline`` (of time.monotonic) becomes the number of steps after a warm-up; ``stop`` ends it early.

        ``network`` is trained in place of the one that the settings name; its run is not for ``load_run``.
        Measured are held-out images, those of ``validation`` where it is given, which ``config.val`` then names.
        With a ``checkpoint`` of the run at ``path``, the training goes on from there.

        The processes of a ``team`` each train on their share of every batch, and the first of them writes the files.

        Raises UsageError for a batch larger than the training part or that the team cannot share equally, SourceError
        for images too few or of another shape than the config's, RunError where the checkpoint is of other images or
        another network than the config's.
        """
        self.config, self.images, self.path, self.checkpoint = config, images, path, checkpoint
        self.device, self.deadline, self.stop, self.report = torch.device(device), deadline, stop, report
        self.team = team or Team()
        self.total = config.steps if deadline is None else None
        self.measured = validation or images
        self.fingerprint = images.fingerprint() + (f", {validation.fingerprint()}" if validation else "")
        if checkpoint is not None and checkpoint.fingerprint != self.fingerprint:
            raise RunError(
                f"{images.name} has changed since {path} was begun: other images, or another order or size. Restore "
                "it, or train anew with --overwrite"
            )
        for source in (images, self.measured):
            if source.shape != config.image_shape:
                raise SourceError(
                    f"{source.name} has images of {source.shape} (channels, height, width): {config.image_shape} are "
                    "needed"
                )
        self.training, self.holdout = parts_of(images, validation, config)
        if not 2 <= config.batch_size <= len(self.training):
            raise UsageError(
                f"the batch size must be from 2 to the number of training images, {len(self.training)}, "
                f"not {config.batch_size}"
            )
        if config.batch_size % self.team.size or config.batch_size // self.team.size < 2:
            raise UsageError(
                f"a batch of {config.batch_size} cannot be shared equally by {self.team.size} processes, two images or "
                "more to each: choose another --batch-size"
            )
        torch.set_num_threads(max(1, usable_cpus() // self.team.beside))
        torch.manual_seed(_torch_seed(config.seed))
        self.objective, self.likelihood = objective_of(config), likelihood_of(config)
        self.network = network or VAENetwork(config.image_shape, config.latent, config.posterior, config.preset)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
        self.batches = Batches(images, config, self.training, self.team.rows(config.batch_size))
        self.shared = dataclasses.replace(self.objective, mean=self.team.mean)  # for batches that all have a share of
        self.optimiser = torch.optim.AdamW(self.network.parameters(), config.lr, fused=self.device.type != "mps")
        if config.precision == "fp16" and self.device.type == "mps":
            raise UsageError("--precision fp16 needs a scaled loss, which PyTorch has not on mps: use bf16")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.variance = torch.zeros((), device=self.device)  # running mean over batches, for validation
        self.diverged = torch.full((), -1, device=self.device)  # the first step whose loss was not finite
        self.track: Track = lambda figures, step: None
        self.best: dict[str, float] = {}
        self.best_weights: dict[str, Tensor] = {}
        self.validated = self.kept = -1  # the steps of the last validation and of the last checkpoint
        if checkpoint is not None:
            self._restore(checkpoint)

    def changed_setting(self) -> list[str]:
        """In words, what differs from the machine and versions of the checkpoint, and so may change the last bits."""
        before = {} if self.checkpoint is None else self.checkpoint.setting
        now = current_setting()
        return [f"{name} {value}, now {now[name]}" for name, value in before.items() if now.get(name, value) != value]

    def run(self) -> Outcome:
        """Train, keep the weights with the best validation, freeze sigma, fit the prior, and write the run.

        From a checkpoint, on the same machine and with as many threads, the model becomes bit for bit that of a
        training that never stopped. Raises VaekitError where the training diverges or a file cannot be written.
        """
        self.holdout_images = read_to_measure(self.measured, self.holdout, self.config)
        if self.checkpoint is None:
            self._start()
        elif self.team.first:
            rewind_folder(self.path, self.checkpoint.metrics_bytes)
        tracker = self.config.track if self.team.first else None
        with tracking(tracker, self.path, dataclasses.asdict(self.config), self.kept) as self.track:
            steps, stopped = self._train(self.kept)
            return self._end(steps, stopped)

    def _end(self, steps: int, stopped: bool) -> Outcome:
        """What comes after the last step; a training that was asked to stop can go on from there."""
        if stopped and steps != self.kept:
            self._save_checkpoint(steps)
        if steps != self.validated:
            self._validate(steps)
        self.network.load_state_dict(self.best_weights)
        outcome = self._finish(steps)
        if not stopped and self.team.first:
            (self.path / CHECKPOINT).unlink(missing_ok=True)
        self.team.wait()  # for the first to write
        return outcome

    def _start(self) -> None:
        """Begin a run's folder."""
        if self.team.first:
            start_folder(self.path)
            save_config(self.path, self.config)
            (self.path / METRICS).touch()
            labels = None if self.measured.labels is None else self.measured.labels[self.holdout]
            save_holdout(self.path, self.holdout_images, labels)
        self._save_checkpoint(0)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Take up the state of a checkpoint."""
        try:
            self.network.load_state_dict(dict(checkpoint.network))
            restore_optimiser(self.optimiser, self.network, checkpoint.optimiser)
        except (RuntimeError, KeyError) as error:
            raise RunError(
                f"the weights in {self.path / CHECKPOINT} are of another network than {self.path / CONFIG} describes: "
                "restore that file, or train anew with --overwrite"
            ) from error
        if checkpoint.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(checkpoint.scaler))
        self.variance.copy_(checkpoint.variance)
        self.best = dict(checkpoint.best)
        self.best_weights = {name: tensor.to(self.device) for name, tensor in checkpoint.best_weights.items()}
        self.validated, self.kept = checkpoint.validated, checkpoint.step

    def _train(self, first: int) -> tuple[int, bool]:
        """Train from that step on; steps done, and whether that is because the training was asked to stop."""
        started, timed_from = time.monotonic(), max(first, _TIMED_STEPS // 3)
        warmup = max(1, _WARMUP_IMAGES // self.config.batch_size)
        for step, pixels in enumerate(self.batches.from_step(first), first):
            if self.total is None and step == timed_from:
                started = time.monotonic()
            if self.total is None and step == _TIMED_STEPS:
                self._settle_steps((time.monotonic() - started) / (step - timed_from))
            if step == self.total:
                return step, False
            if self._ends(step, self.stop()):
                return step, True
            if self._ends(step, self._late()):
                return step, False
            if self.total is not None:
                warmup = min(warmup, max(1, self.total // 5))
            self._set_learning_rate(learning_rate(step, self.total, warmup))
            draws, likelihood = self._step(step, pixels)
            if (step + 1) % _REPORT_EVERY == 0 or step + 1 == self.total:
                self._report(step + 1, draws, likelihood)
            if self.total is not None and (step + 1) % max(_LEAST_INTERVAL, self.total // _VALIDATIONS) == 0:
                self._validate(step + 1)
            if self.total is not None and (step + 1) % self.config.checkpoint_every == 0:
                self._save_checkpoint(step + 1)
        raise AssertionError("batches never end")

    def _ends(self, step: int, wanted: bool) -> bool:
        """Whether one of the processes wants to end. To agree they wait for each other, so not at every step."""
        agreed = self.team.size == 1 or step % _REPORT_EVERY == 0
        return agreed and self.team.any(wanted, self.device)

    def _step(self, step: int, pixels: NDArray[np.uint8]) -> tuple[Draws, Likelihood]:
        """Learn from one batch. Nothing in here waits for the device."""
        self.network.train()
        image = to_device(pixels, self.device)
        eps = _move(self.batches.noise(step, self.objective.samples), self.device)
        warmth = kl_warmth(step, self.total, self.config.beta_warmup)
        with torch.autocast(self.device.type, _DTYPES.get(self.config.precision), self.config.precision in _DTYPES):
            draws = draw(self.network, self.likelihood, image, eps)
        likelihood = self.shared.fitted(self.likelihood, draws)
        loss = -self.shared.value(draws, likelihood, warmth)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.team.average(parameter.grad for parameter in self.network.parameters() if parameter.grad is not None)
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        # Under fp16 a gradient that overflows is not taken, and lowers the scale.
        witness = loss.detach() if self.scaler.is_enabled() else loss.detach() + norm
        bad = (self.diverged < 0) & ~witness.isfinite()
        self.diverged = torch.where(bad, step, self.diverged)
        if likelihood.variance is not None:
            batch = torch.as_tensor(likelihood.variance, device=self.device)
            self.variance = torch.where(self.variance == 0, batch, batch.lerp(self.variance, _VARIANCE_DECAY))
        return draws, likelihood

    def _eps(self, images: int, noise: torch.Generator) -> Tensor:
        """Noise for one step or evaluation of so many images, (S, B, d)."""
        return torch.randn(self.objective.samples, images, self.config.latent, device=self.device, generator=noise)

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
        steps = _TIMED_STEPS + max(1, int(left / step_seconds * (1 - _SLACK)))
        self.total = self.team.from_first(steps, self.device)
        self.config = dataclasses.replace(self.config, steps=self.total, max_minutes=None)
        if self.team.first:
            save_config(self.path, self.config)

    def _late(self) -> bool:
        """Whether a machine that grew slower has used up the time kept for training."""
        return self.deadline is not None and self.total is not None and time.monotonic() > self.finish_by

    @torch.inference_mode()
    def _report(self, step: int, draws: Draws, likelihood: Likelihood) -> None:
        local = self._figures(draws, likelihood)
        means = self.team.mean(torch.tensor(list(local.values()), device=self.device))
        figures = dict(zip(local, means.tolist(), strict=True)) if self.team.size > 1 else local
        self._check_finite(step, figures["objective"])
        self._log({"step": step, "split": "training", **figures})
        self.report(Progress(step, self.total, figures["elbo"], figures["reconstruction"], figures["kl"]))

    def _check_finite(self, step: int, figure: float = 0.0) -> None:
        """Raise VaekitError where a step's loss, or a figure after ``step`` steps, is not finite."""
        diverged = int(self.diverged)
        if diverged < 0 and math.isfinite(figure):
            return
        where = f"at step {step}: its figures are not finite"
        if diverged >= 0:
            where = f"at step {diverged + 1}: the loss or its gradient is not finite, on {self._named_batch(diverged)}"
        raise VaekitError(
            f"training diverged {where}. Lower --lr, which is {self.config.lr:g}; the last good checkpoint, of step "
            f"{self.kept}, is {self.path / CHECKPOINT}"
        )

    def _named_batch(self, step: int) -> str:
        """The images of a step in words."""
        indices = self.batches.indices(step)
        names = ", ".join(self.images.name_of(int(index)) for index in indices[:_NAMED_IMAGES])
        more = len(indices) - _NAMED_IMAGES
        return f"{names} and {more} more" if more > 0 else names

    def _save_checkpoint(self, step: int) -> None:
        """Write all that a training needs to go on after so many steps."""
        self._share_statistics()
        self._check_finite(step)
        self.kept, before = step, self.kept
        if not self.team.first:
            return
        checkpoint = Checkpoint(
            step=step,
            network=self.network.state_dict(),
            optimiser=optimiser_tensors(self.optimiser, self.network),
            variance=self.variance,
            best=self.best,
            best_weights=self.best_weights,
            validated=self.validated,
            metrics_bytes=(self.path / METRICS).stat().st_size,
            fingerprint=self.fingerprint,
            scaler=self.scaler.state_dict(),
            setting=current_setting(),
        )
        try:
            save_checkpoint(self.path, checkpoint)
        except VaekitError as error:
            rest = f"; the checkpoint of step {before} stays, and `vaekit train --resume {self.path}` goes on from it"
            raise VaekitError(f"{error}{'' if before < 0 else rest}") from error

    def _share_statistics(self) -> None:
        """Give all processes the mean of their running batch statistics, which each has of its own share of batches.

        They follow the batches linearly, so that it does not matter how often this is done.
        """
        self.team.average(buffer for buffer in self.network.buffers() if buffer.is_floating_point())

    def _validate(self, step: int) -> None:
        """Measure the held-out images, draw the previews, and keep the weights where they are the best yet."""
        self._share_statistics()
        likelihood = likelihood_of(self.config, self.variance.item() or 1.0)  # no batch yet: any will do
        draws = self._evaluate([self.holdout_images])
        figures = self._figures(draws, likelihood)
        self._check_finite(step, figures["objective"])
        self._log({"step": step, "split": "validation", **figures, "variance": _variance_of(likelihood)})
        self._preview(f"{step:06d}", self._fit_prior(draws))
        self.validated = step
        if figures["objective"] > self.best.get("objective", -math.inf):
            self.best = figures | {"step": step}
            self.best_weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
            self._save_model(_variance_of(likelihood), None, step)

    def _finish(self, steps: int) -> Outcome:
        """Freeze the variance and fit the prior over training data, and write the model a last time."""
        chosen = self.training[:: -(-len(self.training) // FINISH_IMAGES)]
        parts = np.array_split(chosen, -(-len(chosen) // _EVALUATION_BATCH))
        draws = self._evaluate(read_to_measure(self.images, part, self.config) for part in parts)
        variance = _variance_of(self.objective.fitted(self.likelihood, draws.to_float64()))
        figures = self._figures(self._evaluate([self.holdout_images]), likelihood_of(self.config, variance))
        self.best = figures | {"step": self.best["step"]}
        mixture = self._fit_prior(draws)
        self._save_model(variance, mixture, steps)
        self._preview("final", mixture)
        return Outcome(
            config=self.config,
            steps=steps,
            interrupted=steps != self.total,
            elbo=figures["elbo"],
            reconstruction=figures["reconstruction"],
            kl=figures["kl"],
            objective=figures["objective"],
            sigma=None if variance is None else math.sqrt(variance),
            components=0 if mixture is None else len(mixture.weights),
        )

    @torch.inference_mode()
    def _evaluate(self, parts: Iterable[NDArray[np.uint8]]) -> Draws:
        """Draws for images, in parts of any size, without learning; the noise is always the same."""
        self.network.eval()
        noise = torch.Generator(self.device).manual_seed(_torch_seed(self.config.seed + 1))
        size = max(1, _EVALUATION_BATCH // self.objective.samples)
        return Draws.joined(
            [
                draw(self.network, self.likelihood, to_device(pixels, self.device), self._eps(len(pixels), noise))
                for part in parts
                for pixels in (part[first : first + size] for first in range(0, len(part), size))
            ]
        )

    def _figures(self, draws: Draws, likelihood: Likelihood) -> dict[str, float]:
        """The ELBO, its terms and the objective at its full weights, in nats per image."""
        reconstruction, kl = (part.mean().item() for part in elbo_terms(draws, likelihood))
        objective = self.objective.value(draws, likelihood).item()
        return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl, "objective": objective}

    def _fit_prior(self, draws: Draws) -> Mixture | None:
        return fit_mixture(draws.z[0].cpu().numpy(), seed=self.config.seed)

    @torch.inference_mode()
    def _preview(self, name: str, mixture: Mixture | None) -> None:
        """Write held-out images above their reconstructions, and samples from a mixture of the latents."""
        if not self.team.first:
            return
        self.network.eval()
        originals = to_device(self.holdout_images[:_PREVIEW_IMAGES], self.device)
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

    def _save_model(self, variance: float | None, mixture: Mixture | None, steps: int) -> None:
        summary = {"steps": steps, "kept_step": self.best["step"], "validation": {k: self.best[k] for k in _FIGURES}}
        if self.team.first:
            save_model(self.path, self.network, variance, mixture, summary)

    def _log(self, record: dict[str, Any]) -> None:
        if not self.team.first:
            return
        figures = {f"{record['split']}/{name}": value for name, value in record.items() if isinstance(value, float)}
        self.track(figures, int(record["step"]))
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise VaekitError(f"cannot write {self.path / METRICS}: {error.strerror or error}") from error


def to_device(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 (N, C, H, W) → float32 in [0, 1] on the device; it travels as bytes."""
    moved = _move(np.ascontiguousarray(pixels), device)
    return moved.to(torch.float32, memory_format=torch.channels_last).div_(255)


def current_setting() -> dict[str, str]:
    """What the last bits of a training depend on beside its config and its images."""
    return {"torch": torch.__version__, "numpy": np.__version__, "threads": str(torch.get_num_threads())}


def _move(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device, on its way there while the processor goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _variance_of(likelihood: Likelihood) -> float | None:
    return None if likelihood.variance is None else float(likelihood.variance)


def _torch_seed(seed: int) -> int:
    """A seed that PyTorch takes: its generators know 63 bits."""
    return seed % 2**63


_FIGURES = ("elbo", "reconstruction", "kl", "objective")
