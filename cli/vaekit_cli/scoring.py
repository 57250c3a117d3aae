"""How images are scored and flagged, for one run over images and for watching a folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekit.errors import UsageError
from vaekit_cli.calibration import Calibration, read_calibration

if TYPE_CHECKING:
    from vaekit.bundle.manifest import ScoreStatistics
    from vaekit.maths.anomaly import ScoreName
    from vaekit.types import Array
    from vaekit.vae import VAE


class ScoreBy(StrEnum):
    """What an image is scored by."""

    ELBO = "elbo"
    RECONSTRUCTION = "reconstruction"
    KL = "kl"
    MAP = "map"
    PEAK = "peak"
    MAHALANOBIS = "mahalanobis"
    DENSITY = "density"

    @property
    def from_maps(self) -> bool:
        """Return whether the score is taken from maps, without loading NumPy."""
        return self in (ScoreBy.MAP, ScoreBy.PEAK)


class MapBy(StrEnum):
    """What a pixel's error is compared with."""

    PIXEL = "pixel"
    GRADIENT = "gradient"
    BRIGHTNESS = "brightness"
    CONTRAST = "contrast"


@dataclass(frozen=True)
class Scoring:
    """How images are scored and flagged."""

    by: ScoreName
    seed: int
    map_by: str | None
    limit: float | None
    """Higher scores are flagged."""
    calibration: Calibration | None
    """Low p-values are flagged."""

    @property
    def needs_maps(self) -> bool:
        """Return whether the scores are taken from maps."""
        from vaekit.maths.anomaly import MAP_SCORES

        return self.by in MAP_SCORES

    @property
    def unit(self) -> str:
        """Return the unit of the scores."""
        from vaekit.maths.anomaly import unit_of

        return unit_of(self.by)

    @property
    def fields(self) -> list[str]:
        """Return the columns of the output. The ELBO's terms are in nats, and empty if the model has none."""
        fields = ["path", "score", "reconstruction", "kl", "flagged"]
        return fields + ["p_value"] * (self.calibration is not None) + ["score_by"] * (self.by != "elbo")

    def described(self, provider: str, flagged: int, limit: str | None) -> str:
        """Describe how images were scored, after their number. ``limit`` is the threshold as it was given."""
        kind = "" if self.by == "elbo" else f" by {self.by}"
        above = "" if self.limit is None else f", {flagged:,} of them above {limit} ({self.limit:.1f} {self.unit})"
        if self.calibration is not None:
            good = f"{len(self.calibration.scores):,} good images"
            above = f", {flagged:,} of them flagged at a rate of {self.calibration.rate:g} false alarms, by {good}"
        from vaekit.maths.anomaly import ELBO_SCORES

        drawn = f", L = 1, seed {self.seed}" if self.by in ELBO_SCORES else ""
        return f"{kind} on {provider}{above}; in {self.unit} per image{drawn}"


def usual_scores(rate: float | None, path: Path | None, flag_above: str | None, by: ScoreName) -> Calibration | None:
    """Return what ``--false-alarms`` compares with, or None without that option."""
    if rate is None and path is None:
        return None
    if rate is None or path is None:
        raise UsageError("--false-alarms and --calibration go together: a rate, and the scores of good images")
    if flag_above is not None:
        raise UsageError("--false-alarms and --flag-above both flag images: give one of them")
    return read_calibration(path, by, rate)


def threshold(text: str, statistics: ScoreStatistics | None) -> float:
    """Parse ``--flag-above`` to a score in nats.

    It is a number, or a percentile of held-out scores such as ``p99``. Raises UsageError for anything else, and for a
    percentile if the bundle has no scores.
    """
    is_percentile = text.lower().startswith("p")
    try:
        value = float(text[1:] if is_percentile else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (is_percentile and not 0 <= value <= 100):
        raise UsageError(
            f"{text!r} is not a threshold: give a percentile of the held-out scores, p0 to p100, such as p99, or nats"
        )
    if not is_percentile:
        return value
    if statistics is None:
        raise UsageError(
            "this bundle has no held-out scores of this kind and size, so there are no percentiles: give a number "
            "(in nats for -ELBO)"
        )
    return statistics.percentile(value)


def surprises(vae: VAE, images: Array, scoring: Scoring) -> tuple[Array, Array]:
    """Return the reconstructions of images, (n, C, H, W), and their maps of surprise, (n, H, W)."""
    from vaekit.maths.surprise import surprise

    decoded = vae.reconstruct(images)
    return decoded, surprise(images, decoded, *vae.residual_statistics(scoring.map_by))


def save_map(base: Path, image: Array, decoded: Array, values: Array) -> tuple[str, str]:
    """Write an image's map as numbers and as a picture, and return the two suffixes that follow ``base``."""
    import numpy as np

    from vaekit.output.grid import save_picture
    from vaekit.output.heat import overlay

    np.save(f"{base}.npy", values)
    save_picture(overlay(image, decoded, values), Path(f"{base}.png"))
    return ".npy", ".png"


def rows(
    vae: VAE, images: Array, paths: Sequence[bytes], scoring: Scoring, maps: Array | None
) -> Iterator[dict[str, Any]]:
    """Yield a line of the output for each image. ``maps`` are its maps, if the score is taken from them."""
    from vaekit.maths.anomaly import ELBO_SCORES, p_values, scores_of_maps, scores_of_terms

    columns: dict[str, list[Any]] = {"path": [os.fsdecode(path) for path in paths]}
    terms = None if vae.manifest.why_no_elbo else vae.elbo_terms(images, seed=scoring.seed)
    if maps is not None and scoring.needs_maps:
        scores = scores_of_maps(maps)[scoring.by]
    elif scoring.by in ELBO_SCORES and terms is not None:
        scores = scores_of_terms(terms)[scoring.by]
    else:
        scores = vae.score(images, by=scoring.by)
    columns["score"] = scores.tolist()
    for name in ("reconstruction", "kl"):
        columns[name] = [None] * len(scores) if terms is None else getattr(terms, name).tolist()
    if scoring.calibration is not None:
        found = p_values(scores, scoring.calibration.scores)
        columns |= {"p_value": found.tolist(), "flagged": (found <= scoring.calibration.rate).tolist()}
    else:
        flags = [None] * len(scores) if scoring.limit is None else (scores > scoring.limit).tolist()
        columns["flagged"] = flags
    columns["score_by"] = [scoring.by] * len(scores)
    for number in range(len(scores)):
        yield {field: columns[field][number] for field in scoring.fields}
