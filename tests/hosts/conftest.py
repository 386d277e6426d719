"""The genuine hosts that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.hosts.comfyui import Comfy, running
from tests.hosts.packs import NEIGHBOURS, ROOT, put_moesr, put_pack
from tests.hosts.setup_comfyui import Installation, comfyui
from tests.small_models import save_nano


@pytest.fixture(scope="session")
def installation() -> Installation:
    """ComfyUI's folder and its Python."""
    return comfyui()


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A photograph of 36 x 24 pixels, uint8 [24, 36, 3]."""
    whole = Image.open(ROOT / "assets" / "demo.png").convert("RGB")
    return np.asarray(whole.resize((36, 24), Image.Resampling.LANCZOS))


@pytest.fixture(scope="session")
def comfy(installation: Installation, tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Iterator[Comfy]:
    """A host with the pack in a folder with a dot in its name, among packs of others, and more models."""
    base = tmp_path_factory.mktemp("comfyui")
    put_moesr(base, "ComfyUI-MoESR.v1")
    for name in NEIGHBOURS:
        put_pack(base, name)
    models = base / "models" / "moesr"
    models.mkdir(parents=True)
    save_nano("ddpm", models)
    # Models elsewhere, as extra_model_paths.yaml has it.
    elsewhere = base / "elsewhere"
    (elsewhere / "sr").mkdir(parents=True)
    save_nano("residual_shift", elsewhere / "sr")
    paths = base / "paths.yaml"
    paths.write_text(f"mine:\n  base_path: {elsewhere}\n  moesr: sr\n", encoding="utf-8")
    with running(installation, base, "--extra-model-paths-config", paths, "--preview-method", "auto") as host:
        host.put("photo.png", photo)
        yield host
