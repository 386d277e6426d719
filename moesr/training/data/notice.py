"""Who made the photographs: the table of NOTICE, from tables of photographs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path


def credit_photographs(rows: list[dict[str, str]], *, leave_out: Collection[str] = ()) -> str:
    """Text that names author, licence and file of every photograph, one line per author, by source.

    rows: file, source, path, author and licence of each, see `read_table`. leave_out: file names that were not used.
    """
    sources: dict[str, dict[tuple[str, str], list[str]]] = {}
    for row in rows:
        if row["file"] in leave_out:
            continue
        authors = sources.setdefault(row["source"], {})
        author = " ".join(row["author"].split()) or "author not named"
        authors.setdefault((author, row["licence"]), []).append(Path(row.get("path") or row["file"]).name)
    lines: list[str] = []
    for source, authors in sorted(sources.items()):
        lines.append(f"https://github.com/{source}")
        for (author, licence), files in sorted(authors.items()):
            lines.append(f"- {author}, {licence}: {', '.join(sorted(files))}")
        lines.append("")
    return "\n".join(lines).rstrip()
