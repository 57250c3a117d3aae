"""Measure how well a model finds defects, on pictures that are sorted into folders by their kind."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vaekit.errors import MissingExtraError, SourceError
from vaekit.images.parts import Chunk
from vaekit.images.picture import probe_image, read_image
from vaekit.maths.anomaly import (
    ELBO_SCORES,
    MAP_SCORES,
    SCORES,
    ScoreName,
    mahalanobis,
    scores_of_maps,
    scores_of_terms,
)
from vaekit.maths.detection import Curve, PixelCounts, curve_of_scores
from vaekit.maths.elbo import elbo_terms, posterior_sample
from vaekit.maths.surprise import surprise
from vaekit.types import Array

if TYPE_CHECKING:
    from vaekit.vae import VAE

ALL = "all"
"""The name of all kinds of defects together."""


@dataclass(frozen=True)
class Detection:
    """How well a score tells images with defects from good ones."""

    auroc: float
    average_precision: float
    false_alarms_at_95: float
    """Share of the good images that must be flagged to flag 95 % of the others."""


@dataclass(frozen=True)
class KindReport:
    """The figures for one kind of defect."""

    images: int
    scores: dict[str, Detection]
    """By the score's name."""
    pixel_auroc: float | None
    """None without masks."""
    pro: float | None


@dataclass(frozen=True)
class Scored:
    """An image's kind and scores."""

    path: str
    kind: str
    scores: dict[ScoreName, float]


@dataclass
class Findings:
    """The scores of all images, and counts of their pixels by kind."""

    normal: str
    images: list[Scored] = dataclasses.field(default_factory=list)
    pixels: dict[str, PixelCounts] | None = None
    """None without masks."""

    def kinds(self) -> list[str]:
        """Return the kinds of defects, sorted."""
        return sorted({image.kind for image in self.images} - {self.normal})

    def of(self, kind: str, name: ScoreName) -> NDArray[np.float64]:
        """Return a kind's scores, (n,)."""
        return np.array([image.scores[name] for image in self.images if image.kind == kind])

    def curve(self, kind: str, name: ScoreName) -> Curve:
        """Return a score's curve for a kind, or for all of them."""
        kinds = self.kinds() if kind == ALL else [kind]
        return curve_of_scores(self.of(self.normal, name), np.concatenate([self.of(each, name) for each in kinds]))

    def report(self) -> dict[str, KindReport]:
        """Return the figures by kind of defect, those of all kinds last."""
        return {kind: self._report(kind) for kind in (*self.kinds(), ALL)}

    def _report(self, kind: str) -> KindReport:
        kinds = self.kinds() if kind == ALL else [kind]
        scores: dict[str, Detection] = {}
        for name in self.images[0].scores:
            found = self.curve(kind, name)
            scores[name] = Detection(found.auroc, found.average_precision, found.false_alarms_at_95)
        counted = None
        if self.pixels is not None:
            counted = sum((self.pixels[each] for each in kinds), self.pixels.get(self.normal, PixelCounts()))
        areas = (None, None) if counted is None else (counted.auroc, counted.pro)
        return KindReport(sum(image.kind in kinds for image in self.images), scores, *areas)


def available_scores(vae: VAE) -> tuple[ScoreName, ...]:
    """Return the scores that the model has."""
    without = ELBO_SCORES if vae.manifest.why_no_elbo else ()
    missing = MAP_SCORES if vae.manifest.residuals is None else ()
    unknown = ("density",) if vae.manifest.why_no_density else ()
    return tuple(name for name in SCORES if name not in (*without, *missing, *unknown))


def find_anomalies(
    chunks: Iterable[tuple[VAE, Chunk]],
    normal: str,
    masks: Path | None,
    seed: int,
    map_by: str | None,
    progress: Callable[[int], object],
) -> Findings:
    """Score labelled images, each with the model for its size.

    ``masks`` is a folder with a mask for each image that is not ``normal``: KIND/NAME_mask.png or KIND/NAME.png, white
    where the defect is. ``map_by`` is what maps compare with, as in ``VAE.score_map``. Raises SourceError for a mask
    that is missing or does not fit, and MissingExtraError if masks need scipy and it is not installed.
    """
    if masks is not None:
        check_scipy()
    findings = Findings(normal, pixels=None if masks is None else {})
    for vae, chunk in chunks:
        if not chunk.paths:
            continue
        scores, maps = _scores(vae, chunk.images, seed, map_by)
        for number, (path, kind) in enumerate(zip(chunk.paths, chunk.labels or (), strict=True)):
            own = {name: float(values[number]) for name, values in scores.items()}
            findings.images.append(Scored(os.fsdecode(path), kind, own))
            if masks is not None and maps is not None and findings.pixels is not None:
                mask = None if kind == normal else read_mask(masks, kind, os.fsdecode(path), maps.shape[1:])
                findings.pixels.setdefault(kind, PixelCounts()).add(maps[number], mask)
        progress(len(findings.images))
    return findings


def _scores(
    vae: VAE, images: Array, seed: int, map_by: str | None
) -> tuple[dict[ScoreName, NDArray[np.float64]], Array | None]:
    """Compute all scores that the model has, and the maps."""
    names, latent = available_scores(vae), vae.manifest.latent
    mu, logvar = vae.encode(images)
    scores: dict[ScoreName, NDArray[np.float64]] = {}
    if "elbo" in names and logvar is not None:
        decoded = vae.decode(posterior_sample(mu, logvar, seed=seed))
        scores |= scores_of_terms(elbo_terms(images, mu, logvar, decoded, vae.manifest.likelihood))
    maps = None
    if "map" in names:
        maps = surprise(images, vae.decode(mu), *vae.residual_statistics(map_by))
        scores |= scores_of_maps(maps)
    scores["mahalanobis"] = mahalanobis(mu, np.array(latent.mean), np.array(latent.std))
    if "density" in names and vae.manifest.mixture is not None:
        scores["density"] = -vae.manifest.mixture.log_density(mu)
    return scores, maps


def read_mask(masks: Path, kind: str, picture: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Read a picture's mask (H, W), by the same rule as the picture. Raises SourceError as ``find_anomalies`` does."""
    stem = Path(picture).stem
    names = [masks / kind / name for name in (f"{stem}_mask.png", f"{stem}.png")]
    name = next((name for name in names if name.exists()), None)
    if name is None:
        raise SourceError(f"{picture} has no mask: neither {names[0]} nor {names[1]} is there")
    (mask_size, _), (size, _) = probe_image(str(name)), probe_image(picture)
    if mask_size != size:
        found, wanted = ("x".join(map(str, each)) for each in (mask_size, size))
        raise SourceError(f"the mask {name} is {found}, but its picture {picture} is {wanted}")
    mask = read_image(str(name), 1, None if tuple(shape) == size else (shape[0], shape[1]))[0]
    inside = np.asarray(mask >= 128)
    if not inside.any():
        raise SourceError(f"the mask {name} is black: there is no defect in {picture}, or the crop leaves it out")
    return inside


def check_scipy() -> None:
    """Raise MissingExtraError if scipy is not installed."""
    try:
        import scipy.ndimage  # noqa: F401 — only whether it can be imported
    except ImportError as error:
        raise MissingExtraError("masks of defects need scipy: pip install 'vaekit[anomalies]'") from error


def worst(findings: Findings, name: ScoreName, count: int) -> Iterator[Scored]:
    """Yield the images with defects that score lowest, then the good ones that score highest, ``count`` of each."""
    defects = [image for image in findings.images if image.kind != findings.normal]
    good = [image for image in findings.images if image.kind == findings.normal]
    yield from sorted(defects, key=lambda image: image.scores[name])[:count]
    yield from sorted(good, key=lambda image: -image.scores[name])[:count]
