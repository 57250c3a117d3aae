"""Replay a training step as a CUDA graph.

A step of a small network is hundreds of short kernels, and launching them one by one takes far longer than they run. A
CUDA graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_ORDINARY_CALLS = 3  # before the capture: they allocate the optimiser's state and load the kernels


class CudaGraph(Generic[Result]):
    """A function of tensors on a CUDA device, captured once and then replayed.

    The function must always do the same work on inputs of the same shapes. It may neither wait for the device nor copy
    from the CPU. Its result is overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Result], device: torch.device) -> None:
        self._function, self._device = function, device
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._inputs: tuple[Tensor, ...] = ()
        self._result: Result | None = None
        self._calls = 0

    def __call__(self, *inputs: Tensor | float) -> Result:
        """Compute the function's result. Numbers are passed to it as scalar tensors, float32 or int64."""
        self._fill(inputs)
        self._calls += 1
        if self._calls <= _ORDINARY_CALLS:
            return self._ordinary_call()
        if self._calls == _ORDINARY_CALLS + 1:
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._result = self._function(*self._inputs)
        self._graph.replay()
        assert self._result is not None
        return self._result

    def _fill(self, inputs: tuple[Tensor | float, ...]) -> None:
        """Copy the inputs into the tensors that the graph reads."""
        if not self._inputs:
            self._inputs = tuple(_empty_like(value, self._device) for value in inputs)
        for place, value in zip(self._inputs, inputs, strict=True):
            if isinstance(value, Tensor):
                place.copy_(value, non_blocking=True)
            else:
                place.fill_(value)

    def _ordinary_call(self) -> Result:
        """Call the function on the capture's stream, because autograd's nodes stay on the stream that made them."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            result = self._function(*self._inputs)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return result


def _empty_like(value: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device=device)
    return torch.empty((), dtype=torch.int64 if isinstance(value, int) else torch.float32, device=device)
