"""ResShift's models behind the page and ComfyUI's nodes: they run there, and what was assumed is said there too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

import moesr
from moesr.checkpoints.model_files import save_model
from moesr.checkpoints.resshift import F4
from moesr.config import ModelConfig, ProcessConfig, SwinUNetConfig
from moesr.errors import SettingError
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.swin_unet import SwinUNet
from moesr.page.job import Job
from moesr.page.job_queue import JobQueue
from moesr.page.page_host import StandaloneHost
from moesr.page.uploads import Upload, accept
from tests.batch_jobs import draw
from tests.checkpoint_files import SWIN, VQ4, random_state, resshift_state

SHIFT4 = ProcessConfig("residual_shift", 4, "x0", min_noise_level=0.2)
FILLER = replace(SWIN, lr_downsamples=2, mask=True)


def library(folder: Path, unet: SwinUNetConfig = FILLER) -> Path:
    """A folder with a model in one file, and one as it is published, but for its name."""
    config = ModelConfig(unet, VQ4, SHIFT4, (4,), 4 // unet.detail, 4, lr_resize="torch")
    decoder = dict(random_state(Autoencoder, VQ4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SwinUNet(unet).state_dict()
    save_model(folder / "hole.safetensors", config, [network], decoder, torch.float32)
    (folder / "mine").mkdir()
    torch.save(resshift_state(SWIN), folder / "mine" / "net.pth")
    torch.save(decoder, folder / "mine" / F4)
    return folder


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobQueue]:
    monkeypatch.setenv("MOESR_HOME", str(library(tmp_path)))
    host = StandaloneHost()
    host.upload_folders[0].mkdir()
    queue = JobQueue(host)
    yield queue
    queue.close()
    host.close()


def upload(queue: JobQueue) -> Upload:
    return accept(draw(queue.host.upload_folders[0] / "a.png", size=(8, 6)), queue.host.upload_folders)


def test_the_page_runs_published_files_and_knows_what_it_assumed(queue: JobQueue) -> None:
    job = queue.submit(Job([upload(queue)], "mine", {}))
    job.wait(120)
    assert (job.state, job.failures, job.error) == ("done", [], "")
    assert job.results[0].size == (32, 24)
    (note,) = queue.host.facts.list_notes("mine")
    assert "assumed 4; give timesteps, or a name with s15" in note
    assert queue.host.facts.list_notes(queue.host.facts.default) == ()


def test_the_page_shows_what_was_assumed(queue: JobQueue) -> None:
    pytest.importorskip("gradio")
    page = importlib.import_module("moesr.page.handlers").Handlers(queue)
    assert page.draw_plan("mine", 4).count("assumed 4; give timesteps, or a name with s15") == 1
    assert "assumed" not in page.draw_plan(queue.host.facts.default, 4)


def test_models_that_fill_in_are_sent_where_masks_are(queue: JobQueue) -> None:
    with pytest.raises(SettingError, match=r"^hole fills in what a mask marks, .* upscale --mask"):
        queue.submit(Job([upload(queue)], "hole", {}))


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The node, with as much of ComfyUI as it derives from; the genuine one is for `make test-hosts`."""
    pack = ModuleType("pack")
    pack.__path__ = [str(Path(__file__).parents[1])]
    nodes = ModuleType("pack.nodes")
    nodes.__path__ = [str(Path(__file__).parents[1] / "nodes")]
    host = MagicMock()
    host.io = MagicMock(ComfyNode=object, NodeOutput=lambda *outputs: outputs)
    host.read_prompt_inputs = dict
    host.to_output = lambda values: values
    for name, module in {"pack": pack, "pack.nodes": nodes, "pack.nodes.comfyui": host}.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)
    yield importlib.import_module("pack.nodes.sampler").MoESRSampler
    for name in set(sys.modules) - before:
        del sys.modules[name]


def run(sampler: Any, model: Any, image: torch.Tensor, mask: torch.Tensor | None) -> tuple[dict[str, Any], str]:
    """The node at its defaults."""
    hosted = SimpleNamespace(sr=model, begin_run=lambda width, height, tile: None)
    return sampler.execute(SimpleNamespace(hosted=hosted), image, 0, 0, "auto", 1.0, "per image", 0, False, mask)


def test_the_sampler_node_shows_its_mask_to_models_that_fill_in(sampler: Any, tmp_path: Path) -> None:
    model = moesr.load(library(tmp_path) / "hole.safetensors", device="cpu", dtype="fp32")
    image, mask = torch.rand(1, 32, 40, 3), torch.zeros(1, 32, 40)
    mask[:, 8:16, 8:24] = 1
    seen: list[torch.Tensor] = []
    with model.bank.stage(0) as network:
        handle = network.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
        latent, _ = run(sampler, model, image, mask)
        handle.remove()
    assert torch.equal(seen[0][:, 3, :32, :40], mask)
    assert torch.equal(latent["noise_mask"], mask)
    assert latent["samples"].shape == (1, 3, 8, 16)


def test_the_sampler_node_says_what_was_assumed(sampler: Any, tmp_path: Path) -> None:
    model = moesr.load(library(tmp_path) / "mine", device="cpu", dtype="fp32")
    _, plan = run(sampler, model, torch.rand(1, 8, 8, 3), None)
    assert plan.splitlines() == ["4 steps, 1 experts at work", "expert 0: steps 1 to 4 (t 3 to 0)", *model.notes]
    assert "assumed 4" in plan
