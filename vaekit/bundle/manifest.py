"""manifest.json: everything needed to use a bundle's graphs, as dataclasses and as JSON.

Later versions of vaekit extend format 3 without raising its number. Old and new programs can read each other's bundles
because both follow these rules:

- A reader ignores unknown keys at any depth. New information that older programs may ignore is added as a new key.
- ``requires`` lists the features that a reader must know. A reader checks this list first and refuses the bundle if a
  feature is not in its own ``FEATURES``. A writer lists a feature if an older program would misuse the bundle or fail
  on it. Examples are another decoder input, a new name for a precision, posterior or likelihood, and a key that changes
  the meaning of another key.
- ``graphs`` maps names to graphs: ``encoder``, ``decoder`` and possibly others. A reader checks every graph (its file,
  hash, operators and tensors). It does not use a graph whose name it does not know.
- Every file that the manifest names has a plain name (``PLAIN_NAME``) and is in the manifest's folder. A reader ignores
  other files in that folder.
- A program that makes one bundle from another writes only the keys that it knows, because other keys may no longer be
  true.

Formats 1 and 2 can be read too. They have no ``requires``. Format 2 added latent maps, deterministic encoders and
models without a likelihood.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vaekit.bundle.onnx_file import TensorInfo
from vaekit.errors import UsageError
from vaekit.maths.attributes import Attributes, Factor
from vaekit.maths.elbo import Likelihood
from vaekit.maths.prior import Mixture
from vaekit.types import (
    FLOW_STARTS,
    GRAPHS,
    LIKELIHOODS,
    POSTERIORS,
    PRECISIONS,
    PRIORS,
    PROVIDER_CLASSES,
    FlowStart,
    PosteriorName,
    PrecisionName,
    PriorName,
    ProviderClass,
    one_of,
)

FORMAT = "vaekit-bundle"
FORMAT_VERSION = 3
LAPLACE_FEATURE = "likelihood-laplace"
_LABEL_FEATURE, _START_FEATURE = "prior-label", "prior-starts-from-mixture"
FEATURES = frozenset((LAPLACE_FEATURE, _LABEL_FEATURE, _START_FEATURE))
"""The features that this version of vaekit knows."""

MOST_FLOW_STEPS = 1000
"""The largest number of steps in which a learned prior is integrated."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Names of a bundle's files: no folders, no hidden files, and only characters that work on every system."""
MANIFEST, ENCODER, DECODER, GOLDEN = "manifest.json", "encoder.onnx", "decoder.onnx", "golden.npz"
RESIDUALS, PRIOR, SIGNATURE = "residuals.npz", "prior.onnx", "manifest.json.minisig"

_FACTOR_ARRAYS = ("directions", "weights", "biases")

IMAGE_AXES, LATENT_AXES = ("height", "width"), ("latent_height", "latent_width")
"""Names of the free axes of images and of latent maps."""


@dataclass(frozen=True)
class ImageSpec:
    """The images that the graphs read and write: float32 (batch, channels, height, width) in [0, 1]."""

    channels: int
    height: int
    width: int
    preprocessing: str
    """A description of how any picture is converted to such an image."""
    multiple_of: int | None = None
    """If height and width are free, they may be any multiples of this number, and ``height`` and ``width`` above are
    the defaults. None if sizes are fixed. An image of another size is padded to the next multiple."""
    context: int | None = None
    """How many pixels around a part of an image its latent depends on at most, and as many around a part of the latent
    its image does. None if that is not known, or if everything depends on everything. It says how large images can be
    computed in tiles."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def axes(self) -> tuple[int | str, ...]:
        """Return (C, H, W) as graphs declare it, with names for free sizes."""
        return self.shape if self.multiple_of is None else (self.channels, *IMAGE_AXES)

    @property
    def padding(self) -> tuple[int, int]:
        """Return the rows and columns that an image lacks to the next multiple."""
        step = self.multiple_of or 1
        return -self.height % step, -self.width % step


@dataclass(frozen=True)
class Scaling:
    """The scaling (z − shift) · factor that a model trained on the latents expects.

    With a mean and standard deviation for each channel it is (z − shift − mean) · factor / std. The graphs' own z is
    not scaled.
    """

    factor: float
    shift: float
    mean: tuple[float, ...] | None = None
    """One number for each channel; None counts as 0."""
    std: tuple[float, ...] | None = None
    """One number for each channel; None counts as 1."""


@dataclass(frozen=True)
class LatentSpec:
    """The latent's shape, and its statistics over the held-out images.

    It is a vector (d,) or a map (c, h, w). Each statistic has one number per dimension of a vector, or one per channel
    of a map, taken over all positions.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    """Mean of mu."""
    std: tuple[float, ...]
    """Standard deviation of mu."""
    kl: tuple[float, ...]
    """KL(q(z_j|x) ‖ N(0, 1)) in nats, summed over positions and averaged over images. Empty for a deterministic
    encoder."""
    scaling: Scaling | None = None

    @property
    def is_map(self) -> bool:
        """Return whether a latent is a map (c, h, w)."""
        return len(self.shape) == 3

    @property
    def size(self) -> int:
        """Return the count of numbers in one latent."""
        return math.prod(self.shape)

    def describe(self) -> str:
        """Describe the shape in words."""
        sizes = " x ".join(map(str, self.shape))
        return f"maps of {sizes} (channels x height x width)" if self.is_map else f"{sizes} dimensions"


@dataclass(frozen=True)
class GraphSpec:
    """The manifest's entry for one ONNX file."""

    file: str
    sha256: str
    opset: int
    ir_version: int
    precision: PrecisionName
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class FileSpec:
    """A file and its hash."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ScoreStatistics:
    """Percentiles of the held-out images' scores.

    A device can choose a threshold from them.
    """

    images: int
    """The number of images scored."""
    seed: int
    """The seed of the eps that all images share."""
    quantiles: dict[str, float]
    """Scores by percentile. The keys are ``p0``, ``p1`` … ``p100`` and some between them."""

    def percentile(self, percent: float) -> float:
        """Return the score at a percentile from 0 to 100, by linear interpolation."""
        known = np.array(sorted((float(name[1:]), score) for name, score in self.quantiles.items()))
        return float(np.interp(percent, known[:, 0], known[:, 1]))


@dataclass(frozen=True)
class FlowSpec:
    """A learned prior: the graph ``prior``, and how codes are drawn with it (``vaekit.maths.flow``)."""

    steps: int
    """Steps of the integration."""
    mean: tuple[float, ...]
    """(d,) or (c,): the integration's result is multiplied by ``std``, and ``mean`` is added."""
    std: tuple[float, ...]
    label_weights: tuple[float, ...] | None = None
    """Each label's share of the training images, and last that of images without a label, if the graph has an input
    ``label``; else None."""
    start: FlowStart = "normal"
    """Where the integration starts: at draws of N(0, I), or of the mixture, standardised by ``mean`` and ``std``."""

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features that a reader must know to draw with it."""
        labels, start = self.label_weights is not None, self.start == "mixture"
        return (*([_LABEL_FEATURE] if labels else []), *([_START_FEATURE] if start else []))


@dataclass(frozen=True)
class Tolerance:
    """A result a agrees with PyTorch's result b if |a − b| ≤ atol + rtol·|b|."""

    atol: float
    rtol: float


Tolerances = dict[PrecisionName, dict[ProviderClass, Tolerance]]
"""The tolerances of ``verify``, by a graph's precision and the class of the provider that runs it."""


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json: everything needed to use the graphs."""

    image: ImageSpec
    latent: LatentSpec
    posterior: PosteriorName
    likelihood: Likelihood
    mixture: Mixture | None
    """The fitted prior, if there is one."""
    graphs: dict[str, GraphSpec]
    """By name: ``encoder`` and ``decoder``, and possibly others written by later versions of vaekit."""
    golden: FileSpec
    parity: dict[str, Any]
    """The measurements of the parity gate, and its tolerances."""
    tolerances: Tolerances
    scores: ScoreStatistics | None
    """Statistics of −ELBO in nats; None if the model has no ELBO."""
    minimum_onnxruntime: str
    """The oldest ONNX Runtime known to load graphs of this opset and IR version."""
    provenance: dict[str, Any]
    """Versions of the tools, and the data set, settings and results of the training."""
    requires: tuple[str, ...] = ()
    """Features that a reader must know to use the bundle."""
    residuals: FileSpec | None = None
    """Statistics of held-out images' residuals, for maps of surprise; None if there are none."""
    scores_by: dict[str, ScoreStatistics] = field(default_factory=dict)
    """Statistics of other scores than −ELBO, by name (``vaekit.maths.anomaly``), as far as export measured them."""
    scores_at_own_size: dict[str, ScoreStatistics] = field(default_factory=dict)
    """Statistics of scores of whole held-out pictures at their own sizes, if the model was trained on crops."""
    flow: FlowSpec | None = None
    """The learned prior, if there is one; ``graphs`` has a ``prior`` then."""
    labels: tuple[str, ...] = ()
    """Names of the classes that images can be drawn of, by number; none if the priors know no classes."""
    attributes: Attributes | None = None
    """The directions and the read-out of the held-out images' classes and known factors; None without classes."""

    @property
    def priors(self) -> tuple[PriorName, ...]:
        """Return the priors that latents can be drawn from, the default first."""
        there = {"flow": self.flow is not None, "mixture": self.mixture is not None, "normal": True}
        return tuple(name for name in PRIORS if there[name])

    @property
    def declared_files(self) -> tuple[GraphSpec | FileSpec, ...]:
        """Return every file that the manifest names, with its hash."""
        return (*self.graphs.values(), self.golden, *([] if self.residuals is None else [self.residuals]))

    def statistics_of(self, score: str, *, own_sizes: bool = False) -> ScoreStatistics | None:
        """Return the statistics of a score by its name, or None if there are none.

        ``own_sizes`` asks for those of whole pictures at their own sizes, instead of images of the bundle's size.
        """
        if own_sizes:
            return self.scores_at_own_size.get(score)
        return self.scores if score == "elbo" else self.scores_by.get(score)

    @property
    def encoder_outputs(self) -> tuple[str, ...]:
        """Return the encoder's outputs: ``mu``, and ``logvar`` unless it is deterministic."""
        return ("mu",) if self.posterior == "deterministic" else ("mu", "logvar")

    @property
    def why_no_elbo(self) -> str | None:
        """Return why this model has no ELBO, or None if it has one."""
        if self.posterior == "deterministic":
            return "its encoder is deterministic (mu without logvar), so there is no q(z|x) and no ELBO"
        if self.likelihood.name == "none":
            return "it states no likelihood p(x|z), so there is no ELBO; export it with one, such as --sigma 0.1"
        return None

    @property
    def why_no_density(self) -> str | None:
        """Return why latents have no density under a mixture prior, or None if they have one."""
        if self.mixture is None:
            reason = "none is fitted to maps" if self.latent.is_map else "it was trained with another prior"
            return f"it has no mixture prior, whose density this score is: {reason}"
        return None if self.mixture.has_density else "its mixture prior has no density: a covariance is singular"

    def at_size(self, height: int, width: int) -> Manifest:
        """Return the manifest for images of another size, with the latent's shape for the padded image.

        It has no scores, because those were measured at the default size. Raises UsageError for a size that the model
        does not accept.
        """
        step = self.image.multiple_of
        if (height, width) == self.image.shape[1:]:
            return self
        if step is None:
            raise UsageError(
                f"the model's images are {self.image.height} x {self.image.width}; only a bundle that was exported "
                "with free sizes accepts other sizes"
            )
        if min(height, width) < step:
            raise UsageError(f"heights and widths must be {step} or more for this model, not {height}x{width}")
        image = dataclasses.replace(self.image, height=height, width=width)
        (channels, high, wide), (below, beside) = self.latent.shape, image.padding
        latent = (
            channels,
            (height + below) * high // self.image.height,
            (width + beside) * wide // self.image.width,
        )
        return dataclasses.replace(
            self,
            image=image,
            latent=dataclasses.replace(self.latent, shape=latent),
            scores=None,
            scores_by={},
            scores_at_own_size={},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON object."""
        prior: dict[str, Any] = {"default": self.priors[0]}
        if self.flow is not None:
            prior["flow"] = _without_none(dataclasses.asdict(self.flow))
        if self.mixture is not None:
            prior["mixture"] = {
                "weights": self.mixture.weights.tolist(),
                "means": self.mixture.means.tolist(),
                "cholesky": self.mixture.cholesky.tolist(),
                **({} if self.mixture.labels is None else {"labels": self.mixture.labels.tolist()}),
            }
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "requires": list(self.requires),
            "image": _without_none(dataclasses.asdict(self.image)) | {"range": [0.0, 1.0], "layout": "NCHW"},
            "latent": _without_none(_latent_to_json(self.latent)),
            "posterior": self.posterior,
            "likelihood": dataclasses.asdict(self.likelihood),
            "prior": prior,
            **({"labels": list(self.labels)} if self.labels else {}),
            **({} if self.attributes is None else {"attributes": _attributes_to_json(self.attributes)}),
            "graphs": {name: dataclasses.asdict(graph) for name, graph in self.graphs.items()},
            "golden": dataclasses.asdict(self.golden),
            **({} if self.residuals is None else {"residuals": dataclasses.asdict(self.residuals)}),
            "parity": self.parity,
            "verify": {
                precision: {kind: dataclasses.asdict(tolerance) for kind, tolerance in kinds.items()}
                for precision, kinds in self.tolerances.items()
            },
            "scores": None if self.scores is None else dataclasses.asdict(self.scores),
            **_scores_to_json("scores_by", self.scores_by),
            **_scores_to_json("scores_at_own_size", self.scores_at_own_size),
            "minimum_onnxruntime": self.minimum_onnxruntime,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Manifest:
        """Parse a manifest's JSON object. Raises KeyError, TypeError or ValueError if invalid."""
        image, latent = document["image"], document["latent"]
        likelihood, golden = document["likelihood"], document["golden"]
        mixture, flow = (document["prior"].get(name) for name in ("mixture", "flow"))
        return cls(
            image=_image_from_json(image),
            latent=_latent_from_json(latent),
            posterior=one_of(POSTERIORS, document["posterior"], "posterior"),
            likelihood=Likelihood(
                one_of(LIKELIHOODS, likelihood["name"], "likelihood"), _optional_float(likelihood["sigma"])
            ),
            labels=(labels := _labels_from_json(document.get("labels", []))),
            mixture=None if mixture is None else _mixture_from_json(mixture, len(labels)),
            flow=None if flow is None else _flow_from_json(flow, len(labels)),
            graphs=_graphs_from_json(document["graphs"]),
            golden=_file_from_json(golden),
            residuals=None if document.get("residuals") is None else _file_from_json(document["residuals"]),
            parity=dict(document["parity"]),
            tolerances=_tolerances_from_json(document["verify"]),
            scores=None if document["scores"] is None else _scores_from_json(document["scores"]),
            attributes=_attributes_from_json(document.get("attributes")),
            scores_by=_named_scores(document, "scores_by"),
            scores_at_own_size=_named_scores(document, "scores_at_own_size"),
            minimum_onnxruntime=str(document["minimum_onnxruntime"]),
            provenance=dict(document["provenance"]),
            requires=tuple(map(str, document.get("requires", ()))),
        )


def dump_json(document: Mapping[str, Any]) -> str:
    """Format as indented JSON, with each list of plain numbers on one line."""
    return _formatted(document, "") + "\n"


def _formatted(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        rows = [f"{json.dumps(key, ensure_ascii=False)}: {_formatted(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(not isinstance(item, int | float) for item in value):
        return "[\n" + ",\n".join(inner + _formatted(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _image_from_json(document: Mapping[str, Any]) -> ImageSpec:
    step, context = document.get("multiple_of"), document.get("context")
    image = ImageSpec(
        int(document["channels"]),
        int(document["height"]),
        int(document["width"]),
        str(document["preprocessing"]),
        None if step is None else int(step),
        None if context is None else int(context),
    )
    if context is not None and context < 0:
        raise ValueError(f"the image's context must not be negative, not {context}")
    if step is not None and (step < 1 or image.height % step or image.width % step):
        raise ValueError(f"image size {image.height} x {image.width} is not a multiple of {step}")
    return image


def _file_from_json(document: Mapping[str, Any]) -> FileSpec:
    return FileSpec(_plain_name(document["file"]), str(document["sha256"]))


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}


def _latent_to_json(latent: LatentSpec) -> dict[str, Any]:
    document = dataclasses.asdict(latent)
    return document | {"scaling": document["scaling"] and _without_none(document["scaling"])}


def _scaling_from_json(document: Mapping[str, Any], channels: int) -> Scaling:
    mean, std = (
        None if document.get(key) is None else tuple(_finite(number) for number in document[key])
        for key in ("mean", "std")
    )
    if any(numbers is not None and len(numbers) != channels for numbers in (mean, std)):
        raise ValueError(f"the scaling's mean and std are not {channels} numbers each, one for each channel")
    return Scaling(_finite(document["factor"]), _finite(document["shift"]), mean, std)


def _latent_from_json(document: Mapping[str, Any]) -> LatentSpec:
    shape = tuple(int(size) for size in document["shape"])
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"the latent's shape must be (d,) or (c, h, w), not {shape}")
    scaling = document.get("scaling")
    mean, std, kl = (tuple(float(number) for number in document[key]) for key in ("mean", "std", "kl"))
    return LatentSpec(
        shape,
        mean,
        std,
        kl,
        None if scaling is None else _scaling_from_json(scaling, shape[0]),
    )


def _graphs_from_json(document: Mapping[str, Mapping[str, Any]]) -> dict[str, GraphSpec]:
    """Parse all graphs: encoder and decoder, which are required, then any others in order."""
    names = dict.fromkeys((*GRAPHS, *document))
    return {name: _graph_from_json(document[name]) for name in names}


def _graph_from_json(document: Mapping[str, Any]) -> GraphSpec:
    return GraphSpec(
        file=_plain_name(document["file"]),
        sha256=str(document["sha256"]),
        opset=int(document["opset"]),
        ir_version=int(document["ir_version"]),
        precision=one_of(PRECISIONS, document["precision"], "precision"),
        inputs=_tensors_from_json(document["inputs"]),
        outputs=_tensors_from_json(document["outputs"]),
    )


def _tensors_from_json(document: list[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(str(item["name"]), str(item["dtype"]), tuple(item["shape"])) for item in document)


def _tolerance_from_json(document: Mapping[str, Any]) -> Tolerance:
    atol, rtol = float(document["atol"]), float(document["rtol"])
    if not (0 <= atol < math.inf and 0 <= rtol < math.inf):
        raise ValueError(f"tolerances must be finite and not negative, not atol {atol}, rtol {rtol}")
    return Tolerance(atol, rtol)


def _tolerances_from_json(document: Mapping[str, Any]) -> Tolerances:
    return {
        one_of(PRECISIONS, precision, "precision"): {
            kind: _tolerance_from_json(kinds[kind]) for kind in PROVIDER_CLASSES
        }
        for precision, kinds in document.items()
    }


def _scores_to_json(key: str, scores: Mapping[str, ScoreStatistics]) -> dict[str, Any]:
    return {key: {name: dataclasses.asdict(found) for name, found in scores.items()}} if scores else {}


def _named_scores(document: Mapping[str, Any], key: str) -> dict[str, ScoreStatistics]:
    return {str(name): _scores_from_json(found) for name, found in (document.get(key) or {}).items()}


def _scores_from_json(document: Mapping[str, Any]) -> ScoreStatistics:
    quantiles = {str(name): float(score) for name, score in document["quantiles"].items()}
    if not quantiles or not all(math.isfinite(score) for score in quantiles.values()):
        raise ValueError("the scores' quantiles are not finite numbers")
    if not all(name.startswith("p") and 0 <= float(name[1:]) <= 100 for name in quantiles):
        raise ValueError("the scores' quantiles are not named p0 to p100")
    return ScoreStatistics(int(document["images"]), int(document["seed"]), quantiles)


def _attributes_to_json(attributes: Attributes) -> dict[str, Any]:
    arrays = (attributes.images, attributes.means, attributes.weights, attributes.biases)
    rows = zip(attributes.labels, *(array.tolist() for array in arrays), strict=True)
    keys = ("name", "images", "mean", "weights", "bias")
    labels = [dict(zip(keys, row, strict=True)) for row in rows]
    factors = [
        dataclasses.asdict(each) | {key: getattr(each, key).tolist() for key in _FACTOR_ARRAYS}
        for each in attributes.factors
    ]
    return {"accuracy": attributes.accuracy, "labels": labels, **({"factors": factors} if factors else {})}


def _factor_from_json(document: Mapping[str, Any]) -> Factor:
    if not isinstance(document["name"], str):
        raise ValueError("a factor has no name")
    period, mean, std, r2 = (float(document[key]) for key in ("period", "mean", "std", "r2"))
    directions, weights, biases = (np.array(document[key], np.float64) for key in _FACTOR_ARRAYS)
    if directions.ndim != 2:
        raise ValueError("a factor's directions are not vectors of one length")
    return Factor(document["name"], period, mean, std, directions, weights, biases, r2)


def _attributes_from_json(document: Mapping[str, Any] | None) -> Attributes | None:
    if document is None:
        return None
    rows = document["labels"]
    if not isinstance(rows, list) or not all(isinstance(row["name"], str) for row in rows):
        raise ValueError("the attributes are not a list of labels with names")
    means, weights = (np.array([row[key] for row in rows], np.float64) for key in ("mean", "weights"))
    if means.ndim != 2:
        raise ValueError("the attributes' means are not vectors of one length")
    return Attributes(
        tuple(row["name"] for row in rows),
        np.array([int(row["images"]) for row in rows], np.int64),
        means,
        weights,
        np.array([float(row["bias"]) for row in rows]),
        float(document["accuracy"]),
        tuple(map(_factor_from_json, document.get("factors", ()))),
    )


def _labels_from_json(document: Any) -> tuple[str, ...]:
    if not isinstance(document, list) or not all(isinstance(name, str) and name for name in document):
        raise ValueError("the labels are not a list of names")
    if len(set(document)) < len(document):
        raise ValueError("two labels have the same name")
    return tuple(document)


def _flow_from_json(document: Mapping[str, Any], labels: int) -> FlowSpec:
    steps = int(document["steps"])
    mean, std = (tuple(float(number) for number in document[name]) for name in ("mean", "std"))
    if not 1 <= steps <= MOST_FLOW_STEPS or not all(map(math.isfinite, mean + std)) or min(std, default=0.0) < 0:
        raise ValueError(f"a flow has 1 to {MOST_FLOW_STEPS} steps, finite means and no negative deviations")
    weights = document.get("label_weights")
    start = one_of(FLOW_STARTS, document.get("start", "normal"), "start of a flow")
    if start == "mixture" and 0 in std:
        raise ValueError("a flow that starts from the mixture has no deviation of 0")
    if weights is None:
        return FlowSpec(steps, mean, std, None, start)
    shares = tuple(map(_finite, weights))
    if len(shares) != labels + 1 or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError("a flow's label weights are not a share for each label and one for none, with sum 1")
    return FlowSpec(steps, mean, std, shares, start)


def _mixture_from_json(document: Mapping[str, Any], labels: int) -> Mixture:
    weights, means, cholesky = (np.asarray(document[key], np.float64) for key in ("weights", "means", "cholesky"))
    of_components = document.get("labels")
    if of_components is None:
        return Mixture(weights, means, cholesky)
    if not all(type(number) is int and -1 <= number < labels for number in of_components):
        raise ValueError("the mixture's labels are not numbers of labels")
    return Mixture(weights, means, cholesky, np.asarray(of_components, np.int64))


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _plain_name(value: Any) -> str:
    if not isinstance(value, str) or not PLAIN_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a plain file name")
    return value


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
