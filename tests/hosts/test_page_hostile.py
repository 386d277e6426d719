"""What strangers may send to the page: every file gets its line, nothing of it runs, and the page lives on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Error  # type: ignore[import-not-found]  # of make test-hosts

from tests.hosts.page import Served, serving
from tests.hosts.setup_browser import browser
from tests.hosts.setup_page import install_package
from tests.hosts.visitor import visiting
from tests.test_page_uploads import HOSTILE

pytestmark = pytest.mark.parametrize("nano", ["residual_shift"], indirect=True, scope="session")

SCRIPT = b"<script>document.title = 'owned'; fetch('/config')</script>"


@pytest.fixture(scope="module")
def served(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with the limits for strangers, and a file of the machine that is none of their business."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "secret.png").write_bytes((Path(__file__).parents[2] / "assets" / "demo.png").read_bytes())
    site = install_package(folder / "package")
    with serving(site, folder, "--model", nano.stem, "--listen", "127.0.0.1", home=nano.parent) as page:
        yield page
    assert not list(page.folder.glob("moesr-*"))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 12), "teal").save(tmp_path / "alive.png")
    return tmp_path / "alive.png"


def lives(nano: Path, served: Served, good: Path) -> bool:
    """The page still does what it is there for."""
    (result,) = served.call([{"image": str(good), "model": nano.stem, "steps": 1}])
    assert result["error"] == ""
    assert result["info"]["width"] == 64
    return True


def test_hostile_pictures_in_the_browser(nano: Path, served: Served, good: Path, tmp_path: Path) -> None:
    paths = []
    for name in ("bomb.png", "200mp.png", "cut.png", "page.png"):
        make, _ = HOSTILE[name]
        (tmp_path / name).write_bytes(make())
        paths.append(tmp_path / name)
    evil = tmp_path / "<img src=x onerror=document.title='owned'>.png"
    evil.write_bytes(good.read_bytes())
    with browser() as chrome, visiting(chrome, served.url) as visitor:
        visitor.drop(*paths)
        said = visitor.chosen()
        assert "bomb.png: 12000 x 12000 is 144 MP, this page takes at most 4.0 MP" in said
        assert "200mp.png: too many pixels" in said
        assert "page.png: not a PNG, JPEG, WebP" in said
        assert "bomb.png" in visitor.message()
        visitor.drop(evil)
        visitor.set(steps=1)
        visitor.start()
        assert visitor.finish().startswith("Done: 1 picture")
        assert visitor.page.title() != "owned"
        assert visitor.page.locator("#moesr-results img[src=x], #moesr-chosen img[src=x]").count() == 0


def test_documents_run_no_script(nano: Path, served: Served, tmp_path: Path) -> None:
    """SVG and HTML that were sent, opened as pages of this server."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg">' + SCRIPT + b"</svg>"
    with browser() as chrome:
        for name, kind, data in (("a.html", "text/html", SCRIPT), ("a.svg", "image/svg+xml", svg)):
            status, path = served.upload(name, data, kind)
            assert status == 200, path
            status, headers, _ = served.file(path)
            if status != 200:
                continue  # not even served
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
            page = chrome.new_page()
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            try:
                page.goto(f"{served.url}{served.prefix.lstrip('/')}/file={path}".replace(":/file", "/file"))
            except Error as error:  # it comes as a download
                downloaded = "Download is starting" in str(error)
                if not downloaded:
                    raise
            page.wait_for_timeout(300)
            assert page.title() != "owned"
            assert not [url for url in asked if url.endswith("/config")]
            page.close()


@pytest.mark.parametrize(
    "name",
    ["../../evil.png", "..\\..\\evil.png", "/etc/evil.png", "C:\\evil.png", "a/../../../evil.png", ".", "..", "...png",
     "x" * 300 + ".png", "nul.png", "evil.png\x00.svg", "line\nbreak.png", "\u202egnp.exe", "%2e%2e%2fevil.png", ""],
)  # fmt: skip
def test_path_tricks_in_names(nano: Path, served: Served, good: Path, name: str) -> None:
    status, path = served.upload(name, good.read_bytes())
    if status == 200:
        assert Path(path).resolve().is_relative_to(served.folder), path
        assert Path(path).is_file()
    assert not [p for p in served.folder.parent.rglob("*evil*") if not p.resolve().is_relative_to(served.folder)]
    assert not Path("/etc/evil.png").exists()
    assert served.ask("GET", "/config")[0] == 200


def test_files_of_the_machine_stay_there(nano: Path, served: Served, good: Path) -> None:
    secret = served.folder.parent / "secret.png"
    source = served.folder.parent / "package" / "site" / "moesr" / "page" / "builder.py"
    assert secret.is_file()
    assert source.is_file()
    (home,) = served.folder.glob("moesr-*")
    tricks = ["/etc/passwd", "//etc/passwd", "../../etc/passwd", "..%2f..%2fetc/passwd", secret, source, served.log,
              home / "uploads" / ".." / ".." / ".." / "secret.png", f"{home}/results/../../../secret.png",
              "/proc/self/environ", home, f"{home}/results", "file:///etc/passwd", "~/.bashrc", "page.log",
              "secret.png"]  # fmt: skip
    for path in tricks:
        status, _, body = served.file(path)
        assert status in (400, 403, 404, 422), (path, status, body[:80])
    for path in ("/file/../../secret.png", "/static/../../../../etc/passwd", "/assets/..%2f..%2f..%2fapp.py",
                 "/file=http://127.0.0.1:1/x", f"{served.prefix}/proxy=http://127.0.0.1:1/x"):  # fmt: skip
        status, _, body = served.ask("GET", path)
        assert status in (400, 403, 404, 405, 422), (path, status, body[:80])
    assert lives(nano, served, good)
