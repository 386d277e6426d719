"""Puts the pack, and packs of others beside it, into a host's custom_nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: What an installed pack consists of, as .comfyignore has it.
SHIPPED = (
    "__init__.py", "pyproject.toml", "requirements.txt", "moesr", "nodes", "locales", "web", "example_workflows",
    "subgraphs",
)  # fmt: skip

#: Packs with packages of the names that ours has, or that hosts have; they come before ours on the path.
NEIGHBOURS = {
    "aaa-with-nodes": {
        "__init__.py": (
            "import os, sys\n"
            "sys.path.insert(0, os.path.dirname(__file__))\n"
            "from .nodes import NODE_CLASS_MAPPINGS\n"
            "import modules.helper\n"
            "import moesr\n"
            "assert moesr.WHOSE == modules.helper.WHOSE == 'neighbour'\n"
            "__all__ = ['NODE_CLASS_MAPPINGS']\n"
        ),
        "moesr.py": "WHOSE = 'neighbour'\n",
        "modules/__init__.py": "",
        "modules/helper.py": "WHOSE = 'neighbour'\n",
        "nodes/__init__.py": (
            "class Neighbour:\n"
            "    RETURN_TYPES = ('INT',)\n"
            "    FUNCTION = 'run'\n"
            "    CATEGORY = 'neighbour'\n"
            "    @classmethod\n"
            "    def INPUT_TYPES(cls):\n"
            "        return {'required': {}}\n"
            "    def run(self):\n"
            "        return (1,)\n"
            "NODE_CLASS_MAPPINGS = {'Neighbour': Neighbour}\n"
        ),
        "nodes/comfyui.py": "raise RuntimeError('this is the comfyui.py of a neighbour')\n",
    },
    # Tells the tests what the host's memory manager keeps, and which of our models are alive.
    "zzz-watch": {"__init__.py": Path(__file__).with_name("watch.py").read_text(encoding="utf-8")},
}


def put_moesr(base: Path, name: str) -> Path:
    """A copy of the pack under that name."""
    folder = base / "custom_nodes" / name
    folder.mkdir(parents=True)
    for part in SHIPPED:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / part).is_file():
            shutil.copy(ROOT / part, folder / part)
    return folder


def put_pack(base: Path, name: str) -> Path:
    """One of NEIGHBOURS."""
    folder = base / "custom_nodes" / name
    for path, text in NEIGHBOURS[name].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder
