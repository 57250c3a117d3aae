"""Read and write a run, the folder that training writes and export reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vaekit.errors import RunError
from vaekit.images.factors import Factors
from vaekit.images.labels import UNLABELLED
from vaekit.maths.prior import Mixture
from vaekit.system.files import check_writable, replacing_file
from vaekit.system.npz import NPZ_ERRORS, read_arrays
from vaekit.training.checkpoint import CHECKPOINT
from vaekit.training.classes import Classes
from vaekit.training.config import CONFIG, Config, load_config
from vaekit.training.networks import VAENetwork

MODEL, METRICS, HOLDOUT, PREVIEWS = "model.safetensors", "metrics.jsonl", "holdout.npz", "previews"
_UNFINISHED = ".*.tmp"

PRIOR, PRIOR_CHECKPOINT = "prior.safetensors", "prior-checkpoint.safetensors"
_NAMED_SHAPES = 2  # in messages
_LABELS = "labels"  # in the summary of model.safetensors
_PRIOR_KEYS = ("prior.weights", "prior.means", "prior.cholesky", "prior.labels")


@dataclass(frozen=True)
class Run:
    """A trained model, read from a run folder."""

    path: Path
    config: Config
    network: VAENetwork
    """In evaluation mode, on the CPU."""
    variance: float | None
    """The Gaussian likelihood's variance, computed on training images at the end. None for Bernoulli."""
    mixture: Mixture | None
    summary: dict[str, Any]
    """Results of the training, such as the number of steps and the validation terms."""
    labels: tuple[str, ...] = ()
    """Names of the labels of the mixture's components, by number."""


def is_run(path: Path) -> bool:
    """Return whether a folder is a run, finished or not."""
    # A config.json is not enough, because other programs write files of that name.
    try:
        document = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "format_version" in document


def check_run_target(path: Path, overwrite: bool) -> None:
    """Raise RunError, before any work, if ``path`` cannot hold a run."""
    if is_run(path) and not overwrite:
        raise RunError(
            f"{path} already contains a run: resume it with --resume {path}, replace it with --overwrite, or choose "
            "another folder with -o"
        )
    if path.exists() and not is_run(path) and not _is_empty(path):
        raise RunError(f"{path} exists and is not a run: choose another folder with -o")
    check_writable(path / MODEL)


def _is_empty(path: Path) -> bool:
    """Return whether a folder holds nothing but what a training left that was killed as it began."""
    return path.is_dir() and all(entry.match(_UNFINISHED) for entry in path.iterdir())


def make_folder(path: Path) -> None:
    """Create a run's folder if it is missing. Raises RunError if that fails."""
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)


def start_folder(path: Path) -> None:
    """Create a run's folder, or remove an older run's files from it. Raises RunError if that fails."""
    make_folder(path)
    with _writing(path):
        for name in (PREVIEWS, "tensorboard"):
            shutil.rmtree(path / name, ignore_errors=True)
        # The model goes first: with a model and no checkpoint, an interrupted removal would look like a finished run.
        for name in (MODEL, CHECKPOINT, METRICS, PRIOR, PRIOR_CHECKPOINT):
            (path / name).unlink(missing_ok=True)
        _remove_unfinished(path)


def rewind_folder(path: Path, metrics_bytes: int) -> None:
    """Remove what was written after a checkpoint. Raises RunError if that fails.

    ``metrics_bytes`` is the length of metrics.jsonl at the checkpoint.
    """
    with _writing(path):
        (path / PREVIEWS).mkdir(exist_ok=True)
        with open(path / METRICS, "ab") as file:
            file.truncate(min(metrics_bytes, file.tell()))
        _remove_later_previews(path)
        _remove_unfinished(path)


def _remove_later_previews(path: Path) -> None:
    """Remove previews of steps whose validation is not in metrics.jsonl: of where a training was stopped."""
    lines = map(json.loads, (path / METRICS).read_text(encoding="utf-8").splitlines())
    validated = {line["step"] for line in lines if line["split"] == "validation"}
    for picture in (path / PREVIEWS).glob("*-*.png"):
        step = picture.stem.rpartition("-")[2]
        if step.isdecimal() and int(step) not in validated:
            picture.unlink(missing_ok=True)


def is_finished(path: Path) -> bool:
    """Return whether a run's training has finished. Raises RunError if it is not a run."""
    load_config(path)
    # While training, there is no model before the first checkpoint; the last checkpoint is removed at the end.
    return (path / MODEL).exists() and not (path / CHECKPOINT).exists()


def _remove_unfinished(path: Path) -> None:
    """Remove temporary files of ``replacing_file`` that a killed process left behind."""
    for folder in (path, path / PREVIEWS):
        for leftover in folder.glob(_UNFINISHED):
            leftover.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def save_model(
    path: Path,
    network: VAENetwork,
    variance: float | None,
    mixture: Mixture | None,
    summary: Mapping[str, Any],
    labels: Sequence[str] = (),
) -> None:
    """Write model.safetensors under a temporary name and rename it.

    ``labels`` are the names of the labels that components of the mixture have. The same model gives the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if variance is not None:
        tensors["likelihood.variance"] = torch.tensor(variance, dtype=torch.float64)
    tensors |= {} if mixture is None else mixture_tensors(mixture)
    # Only one key, because safetensors does not guarantee the order of several.
    named = {_LABELS: list(labels)} if mixture is not None and mixture.labels is not None else {}
    metadata = {"summary": json.dumps({**summary, **named}, sort_keys=True)}
    with replacing_file(path / MODEL) as temporary:
        temporary.write_bytes(save(tensors, metadata))  # save_file() would make it unreadable for other users


def mixture_tensors(mixture: Mixture) -> dict[str, Tensor]:
    """Return a mixture's arrays as named tensors."""
    arrays = (mixture.weights, mixture.means, mixture.cholesky, mixture.labels)
    named = zip(_PRIOR_KEYS, arrays, strict=True)
    return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in named if array is not None}


def mixture_of_tensors(tensors: Mapping[str, Tensor]) -> Mixture | None:
    """Return the mixture among named tensors, or None. Raises TypeError or ValueError if it is damaged."""
    arrays = [tensors[key].numpy() for key in _PRIOR_KEYS if key in tensors]
    return Mixture(*arrays) if arrays else None


def save_holdout(
    path: Path,
    images: NDArray[np.uint8],
    classes: Classes | None,
    pictures: Sequence[NDArray[np.uint8]] = (),
    factors: Factors | None = None,
) -> None:
    """Write holdout.npz: ``images`` uint8 (N, C, H, W), and their classes, factors and whole pictures if there are any.

    The classes are ``labels`` (N,), numbers of the names in ``label_names``, or -1. The pictures, uint8 (C, h, w) each,
    lie one after the other in ``pictures``; ``sizes`` (P, 2) are their (h, w). ``factors`` (N, F) have names and
    periods, (F,) each.
    """
    arrays: dict[str, NDArray[Any]] = {"images": images}
    if classes is not None:
        arrays |= {"labels": classes.of_holdout, "label_names": np.array(classes.names)}
    if factors is not None:
        arrays |= {
            "factors": factors.values,
            "factor_names": np.array(factors.names),
            "factor_periods": np.array(factors.periods),
        }
    if pictures:
        arrays["pictures"] = np.concatenate([picture.ravel() for picture in pictures])
        arrays["sizes"] = np.array([picture.shape[1:] for picture in pictures], np.int64)
    with replacing_file(path / HOLDOUT) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes **arrays for allow_pickle


def load_run(path: Path) -> Run:
    """Read a run.

    Raises RunError if the folder is not a run, is damaged, or its weights do not fit its config.
    """
    config = load_config(path)
    model_path = path / MODEL
    if not model_path.is_file():
        raise RunError(f"{path} has no {MODEL} yet: finish its training with vaekit train --resume {path}")
    try:
        with safe_open(model_path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a dict
            summary = json.loads((file.metadata() or {}).get("summary", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{model_path} cannot be read: {error}") from error
    variance = tensors.pop("likelihood.variance", None)
    prior = {key: tensors.pop(key) for key in _PRIOR_KEYS if key in tensors}
    network = VAENetwork.of(config)
    try:
        network.load_state_dict(tensors)
        mixture = mixture_of_tensors(prior)
        labels = tuple(map(str, summary.pop(_LABELS, ())))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"the weights in {model_path} do not fit {path / CONFIG}: {_first_line(error)}") from error
    if config.likelihood != "bernoulli" and variance is None:
        raise RunError(f"{model_path} has no likelihood.variance: it was not written by vaekit")
    return Run(path, config, network.eval(), None if variance is None else float(variance), mixture, summary, labels)


def load_initial_weights(network: VAENetwork, path: Path) -> None:
    """Give a network the weights of a run.

    Raises RunError if the folder is not a finished run, or if its network has other shapes.
    """
    run = load_run(path)
    if run.config.channels != network.image_shape[0]:
        colours = {1: "grey", 3: "RGB"}
        raise RunError(
            f"--init {path} was trained on {colours[run.config.channels]} images, and these are "
            f"{colours[network.image_shape[0]]}: convert them"
        )
    weights, own = run.network.state_dict(), network.state_dict()
    unfit = [
        f"{name} is {_shape(weights.get(name))} there and {_shape(own.get(name))} here"
        for name in dict.fromkeys((*own, *weights))
        if _shape(weights.get(name)) != _shape(own.get(name))
    ]
    if unfit:
        more = f", and {len(unfit) - _NAMED_SHAPES} more" if len(unfit) > _NAMED_SHAPES else ""
        raise RunError(
            f"--init {path} has another network: {'; '.join(unfit[:_NAMED_SHAPES])}{more}. Leave out --latent, "
            "--preset, --posterior and --size, so that they are its own"
        )
    network.load_state_dict(weights)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


def load_holdout(run: Run) -> NDArray[np.uint8]:
    """Read the held-out images, uint8 (N, C, H, W).

    Raises RunError if they are missing or do not fit the run's settings.
    """
    (images,), path = _read_holdout(run, "images"), run.path / HOLDOUT
    if images.dtype != np.uint8 or images.shape[1:] != run.config.image_shape or not len(images):
        raise RunError(f"{path} contains {images.dtype} {images.shape}, which does not fit {run.path / CONFIG}")
    return images


def load_holdout_labels(run: Run) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Read the names of classes, and each held-out image's class number, or -1, (N,).

    There are no names if the training images had no classes. Raises RunError as ``load_holdout`` does.
    """
    images, labels, names = _read_holdout(run, "images", "labels", "label_names")
    if not len(names):  # earlier versions wrote labels without names
        return (), np.full(len(images), UNLABELLED, np.int64)
    if (
        labels.shape != images.shape[:1]
        or labels.dtype.kind != "i"
        or not (labels >= UNLABELLED).all() & (labels < len(names)).all()
    ):
        raise RunError(f"{run.path / HOLDOUT} contains labels that do not fit its images: train again")
    return tuple(map(str, names)), labels.astype(np.int64)


def load_holdout_factors(run: Run) -> Factors | None:
    """Read the known factors of the held-out images, if the run has any. Raises RunError as ``load_holdout`` does."""
    images, values, names, periods = _read_holdout(run, "images", "factors", "factor_names", "factor_periods")
    if not len(names):
        return None
    if values.shape != (len(images), len(names)) or periods.shape != names.shape or values.dtype.kind != "f":
        raise RunError(f"{run.path / HOLDOUT} contains factors that do not fit its images: train again")
    return Factors(tuple(map(str, names)), tuple(map(float, periods)), values)


def load_whole_pictures(run: Run) -> tuple[NDArray[np.uint8], ...]:
    """Read the whole pictures that held-out crops come from, each uint8 (C, h, w), as many as the run has kept.

    Raises RunError as ``load_holdout`` does.
    """
    channels, path = run.config.channels, run.path / HOLDOUT
    flat, sizes = _read_holdout(run, "pictures", "sizes")
    if flat.dtype != np.uint8 or (len(sizes) and sizes.shape[1:] != (2,)) or channels * _area(sizes).sum() != flat.size:
        raise RunError(f"{path} contains whole pictures that do not fit their sizes: train again")
    parts = np.split(flat, channels * np.cumsum(_area(sizes))[:-1]) if len(sizes) else []
    return tuple(part.reshape(channels, *size) for part, size in zip(parts, sizes, strict=True))


def _read_holdout(run: Run, *names: str) -> list[NDArray[Any]]:
    """Read arrays of holdout.npz; those that are missing are empty."""
    path = run.path / HOLDOUT
    try:
        arrays = read_arrays(path, names)
        return [arrays.get(name, np.empty(0, np.uint8)) for name in names]
    except FileNotFoundError:
        raise RunError(f"{path} is missing: restore it, or train again (it contains the held-out images)") from None
    except NPZ_ERRORS as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _area(sizes: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(sizes.reshape(-1, 2).prod(axis=1), np.int64)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]  # torch's first line only names the class
