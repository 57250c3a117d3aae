"""A VAE named on the command line: its factory and its weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vaekit.errors import ExportError, UsageError
from vaekit_export.description import ForeignVAE, VAEDescription

_NAMED_KEYS = 3


def call_factory(spec: str) -> ForeignVAE:
    """Call the factory ``package.module:factory``.

    The module may be installed or in the current folder. Raises UsageError for a factory that does not exist, and
    ExportError if it fails or does not return a VAE.
    """
    module_name, _, factory_name = spec.partition(":")
    if not module_name or not factory_name.isidentifier():
        raise UsageError(f"--module {spec} is not of the form package.module:factory")
    with _current_folder_searched():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise UsageError(
                    f"there is no module {error.name}, either installed or in the current folder"
                ) from error
            raise ExportError(f"importing {module_name} failed: {error}") from error
        except Exception as error:  # a user's module may raise anything
            raise ExportError(f"importing {module_name} failed: {_one_line(error)}") from error
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            own = sorted(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
            raise UsageError(f"{module_name} has no factory {factory_name}; it has {', '.join(own) or 'none'}")
        try:
            returned = factory()
        except Exception as error:  # as above
            raise ExportError(f"{spec} failed: {_one_line(error)}") from error
    return _checked(spec, returned)


def load_weights(vae: ForeignVAE, path: Path) -> None:
    """Load a .safetensors file into a VAE.

    The weights belong to ``vae.model``, or without one to its two modules, as ``encoder.…`` and ``decoder.…``. Raises
    ExportError if the file cannot be read or its weights do not fit.
    """
    model = vae.model or nn.ModuleDict({"encoder": vae.encoder, "decoder": vae.decoder})
    try:
        found = load_file(path)
    except FileNotFoundError:
        raise ExportError(f"there is no weights file at {path}") from None
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"{path} is not a .safetensors file ({_one_line(error)}). vaekit does not read pickles: write one with "
            "safetensors.torch.save_file(model.state_dict(), ...)"
        ) from error
    wanted = model.state_dict()
    differences = (
        _listed("lacks", sorted(set(wanted) - set(found))),
        _listed("also has", sorted(set(found) - set(wanted))),
        _listed(
            "has other shapes:",
            [
                f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
                for key in sorted(set(found) & set(wanted))
                if found[key].shape != wanted[key].shape
            ],
        ),
    )
    if any(differences):
        hint = "" if vae.model else ". The factory may return the module that they belong to as a fourth item"
        raise ExportError(f"the weights in {path} do not fit: the file {'; it '.join(filter(None, differences))}{hint}")
    model.load_state_dict(found)


def _checked(spec: str, returned: object) -> ForeignVAE:
    if (
        isinstance(returned, tuple)
        and len(returned) in (3, 4)
        and isinstance(returned[0], nn.Module)
        and isinstance(returned[1], nn.Module)
        and isinstance(returned[2], VAEDescription)
        and (len(returned) == 3 or returned[3] is None or isinstance(returned[3], nn.Module))
    ):
        return ForeignVAE(*returned)
    items = returned if isinstance(returned, tuple) else (returned,)
    kinds = ", ".join(type(item).__name__ for item in items) or "nothing"
    raise ExportError(
        f"{spec} returns {kinds}: it must return an encoder module, a decoder module and a VAEDescription, and may add "
        "the module that the weights belong to"
    )


def _listed(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - _NAMED_KEYS} more" if len(keys) > _NAMED_KEYS else ""
    return f"{what} {', '.join(keys[:_NAMED_KEYS])}{more}" if keys else ""


@contextmanager
def _current_folder_searched() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
