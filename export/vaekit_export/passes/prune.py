"""Removal of unused latent dimensions, or channels of maps, from both graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaekit.errors import ExportError
from vaekit.maths.prior import Mixture
from vaekit_export.passes import add_weight, weight_of
from vaekit_export.passes.shapes import forget_sizes

_PER_ELEMENT = ("Clip", "Identity")  # operators that may follow the layer that computes an output


def prune_encoder(model: ir.Model, kept: Sequence[int]) -> None:
    """Keep only the dimensions ``kept`` in the encoder's outputs, (batch, d) or (batch, c, h, w).

    If a linear layer or a convolution computes the output, the other rows are removed from its weights. Otherwise the
    output is gathered.
    """
    for place, output in enumerate(list(model.graph.outputs)):
        head = _linear_head(output)
        if head is None:
            model.graph.outputs[place] = _gathered(model.graph, output, kept)
        else:
            _cut_outputs(model.graph, head, kept)
        _set_width(model.graph.outputs[place], len(kept))
    _finish(model)


def prune_decoder(model: ir.Model, kept: Sequence[int], means: NDArray[np.float64]) -> None:
    """Keep only the dimensions ``kept`` in the decoder's input.

    The other dimensions are fixed at ``means`` (d,) in its first layer. A convolution that pads with zeros sees them as
    zero beyond the edge. Raises ExportError if that layer is neither linear nor a convolution.
    """
    (z,) = model.graph.inputs
    for node in z.consumers():
        if node.op_type == "Concat":
            for user in node.outputs[0].consumers():
                _fold_inputs(model.graph, user, kept, means, first=_place_of(z, node, user, len(means)))
        elif node.op_type == "Conv":
            _fold_channels(model.graph, node, kept, means)
        else:
            _fold_inputs(model.graph, node, kept, means)
    _set_width(z, len(kept))
    _finish(model)


def marginal(mixture: Mixture, kept: Sequence[int]) -> Mixture:
    """Return the marginal of a mixture over the dimensions ``kept``.

    Each component keeps those entries of its mean and covariance.
    """
    covariance = mixture.cholesky @ mixture.cholesky.transpose(0, 2, 1)
    chosen = np.asarray(kept)
    factors = np.linalg.cholesky(covariance[:, chosen[:, None], chosen[None]]).astype(np.float64)
    return Mixture(mixture.weights, mixture.means[:, chosen], factors, mixture.labels)


def _place_of(z: ir.Value, concat: ir.Node, user: ir.Node, width: int) -> int:
    """Return the column where z begins in a concatenation.

    z (of the given width) must be first or last, and the concatenation must go straight into a linear layer.
    """
    if concat.inputs[0] is z:
        return 0
    weight = _second_input(user)
    if concat.inputs[-1] is not z or weight is None:
        raise ExportError("dimensions cannot be pruned: what z is joined with does not go straight into a linear layer")
    return int(weight.shape[1 if "transB" in _flags(user) else 0]) - width


def _fold_inputs(
    graph: ir.Graph, node: ir.Node, kept: Sequence[int], means: NDArray[np.float64], *, first: int = 0
) -> None:
    """Remove dimensions from a linear layer alpha · x W + beta · b by adding them to b.

    z begins at column ``first`` of x.
    """
    attributes, weight = node.attributes, _second_input(node)
    if node.op_type not in ("Gemm", "MatMul") or weight is None or weight.ndim != 2 or "transA" in _flags(node):
        raise ExportError(
            f"dimensions cannot be pruned: the decoder's first layer is {node.op_type}, and they can be folded only "
            "into a linear one or a convolution"
        )
    by_dimension = weight.T if "transB" in _flags(node) else weight
    dead = [j for j in range(len(means)) if j not in set(kept)]
    rows = [first + j for j in dead]
    alpha = attributes.get_float("alpha", 1.0)
    bias = alpha * (means[dead] @ by_dimension[rows].astype(np.float64))
    if len(node.inputs) > 2:
        own = weight_of(node.inputs[2])
        if own is None:
            raise ExportError("dimensions cannot be pruned: the bias of the decoder's first layer is not constant")
        bias = bias + attributes.get_float("beta", 1.0) * own
    name = node.outputs[0].name
    node.op_type = "Gemm"
    node.attributes.clear()
    node.attributes.add(ir.AttrFloat32("alpha", alpha))
    node.resize_inputs(3)
    node.replace_input_with(1, add_weight(graph, f"{name}_weight", np.delete(by_dimension, rows, 0)))
    node.replace_input_with(2, add_weight(graph, f"{name}_bias", bias.astype(np.float32)))


def _fold_channels(graph: ir.Graph, node: ir.Node, kept: Sequence[int], means: NDArray[np.float64]) -> None:
    """Remove channels from a convolution's input by adding them to its bias."""
    weight, own = _second_input(node), weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or node.attributes.get_int("group", 1) != 1 or (len(node.inputs) > 2 and own is None):
        raise ExportError("channels cannot be pruned: the decoder's first convolution is grouped or not constant")
    dead = [j for j in range(len(means)) if j not in set(kept)]
    bias = weight[:, dead].astype(np.float64).sum(axis=(2, 3)) @ means[dead] + (0.0 if own is None else own)
    name = node.outputs[0].name
    node.resize_inputs(3)
    node.replace_input_with(1, add_weight(graph, f"{name}_weight", np.take(weight, kept, 1)))
    node.replace_input_with(2, add_weight(graph, f"{name}_bias", bias.astype(np.float32)))


def _linear_head(output: ir.Value) -> ir.Node | None:
    """Return the Gemm or convolution with constant weights that computes an output, or None.

    Only operators of _PER_ELEMENT may follow it, and nothing else may use its result.
    """
    if output.uses():
        return None
    value = output
    while (node := value.producer()) is not None:
        if node.op_type == "Gemm" or (node.op_type == "Conv" and node.attributes.get_int("group", 1) == 1):
            return node if all(weight_of(part) is not None for part in node.inputs[1:]) else None
        source = node.inputs[0] if node.op_type in _PER_ELEMENT else None
        if source is None or source.is_graph_output() or len(source.consumers()) != 1:
            return None
        value = source
    return None


def _cut_outputs(graph: ir.Graph, node: ir.Node, kept: Sequence[int]) -> None:
    axes = {1: 0 if node.op_type == "Conv" or "transB" in _flags(node) else 1, 2: -1}
    for place, part in enumerate(node.inputs[1:], start=1):
        values, axis = weight_of(part), axes[place]
        assert values is not None
        if values.ndim == 0 or values.shape[axis] == 1:  # one bias for all dimensions
            continue
        name = f"{node.outputs[0].name}_{'weight' if place == 1 else 'bias'}"
        node.replace_input_with(place, add_weight(graph, name, np.take(values, kept, axis)))


def _gathered(graph: ir.Graph, whole: ir.Value, kept: Sequence[int]) -> ir.Value:
    """Return a value with an output's name that holds its dimensions ``kept``."""
    gathered = ir.val(whole.name, type=whole.type, shape=whole.shape)
    whole.name = f"{gathered.name}_all"
    indices = add_weight(graph, f"{gathered.name}_kept", np.asarray(kept, np.int64))
    graph.append(ir.node("Gather", [whole, indices], {"axis": 1}, outputs=[gathered], name=f"{gathered.name}_gather"))
    return gathered


def _flags(node: ir.Node) -> set[str]:
    """Return which of ``transA`` and ``transB`` a linear layer sets."""
    return {name for name in ("transA", "transB") if node.attributes.get_int(name, 0)}


def _second_input(node: ir.Node) -> NDArray[np.float32] | None:
    return weight_of(node.inputs[1]) if len(node.inputs) > 1 else None


def _set_width(value: ir.Value, width: int) -> None:
    assert value.shape is not None
    value.shape = ir.Shape([value.shape[0], width, *value.shape[2:]])


def _finish(model: ir.Model) -> None:
    """Remove unused weights and the declared sizes of intermediate values."""
    RemoveUnusedNodesPass()(model)
    forget_sizes(model)
