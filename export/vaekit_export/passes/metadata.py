"""Metadata in a graph, so that it can be used without the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

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
    graph: str,
    precision: str,
    image: ImageSpec,
    latent_shape: tuple[int, ...],
    posterior: str,
    likelihood: Likelihood,
) -> dict[str, str]:
    """Return the metadata of an encoder or decoder.

    It holds shapes (such as ``1,28,28``), ranges and the two distributions. Nothing in it depends on the machine that
    made the graph.
    """
    described = {
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
        described["image_multiple_of"] = str(image.multiple_of)
    if posterior != "deterministic":
        described["logvar"] = "natural logarithm of the variance"
    if likelihood.sigma is not None:
        described["sigma"] = repr(likelihood.sigma)
    return {f"vaekit.{key}": value for key, value in described.items()}


def set_metadata(model: ir.Model, metadata: Mapping[str, str]) -> None:
    """Replace a model's metadata."""
    model.metadata_props.clear()
    model.metadata_props.update(metadata)


def tidy(model: ir.Model) -> None:
    """Remove metadata and documentation, and use the opset's lowest IR version."""
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.doc_string = None
    for value in _values(model):
        value.metadata_props.clear()
        value.doc_string = None
        tensor = value.const_value
        if tensor is not None and (tensor.doc_string or tensor.metadata_props):
            value.const_value = ir.tensor(tensor.numpy(), tensor.dtype, name=value.name)
    if (opset := model.opset_imports.get("")) is not None:
        model.ir_version = lowest_ir_version(opset)


def lowest_ir_version(opset: int) -> int:
    """Return the lowest IR version that allows an opset.

    For opset 17 it is 8. Old runtimes reject files with a higher one.
    """
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield every value of the graph and its subgraphs."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs
