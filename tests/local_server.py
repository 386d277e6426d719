"""A web server on this machine that refuses, lies, breaks off and falls silent, as a test tells it to."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save


def weights(seed: int, count: int = 50_000) -> bytes:
    return save({"w": np.random.default_rng(seed).standard_normal(count).astype(np.float32)})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DATA, OTHER = weights(1), weights(2)


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `acts` are played once each before, one per request. `seen`: paths of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/m.safetensors": DATA}
        self.acts: list[Callable[[Handler], None]] = []
        self.seen: list[str] = []

    def url(self, path: str = "/m.safetensors") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        act = self.server.acts.pop(0) if self.server.acts else serve()
        act(self)

    def do_HEAD(self) -> None:
        self.head(200, self.server.files[self.path])

    def head(self, status: int, data: bytes) -> None:
        self.send_response(status)
        for key, value in (("Content-Length", len(data)), ("ETag", f'"{digest(data)}"'), ("X-Repo-Commit", "c" * 40)):
            self.send_header(key, str(value))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


Act = Callable[[Handler], None]


def serve(data: bytes | None = None, *, status: int = 200, stall: float = 0.0) -> Act:
    """Answer a request. stall: seconds of silence half-way."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path] if data is None else data
        handler.head(status, body)
        if stall:
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            time.sleep(stall)
            body = body[len(body) // 2 :]
        handler.wfile.write(body)

    return act


@contextmanager
def running() -> Iterator[Server]:
    """A server at work."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the surroundings, and no way to an address that is not this machine's own."""
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for name in ("MOESR_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", *proxies):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    real = socket.getaddrinfo

    def here_only(host: Any, *rest: Any, **more: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"{host} was looked up"
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", here_only)
