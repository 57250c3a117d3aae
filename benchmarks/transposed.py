"""Would another form of the decoder's transposed convolutions be quicker, to run or to train?

    python benchmarks/transposed.py [--batch 64] [--threads 1] [--json FILE]

A transposed convolution of 4x4 with stride 2 equals a convolution of 2x2 with four times the channels, whose parts are
shifted and interleaved; and one of 3x3 with four times the channels, more than half of whose weights are 0, followed
by DepthToSpace. The three layers of the default decoder for 32x32 are timed in each form: in ONNX Runtime, and in
PyTorch forward and backward. Medians; a ratio above 1 means that the other form is slower.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from timing import write_json
from torch import Tensor
from torch.nn import functional

from vaekit.output.table import text_table

LAYERS = ((64, 32, 4), (32, 16, 8), (16, 3, 16))
"""Channels in and out, and the side of the input."""
CALLS, WARM_UP = 60, 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Time every layer in every form, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = {layer: timed_layer(*layer, options.batch, options.threads) for layer in LAYERS}
    rows = [("channels, side", *next(iter(found.values())))]
    for (ins, outs, side), times in found.items():
        rows.append((f"{ins} to {outs}, {side}", *(cell(name, times) for name in times)))
    print("\n".join(text_table(rows)))
    write_json(options.json, {"seconds": {str(layer): times for layer, times in found.items()}})


def cell(name: str, times: dict[str, float]) -> str:
    """Return a form's time, and its ratio to the transposed convolution."""
    plain = times[f"{name.partition(',')[0]}, transposed"]
    return f"{1e6 * times[name]:,.0f} us (x{times[name] / plain:.2f})"


def timed_layer(ins: int, outs: int, side: int, batch: int, threads: int) -> dict[str, float]:
    """Return the seconds of a layer in every form."""
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, ins, side, side), np.float32)
    weight = random.standard_normal((ins, outs, 4, 4), np.float32)
    sessions = {
        "runtime, transposed": transposed(weight, side, threads),
        "runtime, 2x2": two_by_two(weight, side, threads),
        "runtime, 3x3": three_by_three(weight, side, threads),
    }
    expected = sessions["runtime, transposed"].run(None, {"x": x})[0]
    times = {}
    for name, session in sessions.items():
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-3)
        times[name] = median(lambda session=session: session.run(None, {"x": x}))  # type: ignore[misc]
    tensor = torch.from_numpy(x).contiguous(memory_format=torch.channels_last).requires_grad_()
    parameter = torch.nn.Parameter(torch.from_numpy(weight).contiguous(memory_format=torch.channels_last))
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "training, transposed": lambda image, kernel: functional.conv_transpose2d(image, kernel, stride=2, padding=1),
        "training, 2x2": interleaved,
    }
    for name, form in forms.items():
        torch.testing.assert_close(form(tensor, parameter).detach().numpy(), expected, atol=1e-3, rtol=1e-3)

        def step(form: Callable[[Tensor, Tensor], Tensor] = form) -> None:
            tensor.grad = parameter.grad = None
            made = form(tensor, parameter)
            made.backward(torch.ones_like(made))  # type: ignore[no-untyped-call]  # torch leaves it untyped

        times[name] = median(step)
    return times


def median(action: Callable[[], object]) -> float:
    """Return the median time of an action, in seconds."""
    spent = []
    for _ in range(CALLS):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent[WARM_UP:])


def parts(weight: Any) -> Any:
    """Return the weights (I, O, 4, 4) as those of four convolutions of 2x2: (2, 2, O, I, 2, 2).

    The first axes are the row and column of the output's pixel among the four that belong to a pixel of the input.
    """
    ins, outs = weight.shape[:2]
    return weight[:, :, ::-1, ::-1].reshape(ins, outs, 2, 2, 2, 2).transpose(3, 5, 1, 0, 2, 4)


def transposed(weight: Any, side: int, threads: int) -> Any:
    """Return a session of the transposed convolution."""
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4)
    return session_of([node], {"w": weight}, weight, side, threads)


def two_by_two(weight: Any, side: int, threads: int) -> Any:
    """Return a session of a convolution of 2x2, whose four parts are shifted and interleaved."""
    ins, outs = weight.shape[:2]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[2, 2], pads=[1] * 4)]
    tensors = {"w": np.ascontiguousarray(parts(weight).reshape(4 * outs, ins, 2, 2)), "axes": np.array([1, 2, 3])}
    for number, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        tensors[f"first{number}"] = np.array([number * outs, row, column])
        tensors[f"last{number}"] = np.array([(number + 1) * outs, row + side, column + side])
        nodes.append(helper.make_node("Slice", ["c", f"first{number}", f"last{number}", "axes"], [f"p{number}"]))
    nodes.append(helper.make_node("Concat", ["p0", "p1", "p2", "p3"], ["all"], axis=1))
    nodes.append(helper.make_node("DepthToSpace", ["all"], ["y"], blocksize=2, mode="DCR"))
    return session_of(nodes, tensors, weight, side, threads)


def three_by_three(weight: Any, side: int, threads: int) -> Any:
    """Return a session of a convolution of 3x3 with zeros, and DepthToSpace."""
    ins, outs = weight.shape[:2]
    kernel = np.zeros((2, 2, outs, ins, 3, 3), np.float32)
    for row in (0, 1):
        for column in (0, 1):
            kernel[row, column, :, :, row : row + 2, column : column + 2] = parts(weight)[row, column]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="DCR"),
    ]
    return session_of(nodes, {"w": kernel.reshape(4 * outs, ins, 3, 3)}, weight, side, threads)


def session_of(nodes: list[Any], tensors: dict[str, Any], weight: Any, side: int, threads: int) -> Any:
    """Return a session of a graph from x to y."""
    ins, outs = weight.shape[:2]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", ins, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outs, 2 * side, 2 * side])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def interleaved(image: Tensor, weight: Tensor) -> Tensor:
    """Return the transposed convolution as a convolution of 2x2, in PyTorch."""
    (ins, outs), (batch, _, high, wide) = weight.shape[:2], image.shape
    kernel = weight.flip(2, 3).reshape(ins, outs, 2, 2, 2, 2).permute(3, 5, 1, 0, 2, 4).reshape(4 * outs, ins, 2, 2)
    four = functional.conv2d(image, kernel.contiguous(memory_format=torch.channels_last), padding=1)
    four = four.reshape(batch, 2, 2, outs, high + 1, wide + 1)
    rows = [
        torch.stack([four[:, row, column, :, row : row + high, column : column + wide] for column in (0, 1)], -1)
        for row in (0, 1)
    ]
    return torch.stack(rows, 3).reshape(batch, outs, 2 * high, 2 * wide)


if __name__ == "__main__":
    main()
