"""What a page asks of the program it lives in: folders, the run lock, interruption, memory. A host brings its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from ..leftovers import TemporaryFolder
from ..library import DEFAULT
from ..model import SRModel, load
from ..runtime import PlainRuntime, Runtime
from .job import Job
from .models import Models


class Adapter(Protocol):
    """The surroundings of a page or tab.

    folder: results and examples lie below it, and the host serves its files. uploads: folders in which files that were
    sent may lie. models: what can be chosen. standalone: the page is all there is, so it brings its title and script.
    """

    folder: Path
    uploads: list[Path]
    models: Models
    standalone: bool

    def turn(self, job: Job) -> AbstractContextManager[object]:
        """Held while a job is at work: the host's own queue lock, and its models out of the way."""
        ...

    def check(self) -> None:
        """Raise Stopped if the host's user has interrupted. Called before every layer: it must be quick."""
        ...

    def show(self, job: Job) -> None:
        """A job has come further (job.progress): for the host's own progress bar."""
        ...

    def memory(self) -> Runtime:
        """How much memory is free, and what counts as out of memory."""
        ...

    def load(self, path: Path, dtype: str, device: str, asked: Runtime) -> SRModel:
        """The model in a file or folder, whose networks the host may share with others. Its runs ask `asked`."""
        ...

    def url(self, path: Path) -> str:
        """Where a browser gets a file below `folder`, relative to the page."""
        ...


class Alone:
    """A page with a process of its own. Its folder is new, for its owner only; `close` deletes it, or the next page."""

    standalone = True

    def __init__(self, model: str = DEFAULT, prefix: str = "file=") -> None:
        self.models = Models(model)
        self._temporary = TemporaryFolder("moesr-page-")
        self.folder = self._temporary.path
        self.uploads = [self.folder / "uploads"]
        self.prefix = prefix

    def turn(self, job: Job) -> AbstractContextManager[object]:
        """Nobody else wants the device."""
        return nullcontext()

    def check(self) -> None:
        """Nobody else interrupts."""

    def show(self, job: Job) -> None:
        """There is no other progress bar."""

    def memory(self) -> Runtime:
        """What torch and the system say."""
        return PlainRuntime()

    def load(self, path: Path, dtype: str, device: str, asked: Runtime) -> SRModel:
        """A model of the worker's own."""
        return load(path, dtype=dtype, device=device, runtime=asked)

    def url(self, path: Path) -> str:
        """Gradio's route for files."""
        return self.prefix + quote(path.as_posix(), safe="/:")

    def close(self) -> None:
        """Delete the folder with all uploads and results."""
        self._temporary.close()
