"""The training loop, from a source of images to a finished run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaekit.errors import RunError, UsageError, VaekitError
from vaekit.images.dataset import Images
from vaekit.maths.prior import Mixture
from vaekit.training.adaptive_threads import AdaptiveThreads
from vaekit.training.batches import Batches
from vaekit.training.checkpoint import CHECKPOINT, Checkpoint
from vaekit.training.classes import classes_of
from vaekit.training.config import CONFIG, Config
from vaekit.training.deadline import FINE_TOLERANCE, Clock, Ending, TimedSchedule, Work, fit_work
from vaekit.training.device import current_setting, exact, share_threads, torch_seed
from vaekit.training.holdout import Split, hold_out, read_to_measure
from vaekit.training.learner import EVALUATION_BATCH, Learner
from vaekit.training.mixture import fit_mixture
from vaekit.training.networks import VAENetwork
from vaekit.training.objective import Draws, TrainingLikelihood, likelihood_of
from vaekit.training.processes import ProcessGroup
from vaekit.training.run import load_initial_weights
from vaekit.training.run_writer import RunWriter
from vaekit.training.schedule import REPORT_EVERY, Schedule, StepSchedule
from vaekit.training.tracking import tracking

_NAMED_IMAGES = 3  # in the message about a batch whose loss was not finite
# Outside these, sigma or a weight is a likelier cause of a diverged training than the learning rate.
_ORDINARY_SIGMA, _ORDINARY_WEIGHT = (1e-3, 1e3), 1e4


@dataclass(frozen=True)
class Progress:
    """The progress of a training. Figures are those of the last batch, in nats per image."""

    step: int
    total: int | None
    """The number of steps. Under a deadline it is an estimate, and None before there is one."""
    elbo: float
    reconstruction: float
    kl: float


@dataclass(frozen=True)
class Outcome:
    """The result of a training. Figures are those of the kept model on the held-out images, in nats per image."""

    config: Config
    steps: int
    interrupted: bool
    """Whether it was asked to stop early. It can then be resumed."""
    elbo: float
    reconstruction: float
    kl: float
    objective: float
    """The value of ``config.objective``, such as the ELBO or the IWAE bound."""
    sigma: float | None
    components: int
    """The number of components of the fitted mixture prior; 0 if there were too few images to fit one."""


class Trainer:
    """One training. Without a deadline, everything in it is a function of the step."""

    def __init__(
        self,
        config: Config,
        images: Images | Split,
        path: Path,
        *,
        network: VAENetwork | None = None,
        device: str = "cpu",
        group: ProcessGroup | None = None,
        checkpoint: Checkpoint | None = None,
        deadline: float | None = None,
        clock: Clock = time.monotonic,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda progress: None,
        working: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Prepare to train on ``images`` and to write the run to ``path``.

        ``images`` is a source, which is split by the settings, or already a split. ``network`` replaces the one that
        the settings name; ``load_run`` cannot read such a run. ``deadline``, on the ``clock``, replaces the length in
        the settings: all work ends by then. ``stop`` is asked between steps whether to end early. With a
        ``checkpoint`` of the run at ``path``, the training continues from it. Each process of a ``group`` trains on
        its share of every batch, and the first process writes the files. Long work without progress reports runs
        within ``working(WHAT)``.

        Raises UsageError if the batch is larger than the training part, or if neither the group nor the parts of
        ``accumulate`` can share it equally. Raises SourceError for too few images, or images of another shape than the
        settings'. Raises RunError if the checkpoint belongs to other images or another network, or the weights to begin
        with do not fit.
        """
        self.config, self.path, self.checkpoint = config, path, checkpoint
        self.stop, self.report, self.group, self.working = stop, report, group or ProcessGroup(), working
        self.split = images if isinstance(images, Split) else hold_out(images, config.seed, config.val)
        with working("computing the fingerprint of the images"):
            self.fingerprint = self.split.fingerprint()
        if checkpoint is not None and checkpoint.fingerprint != self.fingerprint:
            raise RunError(
                f"{self.split.images.name} has changed since {path} was started: other images, or another order or "
                "size. Restore it, or train again with --overwrite"
            )
        self.split.check(config)
        self.classes = classes_of(self.split)
        rows = self.group.rows(config.batch_size)
        _check_parts(config, rows.stop - rows.start)
        self.threads = share_threads(self.group.beside)
        torch.manual_seed(torch_seed(config.seed))
        network = network or VAENetwork.of(config)
        if config.init is not None and checkpoint is None:
            load_initial_weights(network, Path(config.init))
        self.learner = Learner(config, network, torch.device(device), self.group)
        self.batches = Batches(self.split.images, config, self.split.training, rows)
        self.holdout_images = self.split.read_holdout(config.binarize)
        self.writer = RunWriter(path, active=self.group.first)
        self.best: dict[str, float] = {}
        self.best_weights: dict[str, Tensor] = {}
        self.validated = self.kept = -1  # the steps of the last validation and of the last checkpoint
        if checkpoint is not None:
            self._restore(checkpoint)
        self.timed = None if deadline is None else self._timed_schedule(deadline, clock)
        self.schedule: Schedule = self.timed or StepSchedule(config)
        adapts = self.timed is not None and device == "cpu" and self.group.size == 1
        self.adaptive = AdaptiveThreads(self.threads, clock) if adapts else None

    @property
    def network(self) -> VAENetwork:
        """Return the network that is trained."""
        return self.learner.network

    def changed_setting(self) -> list[str]:
        """Return the differences in versions and threads from the checkpoint's.

        Each of them may change the last bits of the results.
        """
        before = {} if self.checkpoint is None else self.checkpoint.setting
        now = current_setting(self.threads)
        return [f"{name} {value}, now {now[name]}" for name, value in before.items() if now.get(name, value) != value]

    def run(self) -> Outcome:
        """Train and write the run.

        After the last step, the weights with the best validation are taken, sigma is fixed and the prior is fitted. A
        resumed training gives bit for bit the same model as one that never stopped, on the same machine and with the
        same number of threads. Raises VaekitError if the training diverges, if a file cannot be written, or if another
        command is writing the run.
        """
        with self.writer.alone():
            return self._run()

    def _run(self) -> Outcome:
        if self.checkpoint is None:
            self.writer.start(self.config, self.split, self.holdout_images, self.classes)
            self._save_checkpoint(0)
        else:
            self.writer.rewind(self.checkpoint.metrics_bytes)
        tracker = self.config.track if self.group.first else None
        writing = tracking(tracker, self.path, dataclasses.asdict(self.config), self.kept)
        with exact(self.learner.device), memory_named(self.config), writing as self.writer.track:
            steps, stopped = self._train(self.kept)
            if self.adaptive is not None:
                self.adaptive.reset()
            return self._end(steps, stopped)

    def _timed_schedule(self, deadline: float, clock: Clock) -> TimedSchedule:
        """Return the schedule that ends at the deadline.

        It begins with the schedule recorded in the checkpoint, if there is one.
        """
        fitted = None if self.config.downscale else self.config.latent
        ending = Ending(len(self.split.for_statistics()), len(self.split.holdout), fitted)
        knots = self.checkpoint.knots if self.checkpoint is not None else ()
        device = self.learner.device
        agree = None if self.group.size == 1 else lambda numbers: self.group.from_first(numbers, device)
        return TimedSchedule(
            self.config, deadline, ending, knots=knots or ((max(0, self.kept), 0.0),), agree=agree, clock=clock
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint."""
        try:
            self.learner.restore(checkpoint)
        except (RuntimeError, KeyError) as error:
            raise RunError(
                f"the weights in {self.path / CHECKPOINT} do not fit the network that {self.path / CONFIG} describes: "
                "restore the original config.json, or train again with --overwrite"
            ) from error
        self.best = dict(checkpoint.best)
        device = self.learner.device
        self.best_weights = {name: tensor.to(device) for name, tensor in checkpoint.best_weights.items()}
        self.validated, self.kept = checkpoint.validated, checkpoint.step

    def _train(self, first: int) -> tuple[int, bool]:
        """Train from step ``first`` on.

        Returns the steps done, and whether the training was asked to stop.
        """
        if self.timed is not None:
            self.timed.start()
        for step, pixels in enumerate(self.batches.from_step(first), first):
            if self.schedule.ends_after(step):
                return step, False
            if self._is_stopped(step):
                return step, True
            noise = self.batches.noise(step, self.learner.objective.samples)
            rate, weight = self.schedule.learning_rate(step), self.schedule.kl_weight(step)
            with nullcontext() if self.adaptive is None else self.adaptive.step():
                draws, likelihood = self.learner.step(step, pixels, noise, rate, weight)
            done = step + 1
            if self.schedule.reports_after(done):
                self._report(done, draws, likelihood)
            if self.timed is not None:
                self.timed.follow(done)
            if self.schedule.validates_after(done):
                self._validate(done)
            if self.schedule.checkpoints_after(done):
                self._save_checkpoint(done)
        raise AssertionError("batches never end")

    def _aside(self, work: Work, amount: float = 1.0) -> AbstractContextManager[None]:
        """Return a context that measures work other than steps for a deadline."""
        return nullcontext() if self.timed is None else self.timed.aside(work, amount)

    def _is_stopped(self, step: int) -> bool:
        """Return whether any process was asked to stop.

        Several processes must wait for each other to agree, so they do not check at every step.
        """
        agreed = self.group.size == 1 or step % REPORT_EVERY == 0
        return agreed and self.group.any(self.stop(), self.learner.device)

    def _report(self, step: int, draws: Draws, likelihood: TrainingLikelihood) -> None:
        """Log a batch's figures and report the progress."""
        figures = self.learner.batch_figures(draws, likelihood)
        self._check_finite(step, figures["objective"])
        self.writer.log(step, "training", figures)
        self.report(Progress(step, self.schedule.total(), figures["elbo"], figures["reconstruction"], figures["kl"]))

    def _validate(self, step: int) -> None:
        """Measure the held-out images, draw previews, and keep the best weights."""
        self.learner.share_statistics()
        likelihood = self.learner.current_likelihood()
        with self._aside("evaluation", len(self.holdout_images)):
            draws = self.learner.evaluate([self.holdout_images])
            figures = self.learner.figures(draws, likelihood)
        self._check_finite(step, figures["objective"])
        self.writer.log(step, "validation", {**figures, "variance": likelihood.float_variance()})
        mixture = self._fit_prior(draws, None if self.classes is None else self.classes.of_holdout)
        with self._aside("pictures"):
            self._preview(f"{step:06d}", mixture)
            self._keep_best(step, figures, likelihood)
        self.validated = step

    def _keep_best(self, step: int, figures: dict[str, float], likelihood: TrainingLikelihood) -> None:
        """Keep the weights and write the model if they are the best."""
        if figures["objective"] > self.best.get("objective", -math.inf):
            self.best = figures | {"step": step}
            self.best_weights = self.learner.weights()
            self._save_model(likelihood.float_variance(), None, step)

    def _end(self, steps: int, stopped: bool) -> Outcome:
        """Finish after the last step.

        A training that was asked to stop keeps its checkpoint, so that it can be resumed.
        """
        if stopped and steps != self.kept:
            self._save_checkpoint(steps)
        if self.timed is not None and not stopped:
            self.config = dataclasses.replace(
                self.config, steps=steps, max_minutes=None, schedule=self.timed.recorded(steps)
            )
            self.writer.save_config(self.config)
        if steps != self.validated:
            self._validate(steps)
        self.network.load_state_dict(self.best_weights)
        outcome = self._finish(steps, stopped)
        if not stopped:
            self.writer.remove_checkpoint()
        self.group.wait()  # until the first process has written
        return outcome

    def _finish(self, steps: int, stopped: bool) -> Outcome:
        """Fit variance and prior on training images, and write the model."""
        learner = self.learner
        parts = self._statistics_parts()
        with self.working("measuring training images"):
            draws = learner.evaluate(self._read_while_there_is_time(parts))
        measured = np.concatenate(parts)[: draws.z.shape[1]]
        variance = learner.objective.fitted(learner.likelihood, draws.to_float64()).float_variance()
        figures = learner.figures(learner.evaluate([self.holdout_images]), likelihood_of(self.config, variance))
        self.best = figures | {"step": self.best["step"]}
        with self.working("fitting the prior"):
            classes = None if self.classes is None else self.classes.of_training[measured]
            mixture = self._fit_prior(draws, classes, None if self.timed is None else self.timed.fit_goes_on)
        self._save_model(variance, mixture, steps)
        self._preview("final", mixture)
        return Outcome(
            config=self.config,
            steps=steps,
            interrupted=stopped,
            sigma=None if variance is None else math.sqrt(variance),
            components=0 if mixture is None else len(mixture.weights),
            **figures,
        )

    def _statistics_parts(self) -> list[NDArray[np.int64]]:
        """Return which training images variance and prior are fitted to, in parts, as places in ``split.training``."""
        chosen = self.split.for_statistics()
        count = -(-len(chosen) // EVALUATION_BATCH)
        # Under a deadline each part is spread over all images, because later parts may be skipped.
        return np.array_split(chosen, count) if self.timed is None else [chosen[part::count] for part in range(count)]

    def _read_while_there_is_time(self, parts: list[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the images of parts. Under a deadline there may be no time for all of them."""
        read = 0
        for part in parts:
            if read and self.timed is not None and not self.timed.statistics_go_on(read):
                return
            read += len(part)
            yield read_to_measure(self.split.images, self.split.training[part], self.config.binarize)

    def _fit_prior(
        self, draws: Draws, classes: NDArray[np.int64] | None, goes_on: Callable[[], bool] | None = None
    ) -> Mixture | None:
        if self.config.downscale is not None or self.config.prior == "none":
            return None  # of maps, a mixture would know nothing of neighbouring positions
        z = draws.z[0].cpu().numpy()
        with self._aside("fit", fit_work(*z.shape)):
            return fit_mixture(z, classes, seed=self.config.seed, goes_on=goes_on)

    def _preview(self, name: str, mixture: Mixture | None) -> None:
        self.writer.save_previews(name, self.network, self.holdout_images, mixture, self.learner.device)

    def _save_model(self, variance: float | None, mixture: Mixture | None, steps: int) -> None:
        labels = () if self.classes is None else self.classes.names
        self.writer.save_model(self.network, variance, mixture, labels, steps, self.best)

    def _save_checkpoint(self, step: int) -> None:
        """Write all that a training needs to continue after ``step`` steps."""
        with self._aside("checkpoint"):
            self._write_checkpoint(step)

    def _write_checkpoint(self, step: int) -> None:
        self.learner.share_statistics()
        self._check_finite(step)
        checkpoint = Checkpoint(
            step=step,
            best=self.best,
            best_weights=self.best_weights,
            validated=self.validated,
            metrics_bytes=self.writer.metrics_bytes(),
            fingerprint=self.fingerprint,
            setting=current_setting(self.threads),
            seconds_left=None if self.timed is None else self.timed.seconds_left(),
            knots=() if self.timed is None else self.timed.recorded(step, FINE_TOLERANCE),
            **self.learner.state(),
        )
        self.kept, before = step, self.kept
        self.writer.save_checkpoint(checkpoint, before)

    def _check_finite(self, step: int, figure: float = 0.0) -> None:
        """Raise VaekitError if the training diverged.

        It has if a loss or gradient so far, or ``figure``, is not finite.
        """
        diverged = int(self.learner.diverged)
        if diverged < 0 and math.isfinite(figure):
            return
        where = f"at step {step}: its figures are not finite"
        if diverged >= 0:
            where = f"at step {diverged + 1}: the loss or its gradient is not finite, on {self._named_batch(diverged)}"
        raise VaekitError(
            f"training diverged {where}. {likely_cause(self.config)}; the last good checkpoint, of step "
            f"{self.kept}, is {self.path / CHECKPOINT}"
        )

    def _named_batch(self, step: int) -> str:
        """Return the names of a step's first images, and how many follow."""
        indices = self.batches.indices(step)
        names = ", ".join(self.split.images.name_of(int(index)) for index in indices[:_NAMED_IMAGES])
        more = len(indices) - _NAMED_IMAGES
        return f"{names} and {more} more" if more > 0 else names


def _check_parts(config: Config, rows: int) -> None:
    """Raise UsageError unless ``accumulate`` divides a process's rows of a batch into equal parts of at least 2."""
    if rows % config.accumulate or rows < 2 * config.accumulate:
        raise UsageError(
            f"--accumulate {config.accumulate} must divide the batch of {rows} images into parts of 2 or more"
        )


@contextmanager
def memory_named(config: Config) -> Iterator[None]:
    """Raise VaekitError, which names the settings to change, where memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's errors of CPU memory have no class of their own
        lacks = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not lacks:
            raise
        batch = f"{config.batch_size} images of {config.height}x{config.width}"
        accumulate = "" if config.accumulate > 1 else ", split the batch with --accumulate 4"
        raise VaekitError(
            f"out of memory at a batch of {batch}: lower --batch-size{accumulate}, or lower --size or --preset"
        ) from error


def likely_cause(config: Config) -> str:
    """Say which setting to change after a training diverged.

    This is the first one with an extraordinary value; without one, the learning rate.
    """
    if config.sigma is not None and not _ORDINARY_SIGMA[0] <= config.sigma <= _ORDINARY_SIGMA[1]:
        return f"The likely cause is --sigma {config.sigma:g}: pixels are in [0, 1], and 0.1 is a common value"
    for name, weight in (("--beta", config.beta), ("--free-bits", config.free_bits)):
        if weight > _ORDINARY_WEIGHT:
            return f"The likely cause is {name} {weight:g}: lower it"
    return f"Lower --lr, which is {config.lr:g}"
