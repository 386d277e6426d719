"""A1111 and Forge as the host of the tab's jobs: see moesr/page/page_host.py."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from ..atomic_files import TemporaryFolder
from ..errors import MoESRError
from ..hosting.model_runner import ModelSource
from ..page.job import FinishedPicture, Job
from ..page.page_host import PageHost
from ..result_files import save_new
from ..settings_record import KEYWORD, to_texts
from . import webui_api
from .infotext import join_facts, list_facts
from .opened_models import engine

log = logging.getLogger(__name__)


class TabHost(PageHost):
    """Its folder lies among Gradio's uploads, where every version serves files; `close` deletes it."""

    standalone = False

    def __init__(self) -> None:
        self.facts = engine().facts
        self.facts.default = engine().choose_default()
        parent = webui_api.find_temporary_folder()
        parent.mkdir(parents=True, exist_ok=True)
        super().__init__(TemporaryFolder("moesr-tab-", parent))
        self.received = self.folder / "received"
        self.received.mkdir()
        self.upload_folders = [parent]
        self._preview: bytes | None = None
        self._sources: dict[Path, Path] = {}

    def begin_job(self, job: Job) -> AbstractContextManager[None]:
        return webui_api.begin_job(len(job.uploads))

    def check(self) -> None:
        webui_api.check()

    def show(self, job: Job) -> None:
        at = job.progress
        webui_api.shared.state.job_no = at.picture - 1
        new = at.preview if at.preview is not self._preview else None
        self._preview = at.preview
        fraction = min(1.0, max(0.0, at.fraction * at.pictures - (at.picture - 1)))
        webui_api.show_progress(fraction, f"MoESR: {at.name}, {at.event.text}", new)

    def make_source(self, device: str, dtype: str) -> ModelSource:
        """The one of all doors; precision and device are the host's."""
        return engine()

    def read_parameters(self, result: Path) -> str:
        """Generation parameters of the picture that a result was made from; empty if it had none."""
        source = self._sources.get(result)
        return webui_api.read_parameters(source) if source is not None and source.is_file() else ""

    def keep(self, job: Job, result: FinishedPicture) -> None:
        """To the folder of the job, or where the host keeps results of Extras, if our setting says so."""
        self._sources[result.path] = result.source
        # Without a preview it is a program that asks: the answer is all it wants, as with the host's API.
        if job.output is None and not (job.preview and webui_api.get_option("moesr_save")):
            return
        try:
            if job.output is not None:
                with result.path.open("rb") as file:
                    save_new(job.output / result.path.name, lambda target: shutil.copyfileobj(file, target))
                return
            info, texts = join_facts(list_facts(result.record)), {KEYWORD: to_texts(result.record)[KEYWORD]}
            webui_api.save_result(result.path, info, texts, result.source)
        except (OSError, ValueError, MoESRError) as error:
            job.failures.append(f"{result.path.name}: not saved in its folder ({error}); download it here")
