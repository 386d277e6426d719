"""A host of the extension, and the extension in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from moesr.library import model_folders as library
from tests.small_models import save_nano
from tests.webui.standins import SCRIPT, Host


@pytest.fixture
def kind() -> str:
    """Which host, where a test does not run in both."""
    return "A1111"


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights: x4, four steps."""
    return save_nano("residual_shift", tmp_path_factory.mktemp("nano"))


@pytest.fixture
def host(kind: str, tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host whose models/MoESR has one small model, `nano`, beside the embedded one."""
    monkeypatch.setattr(library, "_added", [])
    monkeypatch.setattr(library, "user_folders", lambda: [])
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    folder = tmp_path / "models" / "MoESR"
    folder.mkdir(parents=True)
    shutil.copy(nano, folder / "nano.safetensors")
    with Host(tmp_path, forge=kind == "Forge").entered() as made:
        yield made
        made.call("script_unloaded")


@pytest.fixture
def loaded(host: Host) -> ModuleType:
    """Our script, loaded as the host does it: settings, then upscalers, then the tab."""
    script = host.load_script(SCRIPT)
    host.call("ui_settings")
    host.opts.data |= {"moesr_model": "nano", "moesr_steps": 2}
    host.upscalers += script.UpscalerMoESR(None).scalers
    return script
