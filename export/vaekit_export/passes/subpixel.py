"""Rewriting of transposed convolutions as ordinary ones, which integer kernels can run.

A transposed convolution of stride s equals an ordinary convolution followed by a depth-to-space. The convolution
computes the s x s pixels of each cell as channels, and the depth-to-space moves them to their places (Shi et al., "Is
the deconvolution layer the same as a convolutional layer?", 2016). Along one axis, with kernel w of k taps and padding
p, output pixel o is

    y[o] = sum_i x[i] w[o + p - i s]

Write o + p = s m + r with 0 <= r < s. Then y[o] = sum_j x[m - j] w[s j + r] over j < J = ceil(k / s). For each phase r
this is a convolution of J taps over x padded by J - 1, and the pixels from p on are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaekit_export.passes import add_weight, weight_of
from vaekit_export.passes.shapes import Sizes, known_sizes


def as_convolutions(model: ir.Model) -> int:
    """Rewrite 2-D transposed convolutions as ordinary ones; return how many.

    These stay as they are: grouped or dilated ones, those whose kernel or bias is not constant, those whose two strides
    differ, those with automatic padding or a given output shape, those with output padding beyond the last cell, and
    those of unknown image size. Results differ only by rounding.
    """
    sizes = known_sizes(model)
    transposed = [node for node in model.graph if node.op_type == "ConvTranspose"]
    rewritten = sum(_rewrite(model.graph, node, sizes) for node in transposed)
    if rewritten:
        RemoveUnusedNodesPass()(model)
    return rewritten


def _rewrite(graph: ir.Graph, node: ir.Node, sizes: Mapping[str, Sizes]) -> bool:
    """Replace a transposed convolution; return whether it was possible."""
    kernel, bias = weight_of(node.inputs[1]), weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    image, out = (_plane(value, sizes) for value in (node.inputs[0], node.outputs[0]))
    if kernel is None or kernel.ndim != 4 or image is None or out is None or not _is_plain(node):
        return False
    if has_bias and bias is None:
        return False
    stride = node.attributes.get_ints("strides", [1, 1])[0]
    top, left = node.attributes.get_ints("pads", [0] * 4)[:2]
    taps = [-(-side // stride) for side in kernel.shape[2:]]
    full = [stride * (pixels + j - 1) for pixels, j in zip(image, taps, strict=True)]
    if top + out[0] > full[0] or left + out[1] > full[1]:
        return False  # output padding beyond the last cell
    base = node.outputs[0].name
    inputs = [node.inputs[0], add_weight(graph, f"{base}_kernel", phases(kernel, stride))]
    if bias is not None:
        inputs.append(add_weight(graph, f"{base}_bias", np.tile(bias, stride**2)))
    window = {"starts": [top, left], "ends": [top + out[0], left + out[1]], "axes": [2, 3]}
    crop = [add_weight(graph, f"{base}_{part}", np.array(values, np.int64)) for part, values in window.items()]
    cells, pixels = ir.val(f"{base}_cells"), ir.val(f"{base}_pixels")
    shape = {"pads": [taps[0] - 1, taps[1] - 1] * 2, "kernel_shape": taps}
    nodes = [
        ir.node("Conv", inputs, shape, outputs=[cells], name=f"{node.name}_cells"),
        ir.node("DepthToSpace", [cells], {"blocksize": stride}, outputs=[pixels], name=f"{node.name}_pixels"),
        ir.node("Slice", [pixels, *crop], name=f"{node.name}_crop"),
    ]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
    return True


def phases(kernel: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Return the ordinary convolution's kernel for a transposed convolution's.

    The kernel (in, out, k, l) becomes (stride² · out, in, J, L). Channel (r · stride + q) · out + c holds phase (r, q)
    of channel c, the order that depth-to-space expects. The taps are reversed, because ONNX's convolution is a
    correlation.
    """
    inputs, outputs, *sides = kernel.shape
    taps = [-(-side // stride) for side in sides]
    padded = np.zeros((inputs, outputs, *(stride * j for j in taps)), kernel.dtype)
    padded[:, :, : sides[0], : sides[1]] = kernel
    split = padded.reshape(inputs, outputs, taps[0], stride, taps[1], stride)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(split.transpose(3, 5, 1, 0, 2, 4).reshape(stride**2 * outputs, inputs, *taps))


def _is_plain(node: ir.Node) -> bool:
    attributes = node.attributes
    return (
        attributes.get_int("group", 1) == 1
        and set(attributes.get_ints("dilations", [1, 1])) == {1}
        and len(set(attributes.get_ints("strides", [1, 1]))) == 1
        and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and "output_shape" not in attributes
    )


def _plane(value: ir.Value | None, sizes: Mapping[str, Sizes]) -> tuple[int, int] | None:
    """Return (H, W) of a value (batch, C, H, W), or None if unknown."""
    known = sizes.get(value.name or "", ()) if value is not None else ()
    if len(known) != 4 or None in known[1:]:
        return None
    _, _, height, width = known
    assert height is not None
    assert width is not None
    return height, width
