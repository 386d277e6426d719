"""ComfyUI's own page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hosts.setup_browser import browser


@dataclass
class Window:
    """A page of ComfyUI, with what it said in its console."""

    page: Any
    folder: Path
    said: list[str] = field(default_factory=list)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a JavaScript function gives."""
        return self.page.evaluate(script, *arguments)

    def open(self, workflow: dict[str, Any], name: str = "test") -> list[str]:
        """Load a workflow as a user's file; the types of nodes that the page does not know."""
        self.run("async ([graph, name]) => await window.app.loadGraphData(graph, true, true, name)", [workflow, name])
        self.page.wait_for_timeout(300)
        return self.run(
            "() => { const all = []; const walk = graph => graph.nodes.forEach(node => {"
            " if (node.has_errors || !(node.type in LiteGraph.registered_node_types)) all.push(node.type);"
            " if (node.subgraph) walk(node.subgraph); }); walk(window.app.graph); return all; }"
        )

    def prompt(self) -> dict[str, Any]:
        """The workflow on the page in the API's format, as Run would send it."""
        return self.run("async () => (await window.app.graphToPrompt()).output")

    def shot(self, name: str) -> Path:
        """A screenshot, for people to look at."""
        path = self.folder / f"{name}.png"
        self.page.screenshot(path=str(path))
        return path


@contextmanager
def window(url: str, folder: Path, width: int = 1500, height: int = 950) -> Iterator[Window]:
    """A browser with ComfyUI's page, loaded and ready. Screenshots go into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as started:
        page = started.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(90_000)
        shown = Window(page, folder)
        page.on("console", lambda message: shown.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: shown.said.append(f"pageerror: {error}"))
        page.goto(url)
        page.wait_for_function("() => window.app?.graph && window.app.extensionManager", timeout=180_000)
        page.wait_for_function("() => window.LiteGraph && 'MoESRLoader' in LiteGraph.registered_node_types")
        yield shown


def read(path: Path) -> dict[str, Any]:
    """A workflow file."""
    return json.loads(path.read_text(encoding="utf-8"))
