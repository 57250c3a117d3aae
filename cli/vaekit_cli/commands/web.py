"""`vaekit web`: write a page that runs the bundle in a browser."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vaekit.errors import UsageError
from vaekit_cli.console import command_line, print_document, speaker
from vaekit_cli.options import DEFAULT_MODEL, JsonOption, ModelOption, QuietOption

_OUTPUT = Path("vae-web")
_PORT = 8000
_PATIENCE_SECONDS = 0.1


@dataclass
class Site:
    """What `--json` prints."""

    output: str
    files: int
    bytes: int
    runtime: str
    """Version of onnxruntime-web."""
    model: str
    address: str | None
    """Where it is served; null without --serve."""


def web(
    port: Annotated[
        int | None,
        typer.Argument(
            min=0,
            max=65535,
            metavar="[PORT]",
            help="The port of --serve; 0 takes one that is free.",
            show_default=str(_PORT),
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="SITE", help="The folder to write the site to.")
    ] = _OUTPUT,
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder dist of onnxruntime-web.",
            show_default="node_modules/onnxruntime-web, here or further up",
        ),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the site on 127.0.0.1 until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a static site that runs the bundle in a browser."""
    from vaekit.bundle.reading import read_bundle
    from vaekit.web.server import open_server, serving
    from vaekit.web.site import check_site_target, find_runtime, write_site
    from vaekit_cli.stopping import stop_asked

    say = speaker(quiet or as_json)
    if port is not None and not serve:
        raise UsageError("a port is for --serve: leave it out, or add --serve")
    check_site_target(output)
    found = find_runtime(runtime, Path.cwd())
    bundle = read_bundle(model)
    # Before any work, because the port may be taken.
    server = open_server(output, _PORT if port is None else port) if serve else None
    sizes = write_site(output, bundle, found)

    def report(address: str | None) -> None:
        if as_json:
            print_document(Site(str(output), len(sizes), sum(sizes.values()), found.version, str(model), address))
            sys.stdout.flush()
        say(f"{output}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB, with onnxruntime-web {found.version}")

    if server is None:
        report(None)
        options = (("-m", model, DEFAULT_MODEL), ("-o", output, _OUTPUT))
        say(f"next: {command_line('vaekit web', *options)} --serve, or give the folder to any server of static files")
        return
    with serving(server) as address, stop_asked() as asked:
        report(address)
        say(f"serving {address} until Ctrl-C")
        while not asked():
            time.sleep(_PATIENCE_SECONDS)
