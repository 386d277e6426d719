"""What a page asks of the program it lives in: folders, the queue's lock, interruption, models. A host has its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from ..atomic_files import TemporaryFolder
from ..hosting.model_facts import ModelFacts
from ..hosting.model_runner import ModelSource
from ..library import DEFAULT
from ..model import SRModel, load
from .job import FinishedPicture, Job


class LoadedModels:
    """The models of a page with a process of its own: the one that was used last stays loaded on its device."""

    def __init__(self, facts: ModelFacts, device: str, dtype: str) -> None:
        self.facts, self._device, self._dtype = facts, device, dtype
        self._loaded: tuple[str, str, SRModel] | None = None

    @contextmanager
    def use(self, name: str, *, side: int) -> Iterator[SRModel]:
        """The model of that name, loaded if another was used before, or if its files have changed."""
        digest = self.facts.compute_hash(name)
        if self._loaded is None or self._loaded[:2] != (name, digest):
            self.close()
            path = self.facts.find_path(name)
            self._loaded = (name, digest, load(path, dtype=self._dtype, device=self._device))
        yield self._loaded[2]

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded[2].close()
        self._loaded = None


class PageHost:
    """The surroundings of a page or tab; what is said here is for a page with a process of its own."""

    #: The page is all there is, so it brings its title and script.
    standalone = True
    #: Gradio's route for files.
    prefix = "file="
    #: What can be chosen.
    facts: ModelFacts
    #: Folders in which files that were sent may lie.
    upload_folders: list[Path]

    def __init__(self, temporary: TemporaryFolder) -> None:
        self._temporary = temporary
        #: Results and examples lie below it, and the host serves its files.
        self.folder = temporary.path

    def begin_job(self, job: Job) -> AbstractContextManager[object]:
        """Held while a job is at work: the host's own queue."""
        return nullcontext()

    def check(self) -> None:
        """Raise Stopped if the host's user has interrupted. Called before every layer: it must be quick."""

    def show(self, job: Job) -> None:
        """A job has come further (job.progress): for the host's own progress bar."""

    def keep(self, job: Job, result: FinishedPicture) -> None:
        """A picture is finished: put it where the host keeps its own."""

    def make_source(self, device: str, dtype: str) -> ModelSource:
        """Where the jobs of a device get their models."""
        return LoadedModels(self.facts, device, dtype)

    def url(self, path: Path) -> str:
        """Where a browser gets a file below `folder`, relative to the page."""
        return self.prefix + quote(path.as_posix(), safe="/:")

    def close(self) -> None:
        """Delete the folder with all uploads and results."""
        self._temporary.close()


class StandaloneHost(PageHost):
    """A page with a process of its own. Its folder is new, for its owner only; `close` deletes it, or the next page."""

    def __init__(self, model: str = DEFAULT) -> None:
        self.facts = ModelFacts(model)
        super().__init__(TemporaryFolder("moesr-page-"))
        self.upload_folders = [self.folder / "uploads"]
