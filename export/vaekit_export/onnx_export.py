"""Export of a PyTorch module to ONNX, and checks of the result."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vaekit.bundle.onnx_file import TensorInfo, read_onnx
from vaekit.errors import ExportError, UsageError
from vaekit.ort.session import open_on_cpu
from vaekit.types import Array, GraphName
from vaekit_export.passes import write
from vaekit_export.passes.axes import name_axes
from vaekit_export.passes.metadata import KEYS, lowest_ir_version, tidy
from vaekit_export.passes.opset import drop_later_attributes
from vaekit_export.passes.shapes import constant_shapes
from vaekit_export.undisturbed import without_logging

MIN_OPSET = 17

_LARGEST_FILE = 2**31 - 2**20
"""Largest size of the weights in one ONNX file, in bytes: protobuf allows 2 GiB, and nodes need room too."""

_RANDOM_OPERATORS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout")
)

Axes = Mapping[int, str]
"""Names of a tensor's free axes, by index."""

BATCH_AXIS: Axes = {0: "batch"}

_MINIMUM_ONNXRUNTIME = {
    17: "1.15.0",
    18: "1.15.0",
    19: "1.16.0",
    20: "1.17.0",
    21: "1.18.0",
    22: "1.21.0",
    23: "1.23.0",
    24: "1.24.1",
    25: "1.24.1",
    26: "1.25.0",
    27: "1.32.0",
    28: "1.32.0",
}


@dataclass(frozen=True)
class ExportedGraph:
    """A module and the ONNX file that was exported from it."""

    name: GraphName
    module: nn.Module
    onnx: bytes
    input_name: str
    output_names: tuple[str, ...]
    input_axes: Axes = field(default_factory=lambda: BATCH_AXIS)
    """The input's free axes."""
    feeds: Callable[[Array], dict[str, Array]] | None = None
    """If the graph has several inputs, a function that makes them of the rows of its module's one input."""

    def inputs_of(self, rows: Array) -> dict[str, Array]:
        """Return the graph's inputs for rows of its module's input."""
        return {self.input_name: rows} if self.feeds is None else self.feeds(rows)


def newest_opset() -> int:
    """Return the newest opset that onnx defines and ONNX Runtime loads.

    It is found by trying on the installed versions.
    """
    for opset in range(onnx.defs.onnx_opset_version(), MIN_OPSET, -1):
        try:
            open_on_cpu("probe", _probe_model(opset))
        except Exception:  # noqa: BLE001, S112 — runtimes raise different errors for an unknown opset
            continue
        return opset
    return MIN_OPSET


def check_opset(opset: int) -> None:
    """Raise UsageError unless MIN_OPSET ≤ opset ≤ newest_opset()."""
    newest = newest_opset()
    if not MIN_OPSET <= opset <= newest:
        raise UsageError(
            f"opset {opset} is out of range: the installed onnx and ONNX Runtime support {MIN_OPSET} to {newest}"
        )


def check_fits(name: GraphName, module: nn.Module, example: Tensor) -> None:
    """Raise ExportError if a module's weights do not fit one ONNX file.

    Only weights that the module uses count. ``example`` is one input.
    """
    weights = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    if _bytes(weights.values()) <= _LARGEST_FILE:
        return
    with torch.no_grad(), _Seen(weights) as seen:  # an encoder module may also hold the decoder's weights
        module(example)
    needed = _bytes(seen.used.values())
    if needed > _LARGEST_FILE:
        raise ExportError(
            f"the {name} has {needed / 1e9:.2f} GB of weights, and one ONNX file holds at most "
            f"{_LARGEST_FILE / 1e9:.2f} GB: this model is too large to export"
        )


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not say what its hook takes
    """Recorder of the given tensors that operators are called with."""

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors = tensors
        self.used: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.tensors:
                self.used[id(value)] = value
        return func(*args, **(kwargs or {}))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def export_onnx(
    module: nn.Module,
    example: Tensor,
    *,
    input_name: str,
    output_names: Sequence[str],
    opset: int,
    input_axes: Axes = BATCH_AXIS,
    output_axes: Axes = BATCH_AXIS,
) -> bytes:
    """Export a module in evaluation mode, and check the file.

    ``example`` is an input of at least two rows. ``input_axes`` and ``output_axes`` are free. Raises ExportError if the
    export fails or the file is not as requested.
    """
    return export_with_inputs(module, {input_name: (example, input_axes)}, output_names, output_axes, opset=opset)


def export_with_inputs(
    module: nn.Module,
    examples: Mapping[str, tuple[Tensor, Axes]],
    output_names: Sequence[str],
    output_axes: Axes,
    *,
    opset: int,
) -> bytes:
    """Export a module of several inputs, each with its free axes, as ``export_onnx`` does."""
    module.eval()
    tensors = [tensor for tensor, _ in examples.values()]
    with torch.inference_mode():
        outputs = module(*tensors)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    if len(outputs) != len(output_names):
        raise ExportError(f"the module has {len(outputs)} outputs, not the {len(output_names)} named {output_names}")
    inputs = [_declared(name, tensor, axes) for name, (tensor, axes) in examples.items()]
    declared = [_declared(name, output, output_axes) for name, output in zip(output_names, outputs, strict=True)]
    program = _program(module, examples, output_names, opset)
    model = _at_opset(program.model, opset)
    constant_shapes(model)
    named = {axis: name for axis, name in output_axes.items() if axis not in BATCH_AXIS}
    if named:
        name_axes(model, named)
    tidy(model)
    data = write(model)
    check_onnx(data, inputs=inputs, outputs=declared, opset=opset)
    return data


def export_program(
    module: nn.Module,
    example: Tensor,
    *,
    input_name: str,
    output_names: Sequence[str],
    opset: int,
    input_axes: Axes = BATCH_AXIS,
) -> torch.onnx.ONNXProgram:
    """Return PyTorch's export program, which also holds the captured graph.

    Raises ExportError if the export fails.
    """
    return _program(module, {input_name: (example, input_axes)}, output_names, opset)


def _program(
    module: nn.Module, examples: Mapping[str, tuple[Tensor, Axes]], output_names: Sequence[str], opset: int
) -> torch.onnx.ONNXProgram:
    try:
        with quietly():
            program = torch.onnx.export(
                module,
                tuple(tensor for tensor, _ in examples.values()),
                input_names=list(examples),
                output_names=list(output_names),
                opset_version=opset,
                dynamic_shapes=tuple(dict(axes) for _, axes in examples.values()),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter, torch.export and Python each raise their own types
        raise ExportError(f"PyTorch could not export the module: {_reason(error)}") from error
    if program is None:
        raise ExportError("PyTorch returned no ONNX model")
    return program


def check_onnx(data: bytes, *, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], opset: int) -> None:
    """Read a graph back from its bytes and check it.

    Raises ExportError unless

    - it passes onnx's full check,
    - it has the given opset and the lowest IR version that the opset allows,
    - it is one file, of standard operators, none of them random,
    - it has no metadata, which may contain paths of this machine, except under vaekit's keys,
    - its inputs and outputs have the given names, types and shapes.
    """
    model = onnx.load_from_string(data)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # checker and shape inference errors have no common base
        raise ExportError(f"the exported file is not valid ONNX: {_first_line(error)}") from error
    info = read_onnx(data)
    if info.opsets.get("") != opset:
        raise ExportError(
            f"the exporter wrote opset {info.opsets.get('')} instead of {opset}: an operator of this model has no form "
            f"in opset {opset}. Try another --opset."
        )
    lowest = lowest_ir_version(opset)
    if info.ir_version != lowest:
        raise ExportError(f"the file has IR version {info.ir_version}, but opset {opset} needs only {lowest}")
    if info.external_data:
        raise ExportError("the exported file keeps weights in other files")
    if foreign := sorted(({domain for domain, _ in info.operators} | set(info.opsets)) - {""}):
        raise ExportError(f"the graph uses operators of other domains: {', '.join(foreign)}")
    if random := sorted({name for _, name in info.operators if name in _RANDOM_OPERATORS}):
        raise ExportError(
            f"the graph holds {', '.join(random)}: noise must stay outside the graph, so that a seed gives the same "
            "latents everywhere"
        )
    if any(_is_foreign(model, holder) for holder in _metadata(model)):
        raise ExportError("the exported file has metadata, which may contain paths of this machine")
    for kind, found, wanted in (("inputs", info.inputs, inputs), ("outputs", info.outputs, outputs)):
        if list(found) != list(wanted):
            raise ExportError(f"the graph's {kind} are {found}, not {list(wanted)}")


def minimum_onnxruntime(opset: int) -> str:
    """Return the oldest ONNX Runtime that runs a graph of an opset.

    The versions were found with ``tests/packaging/run_bundle_bare.py`` on the default model, on wheels back to 1.15.0,
    the oldest for Python 3.11. CI repeats this for opset 17. For an opset that was not tried, it is the installed
    version, which parity was checked on.
    """
    return _MINIMUM_ONNXRUNTIME.get(opset, str(onnxruntime.__version__))


def _at_opset(model: ir.Model, opset: int) -> ir.Model:
    """Return the model at an opset.

    onnx converts it if the exporter wrote a newer opset. Raises ExportError if an operator has no form in the opset,
    naming the operator and an opset that has it.
    """
    written = model.opset_imports.get("", opset)
    if written > opset:
        try:
            model = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), opset))
        except Exception as error:  # the converter raises RuntimeError, but does not document it
            raise ExportError(_without_a_form(str(error), opset, written)) from error
    drop_later_attributes(model)
    return model


def _without_a_form(complaint: str, opset: int, written: int) -> str:
    """Explain the converter's complaint and name an opset that works."""
    if found := re.search(r"No Previous Version of (\w+) exists", complaint):
        name = found.group(1)
        first = min(schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == name)
        return f"the model needs the operator {name}, which opset {opset} does not have; --opset {first} has it"
    if found := re.search(r"No Adapter (?:To|From) Version \$\d+ for (\w+)", complaint):
        name = found.group(1)
        versions = (schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == name)
        first = min((version for version in versions if version > opset), default=written)
        return f"the operator {name} of this model has no form in opset {opset}; --opset {first} has it"
    reason = complaint.rpartition("failed: ")[2].splitlines()[0]
    return f"an operator of this model has no form in opset {opset}: {reason} --opset {written} has it"


def _declared(name: str, tensor: Tensor, axes: Axes) -> TensorInfo:
    shape = tuple(axes.get(axis, size) for axis, size in enumerate(tensor.shape))
    return TensorInfo(name, str(tensor.dtype).removeprefix("torch."), shape)


def _is_foreign(model: onnx.ModelProto, holder: Any) -> bool:
    """Return whether a message holds more than vaekit's own metadata."""
    return (
        holder is not model or bool(model.doc_string) or {entry.key for entry in model.metadata_props} - KEYS != set()
    )


def _metadata(message: Any) -> list[Any]:
    """List all messages in a model that hold metadata or documentation.

    The model itself may be one of them.
    """
    found: list[Any] = []
    if getattr(message, "metadata_props", None) or getattr(message, "doc_string", ""):
        found.append(message)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None and descriptor.name != "metadata_props":
            for inner in value if descriptor.is_repeated else (value,):
                found.extend(_metadata(inner))
    return found


def _probe_model(opset: int) -> bytes:
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", float32, [1])],
        [helper.make_tensor_value_info("y", float32, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = lowest_ir_version(opset)
    data: bytes = model.SerializeToString()
    return data


@contextmanager
def quietly() -> Iterator[None]:
    """Silence other libraries' logs, warnings and prints; their results are checked afterwards."""
    unheard = io.StringIO()
    with (
        without_logging(logging.ERROR),
        warnings.catch_warnings(),
        redirect_stdout(unheard),
        redirect_stderr(unheard),
    ):
        warnings.simplefilter("ignore")
        yield


def _reason(error: BaseException) -> str:
    """Explain in one line why an export failed.

    Known causes get an explanation; others keep the first line of the innermost error.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        calls = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.+)', text)
        file, line, function, code = calls[-1] if calls else ("", "", "forward", "")
        place = f" ({Path(file).name}, line {line}: `{code.strip()}`)" if file else ""
        return (
            f"its control flow depends on the data in {function}{place}, and a graph has one path for all inputs. Use "
            "torch.where, or decide by shapes"
        )
    if "inferred a static shape" in text:
        return (
            "it works for one batch size only; reshapes and loops must use the first axis's size, such as in "
            f"x.reshape(x.shape[0], ...): {text.splitlines()[-1].strip(' -')}"
        )
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text):
        return f"PyTorch has no ONNX form of the operator {found.group(1)}, at any opset"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
