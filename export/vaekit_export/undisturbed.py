"""Protection of the calling process's random generators, logging and warnings."""

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
    """Restore random generators afterwards, and silence Python warnings.

    The generators are PyTorch's, NumPy's and Python's. What a warning could be about, such as an overflow or a traced
    operator, is checked in the results.
    """
    by_numpy, by_python = np.random.get_state(), random.getstate()  # noqa: NPY002 — modules may draw from it
    try:
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(by_numpy)  # noqa: NPY002
        random.setstate(by_python)


@contextmanager
def without_logging(level: int) -> Iterator[None]:
    """Disable log records up to a level, and restore the setting afterwards."""
    before = logging.root.manager.disable
    logging.disable(max(before, level))
    try:
        yield
    finally:
        logging.disable(before)
