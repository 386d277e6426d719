"""The pages of a TIFF: its chain of directories, what hangs below them, and which of all these is the picture."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, TiffImagePlugin

_KIND, _WIDTH, _HEIGHT, _SUB_IFDS = 254, 256, 257, 330
_THUMBNAIL_AREA = 4  # a first page that another exceeds this many times is its thumbnail


@dataclass(frozen=True)
class Page:
    """One picture of a file."""

    number: int  # its place in the chain of pages, from 1; 0 for a picture that hangs below a page
    offset: int  # where its directory stands, in bytes
    tags: Any

    def value(self, tag: int, default: int) -> int:
        value = self.tags.get(tag, default)
        return int(value[0] if isinstance(value, tuple) else value)

    def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        value = self.tags.get(tag, default)
        return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)

    @property
    def area(self) -> int:
        return self.value(_WIDTH, 0) * self.value(_HEIGHT, 0)


def read_pages(data: bytes) -> list[Page]:
    """The pages of the chain, and after them the pictures that hang below these."""
    pages: list[Page] = []
    offset, visited = read_directory(data).next, set[int]()
    while offset and offset not in visited:
        visited.add(offset)
        page = _read_page(data, offset, len(pages) + 1)
        if page is None:  # a damaged chain ends here
            break
        pages += [page] if page.area > 0 else []
        offset = page.tags.next
    if not pages:
        raise Image.UnidentifiedImageError("no page")
    offsets = [offset for page in pages for offset in page.values(_SUB_IFDS) if offset not in visited]
    below = [_read_page(data, offset, 0) for offset in offsets[:64]]
    return pages + [page for page in below if page is not None and page.area > 0]


def _read_page(data: bytes, offset: int, number: int) -> Page | None:
    try:
        page = Page(number, offset, read_directory(data, offset))
        _ = page.area, page.value(_KIND, 0), page.values(_SUB_IFDS)
        return page
    except Exception:  # Pillow raises nearly anything
        return None


def read_directory(data: bytes, offset: int = 0, group: int | None = None) -> Any:
    """The directory that stands there, or an empty one, from which `next` is the first. group: the tag of a pointer."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8] if b"*" in data[:4] else data[:16], group=group)
    if offset:
        file = io.BytesIO(data)
        file.seek(offset)
        directory.load(file)
    return directory


def start_at(data: bytes, offset: int) -> bytes:
    """The file with that directory as its first one."""
    order = "<" if data[:2] == b"II" else ">"
    at, kind = (4, "I") if b"*" in data[:4] else (8, "Q")
    place = struct.pack(order + kind, offset)
    return data[:at] + place + data[at + len(place) :]


def choose_page(pages: Sequence[Page]) -> tuple[Page, list[str]]:
    """The page that is read, and what is to be said about the others."""
    whole = [page for page in pages if not page.value(_KIND, 0) & 1]  # others are reduced pictures of these
    first, largest = pages[0], max(whole or pages, key=lambda page: page.area)
    count = sum(page.number > 0 for page in pages)
    is_thumbnail = largest.area >= _THUMBNAIL_AREA * first.area and _is_alike(first, largest)
    if is_thumbnail or first not in whole:
        what = f"page {largest.number} of {count}" if largest.number else "the large picture below page 1"
        return largest, [f"{what} was read, page 1 is its thumbnail"] if largest is not first else []
    count = sum(page.number > 0 for page in whole)
    return first, [f"only the first of {count} pages was read"] if count > 1 else []


def _is_alike(small: Page, large: Page) -> bool:
    ratio = small.value(_WIDTH, 1) * large.value(_HEIGHT, 1) / (small.value(_HEIGHT, 1) * large.value(_WIDTH, 1))
    return 0.85 < ratio < 1.18
