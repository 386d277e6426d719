"""The page by itself: the builder's blocks, served with limits, without telemetry, on this machine unless asked."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from ..errors import SettingError
from ..library import DEFAULT
from .builder import Built, build, build_looks
from .gradio_versions import file_prefix, keep_known, require_gradio, silence_refusals
from .job_queue import JobQueue
from .limits import LOCAL, Limits
from .page_host import StandaloneHost
from .protection import drop_unused
from .request_guard import Guard

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_THREADS = 64


@dataclass
class Page:
    """A page that is being served, until `close`. `url` is where.

    Raises SettingError for a port that is taken, an address of another machine, or a model that is not there.
    """

    #: The model that it starts with.
    model: str = DEFAULT
    #: Where it listens.
    address: str = LOOPBACK
    #: None for a free one.
    port: int | None = None
    #: User and password; None to let everybody in.
    auth: tuple[str, str] | None = None
    limits: Limits = LOCAL
    #: A worker for each of them.
    devices: Sequence[str] = ("auto",)
    #: See settings.LOADING.
    dtype: str = "auto"
    #: Path under which a reverse proxy serves the page.
    root_path: str = ""
    #: Open a browser.
    browser: bool = False

    def __post_init__(self) -> None:
        require_gradio()
        self.host = StandaloneHost(self.model)
        _set_environment(str(self.host.upload_folders[0]))
        silence_refusals()
        self.host.prefix = file_prefix()
        self.queue = JobQueue(self.host, self.limits, devices=self.devices, dtype=self.dtype)
        try:
            self.built: Built = build(self.queue)
            self.url = self._serve()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop serving and working, and delete uploads and results."""
        self.queue.close()
        if hasattr(self, "built"):
            self.built.blocks.close(verbose=False)
        self.host.close()

    def _clean_up(self) -> None:
        self.queue.delete_old_files()
        drop_unused(self.built.painter)

    def _serve(self) -> str:
        blocks, limits = self.built.blocks, self.limits
        room = {"default_concurrency_limit": _THREADS, "max_size": 4 * limits.waiting + 20}
        blocks.queue(**keep_known(blocks.queue, room))
        middleware = import_module("starlette.middleware").Middleware
        leave = self.queue.cancel_jobs_of
        guard = middleware(Guard, limits=limits, clean_up=self._clean_up, on_leave=leave)
        wanted = {
            "server_name": self.address,
            "server_port": self.port,
            "auth": self.auth,
            "root_path": self.root_path or None,
            "inbrowser": self.browser,
            "share": False,
            "quiet": True,
            "prevent_thread_lock": True,
            "show_error": False,
            "max_threads": _THREADS,
            "max_file_size": limits.file_bytes,
            "allowed_paths": [str(self.queue.results), str(self.host.folder / "examples")],
            "app_kwargs": {"middleware": [guard], "docs_url": None, "redoc_url": None},
            "enable_monitoring": False,
            "mcp_server": False,
            "pwa": False,
            "run_history": False,
            "ssr_mode": False,
            "footer_links": ["api"],
            **build_looks(),
        }
        try:
            app, _, _ = blocks.launch(**keep_known(blocks.launch, wanted))
        except (OSError, ValueError) as error:
            where = f"{self.address}:{self.port or 'any port'}"
            raise SettingError(f"{where}: cannot be served there ({error}); choose another port or address") from error
        # Gradio 3 serves whatever lies in the folder that it was started from.
        app.cwd = str(self.host.folder)
        name = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{name}:{blocks.server_port}/"


def _set_environment(uploads: str) -> None:
    """What Gradio reads from the environment: its folder is ours, and it sends nothing to others."""
    os.environ["GRADIO_TEMP_DIR"] = uploads
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Gradio asks itself whether it is up: never through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
