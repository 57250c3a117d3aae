"""How long the threads of PyTorch spin while they wait for each other."""

from __future__ import annotations

from collections.abc import MutableMapping

TORCH_COMMANDS = ("train", "evaluate", "export", "compress")
"""The commands that import PyTorch."""

_SPINS = "1000"
# PyTorch's OpenMP (libgomp) spins for some 300,000 rounds by default before a waiting thread sleeps. Beside other work,
# the threads that spin keep the thread that they wait for from running. Measured on two cores, batches of 128, 28 x 28:
#
#                                                 default    1,000 spins    OMP_WAIT_POLICY=PASSIVE    one thread
#   idle machine, steps/s                         17.6       16.9           13.0                       16.7
#   beside light work, 300 steps, whole command   149 s      44 s           36 s                       53 s
#   beside a busy process, 120 steps              246 s      65 s           64 s
#
# So 1,000 spins cost 4 % where nothing else runs and save two thirds where something does
# (benchmarks/busy_machine.py).


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep soon, unless the user has chosen otherwise.

    ``environment`` is os.environ. Libgomp reads it once, when PyTorch is imported: call this before.
    """
    if "OMP_WAIT_POLICY" not in environment:  # which GOMP_SPINCOUNT would override
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
