"""The host as the surroundings of the tab's jobs: see moesr/service/adapter.py."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from ..errors import MoESRError
from ..images.files import read_text
from ..leftovers import TemporaryFolder
from ..model import SRModel
from ..runtime import Runtime
from ..service.intake import size
from ..service.job import Job
from ..service.limits import LOCAL
from ..service.settings import KEYWORD, from_text
from ..tiling import LARGEST_TILE
from . import webui_api
from .engine import engine
from .infotext import facts, line

log = logging.getLogger(__name__)

WORDS = {"load": "loading the model", "encode": "reading", "sample": "step", "decode": "decoding", "save": "saving"}


class Surroundings:
    """Adapter. Its folder lies among Gradio's uploads, where every version serves files; `close` deletes it."""

    standalone = False

    def __init__(self) -> None:
        self.models = engine().models
        self.models.default = engine().default()
        parent = webui_api.find_temporary_folder()
        parent.mkdir(parents=True, exist_ok=True)
        self._temporary = TemporaryFolder("moesr-tab-", parent)
        self.folder = self._temporary.path
        self.received = self.folder / "received"
        self.received.mkdir()
        self.uploads = [parent]
        self._shown: bytes | None = None
        self._sources: dict[Path, Path] = {}

    @contextmanager
    def turn(self, job: Job) -> Iterator[None]:
        """The host's queue, its checkpoint out of the way, and results kept where the host keeps its own."""
        with webui_api.begin_job(len(job.uploads)), engine().run(job.settings.model, _side(job)):
            try:
                yield
            finally:
                self._keep(job)

    def check(self) -> None:
        """Raises Stopped if Interrupt was pressed anywhere in the host."""
        webui_api.check()

    def show(self, job: Job) -> None:
        """To the host's bar."""
        at = job.progress
        word = WORDS[at.phase] + (f" {at.step} of {at.steps}" if at.phase == "sample" else "")
        webui_api.shared.state.job_no = at.picture - 1
        fresh = at.preview if at.preview is not self._shown else None
        self._shown = at.preview
        share = min(1.0, max(0.0, at.share * at.pictures - (at.picture - 1)))
        webui_api.show_progress(share, f"MoESR: {at.name}, {word}, tile {at.tile} of {at.tiles}", fresh)

    def memory(self) -> Runtime:
        """The host's."""
        return engine()

    def load(self, path: Path, dtype: str, device: str, asked: Runtime) -> SRModel:
        """The model that the upscaler and Extras use too; precision and device are the host's."""
        name = next(name for name in self.models.names() if self.models.path(name) == path)
        return engine().model(name, asked)

    def url(self, path: Path) -> str:
        """Gradio's route for files, in both hosts."""
        return "file=" + quote(path.as_posix(), safe="/:")

    def close(self) -> None:
        """Delete what was received and made."""
        self._temporary.close()

    def parameters(self, result: Path) -> str:
        """Generation parameters of the picture that a result was made from; empty if it had none."""
        source = self._sources.get(result)
        return webui_api.read_parameters(source) if source is not None and source.is_file() else ""

    def _keep(self, job: Job) -> None:
        self._sources.update({result.path: result.source for result in job.results})
        # Without a preview it is a program that asks: the answer is all it wants, as with the host's API.
        if not (job.preview and webui_api.get_option("moesr_save")):
            return
        for result in job.results:
            texts = read_text(result.path)
            found = from_text(texts)
            info = line(facts(*found)) if found else ""
            try:
                webui_api.save_result(result.path, info, {KEYWORD: texts.get(KEYWORD, "")}, result.source)
            except (OSError, ValueError) as error:
                job.failures.append(f"{result.name}: not saved in the host's folder ({error}); download it here")


def _side(job: Job) -> int:
    """The longest side among the results of a job, as far as headers tell."""
    longest = 1.0
    for upload in job.uploads:
        try:
            scale = job.settings.scale or engine().models.config(job.settings.model).scale
            longest = max(longest, max(size(upload, LOCAL)) * scale)
        except MoESRError as error:
            log.debug("%s", error)  # said by the worker when it comes to that picture
            longest = max(longest, LARGEST_TILE)
    return int(longest + 0.5)
