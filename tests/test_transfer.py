"""One file from a server that breaks, lies, stalls and changes its mind."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesr.checkpoints import transfer
from moesr.checkpoints.transfer import fetch
from moesr.checkpoints.whole import problem
from moesr.errors import CheckpointError
from tests.local_server import DATA, OTHER, Act, Handler, Server, digest, isolate, running, serve, status, weights

NO_PAUSE = (0.0, 0.0, 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch)
    monkeypatch.setattr(transfer, "PAUSES", NO_PAUSE)


def leftovers(target: Path) -> list[str]:
    return sorted(p.name for p in target.parent.iterdir() if p != target) if target.parent.exists() else []


def refused(url: str, target: Path, **options: Any) -> str:
    """The one line of an error, with nothing put in place."""
    with pytest.raises(CheckpointError) as caught:
        fetch(url, target, **options)
    assert not target.exists()
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    target, seen = tmp_path / "new" / "m.safetensors", []
    fetch(server.url(), target, size=len(DATA), sha256=digest(DATA), progress=lambda *a: seen.append(a))
    assert target.read_bytes() == DATA
    assert leftovers(target) == []
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(DATA), len(DATA))
    assert server.seen[0][1]["User-Agent"].startswith("moesr")


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path, reset: bool) -> None:
    server.acts = [serve(until=60_000, reset=reset), serve(until=1000, reset=reset), serve(until=50_000)]
    target = tmp_path / "m.safetensors"
    fetch(server.url(), target)
    assert target.read_bytes() == DATA
    assert leftovers(target) == []
    assert len(server.seen) == 4
    assert server.ranges()[0] is None
    if not reset:  # a reset may take bytes with it that had arrived
        assert server.ranges()[1:] == ["bytes=60000-", "bytes=61000-", "bytes=111000-"]
    assert {h.get("If-Range") for _, h in server.seen[1:]} == {f'"{digest(DATA)[:16]}"'}


def test_a_connection_that_breaks_at_once(server: Server, tmp_path: Path) -> None:
    server.acts = [serve(until=0), serve(until=5)]
    fetch(server.url(), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == DATA
    assert server.ranges() == [None, None, "bytes=5-"]


def test_what_arrived_is_kept_for_the_next_run(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    server.always = serve(until=10_000)
    with pytest.raises(CheckpointError, match=r"broke after 40 kB of 200 kB; 40 kB are kept, run it again"):
        fetch(server.url(), target)
    assert target.read_bytes() == b"old"
    assert leftovers(target) == ["m.safetensors.part", "m.safetensors.part.json"]
    server.always = None
    fetch(server.url(), target)
    assert server.ranges()[-1] == "bytes=40000-"
    assert target.read_bytes() == DATA
    assert leftovers(target) == []


def test_headway_does_not_count_as_failure(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "HEADWAY", 10_000)
    server.always = serve(until=12_000)
    fetch(server.url(), tmp_path / "m.safetensors")
    assert len(server.seen) == -(-len(DATA) // 12_000)


def test_a_length_that_is_too_long(server: Server, tmp_path: Path) -> None:
    server.always = serve(length=len(DATA) + 500)
    line = refused(server.url(), tmp_path / "m.safetensors")
    assert "run it again" in line or "the file on the server is another one now" in line
    assert len(server.seen) == 1 + len(NO_PAUSE)
    server.seen.clear()
    line = refused(server.url(), tmp_path / "n.safetensors", size=len(DATA))
    assert f"offers {len(DATA) + 500} bytes instead of {len(DATA)}" in line
    assert len(server.seen) == 1


def test_a_length_that_is_too_short(server: Server, tmp_path: Path) -> None:
    server.always = serve(length=1000)
    assert "the end of the file is missing" in refused(server.url(), tmp_path / "m.safetensors")
    assert "offers 1000 bytes" in refused(server.url(), tmp_path / "m.safetensors", size=len(DATA))
    assert leftovers(tmp_path / "m.safetensors") == []


def test_a_truncated_archive_is_noticed_without_a_hash(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.arange(9000))
    server.files = {"/m.ckpt": buffer.getvalue()[:-300], "/n.ckpt": buffer.getvalue()}
    assert "the end of the file is missing" in refused(server.url("/m.ckpt"), tmp_path / "m.ckpt")
    fetch(server.url("/n.ckpt"), tmp_path / "n.ckpt")
    assert (tmp_path / "n.ckpt").read_bytes() == buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<!DOCTYPE html><html><title>Quota exceeded</title></html>", "a web page"),
        (b"\n <HTML><head></head></HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3650066050\n", "a git-lfs pointer"),
        (b'{"error": "Repository not found"}', "a JSON file"),
        (b"\x00" * 4000, "full of zeros"),
        (b"Not found", "a text file"),
    ],
)
@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_something_else_with_status_200(server: Server, tmp_path: Path, body: bytes, said: str, name: str) -> None:
    server.always = status(200, body)
    assert said in refused(server.url(), tmp_path / name, sha256=digest(DATA))
    assert len(server.seen) == 1
    assert leftovers(tmp_path / name) == []


def test_an_empty_answer(server: Server, tmp_path: Path) -> None:
    server.always = status(200, b"")
    assert "the server sent nothing" in refused(server.url(), tmp_path / "m.safetensors")
    assert leftovers(tmp_path / "m.safetensors") == []


@pytest.mark.parametrize(("code", "tries"), [(404, 1), (403, 1), (410, 1), (500, 4), (503, 4), (429, 4)])
def test_errors_of_the_server(server: Server, tmp_path: Path, code: int, tries: int) -> None:
    server.always = status(code)
    assert f"the server says {code}" in refused(server.url(), tmp_path / "m.safetensors")
    assert len(server.seen) == tries
    assert leftovers(tmp_path / "m.safetensors") == []


def test_trouble_that_passes(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    server.acts = [status(500), status(503, Retry_After="7"), status(429, Retry_After="90000")]
    fetch(server.url(), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == DATA
    assert waits == [0, 7, 60]


def test_no_server_at_all(server: Server, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/m.safetensors"
        assert "no connection" in refused(url, tmp_path / "m.safetensors")
    assert "not an address of the web" in refused((tmp_path / "x").as_uri(), tmp_path / "m.safetensors")


def test_redirects_and_names_from_the_server(server: Server, tmp_path: Path) -> None:
    evil = {"Content-Disposition": 'attachment; filename="../../evil.safetensors"'}
    server.files["/../../evil.safetensors"] = DATA
    there = status(302, Location=server.url("/../../evil.safetensors"))
    server.acts = [there, serve(until=50_000, headers=evil), there, serve(headers=evil)]
    target = tmp_path / "deep" / "er" / "m.safetensors"
    fetch(server.url("/download?id=1"), target)
    assert target.read_bytes() == DATA
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["m.safetensors"]
    assert server.ranges() == [None, None, "bytes=50000-", "bytes=50000-"]


def test_redirects_that_never_end_or_are_unsafe(server: Server, tmp_path: Path) -> None:
    server.always = status(302, Location=server.url("/again"))
    assert "302" in refused(server.url(), tmp_path / "m.safetensors")
    for unsafe in ("http://example.org/m", "file:///etc/passwd", "ftp://example.org/m"):
        with pytest.raises(CheckpointError, match="redirected to the unsafe"):
            transfer._Redirects().redirect_request(
                transfer.Request("https://example.org/m"), None, 302, "Found", {}, unsafe
            )
    server.always = status(302, Location="file:///etc/passwd")
    assert "302" in refused(server.url(), tmp_path / "m.safetensors")


def test_a_server_that_ignores_range(server: Server, tmp_path: Path) -> None:
    server.acts = [serve(until=60_000), serve(deaf=True)]
    target = tmp_path / "m.safetensors"
    fetch(server.url(), target)
    assert target.read_bytes() == DATA
    assert server.ranges() == [None, "bytes=60000-"]


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_file_that_changes_between_tries(server: Server, tmp_path: Path, stubborn: bool) -> None:
    server.acts = [serve(DATA, until=60_000), serve(OTHER, stubborn=stubborn)]
    server.files["/m.safetensors"] = OTHER
    target = tmp_path / "m.safetensors"
    fetch(server.url(), target)
    assert target.read_bytes() == OTHER
    assert len(server.seen) == (3 if stubborn else 2)


def test_a_file_that_became_shorter(server: Server, tmp_path: Path) -> None:
    small = weights(3, 5000)
    server.acts = [serve(DATA, until=60_000), serve(small, stubborn=True)]
    server.files["/m.safetensors"] = small
    target = tmp_path / "m.safetensors"
    fetch(server.url(), target)
    assert target.read_bytes() == small
    assert server.ranges() == [None, "bytes=60000-", None]


@pytest.mark.parametrize(
    "span", ["bytes 0-199/{n}", "bytes 59999-{e}/{n}", "bytes 60000-{e}/{m}", "items 60000-1/1", None]
)
def test_an_answer_that_does_not_continue_what_is_here(server: Server, tmp_path: Path, span: str | None) -> None:
    n = len(DATA)

    def act(handler: Handler) -> None:
        said = span.format(n=n, e=n - 1, m=n + 8) if span else None
        handler.head(206, {"Content-Range": said, "Content-Length": n - 60_000})
        handler.wfile.write(DATA[60_000:])

    server.acts = [serve(until=60_000), act]
    fetch(server.url(), tmp_path / "m.safetensors")
    assert server.ranges() == [None, "bytes=60000-", None]
    assert (tmp_path / "m.safetensors").read_bytes() == DATA


def test_without_a_validator_pieces_are_only_joined_if_a_hash_is_known(server: Server, tmp_path: Path) -> None:
    server.validators = False
    server.acts = [serve(until=60_000)]
    fetch(server.url(), tmp_path / "m.safetensors")
    assert server.ranges() == [None, None]
    server.seen.clear()
    server.acts = [serve(until=60_000)]
    fetch(server.url(), tmp_path / "n.safetensors", sha256=digest(DATA))
    assert server.ranges() == [None, "bytes=60000-"]
    server.seen.clear()
    server.acts = [serve(OTHER, until=60_000)]  # then the right file: the pieces do not fit, the hash tells
    fetch(server.url(), tmp_path / "o.safetensors", sha256=digest(DATA))
    assert server.ranges() == [None, "bytes=60000-", None]
    for name in "mno":
        assert (tmp_path / f"{name}.safetensors").read_bytes() == DATA


def test_a_weak_etag_is_not_used(server: Server, tmp_path: Path) -> None:
    date = "Tue, 17 Oct 2023 10:00:00 GMT"
    server.acts = [
        serve(until=60_000, etag='W/"1"', headers={"Last-Modified": date}),
        serve(etag='W/"1"', stubborn=True),
    ]
    fetch(server.url(), tmp_path / "m.safetensors")
    assert server.seen[1][1]["If-Range"] == date
    assert server.ranges()[1] == "bytes=60000-"


def test_chunks_without_a_length(server: Server, tmp_path: Path) -> None:
    def chunked(broken: bool) -> Act:
        def act(handler: Handler) -> None:
            handler.protocol_version = "HTTP/1.1"
            handler.close_connection = True
            handler.head(200, {"Transfer-Encoding": "chunked", "ETag": f'"{digest(DATA)[:16]}"'})
            for start in range(0, len(DATA), 50_000):
                piece = DATA[start : start + 50_000]
                handler.wfile.write(b"%x\r\n" % len(piece) + (piece[:1000] if broken and start else piece + b"\r\n"))
                if broken and start:
                    return
            handler.wfile.write(b"0\r\n\r\n")

        return act

    fetch_whole, fetch_broken = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    server.acts = [chunked(False)]
    fetch(server.url(), fetch_whole)
    server.acts = [chunked(True), serve(until=20_000)]  # the second answer tells the length
    fetch(server.url(), fetch_broken)
    assert fetch_whole.read_bytes() == fetch_broken.read_bytes() == DATA
    assert server.ranges()[:2] == [None, None]
    begins = [int((r or "")[6:-1]) for r in server.ranges()[2:]]
    assert begins[0] >= 50_000
    assert begins == [begins[0], begins[0] + 20_000]


def test_a_server_that_falls_silent(server: Server, tmp_path: Path) -> None:
    server.acts = [serve(stall=2.0)]
    began = time.monotonic()
    fetch(server.url(), tmp_path / "m.safetensors", timeout=0.1)
    assert time.monotonic() - began < 1.5
    assert (tmp_path / "m.safetensors").read_bytes() == DATA
    assert server.ranges()[1] == f"bytes={len(DATA) // 2}-"


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    pickle = tmp_path / "m.ckpt"
    assert "cannot be read" in (problem(pickle, None, None) or "")
    pickle.write_bytes(b"\x80\x02" + bytes(998))
    assert problem(pickle, None, None) is None
    assert problem(pickle, 1000, None) is None
    assert problem(pickle, 1001, None) == "1000 bytes instead of 1001"
    assert "SHA-256" in (problem(pickle, 1000, "0" * 64) or "")
    for header in (b"[" * 100_000, b"{}", b'{"w": 3}', b'{"w": {"data_offsets": []}}', b"{"):
        bad = tmp_path / "m.safetensors"
        bad.write_bytes(len(header).to_bytes(8, "little") + header + b"more")
        assert problem(bad, None, None)


def test_a_wrong_hash(server: Server, tmp_path: Path) -> None:
    server.files["/m.safetensors"] = OTHER
    assert "SHA-256" in refused(server.url(), tmp_path / "m.safetensors", size=len(DATA), sha256=digest(DATA))
    assert leftovers(tmp_path / "m.safetensors") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_cancelled_download_goes_on_later(server: Server, tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "m.safetensors"

    def cancel(done: int, total: int | None) -> None:
        if done > 30_000:
            raise error

    with pytest.raises(error):
        fetch(server.url(), target, progress=cancel)
    kept = (tmp_path / "m.safetensors.part").stat().st_size
    assert 30_000 < kept < len(DATA)
    fetch(server.url(), target)
    assert server.ranges() == [None, f"bytes={kept}-"]
    assert target.read_bytes() == DATA


def test_a_part_that_is_whole_needs_no_server(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    (tmp_path / "m.safetensors.part").write_bytes(DATA)
    (tmp_path / "m.safetensors.part.json").write_text(
        json.dumps({"url": server.url(), "etag": '"1"', "total": len(DATA)})
    )
    fetch(server.url(), target)
    assert server.seen == []
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("note", ["{", "[]", '{"url": "http://127.0.0.1/other", "etag": "1", "total": 9}', None])
def test_a_part_of_unknown_origin_is_not_used(server: Server, tmp_path: Path, note: str | None) -> None:
    (tmp_path / "m.safetensors.part").write_bytes(OTHER[:500])
    if note:
        (tmp_path / "m.safetensors.part.json").write_text(note)
    fetch(server.url(), tmp_path / "m.safetensors")
    assert server.ranges() == [None]
    assert (tmp_path / "m.safetensors").read_bytes() == DATA


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = types.SimpleNamespace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(transfer.shutil, "disk_usage", lambda _: usage)
        line = refused(server.url(), tmp_path / "m.safetensors")
    assert "200 kB are needed, 1 kB are free" in line
    assert leftovers(tmp_path / "m.safetensors") == []

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 50_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data[:40_000])

    with monkeypatch.context() as patch:
        real = Path.open
        patch.setattr(
            Path, "open", lambda p, mode="r", *a, **k: Full(p, "a") if mode == "ab" else real(p, mode, *a, **k)
        )
        line = refused(server.url(), tmp_path / "m.safetensors")
    assert "No space left on device" in line
    fetch(server.url(), tmp_path / "m.safetensors")
    assert (server.ranges()[-1] or "").startswith("bytes=")
    assert (tmp_path / "m.safetensors").read_bytes() == DATA


@pytest.mark.skipif(importlib.util.find_spec("fcntl") is None, reason="no such locks here")
def test_two_at_once_do_not_mix(server: Server, tmp_path: Path) -> None:
    target, lines = tmp_path / "m.safetensors", []

    def again(done: int, total: int | None) -> None:
        if not lines:
            lines.append(refused(server.url(), target))

    fetch(server.url(), target, progress=again)
    assert "another process is fetching it" in lines[0]
    assert target.read_bytes() == DATA


def test_the_proxy_of_the_environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    server.files["http://models.invalid/m.safetensors"] = DATA
    fetch("http://models.invalid/m.safetensors", tmp_path / "m.safetensors")
    assert server.seen[0][0] == "http://models.invalid/m.safetensors"


def test_a_killed_process_leaves_a_part_and_no_file(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    server.always = serve(stall=3)
    code = (
        "import sys; from pathlib import Path; from moesr.checkpoints.transfer import fetch; "
        "fetch(sys.argv[1], Path(sys.argv[2]), progress=lambda *a: print(*a, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.url(), str(target)],
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    while int(process.stdout.readline().split()[0]) < len(DATA) // 2:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert leftovers(target) == ["m.safetensors.part", "m.safetensors.part.json"]
    assert not target.exists()
    server.always = None
    fetch(server.url(), target)
    assert server.ranges()[-1] == f"bytes={len(DATA) // 2}-"
    assert target.read_bytes() == DATA
