"""`vaekit train --config FILE`: read options from a config.json. The command line takes precedence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from vaekit.training.config import Config, read_settings, setting_of


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Use a file's settings as the options' defaults (the callback of ``--config``)."""
    if path is not None:
        context.default_map = options_of(read_settings(path))
    return path


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert settings of a config.json to options, by parameter name."""
    options = {name: value for name, value in settings.items() if value is not None}
    if "height" in settings and "width" in settings:
        options["size"] = f"{settings['height']}x{settings['width']}"
    if "sigma" in settings:
        options["sigma"] = "optimal" if settings["sigma"] is None else repr(settings["sigma"])
    if settings.get("likelihood") == "bernoulli":
        options.pop("sigma", None)
    if settings.get("objective", "elbo") != "elbo":
        options.pop("beta", None)  # the objective determines it
    if settings.get("max_minutes") is not None:
        options.pop("steps", None)
    # Options that apply only to some objectives are errors with the others, even at their default.
    defaults = {known.name: known.default for known in fields(Config) if setting_of(known.name).objectives}
    return {name: value for name, value in options.items() if name not in defaults or defaults[name] != value}


def given(context: typer.Context, *names: str) -> set[str]:
    """Return those of ``names`` that are set on the command line."""
    return {name for name in names if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"}


def overridden(context: typer.Context, unfit: Iterable[str], lengths: Iterable[str]) -> set[str]:
    """Return the parameters whose values from the file the command line overrides.

    If the command line sets one of ``lengths``, the file's values of all ``lengths`` are dropped. The values of
    ``unfit`` are dropped because they do not apply to the command line's options.
    """
    from_file = {name for name in context.default_map or {} if not given(context, name)}
    replaced = set(lengths) if given(context, *lengths) else set()
    return from_file & (replaced | set(unfit))
