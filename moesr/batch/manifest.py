"""The manifest: one line per picture with its id, source and target, planned over the whole list and kept in a file."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import open_new
from ..result_files import plan_targets
from .sources import Address
from .storage import is_remote


@dataclass(frozen=True)
class Row:
    """A picture of a job."""

    #: 16 hexadecimal digits, from the source's path below its input. Two pictures of a job have different ones.
    id: str
    #: What its noise is drawn from, before the job's own seed is added: of the path alone.
    seed: int
    #: Address of the picture, or of the tar archive that holds it.
    source: str
    #: Address of the result.
    target: str
    #: First byte and length in the archive; -1 and 0 if the file is the picture.
    offset: int = -1
    size: int = 0
    #: Name in the archive.
    member: str = ""

    @property
    def label(self) -> str:
        return f"{self.source}!{self.member}" if self.member else self.source

    def describe(self, status: str, error: str = "") -> dict[str, Any]:
        """The beginning of its line in the journal."""
        return {"id": self.id, "source": self.label, "target": self.target, "status": status, "error": error}


def write_manifest(path: Path, addresses: Iterable[Address], output: str, suffix: str) -> int:
    """Plan the targets of all pictures and write the manifest; their number.

    Memory: the names of folders, and 16 to 32 bytes per picture. suffix: of results, "" for the source's own.
    """
    folders: set[Path] = set()
    count = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape") as spool:
        for address in addresses:  # listed once: names of folders must be known before the first target
            folders.add(address.folder)
            fields = [str(address.path), str(address.folder), address.address, address.offset, address.size]
            spool.write(json.dumps(fields) + "\n")
            count += 1
        spool.seek(0)
        with open_new(path, replaces=True) as file:
            for row in plan_rows(map(_read_address, spool), folders, output, suffix):
                file.write(json.dumps(asdict(row), separators=(",", ":")).encode() + b"\n")
    return count


def plan_rows(addresses: Iterable[Address], folders: Iterable[Path], output: str, suffix: str) -> Iterator[Row]:
    """The row of each picture, in order. folders: those of all pictures."""
    base = Path(output)
    for target in plan_targets(addresses, base, suffix=suffix, folders=folders):
        source = target.source
        assert isinstance(source, Address)
        name = (source.folder / source.path.name).as_posix()
        number = target.path.stem[len(source.stem) :]  # "-2" where another picture has the name
        place = str(target.path)
        if is_remote(output):
            place = f"{output.rstrip('/')}/{target.path.relative_to(base).as_posix()}"
        member = source.path.as_posix() if source.offset >= 0 else ""
        identity = f"{_hash(name + number):016x}"
        yield Row(identity, _hash(name), source.address, place, source.offset, source.size, member)


def read_manifest(path: Path, shard: tuple[int, int] = (0, 1)) -> Iterator[Row]:
    """The rows of shard i of n: every n-th row from i on."""
    with path.open(encoding="utf-8") as file:
        for index, line in enumerate(file):
            if index % shard[1] == shard[0]:
                yield Row(**json.loads(line))


def _read_address(line: str) -> Address:
    path, folder, address, offset, size = json.loads(line)
    return Address(Path(path), Path(folder), address, offset, size)


def _hash(name: str) -> int:
    """64 bits that are the same on every machine."""
    data = name.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
