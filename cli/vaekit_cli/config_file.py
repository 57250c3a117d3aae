"""`vaekit train --config FILE`: a config.json in place of options, and options given beside it before it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

_NEUTRAL = {"mc_samples": 1, "beta_warmup": 0.0, "free_bits": 0.0}
"""Values that say nothing, of options that may only be given where they say something."""

_LENGTHS = ("epochs", "steps", "max_minutes")


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the settings of a file the options' defaults: the eager callback of ``--config``."""
    if path is not None:
        from vaekit.training.run import read_settings

        context.default_map = options_of(read_settings(path))
    return path


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The options, by their parameters' names, that have these settings of a config.json."""
    options = {name: value for name, value in settings.items() if value is not None}
    if "height" in settings and "width" in settings:
        options["size"] = f"{settings['height']}x{settings['width']}"
    if "sigma" in settings:
        options["sigma"] = "optimal" if settings["sigma"] is None else repr(settings["sigma"])
    if settings.get("likelihood") == "bernoulli":
        options.pop("sigma", None)
    if settings.get("objective", "elbo") != "elbo":
        options.pop("beta", None)  # follows from the objective
    if settings.get("max_minutes") is not None:
        options.pop("steps", None)
    return {name: value for name, value in options.items() if _NEUTRAL.get(name) != value}


def given(context: typer.Context, *names: str) -> set[str]:
    """Those parameters that the command line itself has."""
    return {name for name in names if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"}


def overridden(context: typer.Context, unfit: Iterable[str]) -> set[str]:
    """Parameters whose values from the file go, as options given beside it have taken their place.

    Another length takes the length's; ``unfit`` are those that say nothing under what the command line asks for.
    """
    from_file = {name for name in context.default_map or {} if not given(context, name)}
    lengths = set(_LENGTHS) if given(context, *_LENGTHS) else set()
    return from_file & (lengths | set(unfit))
