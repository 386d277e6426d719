"""Who made the photographs: a part of NOTICE, from tables of photographs."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Collection
from pathlib import Path

from ...errors import ImageError


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table of photographs (tab-separated, with file, source, author and licence)."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); give a table of photographs") from error
    missing = {"file", "source", "author", "licence"} - set(rows[0] if rows else {})
    if missing:
        raise ImageError(f"{path}: no column {sorted(missing)[0]!r}; give a tab-separated table with this heading")
    return rows


def credit_photographs(rows: list[dict[str, str]], *, leave_out: Collection[str] = ()) -> str:
    """Author, licence and file name of every photograph: a paragraph per source and licence, 120 characters wide.

    rows: file, source, path, author and licence of each, see `read_table`. leave_out: file names that were not used.
    """
    sources: dict[str, dict[str, dict[str, list[str]]]] = {}
    for row in rows:
        if row["file"] not in leave_out:
            author = " ".join(row["author"].split()) or "author not named"
            authors = sources.setdefault(row["source"], {}).setdefault(row["licence"], {})
            authors.setdefault(author, []).append(Path(row.get("path") or row["file"]).name)
    lines: list[str] = []
    for source, licences in sorted(sources.items()):
        lines.append(f"https://github.com/{source}")
        for licence, authors in sorted(licences.items()):
            text = "; ".join(f"{author} ({', '.join(sorted(files))})" for author, files in sorted(authors.items()))
            lines += textwrap.wrap(f"{licence}: {text}", 120, subsequent_indent="  ", break_on_hyphens=False)
        lines.append("")
    return "\n".join(lines).rstrip()
