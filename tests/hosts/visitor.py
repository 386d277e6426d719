"""Somebody with a browser at the page: drops pictures, clicks, and sees what there is to see. For every Gradio."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Installed beside the tests only where the page is tested (see docs/page.md).
from playwright.sync_api import Browser, Locator, Page  # type: ignore[import-not-found]

SHOTS = os.environ.get("MOESR_PAGE_SHOTS", "")
#: Words of a job that is no longer in line.
AT_WORK = ("Loading", "Reading", "Sharpening", "Drawing", "Saving", "Done")
SECONDS = 240.0  # that anything may take; a busy machine is slow
# Remembers all that the progress said, and when: a look from outside now and then would miss most of it.
RECORD = """() => {
  const place = document.querySelector("#moesr-progress");
  window.seen = [];
  const look = () => {
    const bar = place.querySelector("[role=progressbar]"), told = place.querySelector(".moesr-where, .moesr-message");
    const words = told ? [...told.querySelectorAll("span")].map(e => e.textContent) : [];
    const entry = {
      at: Date.now(), percent: bar ? Number(bar.getAttribute("aria-valuenow")) : null,
      words: words[0] || (told ? told.textContent : ""), details: words[1] || "",
      preview: !!place.querySelector(".moesr-preview"), plan: !!place.querySelector(".moesr-plan"),
    };
    const last = window.seen[window.seen.length - 1];
    if (!last || last.words !== entry.words || last.details !== entry.details ||
        last.percent !== entry.percent || last.preview !== entry.preview)
      window.seen.push(entry);
  };
  look();
  new MutationObserver(look).observe(place, { subtree: true, childList: true, attributes: true, characterData: true });
}"""

#: Our own texts with less contrast to what is behind them than 4.5 to 1 (WCAG AA).
CONTRAST = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  const rgba = (colour, under) => {
    canvas.fillStyle = `rgb(${under})`; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = c => c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => {
    const all = [];
    for (; e; e = e.parentElement) all.unshift(getComputedStyle(e).backgroundColor);
    return all.reduce((under, colour) => rgba(colour, under), [255, 255, 255]);
  };
  const ours = [...document.querySelectorAll(".moesr-html *")].filter(e =>
    e.offsetParent && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  return ours.map(e => {
    const back = behind(e), front = rgba(getComputedStyle(e).color, back);
    const [a, b] = [light(front), light(back)];
    return [e.textContent.slice(0, 40), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
  }).filter(([, ratio]) => ratio < 4.5);
}"""


@contextmanager
def visiting(browser: Browser, url: str, *, width: int = 1280, height: int = 900, **more: Any) -> Iterator[Visitor]:
    """A visitor with a window of that size, whose page is loaded; no script of it may fail.

    MOESR_PAGE_SHOTS names a folder for pictures of how each visit ended, to be looked at.
    """
    # Animations would take the processor from the model.
    context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **more)
    try:
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        visitor = Visitor(page)
        page.goto(url)
        page.wait_for_selector("#moesr-run")
        page.wait_for_function("!!customElements.get('moesr-compare')")
        page.evaluate(RECORD)
        yield visitor
        assert not visitor.errors
    finally:
        if SHOTS and context.pages:
            place = Path(SHOTS) / f"{time.time():.0f}_{width}_{more.get('color_scheme', 'light')}.png"
            context.pages[0].screenshot(path=place, full_page=True)
        context.close()


class Visitor:
    """What a person does and sees. `errors` are those of the page's scripts, `page` is the browser's."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def drop(self, *paths: Path) -> None:
        """Give pictures to the page, in place of those that it has."""
        clear = self.page.locator("#moesr-files button[aria-label=Clear], #moesr-files button[title=Clear]")
        listed = "#moesr-chosen :is(li, .moesr-message)"
        if clear.count():
            clear.first.click()
            self.page.wait_for_selector(listed, state="detached")  # so that what is said next is of the new ones
        self.page.set_input_files("#moesr-files input[type=file]", [str(path) for path in paths])
        self.page.wait_for_selector(listed)

    def chosen(self) -> str:
        """What the page says of the pictures."""
        return self.page.inner_text("#moesr-chosen")

    def advanced(self) -> None:
        """Open the settings."""
        if not self.page.locator("#moesr-steps").is_visible():
            self.page.locator("#moesr-advanced").get_by_text("Advanced").first.click()
        self.page.wait_for_selector("#moesr-steps")

    def set(self, **values: Any) -> None:
        """Change settings as a person does: type numbers, choose from menus, tick boxes."""
        self.advanced()
        for name, value in values.items():
            part = self.page.locator(f"#moesr-{name.replace('_', '-')}").first
            if isinstance(value, bool):
                part.locator("input[type=checkbox]").set_checked(value)
            elif name == "scale":
                self.page.locator("#moesr-size input[value=Times]").check(force=True)
                part.locator("input[type=number]").wait_for()
                self.page.wait_for_timeout(500)  # the field has its first value
                part.locator("input[type=number]").fill(str(value))
                part.locator("input[type=number]").press("Tab")
            elif name == "color_fix":
                part.locator(f"input[type=radio][value={value}]").check(force=True)
            elif isinstance(value, str):
                part.locator("input").first.click()
                self.page.locator("ul[role=listbox] li, ul.options li").filter(has_text=value).first.click()
            else:
                part.locator("input[type=number]").fill(str(value))
                part.locator("input[type=number]").press("Tab")

    def get(self, name: str) -> Any:
        """A setting as it stands on the page: a text, or True and False."""
        self.advanced()
        part = self.page.locator(f"#moesr-{name.replace('_', '-')}").first
        if name == "wrap":
            return part.locator("input[type=checkbox]").is_checked()
        if name == "color_fix":
            return part.locator("input[type=radio]:checked").get_attribute("value")
        numbers = part.locator("input[type=number]")
        return (numbers if numbers.count() else part.locator("input")).first.input_value()

    def start(self) -> None:
        """Click Upscale; what was said before is forgotten."""
        self.page.evaluate("window.seen.length = 0")
        self.page.click("#moesr-run")

    def cancel(self) -> float:
        """Click Cancel, and the time then."""
        self.page.click("#moesr-cancel:not([disabled])")
        return time.time()

    def seen(self) -> list[dict[str, Any]]:
        """All that the progress has said since the start."""
        return self.page.evaluate("window.seen")

    def wait_for(self, *words: str, seconds: float = SECONDS) -> float:
        """Wait until the progress says any of this; the time when it did."""
        found = "all => window.seen.find(entry => all.some(words => entry.words.includes(words)))?.at"
        return self.page.wait_for_function(found, arg=list(words), timeout=seconds * 1000).json_value() / 1000

    def finish(self, seconds: float = SECONDS) -> str:
        """Wait for the end of the run; what it said."""
        self.page.wait_for_selector("#moesr-progress .moesr-message", timeout=seconds * 1000)
        self.page.wait_for_selector("#moesr-run:not([disabled])")
        return self.page.inner_text("#moesr-progress")

    def message(self) -> str:
        """Start, and what comes of it."""
        self.start()
        self.page.wait_for_function("window.seen.length")
        return self.finish()

    def downloads(self) -> list[str]:
        """The names of what can be downloaded."""
        links = self.page.locator(".moesr-downloads a")
        return [links.nth(i).get_attribute("download") or "" for i in range(links.count())]

    def download(self, index: int, folder: Path) -> Path:
        """Click a download; the file."""
        with self.page.expect_download() as started:
            self.page.locator(".moesr-downloads a").nth(index).click()
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path

    def compare(self, part: str) -> Locator:
        """A part of the comparison: .stage, .line, .bar, .strip, img."""
        return self.page.locator(f"moesr-compare {part}")

    def find_weak_texts(self) -> list[Any]:
        """Texts of ours that are hard to read, with their contrast."""
        return self.page.evaluate(CONTRAST)

    def box(self, selector: str) -> dict[str, float]:
        """Where a part of the page is in the window: x, y, width, height."""
        found = self.page.locator(selector).first.bounding_box()
        assert found, f"{selector} is not to be seen"
        return {name: float(found[name]) for name in ("x", "y", "width", "height")}

    def line(self) -> int:
        """Where the line is, in percent."""
        return int(self.compare(".line").get_attribute("aria-valuenow") or -1)


def percents(seen: Sequence[dict[str, Any]]) -> list[int]:
    """The bar's positions, in order."""
    return [entry["percent"] for entry in seen if entry["percent"] is not None]
