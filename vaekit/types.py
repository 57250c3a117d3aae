"""Array types, and the names that manifests, settings and messages share."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
"""Images in [0, 1], latents or an encoder's outputs."""
Floats: TypeAlias = NDArray[np.floating[Any]]
"""Floating-point numbers of any width, as callers pass them."""
Pixels: TypeAlias = NDArray[np.uint8]
"""Images with 8 bits per channel."""

GraphName = Literal["encoder", "decoder", "prior"]
PosteriorName = Literal["diagonal", "isotropic", "deterministic"]
LikelihoodName = Literal["gaussian", "laplace", "bernoulli", "none"]
PrecisionName = Literal["fp32", "fp16", "int8", "fp16-weights", "int8-weights"]
PriorName = Literal["flow", "mixture", "normal"]
FlowStart = Literal["mixture", "normal"]
ProviderClass = Literal["cpu", "accelerator", "reduced"]
"""``cpu``: processors computing in float32. ``accelerator``: GPUs and similar devices computing in float32.
``reduced``: devices that always compute at lower precision."""

GRAPHS: tuple[GraphName, ...] = ("encoder", "decoder")
"""The graphs that every bundle has; ``prior`` is there if a prior was learnt."""
POSTERIORS: tuple[PosteriorName, ...] = get_args(PosteriorName)
LIKELIHOODS: tuple[LikelihoodName, ...] = get_args(LikelihoodName)
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
PRIORS: tuple[PriorName, ...] = get_args(PriorName)
FLOW_STARTS: tuple[FlowStart, ...] = get_args(FlowStart)
PROVIDER_CLASSES: tuple[ProviderClass, ...] = get_args(ProviderClass)
"""Ordered from the strictest tolerances to the loosest."""

_Word = TypeVar("_Word", bound=str)


def one_of(words: tuple[_Word, ...], value: object, what: str) -> _Word:
    """Return the value as one of these words.

    Raises ValueError if it is not one of them; ``what`` names the kind of value in that message.
    """
    for word in words:
        if word == value:
            return word
    raise ValueError(f"unknown {what} {value!r}, expected one of {', '.join(words)}")
