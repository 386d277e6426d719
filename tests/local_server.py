"""A web server on this machine that breaks, lies, stalls and changes its mind, as a test tells it to."""

from __future__ import annotations

import hashlib
import socket
import struct
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
    """Serves `files` by path, as real servers do; `acts` are played once each before, one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/m.safetensors": DATA}
        self.acts: list[Callable[[Handler], None]] = []
        self.always: Callable[[Handler], None] | None = None
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.validators = True

    def url(self, path: str = "/m.safetensors") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.seen]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        act = self.server.acts.pop(0) if self.server.acts else self.server.always or serve()
        act(self)

    def do_HEAD(self) -> None:
        data = self.server.files[self.path]
        self.head(200, {"Content-Length": len(data), "ETag": f'"{digest(data)}"', "X-Repo-Commit": "c" * 40})

    def head(self, status: int, headers: dict[str, Any]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, str(value))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


Act = Callable[[Handler], None]


def serve(
    data: bytes | None = None,
    *,
    until: int | None = None,
    reset: bool = False,
    length: int | None = None,
    deaf: bool = False,
    stubborn: bool = False,
    stall: float = 0.0,
    etag: str | None = None,
    headers: dict[str, str] | None = None,
) -> Act:
    """Answer a request. until: break off after that many bytes, with a reset or without; length: what is said of the
    length; deaf: ignore Range; stubborn: ignore If-Range; stall: seconds of silence half-way."""

    def act(handler: Handler) -> None:
        whole = handler.server.files[handler.path] if data is None else data
        tag = etag or f'"{digest(whole)[:16]}"'
        wanted = handler.headers.get("Range")
        same = stubborn or handler.headers.get("If-Range") in (None, tag)
        start = int(wanted[6:-1]) if wanted and same and not deaf else 0
        said: dict[str, Any] = {"Content-Length": len(whole) - start if length is None else length, **(headers or {})}
        if handler.server.validators:
            said["ETag"] = tag
        if start >= len(whole):
            handler.head(416, {"Content-Length": 0})
            return
        if start:
            said["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        handler.head(206 if start else 200, said)
        body = whole[start:]
        if stall:
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            time.sleep(stall)
            body = body[len(body) // 2 :]
        handler.wfile.write(body if until is None else body[:until])
        if reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

    return act


def status(code: int, body: bytes = b"<html>no</html>", **headers: Any) -> Act:
    def act(handler: Handler) -> None:
        handler.head(code, {"Content-Length": len(body), **{k.replace("_", "-"): v for k, v in headers.items()}})
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
    for name in (
        "MOESR_OFFLINE",
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    real = socket.getaddrinfo

    def here_only(host: Any, *rest: Any, **more: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"{host} was looked up"
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", here_only)
