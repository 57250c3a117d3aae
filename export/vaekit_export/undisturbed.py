"""The process that an export runs in stays as it was: its random generators, its logging and its warnings."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back the states of PyTorch's, NumPy's and Python's random generators, and let no Python warning through.

    What a warning could say (an overflow, an operator that was traced) is checked in what comes out.
    """
    by_numpy, by_python = np.random.get_state(), random.getstate()  # noqa: NPY002 — what modules may draw from
    try:
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(by_numpy)  # noqa: NPY002
        random.setstate(by_python)


@contextmanager
def without_logging(level: int) -> Iterator[None]:
    """Turn off log records up to a level, and back to what the program had turned off before."""
    before = logging.root.manager.disable
    logging.disable(max(before, level))
    try:
        yield
    finally:
        logging.disable(before)
