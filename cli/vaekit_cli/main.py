"""The entry point of `vaekit`: its commands, and its exit codes and errors."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Annotated, NoReturn

import typer

import vaekit
from vaekit.errors import VaekitError
from vaekit.output.table import printable
from vaekit_cli.threads import TORCH_COMMANDS, limit_spinning

COMMANDS = {
    "train": "Train a VAE and write a run.",
    "prior": "Fit the prior that samples are drawn from.",
    "evaluate": "Measure a run on new images, or a bundle on defects.",
    "export": "Export a model to ONNX, and check it against PyTorch.",
    "compress": "Write a smaller bundle, within limits of quality.",
    "sample": "Draw images from the prior.",
    "encode": "Encode any number of images to mu and logvar.",
    "decode": "Decode latents to images.",
    "reconstruct": "Show originals above their reconstructions.",
    "interpolate": "Decode latents between two images or two samples.",
    "traverse": "Vary each latent dimension in turn.",
    "plot": "Draw mu of each image, coloured by label.",
    "score": "Say how unusual images are, and where.",
    "web": "Write a static site that runs the bundle in a browser.",
    "sign": "Sign a bundle, so that others can check who made it.",
    "verify": "Run the bundle's golden vectors, and compare.",
    "info": "Check a bundle's files and describe them.",
    "bench": "Time encode and decode by batch size and threads.",
    "doctor": "Describe this machine and its execution providers.",
}
"""What `vaekit --help` says of each command. Each has a module of the same name, with a function of the same name."""

_INTERRUPTED = 128 + signal.SIGINT
_AGAIN_SECONDS = 0.01

_received: list[int] = []  # signals received so far
_hook_before = sys.unraisablehook


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main() -> NoReturn:
    """Run the command and exit with its code. An error is one line on stderr."""
    _received.clear()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about harmless metadata; what matters raises
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)
    try:
        code = _app(sys.argv[1:])(standalone_mode=False)
        sys.stdout.flush()
        if code == _INTERRUPTED:  # typer returns this after Ctrl-C
            code = _fail("interrupted", _INTERRUPTED)
    except typer.TyperException as error:
        code = _fail(f"{error.format_message().rstrip('.')}; see {_help_of(error)}", error.exit_code)
    except VaekitError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted", _INTERRUPTED)
    except _Terminated:
        code = _fail("terminated", 128 + signal.SIGTERM)
    except BrokenPipeError:  # the reader of stdout has exited
        _drop_stdout()
        code = 1
    except OSError as error:
        code = _fail_of_files(error)
    except MemoryError:
        code = _fail("out of memory: try a smaller --batch-size or --size", 1)
    except Exception as error:  # noqa: BLE001 — a bug in vaekit, but users should still see one line
        code = _fail(f"{type(error).__name__}: {error} (set VAEKIT_DEBUG=1 for a traceback)", 1)
    gc.freeze()  # so that Python does not search all objects for garbage as it ends, which takes up to a second
    sys.exit(code if isinstance(code, int) else 0)


def _app(arguments: list[str]) -> typer.Typer:
    """Build the command line.

    If the arguments begin with a command, only that command is added, because building all commands takes longer than
    some commands run. Otherwise those that are not named at all are added for the help alone.
    """
    app = typer.Typer(
        name="vaekit",
        help="Train a variational auto-encoder, export it to verified ONNX, and run it anywhere without PyTorch.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_top)
    asked = [name for name in arguments[:1] if name in COMMANDS]
    if asked and asked[0] in TORCH_COMMANDS:
        limit_spinning(os.environ)
    for name in asked or COMMANDS:
        function = _function(name) if name in arguments else _not_called
        app.command(name, short_help=COMMANDS[name])(function)
    return app


def _function(command: str) -> Callable[..., object]:
    """Import a command's module, and return its function."""
    function: Callable[..., object] = getattr(importlib.import_module(f"vaekit_cli.commands.{command}"), command)
    return function


def _not_called() -> None:
    """Stand for a command that the arguments do not name."""


def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"vaekit {vaekit.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _fail(message: str, code: int) -> int:
    if _received:  # the signal's exception may have become another one: an import turns it into ImportError
        code = 128 + _received[0]
        message = "terminated" if _received[0] == signal.SIGTERM else "interrupted"
    if os.environ.get("VAEKIT_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _fail_of_files(error: OSError) -> int:
    """Name the file, which may have been read or written; what names none and is of writing is stdout's."""
    from vaekit.system.files import is_error_of_writing

    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return _fail(f"{os.fsdecode(error.filename)}: {reason}", 1)
    _drop_stdout()
    if is_error_of_writing(error):
        return _fail(f"cannot write to stdout: {reason}", 1)
    return _fail(f"a file could not be read or written: {reason} (VAEKIT_DEBUG=1 shows where)", 1)


def _drop_stdout() -> None:
    """Redirect stdout, so that Python prints no second error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help_of(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'vaekit'} --help"


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Raise a signal again whose exception was ignored, because it arrived in a callback, such as one of an import."""
    if not isinstance(unraisable.exc_value, _Terminated | KeyboardInterrupt):
        _hook_before(unraisable)
        return
    import threading

    def again() -> None:
        if hasattr(signal, "pthread_kill"):  # which also wakes the main thread, if it waits
            signal.pthread_kill(threading.main_thread().ident or 0, _received[0])
        else:
            signal.raise_signal(_received[0])

    threading.Timer(_AGAIN_SECONDS, again).start()  # by then the callback has ended


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else _Terminated
