"""The guard before the server: bounds of requests, and clients that listen no longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from moesr.page import request_guard as module
from moesr.page.limits import Limits
from moesr.page.request_guard import Guard


def request(path: str, query: str = "", headers: dict[str, str] | None = None) -> dict[str, Any]:
    sent = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"type": "http", "path": path, "query_string": query.encode(), "headers": sent}


async def nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b""}


async def send(_: Any) -> None:
    return


async def stream(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers for a moment."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(0.2)


def test_a_session_without_a_stream_has_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    left: list[str] = []

    async def visit() -> None:
        guard = Guard(stream, Limits(), lambda: None, left.append)

        async def listen(session: str) -> None:
            await guard(request("/gradio_api/queue/data", f"session_hash={session}"), nothing, send)

        # One comes back for the next answers before the time is over, one does not.
        await asyncio.gather(listen("gone"), listen("stays"))
        again = asyncio.create_task(listen("stays"))
        for _ in range(6):
            await again
            again = asyncio.create_task(listen("stays"))
        assert left == ["gone"]
        await again
        await guard(request("/config"), nothing, send)
        await asyncio.sleep(1)

    asyncio.run(visit())
    assert left == ["gone", "stays"]


def test_a_session_that_asks_again_and_again_has_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment between two jobs it has no stream, also when the time since an earlier one is over."""
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    left: list[str] = []

    async def visit() -> None:
        guard = Guard(stream, Limits(), lambda: None, left.append)

        for _ in range(12):
            await guard(request("/gradio_api/queue/data", "session_hash=busy"), nothing, send)
            await asyncio.sleep(0.2)

    asyncio.run(visit())
    assert left == []


def test_uploads_beyond_the_limits_are_refused_before_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    async def send(event: Any) -> None:
        told.append(event)

    guard = Guard(stream, Limits(file_bytes=1000, files=2), lambda: None)
    asyncio.run(guard(request("/upload", headers={"content-length": str(10**9)}), nothing, send))
    assert told[0]["status"] == 413
    assert b"send fewer or smaller files" in told[1]["body"]
