"""Limit how long PyTorch's threads spin while they wait for each other."""

from __future__ import annotations

from collections.abc import MutableMapping

TORCH_COMMANDS = ("train", "prior", "evaluate", "export", "compress")
"""The commands that import PyTorch."""

_SPINS = "1000"
# By default, a waiting thread of PyTorch's OpenMP (libgomp) spins for about 300,000 rounds before it sleeps. If the
# machine has other work, spinning threads take the processor from the very thread that they wait for. Measured on two
# cores with batches of 128 images, 28 x 28:
#
#                                                 default    1,000 spins    OMP_WAIT_POLICY=PASSIVE    one thread
#   idle machine, steps/s                         17.6       16.9           13.0                       16.7
#   beside light work, 300 steps, whole command   149 s      44 s           36 s                       53 s
#   beside a busy process, 120 steps              246 s      65 s           64 s
#
# So 1,000 spins cost 4 % on an idle machine and save two thirds on a busy one (benchmarks/busy_machine.py).


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep soon, unless the user has chosen otherwise.

    ``environment`` is os.environ. Libgomp reads it once, when PyTorch is imported, so call this before.
    """
    if "OMP_WAIT_POLICY" not in environment:  # GOMP_SPINCOUNT would override it
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
