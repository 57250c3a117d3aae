"""Search for random operators in a module: an exported graph must be deterministic."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Outputs = tuple[Tensor, ...]

_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class RandomCall:
    """A random operator that a module called."""

    operator: str
    """PyTorch's name, such as ``randn_like``."""
    place: str
    """Function, file and line of the caller outside PyTorch; empty if there is no such caller."""
    dropout: bool


def find_random_call(run: Callable[[], Outputs], first: Outputs) -> RandomCall | None:
    """Return a module's first random call, or None.

    ``first`` are its outputs from an earlier run on the same example. It is random if those of a second run differ,
    which has another seed.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=()), _Watch() as watch:
        torch.manual_seed(torch.initial_seed() + 1)
        second = run()
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if same:
        return None
    return watch.calls[0] if watch.calls else RandomCall("a generator that is not PyTorch's", "", dropout=False)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not say what its hook takes
    """Recorder of the calls of operators that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[RandomCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.calls.append(_call(func))
        return func(*args, **(kwargs or {}))


def _call(func: Any) -> RandomCall:
    stack = traceback.extract_stack()
    names = {frame.name for frame in stack if frame.filename.startswith(_TORCH)}
    outside = [frame for frame in stack if not frame.filename.startswith((_TORCH, __file__))]
    frame = outside[-1] if outside else None
    place = "" if frame is None else f"{frame.name} ({Path(frame.filename).name}, line {frame.lineno})"
    operator = str(func.overloadpacket).removeprefix("aten.")
    return RandomCall(operator, place, "dropout" in operator or any("dropout" in name for name in names))
