"""The page in Chromium: what a person does with it, from the picture that is dropped to the result on disk."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moesr.settings_record import read_run
from tests.hosts.page import Served, serving, slowness
from tests.hosts.setup_browser import browser
from tests.hosts.setup_page import gradio_version, install_package
from tests.hosts.visitor import AT_WORK, percents, visiting

log = logging.getLogger(__name__)

DEMO = Path(__file__).parents[2] / "assets" / "demo.png"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page as `python -m moesr demo` gives it, with the embedded model."""
    folder = tmp_path_factory.mktemp("page")
    with serving(install_package(folder / "package"), folder) as page:
        yield page
    assert not list(page.folder.glob("moesr-*")), "uploads and results are left behind"


@pytest.fixture(scope="module")
def chrome() -> Iterator[object]:
    with browser() as started:
        yield started


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """61 x 43 pixels of a photograph."""
    return picture(tmp_path / "coffee cup.png", (61, 43))


def picture(path: Path, size: tuple[int, int]) -> Path:
    with Image.open(DEMO) as whole:
        whole.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path)
    return path


def test_a_picture_comes_back_larger_and_exact_in_size(served, chrome, photo: Path, tmp_path: Path) -> None:
    with visiting(chrome, served.url) as visitor:
        foreign: list[str] = []
        visitor.page.on("request", lambda request: foreign.append(request.url))
        visitor.drop(photo)
        assert "61 x 43 → 244 x 172" in visitor.chosen()
        visitor.set(scale=2.5)
        visitor.page.wait_for_function("document.querySelector('#moesr-chosen').innerText.includes('153 x 108')")
        visitor.set(steps=20)  # seconds of work on any machine
        visitor.start()
        assert visitor.finish().startswith("Done: 1 picture in ")
        seen = visitor.seen()
        shares = percents(seen)
        assert len(set(shares)) >= 5, seen
        assert shares == sorted(shares), seen
        words = " ".join(entry["words"] for entry in seen)
        details = {entry["details"] for entry in seen if entry["words"].startswith("Sharpening")}
        assert all("step " in text and "of 20" in text and "expert " in text for text in details), details
        assert len(details) >= 3, details
        assert " s left" in words or " min left" in words, words
        assert any(entry["preview"] and entry["plan"] for entry in seen), seen
        size = visitor.compare("img").first.evaluate("e => e.decode().then(() => [e.naturalWidth, e.naturalHeight])")
        assert size == [153, 108]
        assert visitor.downloads() == ["coffee cup_x2.5.png"]
        result = visitor.download(0, tmp_path)
        with Image.open(result) as image:
            assert (image.size, image.mode) == ((153, 108), "RGB")
        found = read_run(result)
        assert found is not None
        assert (found.model, found.settings["scale"], found.settings["steps"]) == ("tiny", 2.5, 20)
        assert len(found.model_hash) == 16
        # Gradio 3 and 4 ask for a script of another host, which the page forbids.
        foreign = [url for url in foreign if not url.startswith((served.url, "data:", "blob:"))]
        assert all("iframe-resizer" in url for url in foreign), foreign


def test_a_batch_is_compared_and_zipped_whole(served, chrome, tmp_path: Path) -> None:
    sizes = {"a.png": (40, 30), "b.jpg": (30, 40), "größe & <i>.webp": (33, 21)}
    paths = [picture(tmp_path / name, size) for name, size in sizes.items()]
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:400])
    with visiting(chrome, served.url) as visitor:
        visitor.drop(paths[0], broken, *paths[1:])
        visitor.set(steps=2)
        visitor.start()
        said = visitor.finish()
        assert said.startswith("Done: 3 pictures")
        assert "broken.png: damaged picture" in said
        assert any("picture 4 of 4" in entry["details"] for entry in visitor.seen())
        names = visitor.downloads()
        assert names[0] == "moesr.zip"
        with zipfile.ZipFile(visitor.download(0, tmp_path)) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == names[1:]
            for name, (width, height) in zip(names[1:], sizes.values()):
                with archive.open(name) as file, Image.open(file) as image:
                    assert image.size == (4 * width, 4 * height)
        thumbs = visitor.compare(".strip button")
        assert thumbs.count() == 3
        thumbs.nth(2).click()
        assert visitor.compare("img").first.evaluate("e => e.decode().then(() => e.naturalWidth)") == 132
        # Another run on the same page replaces what is compared.
        visitor.drop(paths[1])
        visitor.start()
        assert visitor.finish().startswith("Done: 1 picture")
        assert visitor.compare("img").first.evaluate("e => e.decode().then(() => e.naturalWidth)") == 120
        assert visitor.downloads() == ["b_x4.png"]
        assert not visitor.compare(".strip").is_visible()


def test_settings_come_back_from_a_result(served, chrome, photo: Path, tmp_path: Path) -> None:
    settings = {"scale": 1.5, "steps": 3, "fidelity": 0.5, "color_fix": "wavelet", "seed": 77, "tile": "256",
                "wrap": True, "sampler": "ddim", "eta": 0.25}  # fmt: skip
    with visiting(chrome, served.url) as visitor:
        before = {name: visitor.get(name) for name in ("seed", "steps", "wrap")}
        visitor.drop(photo)
        visitor.set(**settings)
        visitor.start()
        assert visitor.finish().startswith("Done: 1 picture")
        result = visitor.download(0, tmp_path)
    with visiting(chrome, served.url) as visitor:
        assert {name: visitor.get(name) for name in before} == before
        visitor.drop(result)
        said = visitor.page.locator("#moesr-progress .moesr-message").inner_text()
        assert f"Settings taken from {result.name}: seed 77, 3 steps" in said
        visitor.page.wait_for_function("document.querySelector('#moesr-wrap input').checked")
        assert {name: visitor.get(name) for name in settings} == {
            name: value if isinstance(value, bool) else str(value) for name, value in settings.items()
        }
        assert visitor.get("model") == "tiny"


def test_the_line_is_dragged_and_the_picture_zoomed(served, chrome, photo: Path) -> None:
    with visiting(chrome, served.url) as visitor:
        page = visitor.page
        visitor.drop(photo)
        visitor.set(steps=1)
        visitor.start()
        visitor.finish()
        assert visitor.line() == 50
        visitor.compare(".line").scroll_into_view_if_needed()
        stage = visitor.box("moesr-compare .stage")
        middle = stage["y"] + stage["height"] / 2
        page.mouse.move(stage["x"] + stage["width"] / 2, middle)
        page.mouse.down()
        seen = []
        for share in (0.6, 0.75, 0.9):
            page.mouse.move(stage["x"] + stage["width"] * share, middle)
            seen.append(visitor.line())
        page.mouse.up()
        assert seen == [60, 75, 90]
        visitor.compare(".line").press("Home")
        assert visitor.line() == 0
        after = np.asarray(shot(visitor), dtype=int)
        visitor.compare(".line").press("End")
        before = np.asarray(shot(visitor), dtype=int)
        assert np.abs(after - before).mean() > 0.5, "before and after look alike"
        visitor.compare(".line").press("ArrowLeft")
        assert visitor.line() == 98
        for _ in range(5):
            visitor.compare(".bar button").nth(1).click()
        assert visitor.compare(".stage").evaluate("e => e.classList.contains('zoomed')")
        assert shot(visitor).tobytes() != Image.fromarray(before.astype(np.uint8)).tobytes()
        place = visitor.compare("img").first.evaluate("e => e.style.transform")
        page.mouse.move(stage["x"] + stage["width"] / 2, middle)
        page.mouse.down()
        page.mouse.move(stage["x"] + stage["width"] / 2 + 40, middle + 30, steps=3)
        page.mouse.up()
        assert visitor.compare("img").first.evaluate("e => e.style.transform") != place
        assert visitor.line() == 98
        visitor.compare(".bar button").nth(2).click()
        assert not visitor.compare(".stage").evaluate("e => e.classList.contains('zoomed')")


def shot(visitor) -> Image.Image:
    """What the stage shows, as grey levels."""
    return Image.open(io.BytesIO(visitor.compare(".stage").screenshot())).convert("L")


def test_cancel_ends_the_work_and_the_next_in_line_begins(served, chrome, photo: Path, tmp_path: Path) -> None:
    large = picture(tmp_path / "large.png", (360, 270))
    with visiting(chrome, served.url) as first, visiting(chrome, served.url) as second:
        first.drop(large)
        first.set(steps=20)
        first.start()
        first.wait_for("Sharpening")
        second.drop(photo)
        second.set(steps=1)
        second.start()
        second.wait_for("You are number 2 in line: 1 job is before yours")
        clicked = first.cancel()
        said = first.wait_for("Cancelling", "Cancelled")
        began = second.wait_for(*AT_WORK)
        slow = slowness()
        assert first.finish() == "Cancelled"
        assert first.page.inner_text("#moesr-cancel").strip() == "Cancel"
        log.info("said after %.2f s, next began after %.2f s, slowness %.1f", said - clicked, began - clicked, slow)
        assert said - clicked < 2 * slow, "the page took its time to say so"
        assert began - clicked < 2 * slow, "the work went on"
        assert second.finish().startswith("Done: 1 picture")
        # And the page is ready for more.
        first.drop(photo)
        first.set(steps=1)
        first.start()
        assert first.finish().startswith("Done: 1 picture")


def test_results_survive_a_reload_and_are_used_again(served, chrome, photo: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    with visiting(chrome, served.url) as visitor:
        page = visitor.page
        visitor.drop(notes)
        assert "notes.txt: not a PNG, JPEG, WebP" in visitor.chosen(), "said before anything is clicked"
        visitor.drop(photo)
        assert page.locator("#moesr-chosen img").count() == 1
        page.locator("#moesr-size input[value=Width]").check(force=True)
        page.wait_for_function("document.querySelector('#moesr-chosen').innerText.includes('1920 x 1353')")
        page.locator("#moesr-scale input[type=number]").fill("122")
        page.locator("#moesr-scale input[type=number]").press("Tab")
        page.wait_for_function("document.querySelector('#moesr-chosen').innerText.includes('122 x 86')")
        page.locator("#moesr-preset input[value='Texture (seamless)']").check(force=True)
        visitor.set(steps=1)
        assert visitor.get("wrap") is True
        visitor.start()
        assert visitor.finish().startswith("Done: 1 picture")
        assert visitor.downloads() == ["coffee cup_122w.png"]
        assert not visitor.compare(".bar").get_by_text("Last result").is_visible()
        visitor.set(seed=5)
        visitor.start()
        visitor.wait_for("Starting", "Sharpening", "Drawing", "Saving")  # what it said of the first run is gone
        assert "Done: 1 picture in " in visitor.finish()
        visitor.compare(".bar").get_by_text("Last result").click()
        assert visitor.compare(".tag.left").inner_text() == "last result"
        page.reload()
        page.wait_for_selector("moesr-compare")
        assert visitor.downloads() == ["coffee cup_122w.png"]
        page.click("#moesr-again")
        page.wait_for_function("document.querySelector('#moesr-chosen').innerText.includes('122 x 86 →')")


def test_the_plan_follows_the_steps_and_an_example_runs_when_it_is_clicked(served, chrome) -> None:
    with visiting(chrome, served.url) as visitor:
        visitor.advanced()
        words = visitor.page.locator("#moesr-advanced .moesr-plan").get_attribute("aria-label") or ""
        assert words.startswith("4 steps; experts in the order in which they work: 3, 2, 1, 0"), words
        visitor.set(steps=1)
        plan = "document.querySelector('#moesr-advanced .moesr-plan')"
        visitor.page.wait_for_function(f"{plan}.ariaLabel.startsWith('1 steps')")
        visitor.page.evaluate("window.seen.length = 0")
        visitor.page.locator("#moesr-examples button").filter(has_text="Texture").click()
        visitor.wait_for("Sharpening")
        assert visitor.finish().startswith("Done: 1 picture")
        assert visitor.get("wrap") is True
        assert visitor.downloads() == ["cobbles_x4.png"]


def test_the_whole_way_by_keyboard(served, chrome, photo: Path) -> None:
    with visiting(chrome, served.url) as visitor:
        page = visitor.page

        def tab_to(where: str) -> None:
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate(f"!!document.activeElement?.matches({where!r})"):
                    return
            raise AssertionError(f"{where} is not reached")

        if gradio_version() >= (4,):  # the file field of Gradio 3 is no button
            tab_to("#moesr-files button")
            choosers = []
            page.on("filechooser", lambda chooser: choosers.append(chooser))
            for _ in range(30):  # a button does nothing before Gradio has brought it to life
                if not choosers:
                    page.keyboard.press("Space")
                    page.wait_for_timeout(1000)
            choosers[0].set_files(str(photo))
            page.wait_for_selector("#moesr-chosen li")
        else:
            visitor.drop(photo)
        tab_to("#moesr-run")
        visitor.page.evaluate("window.seen.length = 0")
        page.keyboard.press("Enter")
        assert visitor.finish().startswith("Done: 1 picture")
        tab_to("moesr-compare")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert visitor.line() == 54
        tab_to(".moesr-downloads a")
        with page.expect_download() as started:
            page.keyboard.press("Enter")
        assert started.value.suggested_filename == "coffee cup_x4.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(served, chrome, tmp_path: Path, scheme: str) -> None:
    photo = picture(tmp_path / "wide.png", (100, 70))
    phone = {"width": 390, "height": 844, "color_scheme": scheme, "has_touch": True, "is_mobile": True}
    with visiting(chrome, served.url, **phone) as visitor:
        page = visitor.page
        visitor.drop(photo)
        visitor.set(steps=2)
        assert fits(visitor)
        page.locator("#moesr-run").tap()
        assert visitor.finish().startswith("Done: 1 picture")
        page.wait_for_function(
            "(box => box.top >= -1 && box.top < innerHeight / 2)"
            "(document.querySelector('#moesr-progress').getBoundingClientRect())"
        )
        assert fits(visitor)
        stage = visitor.box("moesr-compare .stage")
        assert stage["width"] > 300
        touch = page.context.new_cdp_session(page)

        def finger(kind: str, share: float) -> None:
            place = {"x": stage["x"] + stage["width"] * share, "y": stage["y"] + stage["height"] / 2}
            points = [] if kind == "touchEnd" else [place]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        finger("touchStart", 0.5)
        for share in (0.4, 0.3, 0.2):
            finger("touchMove", share)
        finger("touchEnd", 0.2)
        assert abs(visitor.line() - 20) <= 1
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(part) for part in dark[dark.index("(") + 1 : -1].split(",")[:3]) < 200) == (scheme == "dark")
        assert visitor.find_weak_texts() == []


def fits(visitor) -> bool:
    """Whether nothing has to be scrolled sideways, and every control is wide enough to hit."""
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in ("#moesr-files", "#moesr-size", "#moesr-run", "#moesr-steps", "#moesr-seed"):
        box = visitor.box(control)
        assert box["x"] >= 0, control
        assert box["x"] + box["width"] <= 390, control
        assert box["height"] >= 36, control
    return True
