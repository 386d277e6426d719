"""A guard before a web server: limits of requests, security headers, and no address fetched for clients."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from .limits import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Largest request that uploads nothing, in bytes.
_OTHER = 16 * 2**20
#: Largest layer of a painting, in bytes.
_PAINTING = 4 * 2**20
#: Room for the frame of an upload.
_FRAME = 2**20
#: Seconds in which a client may come back: one whose answers have all come opens another stream for the next.
_PATIENCE = 6.0

# Gradio offers to fetch addresses of other servers for its clients; this page needs none of that.
_FETCHING = re.compile(r"/(file=\s*[a-z]+:/|proxy=|stream/deep_link)", re.IGNORECASE)

_PAGE = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; connect-src 'self' ws: wss: data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
# Whatever lies among uploads and results runs no script, even if somebody opens it as a page.
_FILE = "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"


class TooLarge(Exception):
    """More was sent than the limits allow."""


class Guard:
    """ASGI middleware. clean_up is called at uploads and paintings; on_leave with the session of a client that left.

    Gradio from 4 on sends all answers of a session over one stream, and lets its work go on when nobody listens.
    """

    def __init__(
        self, app: App, limits: Limits, clean_up: Callable[[], None], on_leave: Callable[[str], None] | None = None
    ) -> None:
        self.app, self.limits, self.clean_up, self.on_leave = app, limits, clean_up, on_leave
        self._streams: Counter[str] = Counter()  # open ones
        self._opened: Counter[str] = Counter()  # all so far of the sessions that are there

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.on_leave is None or not scope["path"].endswith("/queue/data"):
            await self._guarded(scope, receive, send)
            return
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        self._streams[session] += 1
        self._opened[session] += 1
        try:
            await self._guarded(scope, receive, send)
        finally:
            self._streams[session] -= 1
            asyncio.get_running_loop().call_later(_PATIENCE, self._check, session, self._opened[session])

    def _check(self, session: str, opened: int) -> None:
        """A session has left if no other stream was opened since the last of its `opened` streams ended."""
        if session in self._streams and not self._streams[session] and self._opened[session] == opened:
            del self._streams[session], self._opened[session]
            if self.on_leave is not None:
                self.on_leave(session)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        answer = _with_headers(send, _FILE if "/file=" in path else _PAGE)
        if _FETCHING.search(path):
            await _send_error(answer, 403, "this page serves its own files only")
            return
        most = _OTHER
        if path.rstrip("/").endswith("/upload"):
            self.clean_up()
            most = self.limits.file_bytes * self.limits.files + _FRAME
        elif path.rstrip("/").endswith("/component_server"):  # a painting, which Gradio holds in memory
            self.clean_up()
            most = _PAINTING
        message = f"more than the {most / 1e6:.0f} MB that this page takes at a time; send fewer or smaller files"
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > most:
            await _send_error(answer, 413, message)
            return
        got, started = 0, False

        async def receive_counted() -> MutableMapping[str, Any]:
            nonlocal got
            event = await receive()
            got += len(event.get("body", b""))
            if got > most:
                raise TooLarge
            return event

        async def send_watched(event: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await answer(event)

        try:
            await self.app(scope, receive_counted, send_watched)
        except TooLarge:
            if not started:
                await _send_error(answer, 413, message)


def _with_headers(send: Send, policy: str) -> Send:
    extra = {
        b"content-security-policy": policy.encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
    }

    async def answer(event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            headers = [(k, v) for k, v in event.get("headers", []) if k.lower() not in extra]
            event = {**event, "headers": [*headers, *extra.items()]}
        await send(event)

    return answer


async def _send_error(send: Send, status: int, message: str) -> None:
    body = json.dumps({"detail": message, "error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
