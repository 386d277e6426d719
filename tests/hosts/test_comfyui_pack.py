"""The pack as a package: what importing it costs, and what the registry would take."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from typing import Any

import pytest

from tests.hosts.comfyui import LAUNCH, Comfy
from tests.hosts.packs import ROOT, put_moesr
from tests.hosts.setup_comfyui import Installation

DOCS = ROOT / "web" / "comfy" / "docs"
NODES = list(json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")))

#: Imports the pack as ComfyUI does, after all that ComfyUI itself imports, and counts torch's work meanwhile.
MEASURE = """
import asyncio, importlib.util, json, sys, time
folder, host = sys.argv[1], sys.argv[2]
sys.path.insert(0, host)
sys.argv = [sys.argv[0], "--cpu"]
import utils.install_util  # before another `utils` is found
import comfy.options
comfy.options.enable_args_parsing()
import nodes, server, execution
from comfy_api.latest import ComfyExtension, io
import comfy.sd, comfy_execution.progress, comfy_execution.utils, torch
loop = asyncio.new_event_loop()
server.PromptServer.instance = server.PromptServer(loop)
from torch.utils._python_dispatch import TorchDispatchMode
work = []
class Count(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        work.append(str(function))
        return function(*args, **(kwargs or {}))
name = folder.replace(".", "_x_")
before = set(sys.modules)
start = time.process_time()  # what others do on the machine is not ours
with Count():
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
    pack = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    async def load():
        extension = await pack.comfy_entrypoint()
        return [node.GET_SCHEMA().node_id for node in await extension.get_node_list()]
    ids = loop.run_until_complete(load())
took = time.process_time() - start
new = sorted(other for other in set(sys.modules) - before if not other.startswith(name))
print("RESULT", json.dumps({"ids": ids, "took": took, "work": work, "new": new}))
"""


@pytest.fixture(scope="module")
def imported(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    base = tmp_path_factory.mktemp("comfyui_import")
    folder = put_moesr(base, "ComfyUI-MoESR.v1")
    script = base / "measure.py"
    script.write_text(MEASURE, encoding="utf-8")
    command = [installation.python, LAUNCH, script, folder, installation.folder]
    environment = {**os.environ, "HOME": str(base)}
    seen = []
    for _ in range(2):  # the second time without compiling
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        seen.append(json.loads(done.stdout.split("RESULT ")[1]))
    return seen[1]


def test_import_is_fast_and_does_no_torch_work(imported: dict[str, Any]) -> None:
    assert imported["ids"] == NODES
    assert imported["work"] == []
    assert imported["took"] < 0.3
    # Nothing of other packages that the host had not imported, but the standard library's.
    assert not [name for name in imported["new"] if name.split(".")[0] in ("torch", "numpy", "scipy", "gradio")]


def test_the_host_says_so_too(comfy: Comfy) -> None:
    said = re.search(r"([\d.]+) seconds: \S*ComfyUI-MoESR\.v1", comfy.text())
    assert said is not None
    assert float(said[1]) < 0.5  # beside a host that is starting
    assert "IMPORT FAILED" not in said.string.split("custom nodes:")[1].split("comfy_extras")[0]


@pytest.mark.parametrize("name", NODES)
def test_every_node_has_help_with_a_picture_in_two_languages(name: str) -> None:
    pages = {"en": DOCS / f"{name}.md", "zh": DOCS / name / "zh.md"}
    for locale, path in pages.items():
        text = path.read_text(encoding="utf-8")
        words = json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))[name]
        assert text.startswith(f"# {words['display_name']}\n")
        for put in words["inputs"].values():
            assert f"**{put['name']}**" in text, (locale, put["name"])
        pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert pictures
        assert all((DOCS / picture).is_file() for picture in pictures)


def test_requirements_are_what_the_host_has(installation: Installation) -> None:
    theirs = (installation.folder / "requirements.txt").read_text(encoding="utf-8").lower()
    ours = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    names = [re.split(r"[<>=]", line)[0] for line in ours]
    assert names
    for name in names:
        assert re.search(rf"^{name}\b", theirs, re.MULTILINE), name


def test_the_pack_is_fit_for_the_registry(installation: Installation) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    values = dict(re.findall(r'^([\w-]+) = "([^"]+)"', text.split("[tool.comfy]")[1], re.MULTILINE))
    assert {"DisplayName", "requires-comfyui"} <= values.keys()
    lowest = tuple(int(n) for n in re.findall(r"\d+", values["requires-comfyui"]))
    assert lowest <= installation.version
    width, height = struct.unpack(">II", (ROOT / "assets" / "icon.png").read_bytes()[16:24])
    assert width == height <= 400
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"tests/", ".ci/", "install.py", "scripts/", "moesr/webui/"} <= set(ignored)
    assert (ROOT / "LICENSE").is_file()
