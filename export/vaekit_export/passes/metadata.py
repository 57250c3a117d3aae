"""What a graph says of itself, so that it can be used without the manifest beside it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from vaekit.bundle.manifest import ImageSpec
from vaekit.maths.elbo import Likelihood

KEYS = frozenset(
    f"vaekit.{key}"
    for key in (
        "graph",
        "precision",
        "image_shape",
        "image_multiple_of",
        "image_range",
        "image_layout",
        "preprocessing",
        "latent_shape",
        "posterior",
        "logvar",
        "likelihood",
        "sigma",
    )
)
"""The keys of ONNX metadata that a graph may hold."""


def describe(
    graph: str, precision: str, image: ImageSpec, latent_shape: tuple[int, ...], posterior: str, likelihood: Likelihood
) -> dict[str, str]:
    """Metadata of ``encoder`` or ``decoder``: sizes as ``1,28,28``, ranges, and the two distributions.

    Nothing in it depends on the machine that made the graph.
    """
    told = {
        "graph": graph,
        "precision": precision,
        "image_shape": ",".join(map(str, image.shape)),
        "image_range": "0,1",
        "image_layout": "NCHW",
        "preprocessing": image.preprocessing,
        "latent_shape": ",".join(map(str, latent_shape)),
        "posterior": posterior,
        "likelihood": likelihood.name,
    }
    if image.multiple_of is not None:
        told["image_multiple_of"] = str(image.multiple_of)
    if posterior != "deterministic":
        told["logvar"] = "natural logarithm of the variance"
    if likelihood.sigma is not None:
        told["sigma"] = repr(likelihood.sigma)
    return {f"vaekit.{key}": value for key, value in told.items()}


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A graph with this metadata and no other."""
    model = onnx.load_from_string(data)
    onnx.helper.set_model_props(model, dict(metadata))
    described: bytes = model.SerializeToString(deterministic=True)
    return described
