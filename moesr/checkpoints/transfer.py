"""One file over HTTP: resumed where it broke, checked, and in its place whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException
from io import FileIO
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import CheckpointError
from .whole import as_size, problem, stranger

log = logging.getLogger(__name__)

#: Told of every piece: bytes that are on the disk, and bytes in all if they are known. Raising stops the transfer.
Progress = Callable[[int, "int | None"], None]

CHUNK = 1 << 17
TIMEOUT = 30.0
#: Seconds before each new try; as many tries as there are pauses, after the first.
PAUSES = (1.0, 2.0, 4.0, 8.0)
#: A try that brought this many new bytes was no failure: long files over bad lines may break often.
HEADWAY = 1 << 20
#: Bytes that tell what a file is; with fewer the connection broke, or the whole is looked at later.
ENOUGH = 16
BY_HAND = "place the file by hand as docs/models.md says"


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
    pauses: Sequence[float] | None = None,
) -> None:
    """`target` holds the whole file, of that size and SHA-256 if they are given, and did not exist before it was whole.

    What arrived before a failure or an interruption stays in `target`.part and is continued by the next call, unless
    the file on the server is another one by then. timeout: seconds without a byte; pauses: seconds before each new try.
    Raises CheckpointError, one line, when the server refuses, offers another file or something that is no weight file,
    when the disk is full, or when the line broke too often.
    """
    if not url.startswith(("https://", "http://")):
        raise CheckpointError(f"{url}: not an address of the web; {BY_HAND}")
    pauses = PAUSES if pauses is None else pauses
    with _Part.open(target, url) as part:
        part.expect(size, sha256, progress or (lambda done, total: None))
        failures, longest = 0, part.length
        while True:
            try:
                if not part.complete:
                    _receive(part, timeout)
                part.verify()
                break
            except _Broken as error:
                if part.length >= longest + HEADWAY:
                    failures, longest = 0, part.length
                if failures == len(pauses):
                    raise CheckpointError(
                        f"{url}: {error}; {as_size(part.length)} are kept, run it again to go on from there"
                    ) from error
                wait = max(pauses[failures], error.wait)
                failures += 1
                log.info("%s: %s; trying again in %.0f s", url, error, wait)
            time.sleep(wait)
    part.finish(target)


def check_space(folder: Path, needed: int) -> None:
    """Raise CheckpointError if the folder's disk has not that many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: {as_size(needed)} are needed, {as_size(free)} are free; make room or name another folder"
        )


class _Broken(Exception):
    """A try failed in a way that another may not; `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Part:
    """The bytes that are here already, and beside them a note of the file on the server that they belong to."""

    def __init__(self, target: Path, url: str, file: FileIO) -> None:
        self.path = Path(file.name)
        self.note_path = self.path.with_name(self.path.name + ".json")
        self.suffix, self.url, self.file = target.suffix, url, file
        self.note = self._read_note()
        self.resumed = False

    @classmethod
    @contextmanager
    def open(cls, target: Path, url: str) -> Iterator[_Part]:
        """The part of a target, for this process alone; it stays on the disk if there is anything in it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        path, empty = target.with_name(target.name + ".part"), False
        try:
            with path.open("ab", buffering=0) as file:
                _claim(file, url)
                part = cls(target, url, file)
                try:
                    yield part
                finally:
                    empty = not part.length
        finally:
            if empty:
                path.unlink(missing_ok=True)
                part.note_path.unlink(missing_ok=True)

    def expect(self, size: int | None, sha256: str | None, progress: Progress) -> None:
        """What is known of the file, and whom to tell of every piece."""
        self.size, self.sha256, self.progress = size, sha256, progress

    @property
    def fits(self) -> bool:
        """Whether what is here may be continued: the server can be asked for the same file, or a hash tells after."""
        return self.note.get("url") == self.url and bool(self.validator or self.sha256)

    @property
    def length(self) -> int:
        return self.file.tell()

    @property
    def total(self) -> int | None:
        """Bytes of the whole, as they were given or as the server said."""
        return self.size if self.size is not None else self.note.get("total")

    @property
    def missing(self) -> int:
        """Bytes to ask for next, 0 when all are here."""
        return CHUNK if self.total is None else max(0, min(CHUNK, self.total - self.length))

    @property
    def complete(self) -> bool:
        return self.fits and bool(self.length) and self.length == self.total

    @property
    def validator(self) -> str | None:
        """What names this version of the file in If-Range; a weak ETag does not."""
        etag = self.note.get("etag")
        return etag if etag and not etag.startswith("W/") else self.note.get("modified")

    def restart(self) -> None:
        """Forget what is here."""
        self.file.truncate(0)
        self.file.seek(0)
        self.note = {}
        self.resumed = False

    def begin(self, total: int | None, headers: Message) -> None:
        """Start from nothing with the file that the server offers."""
        self.restart()
        self.note = {
            "url": self.url, "total": total, "etag": headers.get("ETag"), "modified": headers.get("Last-Modified"),
        }  # fmt: skip
        self.note_path.write_text(json.dumps(self.note))

    def write(self, piece: bytes) -> None:
        """Append, and tell. Raises CheckpointError when the disk is full."""
        try:
            left = memoryview(piece)
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror or error}); make room and run it again"
            ) from error
        self.progress(self.length, self.total)

    def verify(self) -> None:
        """Raise if the whole is not the file that is wanted: _Broken if it was put together of pieces."""
        os.fsync(self.file.fileno())
        reason = problem(self.path, self.size, self.sha256, self.suffix)
        if reason is None:
            return
        resumed = self.resumed
        self.restart()
        if resumed:
            raise _Broken(reason)
        raise CheckpointError(f"{self.url}: {reason}; the file there is damaged or another one, {BY_HAND}")

    def finish(self, target: Path) -> None:
        """Put the whole in its place."""
        os.replace(self.path, target)
        self.note_path.unlink(missing_ok=True)

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self.note_path.read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}


def _receive(part: _Part, timeout: float) -> None:
    """Bring the part to its full length. Raises _Broken where another try may help, else CheckpointError."""
    headers = {"User-Agent": "moesr", "Accept-Encoding": "identity"}
    if not part.fits:
        part.restart()
    if part.length:
        part.resumed = True
        headers["Range"] = f"bytes={part.length}-"
        if part.validator:
            headers["If-Range"] = part.validator
    with _open(Request(part.url, headers=headers), part, timeout) as response:
        if response.status == 206:
            _check_range(part, response.headers)
            head = b""
        else:
            head = _read(response.read, 512)
            _check_offer(part, response.headers, head)
            part.begin(_number(response.headers.get("Content-Length")), response.headers)
        if part.total is not None:
            check_space(part.path.parent, part.total - part.length)
        part.write(head)
        # read1 gives what is there, so that a slow line can be cancelled and shows its progress.
        while (missing := part.missing) and (piece := _read(response.read1, missing)):
            part.write(piece)
    if part.total is not None and part.length < part.total:
        raise _Broken(f"the connection broke after {as_size(part.length)} of {as_size(part.total)}")
    if not part.length:
        raise _Broken("the server sent nothing")


def _check_offer(part: _Part, headers: Message, head: bytes) -> None:
    """Raise CheckpointError if what the server begins to send is not the file that is wanted."""
    reason = stranger(head, part.suffix)
    if reason and len(head) >= ENOUGH:
        raise CheckpointError(f"{part.url}: the server sent {reason}; {BY_HAND}")
    total = _number(headers.get("Content-Length"))
    if part.size is not None and total not in (None, part.size):
        raise CheckpointError(
            f"{part.url}: the server offers {total} bytes instead of {part.size}, so another file; {BY_HAND}"
        )


def _open(request: Request, part: _Part, timeout: float) -> Any:
    try:
        return build_opener(_Redirects()).open(request, timeout=timeout)
    except HTTPError as error:
        with error:
            said = f"the server says {error.code} {_in_words(error.reason)}"
            if error.code == 416:
                part.restart()
                raise _Broken("the file on the server is another one now") from error
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _Broken(said, min(_number(error.headers.get("Retry-After")) or 0, 60)) from error
            if error.code in (401, 403):
                said += " (it may want a login there)"
            raise CheckpointError(f"{part.url}: {said}; {BY_HAND}") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, SSLCertVerificationError):
            why = f"its certificate is not trusted here ({reason.verify_message})"
            raise CheckpointError(f"{part.url}: {why}; {BY_HAND}") from error
        raise _Broken(f"no connection ({_in_words(reason)})") from error


def _read(read: Callable[[int], bytes], count: int) -> bytes:
    try:
        return read(count)
    except (OSError, HTTPException) as error:
        raise _Broken(f"the connection broke ({_in_words(error)})") from error


def _check_range(part: _Part, headers: Message) -> None:
    """Raise _Broken, and forget what is here, if the bytes to come do not continue it."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range") or "")
    etag = headers.get("ETag")
    other = etag is not None and part.note.get("etag") not in (None, etag)
    total = _number(found[2]) if found else None
    longer = None not in (total, part.total) and total != part.total
    if not found or int(found[1]) != part.length or longer or other:
        part.restart()
        raise _Broken("the file on the server is another one now")
    part.note["total"] = part.note.get("total") or total


def _in_words(reason: object) -> str:
    """On one line, whatever it is."""
    return " ".join(str(reason).split()) or type(reason).__name__


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _claim(file: FileIO, url: str) -> None:
    """Keep other processes from writing to the same part. Where the system has no such lock, they are trusted."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(f"{url}: another process is fetching it; wait for that one to end") from error
    except OSError:
        log.info("%s: no locks in this folder", file.name)


class _Redirects(HTTPRedirectHandler):
    """Redirects, but never from HTTPS to something that others can read and change."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise CheckpointError(f"{req.full_url}: redirected to the unsafe {newurl}; {BY_HAND}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
