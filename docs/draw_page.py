"""The pictures of the page in docs/images: python -m docs.draw_page URL, where URL is that of a page at work.

They need what `make test-hosts` installs: playwright and a Chromium.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.hosts.setup_browser import browser
from tests.hosts.visitor import visiting

IMAGES = Path(__file__).with_name("images")
FACE = Path(__file__).parents[1] / "moesr" / "page" / "examples" / "face.png"
#: Width and height of the windows in pixels, and the part of its size at which a picture is kept.
WINDOWS = {"page": (1280, 1000, 0.7), "page-phone": (390, 1560, 0.75)}
GAP = 20


def main(url: str) -> None:
    """Draw each window after a run, light beside dark."""
    with browser() as chromium:
        for name, (width, height, part) in WINDOWS.items():
            looks = []
            for scheme in ("light", "dark"):
                with visiting(chromium, url, width=width, height=height, color_scheme=scheme) as visitor:
                    visitor.drop(FACE)
                    visitor.start()
                    print(visitor.finish())
                    visitor.page.evaluate("scrollTo(0, 0)")
                    visitor.page.wait_for_timeout(1000)
                    look = Image.open(BytesIO(visitor.page.screenshot())).convert("RGB")
                    looks.append(look.resize((round(width * part), round(height * part)), Image.Resampling.LANCZOS))
            wide, high = looks[0].size
            both = Image.new("RGB", (2 * wide + GAP, high), "#888")
            for i, look in enumerate(looks):
                both.paste(look, (i * (wide + GAP), 0))
            both.save(IMAGES / f"{name}.jpg", quality=75, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
