"""Transposed convolutions rewritten as ordinary ones, which integer kernels can run.

A transposed convolution of stride s is an ordinary convolution that computes the s x s pixels of each cell as channels,
and a depth-to-space that puts them in their places (Shi et al., "Is the deconvolution layer the same as a convolutional
layer?", 2016). Along one axis, with kernel w of k taps and padding p, output pixel o is

    y[o] = sum_i x[i] w[o + p - i s]

With o + p = s m + r, 0 <= r < s, that is sum_j x[m - j] w[s j + r] over j < J = ceil(k / s): a convolution of J taps
for each phase r, over x padded by J - 1, of which the pixels from p on are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


def as_convolutions(model: onnx.ModelProto) -> int:
    """Rewrite, in place, each transposed convolution over two axes that has this form; how many there were.

    Left alone: groups, dilations, kernels that are not constant, one stride for each axis, and padding that is not
    given as numbers. The results are the same but for rounding.
    """
    constants = {weight.name: weight for weight in model.graph.initializer}
    shapes = _shapes(model)
    nodes: list[onnx.NodeProto] = []
    added: list[onnx.TensorProto] = []
    rewritten = 0
    for node in model.graph.node:
        replacement = _rewrite(node, constants, shapes) if node.op_type == "ConvTranspose" else None
        if replacement is None:
            nodes.append(node)
            continue
        nodes.extend(replacement[0])
        added.extend(replacement[1])
        rewritten += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *added])
    return rewritten


def _rewrite(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], shapes: dict[str, list[int]]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]] | None:
    """A convolution, a depth-to-space and a crop in place of a transposed convolution; None where it has no such form.

    ``shapes`` holds (C, H, W) of the values where these are known.
    """
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    weight, size, out = (constants.get(node.input[1]), shapes.get(node.input[0]), shapes.get(node.output[0]))
    if weight is None or size is None or out is None or len(weight.dims) != 4 or not _is_plain(attributes):
        return None
    stride = attributes.get("strides", [1, 1])[0]
    top, left = attributes.get("pads", [0] * 4)[:2]
    kernel = numpy_helper.to_array(weight)
    taps = tuple(-(-k // stride) for k in kernel.shape[2:])
    full = [stride * (pixels + j - 1) for pixels, j in zip(size[1:], taps, strict=True)]
    if top + out[1] > full[0] or left + out[2] > full[1]:
        return None  # output padding beyond the last cell
    base = node.output[0]
    names = {part: f"{base}_{part}" for part in ("kernel", "bias", "cells", "pixels", "starts", "ends", "axes")}
    constant: dict[str, NDArray[Any]] = {
        "kernel": phases(kernel, stride),
        "starts": np.array([top, left], np.int64),
        "ends": np.array([top + out[1], left + out[2]], np.int64),
        "axes": np.array([2, 3], np.int64),
    }
    inputs = [node.input[0], names["kernel"]]
    if len(node.input) > 2:
        bias = constants.get(node.input[2])
        if bias is None:
            return None
        constant["bias"] = np.tile(numpy_helper.to_array(bias), stride**2)
        inputs.append(names["bias"])
    pads = [taps[0] - 1, taps[1] - 1] * 2
    convolution = helper.make_node("Conv", inputs, [names["cells"]], f"{node.name}_cells", pads=pads, kernel_shape=taps)
    nodes = [
        convolution,
        helper.make_node("DepthToSpace", [names["cells"]], [names["pixels"]], f"{node.name}_pixels", blocksize=stride),
        helper.make_node(
            "Slice", [names["pixels"], names["starts"], names["ends"], names["axes"]], [base], f"{node.name}_crop"
        ),
    ]
    return nodes, [numpy_helper.from_array(values, names[part]) for part, values in constant.items()]


def phases(kernel: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Kernel (in, out, k, l) of a transposed convolution as that of the convolution, (stride² · out, in, J, L).

    Channel (r · stride + q) · out + c holds phase (r, q) of channel c, as depth-to-space takes them. A convolution in
    ONNX is a correlation, so that the taps stand in reverse.
    """
    inputs, outputs, *sides = kernel.shape
    taps = [-(-side // stride) for side in sides]
    padded = np.zeros((inputs, outputs, *(stride * j for j in taps)), kernel.dtype)
    padded[:, :, : sides[0], : sides[1]] = kernel
    split = padded.reshape(inputs, outputs, taps[0], stride, taps[1], stride)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(split.transpose(3, 5, 1, 0, 2, 4).reshape(stride**2 * outputs, inputs, *taps))


def _is_plain(attributes: dict[str, Any]) -> bool:
    strides = attributes.get("strides", [1, 1])
    return (
        attributes.get("group", 1) == 1
        and set(attributes.get("dilations", [1, 1])) == {1}
        and len(set(strides)) == 1
        and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        and "output_shape" not in attributes
    )


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """(C, H, W) of every value (batch, C, H, W) whose sizes are known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        if len(sizes) == 3 and all(sizes):
            found[value.name] = sizes
    return found
