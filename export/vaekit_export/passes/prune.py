"""Latent dimensions that carry nothing, taken out of both graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vaekit.errors import ExportError
from vaekit.maths.prior import Mixture

_PER_ELEMENT = ("Clip", "Identity")  # what may stand between a head and its output


def prune_encoder(data: bytes, kept: Sequence[int]) -> bytes:
    """The encoder with the dimensions ``kept`` alone in its outputs (batch, d).

    The other rows of a linear head are cut out of its weights; behind any other head the output is gathered.
    """
    model = onnx.load_from_string(data)
    for output in model.graph.output:
        head = _linear_head(model, output.name)
        if head is None:
            _gather(model, output.name, kept)
        else:
            _cut_outputs(model, head, kept)
        output.type.tensor_type.shape.dim[1].dim_value = len(kept)
    return _finished(model)


def prune_decoder(data: bytes, kept: Sequence[int], means: NDArray[np.float64]) -> bytes:
    """The decoder of the dimensions ``kept``, the others fixed at ``means`` (d,) and folded into its first layer.

    Raises ExportError where that layer is not linear.
    """
    model = onnx.load_from_string(data)
    (z,) = model.graph.input
    for node in _users(model, z.name):
        if node.op_type == "Concat":
            for user in _users(model, node.output[0]):
                _fold_inputs(model, user, kept, means, first=_place_of(z.name, node, user, model, len(means)))
        else:
            _fold_inputs(model, node, kept, means)
    z.type.tensor_type.shape.dim[1].dim_value = len(kept)
    return _finished(model)


def marginal(mixture: Mixture, kept: Sequence[int]) -> Mixture:
    """The mixture over the dimensions ``kept``: of each component the same entries of mean and covariance."""
    covariance = mixture.cholesky @ mixture.cholesky.transpose(0, 2, 1)
    chosen = np.asarray(kept)
    factors = np.linalg.cholesky(covariance[:, chosen[:, None], chosen[None]]).astype(np.float64)
    return Mixture(mixture.weights, mixture.means[:, chosen], factors)


def _place_of(name: str, concat: onnx.NodeProto, user: onnx.NodeProto, model: onnx.ModelProto, width: int) -> int:
    """Where a tensor of that width begins in a concatenation that goes into a linear layer: at its front or its end."""
    if name == concat.input[0]:
        return 0
    weight = _constant(model, user.input[1]) if len(user.input) > 1 else None
    if name != concat.input[-1] or weight is None:
        raise ExportError("dimensions cannot be pruned: what z is joined with does not go straight into a linear layer")
    transposed = any(attribute.name == "transB" and attribute.i for attribute in user.attribute)
    return int(weight.shape[1 if transposed else 0]) - width


def _fold_inputs(
    model: onnx.ModelProto, node: onnx.NodeProto, kept: Sequence[int], means: NDArray[np.float64], *, first: int = 0
) -> None:
    """alpha · x W + beta · b, x holding z from column ``first`` on, as the same over ``kept`` with the rest in b."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    weight = _constant(model, node.input[1]) if len(node.input) > 1 else None
    if node.op_type not in ("Gemm", "MatMul") or weight is None or weight.ndim != 2 or attributes.get("transA", 0):
        raise ExportError(
            f"dimensions cannot be pruned: the decoder's first layer is {node.op_type}, and they can be folded only "
            "into a linear one"
        )
    by_dimension = weight.T if attributes.get("transB", 0) else weight
    dead = [j for j in range(len(means)) if j not in set(kept)]
    rows = [first + j for j in dead]
    bias = attributes.get("alpha", 1.0) * (means[dead] @ by_dimension[rows].astype(np.float64))
    if len(node.input) > 2:
        own = _constant(model, node.input[2])
        if own is None:
            raise ExportError("dimensions cannot be pruned: the bias of the decoder's first layer is not constant")
        bias = bias + attributes.get("beta", 1.0) * own
    names = [f"{node.output[0]}_weight", f"{node.output[0]}_bias"]
    folded = helper.make_node(
        "Gemm", [node.input[0], *names], list(node.output), node.name, alpha=attributes.get("alpha", 1.0)
    )
    node.CopyFrom(folded)
    values = (np.delete(by_dimension, rows, 0), bias.astype(np.float32))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), name) for value, name in zip(values, names, strict=True)
    )


def _linear_head(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """The Gemm of constant weights that alone makes an output, whatever is done to each element after it."""
    if _users(model, name):
        return None
    producers = {output: node for node in model.graph.node for output in node.output}
    while (node := producers.get(name)) is not None:
        if node.op_type == "Gemm":
            constant = all(_constant(model, part) is not None for part in node.input[1:])
            return node if constant else None
        if node.op_type not in _PER_ELEMENT or len(_users(model, node.input[0])) != 1:
            return None
        name = node.input[0]
    return None


def _cut_outputs(model: onnx.ModelProto, node: onnx.NodeProto, kept: Sequence[int]) -> None:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    axes = (0 if attributes.get("transB", 0) else 1, -1)
    for place, axis in zip(range(1, len(node.input)), axes, strict=False):
        values = _constant(model, node.input[place])
        assert values is not None
        if values.ndim == 0 or values.shape[axis] == 1:  # a bias that is the same for all
            continue
        name = f"{node.output[0]}_{('weight', 'bias')[place - 1]}"
        model.graph.initializer.append(numpy_helper.from_array(np.take(values, kept, axis), name))
        node.input[place] = name


def _gather(model: onnx.ModelProto, name: str, kept: Sequence[int]) -> None:
    whole, indices = f"{name}_all", f"{name}_kept"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, other in enumerate(names):
                if other == name:
                    names[place] = whole
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(kept, np.int64), indices))
    model.graph.node.append(helper.make_node("Gather", [whole, indices], [name], f"{name}_gather", axis=1))


def _users(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def _constant(model: onnx.ModelProto, name: str) -> NDArray[np.float32] | None:
    for weight in model.graph.initializer:
        if weight.name == name:
            values: NDArray[np.float32] = numpy_helper.to_array(weight)
            return values
    return None


def _finished(model: onnx.ModelProto) -> bytes:
    """Without weights that nothing uses any longer, and without the sizes that intermediate values had."""
    used = Counter(name for node in model.graph.node for name in node.input)
    weights = [weight for weight in model.graph.initializer if used[weight.name]]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    del model.graph.value_info[:]
    data: bytes = model.SerializeToString(deterministic=True)
    return data
