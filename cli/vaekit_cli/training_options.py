"""Options and helpers shared by the commands that need PyTorch."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from vaekit.training.config import Config, DeviceChoice, Setting, types_of_settings
from vaekit_cli.console import progress_bar

if TYPE_CHECKING:
    from vaekit.images.dataset import Images

DeviceOption = Annotated[DeviceChoice, typer.Option(help="auto takes cuda, then mps, then cpu.")]

SOURCE_HELP = (
    "Images: a folder, a picture or glob, .npy, .npz, .tar, .parquet, IDX, hf:NAME, or shapes, fashion-mnist, mnist."
)

_STANDS_BEFORE = {"epochs": "steps"}
"""Options that are not settings. In the help, each comes right before a setting."""


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter ``settings`` by options for Config's fields.

    The command receives ``settings`` as a dict of the options' values by field name. If the command itself has a
    parameter with a field's name, this one is the option, and ``settings`` does not contain the field.
    """
    own = dict(inspect.signature(command, eval_str=True).parameters)
    before = {setting: own.pop(name) for name, setting in _STANDS_BEFORE.items() if name in own}
    names, listed = set[str](), list[inspect.Parameter]()
    for known in dataclasses.fields(Config):
        if known.name in before:
            listed.append(before[known.name])
        if known.name in own and known.name != "source":
            listed.append(own.pop(known.name))
        elif "setting" in known.metadata and known.metadata["setting"].help:
            listed.append(_option(known))
            names.add(known.name)

    @functools.wraps(command)
    def with_settings(**values: Any) -> None:
        settings = {name: values.pop(name) for name in names}
        command(settings=settings, **values)

    parameters = list(_in_place_of("settings", own, listed))
    with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    return with_settings


def _in_place_of(
    name: str, parameters: dict[str, inspect.Parameter], others: list[inspect.Parameter]
) -> Iterator[inspect.Parameter]:
    for parameter in parameters.values():
        if parameter.name == name:
            yield from others
        else:
            yield parameter


def _option(known: dataclasses.Field[Any]) -> inspect.Parameter:
    """Make typer's parameter for an option from a field of Config."""
    setting: Setting = known.metadata["setting"]
    kind, default = types_of_settings()[known.name], known.default
    if setting.empty:
        kind, default = Optional[kind], None  # noqa: UP045 — ``|`` does not work for a Literal with one value
    option = typer.Option(
        *((f"--{known.name}",) if kind is bool else ()),  # no --no-… beside it
        help=setting.help,
        metavar=setting.metavar,
        min=None if setting.share else setting.least,
        max=setting.most,
        show_default=setting.shown.format(known.default) or kind is not bool,
    )
    return inspect.Parameter(
        known.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def read_source(source: str, size: tuple[int, int] | None, quiet: bool, *, crop: bool = False) -> Images:
    """Open a source, or crops of its images, with a progress bar."""
    from vaekit.images.crops import open_crops
    from vaekit.images.dataset import open_source

    with progress_bar(f"reading {source}", None, quiet) as progress:
        return (open_crops if crop else open_source)(source, size=size, progress=progress)


def read_validation(val: str | None, shape: tuple[int, int, int], quiet: bool, *, crop: bool = False) -> Images | None:
    """Open the source that ``--val`` names, resized or cropped like the training images.

    Returns None if ``--val`` is a share or was not given.
    """
    from vaekit.errors import SourceError
    from vaekit.training.holdout import share_of

    if val is None or share_of(val) is not None:
        return None
    images = read_source(val, shape[1:], quiet, crop=crop)
    if images.shape != shape:
        colours = {1: "grey", 3: "RGB"}
        raise SourceError(
            f"--val {val} has {colours[images.shape[0]]} images, the images to train on are {colours[shape[0]]}: "
            "convert one of them"
        )
    return images
