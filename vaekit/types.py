"""Array types and the words that manifests, settings and messages share."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
"""Images in [0, 1], latents or an encoder's outputs."""
Floats: TypeAlias = NDArray[np.floating[Any]]
"""Floating-point numbers of any width, as callers give them."""
Pixels: TypeAlias = NDArray[np.uint8]
"""Images of 8 bits a channel."""

GraphName = Literal["encoder", "decoder"]
PosteriorName = Literal["diagonal", "isotropic", "deterministic"]
LikelihoodName = Literal["gaussian", "bernoulli", "none"]
PrecisionName = Literal["fp32", "fp16", "int8", "fp16-weights", "int8-weights"]
PriorName = Literal["mixture", "normal"]
ProviderClass = Literal["cpu", "accelerator", "reduced"]
"""Processors in float32; GPUs and the like in float32; devices that compute in less than float32 whatever is asked."""

GRAPHS: tuple[GraphName, ...] = get_args(GraphName)
POSTERIORS: tuple[PosteriorName, ...] = get_args(PosteriorName)
LIKELIHOODS: tuple[LikelihoodName, ...] = get_args(LikelihoodName)
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
PRIORS: tuple[PriorName, ...] = get_args(PriorName)
PROVIDER_CLASSES: tuple[ProviderClass, ...] = get_args(ProviderClass)
"""From the strictest tolerances to the loosest."""

_Word = TypeVar("_Word", bound=str)


def one_of(words: tuple[_Word, ...], value: object, what: str) -> _Word:
    """Return the word that a value is. Raises ValueError where it is none of them; ``what`` names it there."""
    for word in words:
        if word == value:
            return word
    raise ValueError(f"there is no {what} {value!r}: it is one of {', '.join(words)}")
