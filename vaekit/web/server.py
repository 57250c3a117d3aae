"""Serve a site on this machine, isolated from other origins, so that WebAssembly may use threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vaekit.errors import VaekitError

HOST = "127.0.0.1"

_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".svg": "image/svg+xml"}


class _Handler(SimpleHTTPRequestHandler):
    # Windows' registry may say otherwise, and modules run only with the right type.
    extensions_map = SimpleHTTPRequestHandler.extensions_map | _TYPES

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the name is the base class's
        pass


def open_server(site: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of a folder on 127.0.0.1. With port 0 it takes a free one.

    Raises VaekitError if the port cannot be used.
    """
    handler = functools.partial(_Handler, directory=str(site))
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise VaekitError(f"cannot serve on {HOST}:{port}: {error.strerror or error}. Choose another port") from error


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Serve in another thread until the block ends; yield the address."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
