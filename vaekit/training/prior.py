"""Fit a run's prior again: encode its training images, and write a flow or a mixture."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from threadpoolctl import threadpool_limits
from torch import Tensor

from vaekit.errors import RunError, UsageError
from vaekit.images.labels import UNLABELLED
from vaekit.maths.prior import Mixture
from vaekit.system.files import replacing_file
from vaekit.training.classes import classes_of
from vaekit.training.device import to_device
from vaekit.training.flow import Codes, Flow, FlowTraining, velocity_network
from vaekit.training.holdout import STATISTICS_IMAGES, Split, read_to_measure, spread
from vaekit.training.mixture import fit_mixture
from vaekit.training.run import (
    MODEL,
    PRIOR,
    PRIOR_CHECKPOINT,
    Run,
    load_holdout,
    load_holdout_labels,
    mixture_of_tensors,
    mixture_tensors,
    save_model,
)

MOST_NUMBERS = 1 << 27
"""Numbers in the codes (mu and logvar) that are held in memory at most; of more images, some are left out."""

_BATCH = 250  # images that are encoded at a time
_FORMAT_VERSION = 1
_CHECKPOINT_SECONDS = 20.0
_SHOWN_EVERY = 20  # steps

Advance = Callable[[int, int | None, str], object]
"""Called with the number done, their total if it is known, and a text."""


@dataclass(frozen=True)
class Fitted:
    """The result of ``fit_flow``."""

    steps: int
    loss: float
    """The flow-matching loss on held-out images' codes."""
    stopped: bool
    """Whether it was asked to stop; there is a checkpoint then, and no new prior."""


@torch.inference_mode()
def codes_of(run: Run, parts: Iterator[NDArray[np.uint8]], advance: Callable[[int], object]) -> Codes:
    """Encode images, uint8 (n, C, H, W) in parts."""
    mus, logvars, done = [], [], 0
    for pixels in parts:
        mu, logvar = run.network.encoder(to_device(pixels, torch.device("cpu")))
        mus.append(mu.numpy())
        logvars.append(logvar.expand_as(mu).numpy())
        advance(done := done + len(pixels))
    return Codes(np.concatenate(mus), np.concatenate(logvars))


def training_codes(run: Run, split: Split, advance: Callable[[int, int], object]) -> Codes:
    """Encode a run's training images, or as many, evenly spaced, as MOST_NUMBERS allows; with their labels."""
    numbers = 2 * int(np.prod(run.config.latent_shape))
    chosen = spread(len(split.training), max(1, MOST_NUMBERS // numbers))
    parts = (split.training[chosen[first : first + _BATCH]] for first in range(0, len(chosen), _BATCH))
    read = (read_to_measure(split.images, part, run.config.binarize) for part in parts)
    codes = codes_of(run, read, lambda done: advance(done, len(chosen)))
    if (classes := classes_of(split)) is None:
        return codes
    return dataclasses.replace(codes, labels=classes.of_training[chosen], names=classes.names)


def fit_flow(
    run: Run,
    codes: Codes,
    *,
    steps: int | None,
    seconds: float | None,
    seed: int,
    resume: bool,
    stop: Callable[[], bool],
    advance: Advance,
) -> Fitted:
    """Train a flow on codes and write it to the run.

    It lasts a number of ``steps``, or ``seconds``; one of them is None. With ``resume`` it continues from the last
    checkpoint. ``stop`` says whether it was asked to stop. Raises RunError for a checkpoint that is missing, damaged or
    of other settings, and if the run cannot be written.
    """
    training, begun = FlowTraining(codes, seed, _mixture_to_start(run, codes, seed)), 0.0
    settings = {"model": _hash_of_model(run), "seed": seed, "codes": _hash_of(codes), "labels": list(codes.names)}
    if resume:
        tensors, header = _read(run, PRIOR_CHECKPOINT)
        if {key: header.get(key) for key in settings} != settings:
            raise RunError(
                f"{run.path / PRIOR_CHECKPOINT} belongs to another model, seed or source: leave out --resume"
            )
        try:
            training.restore(tensors, int(header["step"]))
        except (RuntimeError, KeyError, ValueError) as error:
            raise RunError(f"{run.path / PRIOR_CHECKPOINT} cannot be used: leave out --resume") from error
        begun = float(header["share"])
    started = saved = time.monotonic()
    share = begun
    with _few_threads(run):
        while share < 1 and not stop():
            loss = training.advance(share)
            now = time.monotonic()
            if steps is not None:
                share = training.step / steps
            elif seconds is not None:
                share = min(1.0, begun + (1 - begun) * (now - started) / max(seconds, 1e-9))
            if training.step % _SHOWN_EVERY == 0:
                advance(training.step, steps, f"loss {loss:.3f}")
            if now - saved > _CHECKPOINT_SECONDS and share < 1:
                _write(run, PRIOR_CHECKPOINT, training.state(), settings | {"step": training.step, "share": share})
                saved = time.monotonic()
    if share < 1:
        _write(run, PRIOR_CHECKPOINT, training.state(), settings | {"step": training.step, "share": share})
        return Fitted(training.step, float("nan"), stopped=True)
    loss = training.held_out_loss(_held_out_codes(run, codes.names))
    flow = training.flow()
    tensors = {f"network.{name}": tensor for name, tensor in flow.network.state_dict().items()}
    tensors |= {"mean": torch.from_numpy(flow.mean), "std": torch.from_numpy(flow.std)}
    if flow.label_weights is not None:
        tensors["label_weights"] = torch.from_numpy(flow.label_weights)
    tensors |= {} if flow.mixture is None else mixture_tensors(flow.mixture)
    _write(run, PRIOR, tensors, settings | {"steps": training.step, "loss": loss, "images": len(codes.mu)})
    (run.path / PRIOR_CHECKPOINT).unlink(missing_ok=True)
    return Fitted(training.step, loss, stopped=False)


@contextmanager
def _few_threads(run: Run) -> Iterator[None]:
    """Let vectors be learnt on one thread, which is twice as fast on two cores: the network is small."""
    before = torch.get_num_threads()
    if run.config.downscale is None:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _held_out_codes(run: Run, names: tuple[str, ...]) -> Codes:
    """Encode a run's held-out images, with their labels if the training images have names of labels."""
    held_out = load_holdout(run)
    parts = (held_out[first : first + _BATCH] for first in range(0, len(held_out), _BATCH))
    codes = codes_of(run, parts, lambda done: None)
    if not names:
        return codes
    own, numbers = load_holdout_labels(run)
    places = np.array([*(names.index(name) if name in names else UNLABELLED for name in own), UNLABELLED])
    return dataclasses.replace(codes, labels=places[numbers], names=names)


def _mixture_to_start(run: Run, codes: Codes, seed: int) -> Mixture | None:
    """Return the run's mixture if it knows the codes' labels, else one fitted again.

    Returns None for maps, for few images, and if a label has no components, from which its codes could be drawn.
    """
    if run.config.downscale is not None:
        return None
    known = run.mixture is not None and run.labels == codes.names
    mixture = run.mixture if known else _fitted_again(codes, seed)
    if mixture is not None and any(mixture.of_label(number) is None for number in range(len(codes.names))):
        return None
    return mixture


def _fitted_again(codes: Codes, seed: int) -> Mixture | None:
    rows = spread(len(codes.mu), STATISTICS_IMAGES)
    noise = np.random.default_rng(seed).standard_normal((len(rows), *codes.mu.shape[1:]), np.float32)
    z = codes.mu[rows] + np.exp(0.5 * codes.logvar[rows]) * noise
    return fit_mixture(z, None if codes.labels is None else codes.labels[rows], seed=seed)


def refit_mixture(run: Run, codes: Codes, seed: int) -> int:
    """Fit the mixture again and write it to the run, without a flow; return the number of components.

    Raises UsageError for maps, and RunError if there are too few images.
    """
    if run.config.downscale is not None:
        raise UsageError(f"the latents of {run.path} are maps, and a mixture knows nothing of neighbouring positions")
    mixture = _fitted_again(codes, seed)
    if mixture is None:
        raise RunError(f"{run.config.source} has too few images for a mixture")
    save_model(run.path, run.network, run.variance, mixture, run.summary, codes.names)
    _remove_flow(run)
    return len(mixture.weights)


def remove_prior(run: Run) -> None:
    """Leave the run with N(0, I) only."""
    save_model(run.path, run.network, run.variance, None, run.summary)
    _remove_flow(run)


def load_flow(run: Run) -> tuple[Flow, dict[str, Any]] | None:
    """Read a run's flow, and how it was trained; None if it has none.

    Raises RunError if it is damaged, or was fitted to other weights than the run has now.
    """
    path = run.path / PRIOR
    if not path.exists():
        return None
    tensors, header = _read(run, PRIOR)
    if header.get("model") != _hash_of_model(run):
        raise RunError(f"{path} was fitted to other weights than {run.path / MODEL} has: vaekit prior {run.path}")
    names = tuple(map(str, header.get("labels", ())))
    network = velocity_network(run.config.latent_shape, len(names))
    try:
        parts = {key.removeprefix("network."): part for key, part in tensors.items() if key.startswith("network.")}
        network.load_state_dict(parts)
        mean, std = (tensors[name].numpy() for name in ("mean", "std"))
        weights = tensors["label_weights"].numpy() if names else None
        mixture = mixture_of_tensors(tensors)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: fit it again with vaekit prior {run.path}") from error
    summary: dict[str, Any] = {key: header[key] for key in ("steps", "loss", "images", "seed") if key in header}
    return Flow(network.eval().requires_grad_(requires_grad=False), mean, std, names, weights, mixture), summary


def _remove_flow(run: Run) -> None:
    for name in (PRIOR, PRIOR_CHECKPOINT):
        (run.path / name).unlink(missing_ok=True)


def _hash_of_model(run: Run) -> str:
    return hashlib.sha256((run.path / MODEL).read_bytes()).hexdigest()


def _hash_of(codes: Codes) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(codes.mu).data)
    digest.update(np.ascontiguousarray(codes.logvar).data)
    if codes.labels is not None:
        digest.update(np.ascontiguousarray(codes.labels).data)
    return digest.hexdigest()


def _write(run: Run, name: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    document = {"prior": json.dumps({"format_version": _FORMAT_VERSION, **header}, sort_keys=True)}
    data = save({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, document)
    with replacing_file(run.path / name) as temporary:
        temporary.write_bytes(data)


def _read(run: Run, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = run.path / name
    if not path.exists():
        raise RunError(f"there is no {path} to resume from: leave out --resume")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 — not a dict
            header: dict[str, Any] = json.loads((file.metadata() or {})["prior"])
        version = header["format_version"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}. Fit the prior again: vaekit prior {run.path}") from error
    if version > _FORMAT_VERSION:
        raise RunError(f"{path} was written by a newer vaekit: upgrade this one (pip install -U vaekit)")
    return tensors, header
