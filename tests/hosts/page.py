"""The page as a subprocess, as `python -m moesr demo` serves it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tests.hosts.setup_page import page_python

READY = 400.0  # seconds: 5 on an idle machine
CLIENT = Path(__file__).with_name("api_client.py")


@dataclass
class Served:
    """A page that is up. `folder` is its temporary folder: nothing of it may lie elsewhere, or stay."""

    url: str
    folder: Path
    log: Path
    process: subprocess.Popen[bytes]

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of a plain request; the path is sent as it stands."""
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    @property
    def prefix(self) -> str:
        """Where the routes of Gradio begin: "" before 5, then "/gradio_api"."""
        return json.loads(self.ask("GET", "/config")[2]).get("api_prefix", "")

    def upload(self, name: str, data: bytes, kind: str = "image/png") -> tuple[int, str]:
        """Send a file under any name, as a program can: status, and the path or the answer's text."""
        shown = name.replace('"', "%22").encode("utf-8")
        head = b'--frame\r\nContent-Disposition: form-data; name="files"; filename="' + shown + b'"\r\n'
        body = head + f"Content-Type: {kind}\r\n\r\n".encode() + data + b"\r\n--frame--\r\n"
        kinds = {"Content-Type": "multipart/form-data; boundary=frame"}
        status, _, answer = self.ask("POST", f"{self.prefix}/upload", body, kinds)
        text = answer.decode(errors="replace")
        return status, json.loads(text)[0] if status == 200 else text

    def file(self, path: str | Path) -> tuple[int, Mapping[str, str], bytes]:
        """What the page gives of a file on its machine."""
        return self.ask("GET", f"{self.prefix}/file={quote(str(path), safe='/:.%')}")

    def memory(self) -> int:
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def call(self, jobs: Sequence[dict[str, Any]], *, together: bool = False, **more: Any) -> list[dict[str, Any]]:
        """Jobs over the API with gradio_client, one after the other or all at once; see api_client.py."""
        order = json.dumps({"url": self.url, "jobs": jobs, "together": together, "folder": str(self.folder), **more})
        done = subprocess.run([page_python(), CLIENT], input=order, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def slowness() -> float:
    """How many seconds a second of work takes here now: 1 on an idle machine, more where others work too."""
    began, end = time.monotonic(), time.process_time() + 0.2
    while time.process_time() < end:
        pass
    return max(1.0, (time.monotonic() - began) / 0.2)


@contextmanager
def serving(
    site: Path, folder: Path, *options: str, home: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """A page on a free port of this machine, from the package in `site`; stopped at the end.

    folder: everything temporary. home: the model library. AssertionError with the log if the page does not come up.
    """
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = {"PYTHONPATH": str(site), "TMPDIR": str(temporary), "MOESR_HOME": str(home or folder / "library")}
    surroundings = {**os.environ, **paths, "PYTHONUNBUFFERED": "1", **(environment or {})}
    command = [str(page_python()), "-m", "moesr", "demo", "--no-browser", "--port", str(port), *options]
    log = folder / "page.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=surroundings, cwd=folder)
    served = Served(f"http://127.0.0.1:{port}/", temporary, log, process)
    try:
        end = time.monotonic() + READY
        while f"MoESR is at {served.url}" not in served.text():
            assert process.poll() is None, f"the page ended:\n{served.text()}"
            assert time.monotonic() < end, f"not up after {READY} s:\n{served.text()}"
            time.sleep(0.2)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(180)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
