"""The page under many clients: programs, people who wait, people who leave, a hundred jobs, limits, a closed door."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from PIL import Image

from tests.batch_jobs import draw
from tests.hosts.page import Served, serving, slowness
from tests.hosts.setup_browser import browser
from tests.hosts.setup_page import install_package, page_python
from tests.hosts.visitor import AT_WORK, visiting

pytestmark = pytest.mark.parametrize("nano", ["residual_shift"], indirect=True, scope="session")

log = logging.getLogger(__name__)

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Addresses of other machines that the page has asked for: it is told that this is the way out."""
    asked: list[str] = []

    class Trap(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            asked.append(self.rfile.readline(500).decode(errors="replace"))
            self.close_connection = True

    trap = ThreadingHTTPServer(("127.0.0.1", 0), Trap)
    threading.Thread(target=trap.serve_forever, daemon=True).start()
    asked.append(f"http://127.0.0.1:{trap.server_port}")
    yield asked
    trap.shutdown()


@pytest.fixture(scope="module")
def served(nano: Path, site: Path, called: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with a small model of random weights."""
    folder = tmp_path_factory.mktemp("page")
    proxies = {name: called[0] for way in ("http", "https", "all") for name in (f"{way}_proxy", f"{way}_proxy".upper())}
    proxies |= {"NO_PROXY": "", "no_proxy": ""}
    with serving(site, folder, "--model", nano.stem, home=nano.parent, environment=proxies) as page:
        yield page


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Four noises of different sizes."""
    return [str(draw(tmp_path / f"{i}.png", i, size=(16 + 4 * i, 12))) for i in range(4)]


def test_defaults_of_the_api_and_what_it_tells(nano: Path, served: Served, pictures: list[str]) -> None:
    (result,) = served.call([{"image": pictures[0], "model": nano.stem, "steps": 2}])
    assert result["error"] == ""
    info = result["info"]
    assert info["state"] == "done"
    assert len(info["model_hash"]) == 16
    assert {key: info["settings"][key] for key in ("scale", "steps", "fidelity", "color_fix", "seed", "tile")} == {
        "scale": 4, "steps": 2, "fidelity": 1, "color_fix": "adain", "seed": 0, "tile": "auto",
    }  # fmt: skip


def test_someone_who_leaves_does_not_hold_up_the_line(nano: Path, served: Served, tmp_path: Path) -> None:
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    Image.new("RGB", (320, 320), "teal").save(large)
    Image.new("RGB", (16, 12), "teal").save(small)
    with browser() as chrome, visiting(chrome, served.url) as second:
        with visiting(chrome, served.url) as first:
            first.drop(large)
            first.set(steps=20)
            first.start()
            first.wait_for("Sharpening")
            second.drop(small)
            second.set(steps=1)
            second.start()
            second.wait_for("You are number 2 in line")
        left = time.time()
        began = second.wait_for(*AT_WORK)
        slow = slowness()
        log.info("the next began %.1f s later, slowness %.1f", began - left, slow)
        assert began - left < 35 * slow
        assert second.finish().startswith("Done: 1 picture")


def test_a_hundred_jobs_leave_memory_where_it_was(nano: Path, served: Served, pictures: list[str]) -> None:
    job = {"image": pictures[0], "model": nano.stem, "steps": 1}
    assert not any(result["error"] for result in served.call([job] * 20))
    before = served.memory()
    done = served.call([{**job, "seed": i} for i in range(100)])
    assert [result["error"] for result in done] == [""] * 100
    assert [result["info"]["settings"]["seed"] for result in done] == list(range(100))
    grown = (served.memory() - before) / MEGABYTE
    assert grown < 25, f"{grown:.1f} MB in 100 jobs"


def test_only_this_machine_can_reach_it(nano: Path, served: Served) -> None:
    port = urlsplit(served.url).port
    assert port is not None
    with open("/proc/net/tcp") as file:
        listening = [line.split()[1] for line in file if line.split()[3] == "0A"]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    for address in {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}:
        if not address.startswith("127."):
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((address, port), 5).close()


def test_nothing_is_told_to_anybody(nano: Path, served: Served, called: list[str]) -> None:
    assert called[1:] == []
    status, headers, _ = served.ask("GET", "/")
    assert status == 200
    assert "connect-src 'self'" in headers["content-security-policy"]


def test_limits_of_a_public_page_are_said_with_the_way_out(nano: Path, site: Path, tmp_path: Path) -> None:
    options = ["--listen", "127.0.0.1", "--auth", "ann:secret pass", "--max-size", "1", "--max-input", "1",
               "--max-output", "4", "--max-files", "2", "--max-queue", "1", "--max-seconds", "4"]  # fmt: skip
    small, wide = tmp_path / "small.png", tmp_path / "wide.png"
    Image.new("RGB", (16, 12)).save(small)
    Image.new("RGB", (1200, 1000)).save(wide)
    large = tmp_path / "large.png"
    Image.new("RGB", (480, 480)).save(large)
    auth = ("ann", "secret pass")
    with serving(site, tmp_path / "page", "--model", nano.stem, *options, home=nano.parent) as page:
        assert page.ask("GET", "/config")[0] == 401
        assert page.ask("POST", "/login", urlencode({"username": "ann", "password": "x"}).encode(),
                        {"Content-Type": "application/x-www-form-urlencoded"})[0] == 400  # fmt: skip
        quick = {"image": str(small), "model": nano.stem, "steps": 1}
        changes = ({}, {"image": str(wide)}, {"image": str(large), "scale": 8}, {"image": str(large), "steps": 250}, {})
        told = page.call([{**quick, **change} for change in changes], auth=auth)
        assert told[0]["error"] == told[4]["error"] == ""
        assert "1200 x 1000 is 1.2 MP, this page takes at most 1.0 MP; cut the picture" in told[1]["error"]
        assert "480 x 480 at x8 would be 15 MP, this page makes at most 4.0 MP; choose" in told[2]["error"]
        assert "longer than the 4 s that this page gives a job; choose fewer steps" in told[3]["error"]
        long = {**quick, "image": str(large), "steps": 200}
        crowd = page.call([long, long, long], together=True, auth=auth)
        assert any("1 jobs are waiting already; try again" in result["error"] for result in crowd), crowd
        # In the browser, where more than one picture can be sent.
        with browser() as chrome:
            context = chrome.new_context()
            window = context.new_page()
            window.goto(page.url)
            window.wait_for_selector("input[type=password]")
            assert window.locator("#moesr-run").count() == 0
            context.close()
        assert page.process.poll() is None


def test_import_without_gradio_is_one_line(nano: Path, site: Path, tmp_path: Path) -> None:
    """With everything that is installed beside Gradio."""
    where = [page_python(), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    library = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    folders = [library, *(Path(line) for file in library.glob("*.pth") for line in file.read_text().splitlines()
                          if line.startswith("/") and Path(line).is_dir())]  # fmt: skip
    for folder in folders:
        for entry in folder.iterdir():
            if not entry.name.startswith(("gradio", "__pycache__")) and not (tmp_path / entry.name).exists():
                os.symlink(entry, tmp_path / entry.name)
    surroundings = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{tmp_path}"}
    for what in (
        ["-c", "from moesr.page.gradio_versions import gradio; gradio()"],
        ["-m", "moesr", "demo", "--no-browser"],
    ):
        command = [page_python(), "-S", *what]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert "the page needs Gradio, which is not installed; run: pip install 'gradio>=3.41,<7'" in last
        if what[0] == "-m":
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
