"""A genuine ComfyUI as a subprocess, and a client that talks to it as its page does."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.hosts.setup_comfyui import Installation

LAUNCH = Path(__file__).with_name("launch.py")
READY = 600.0  # seconds: 9 to 17 on an idle machine; not every machine is idle


@dataclass
class Comfy:
    """A running host. `base` is its folder: custom_nodes, input, models, output and user are in it."""

    url: str
    base: Path
    log: Path
    process: subprocess.Popen[bytes]
    client: str = field(default_factory=lambda: uuid.uuid4().hex)

    def get(self, path: str) -> Any:
        """The JSON at an address."""
        with urllib.request.urlopen(self.url + path, timeout=300) as answer:
            return json.load(answer)

    def post(self, path: str, data: dict[str, Any]) -> Any:
        """What the host answers, JSON or nothing; HTTP errors come back as their JSON."""
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt; its id. AssertionError with the host's words if it does not validate."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client})
        assert "prompt_id" in answer, answer
        assert not answer.get("node_errors"), answer
        return answer["prompt_id"]

    def find_errors(self, prompt: dict[str, Any]) -> list[dict[str, Any]]:
        """The errors of a prompt that does not validate."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client})
        return [error for node in answer["node_errors"].values() for error in node["errors"]]

    def finish(self, prompt_id: str, seconds: float = 600) -> dict[str, Any]:
        """The history of a prompt once it is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise AssertionError(f"prompt not done after {seconds} s:\n{self.tail()}")

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The outputs by node. AssertionError with the host's words if the prompt fails."""
        history = self.finish(self.queue(prompt))
        assert history["status"]["status_str"] == "success", (history["status"]["messages"], self.tail())
        return history["outputs"]

    def failure(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The execution error of a prompt that validates and fails: node_type, exception_message, ..."""
        history = self.finish(self.queue(prompt))
        assert history["status"]["status_str"] == "error", history["outputs"]
        return next(data for name, data in history["status"]["messages"] if name == "execution_error")

    def cached(self, prompt: dict[str, Any]) -> list[str]:
        """The nodes that a successful run did not need to run."""
        history = self.finish(self.queue(prompt))
        assert history["status"]["status_str"] == "success", history["status"]
        return next(data["nodes"] for name, data in history["status"]["messages"] if name == "execution_cached")

    def image(self, entry: dict[str, str]) -> np.ndarray:
        """A saved picture, uint8 [H, W, C]."""
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(entry)}", timeout=300) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())))

    def images(self, outputs: dict[str, Any], node: str) -> list[np.ndarray]:
        """All pictures that a node saved."""
        return [self.image({k: e[k] for k in ("filename", "subfolder", "type")}) for e in outputs[node]["images"]]

    def put(self, name: str, pixels: np.ndarray) -> str:
        """A picture in the input folder; its name for Load Image."""
        path = self.base / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return name

    def watch(self) -> dict[str, Any]:
        """What the pack zzz-watch tells: networks in the host's memory manager, and our models that exist."""
        return self.get("/watch")

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 40) -> str:
        """The last lines of the log."""
        return "\n".join(self.text().splitlines()[-lines:])

    def memory(self) -> int:
        """Resident bytes of the process."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))

    def worked(self) -> float:
        """Seconds that the process has computed, on all cores together."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def listening(self) -> Iterator[Any]:
        """The websocket of this client."""
        from websocket import create_connection  # type: ignore[import-not-found]  # of make test-hosts

        address = self.url.replace("http", "ws") + f"/ws?clientId={self.client}"
        with closing(create_connection(address, timeout=300)) as connection:
            connection.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            yield connection


@contextmanager
def running(installation: Installation, base: Path, *options: str | Path, **variables: str) -> Iterator[Comfy]:
    """A host on a free port of this machine only, stopped at the end. `variables` are of its environment."""
    for folder in ("custom_nodes", "input", "output", "models", "user/default"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    settings = {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "skipped", "Comfy.Locale": "en"}
    (base / "user/default/comfy.settings.json").write_text(json.dumps(settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = base / "comfyui.log"
    command = [installation.python, LAUNCH, installation.main, "--cpu", "--listen", "127.0.0.1", "--port", port]
    command += ["--base-directory", base]
    command += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:", "--disable-auto-launch", *options]
    # A home of its own: models of this machine's user are none of the tests' business.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HOME": str(base), "XDG_DATA_HOME": "", **variables}
    environment.pop("MOESR_HOME", None)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=base
        )
    host = Comfy(f"http://127.0.0.1:{port}", base, log, process)
    try:
        _wait(host)
        yield host
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(host: Comfy) -> None:
    end = time.monotonic() + READY
    while time.monotonic() < end:
        assert host.process.poll() is None, f"the host stopped:\n{host.tail()}"
        try:
            host.get("/system_stats")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"the host is not up after {READY} s:\n{host.tail()}")
