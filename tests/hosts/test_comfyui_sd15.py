"""A KL f8 decoder of the published size: latents of Stable Diffusion 1.5, and the host's own VAE nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moesr.runtime import Runtime
from moesr.sd15_decoder import LatentDecoder, open_decoder
from tests.checkpoint_files import read_key_table
from tests.hosts.comfyui import Comfy
from tests.hosts.prompts import Prompt


@pytest.fixture(scope="module")
def latent(comfy: Comfy) -> torch.Tensor:
    """Such a latent of 8 x 6 cells, in the host's input folder, and the decoder's file among its models."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, shape in read_key_table("autoencoder_klaff_fa_vae").items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        weights[name] = torch.randn(shape, generator=generator) / fan_in**0.5
        if "running_var" in name:
            weights[name] = weights[name].abs() + 0.5
    save_file(weights, comfy.base / "models" / "moesr" / "fa_vae.safetensors")
    samples = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    contents = {"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}
    save_file(contents, comfy.base / "input" / "sd15.latent")
    return samples


@pytest.fixture(scope="module")
def expected(comfy: Comfy, latent: torch.Tensor) -> np.ndarray:
    """What the library makes of it, uint8 [64, 48, 3]."""
    parts = open_decoder(comfy.base / "models" / "moesr" / "fa_vae.safetensors")
    assert parts is not None
    network = parts.autoencoder(torch.float32, torch.device("cpu"))
    decoder = LatentDecoder(network, torch.device("cpu"), torch.float32, Runtime())
    return (decoder.decode(latent)[0] * 255).byte().numpy()


def test_decode_needs_no_source(comfy: Comfy, expected: np.ndarray) -> None:
    prompt = Prompt()
    samples = prompt.add("LoadLatent", latent="sd15.latent")
    saved = prompt.save(prompt.decode(prompt.model(model="fa_vae", dtype="fp32"), samples))
    (found,) = comfy.images(comfy.run(prompt), saved)
    assert found.shape == (64, 48, 3)
    assert np.ptp(expected) > 8
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_vae_in_the_hosts_own_nodes(comfy: Comfy, expected: np.ndarray) -> None:
    prompt = Prompt()
    samples = prompt.add("LoadLatent", latent="sd15.latent")
    vae = prompt.add("MoESRFCDAsVAE", model=prompt.model(model="fa_vae", dtype="fp32"))
    decoded = prompt.save(prompt.add("VAEDecode", samples=samples, vae=vae))
    tiled = prompt.add("VAEDecodeTiled", samples=samples, vae=vae, tile_size=64, overlap=32, temporal_size=64)
    prompt[tiled[0]]["inputs"]["temporal_overlap"] = 8
    again = prompt.save(tiled)
    latent = prompt.add("VAEEncode", pixels=prompt.load(), vae=vae)
    back = prompt.save(prompt.add("VAEDecode", samples=latent, vae=vae))
    outputs = comfy.run(prompt)
    (found,) = comfy.images(outputs, decoded)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert comfy.images(outputs, again)[0].shape == (64, 48, 3)
    # 36 x 24: the host crops what it encodes to multiples of eight.
    assert comfy.images(outputs, back)[0].shape == (24, 32, 3)


def test_a_decoder_cannot_sample_and_says_so(comfy: Comfy, latent: torch.Tensor) -> None:
    prompt = Prompt()
    model, image = prompt.model(model="fa_vae"), prompt.load()
    prompt.save(prompt.decode(model, prompt.sample(model, image), image))
    error = comfy.failure(prompt)
    assert error["node_type"] == "MoESRSampler"
    assert "Stable Diffusion 1.5" in error["exception_message"]


def test_a_sampling_model_is_no_vae_and_says_so(comfy: Comfy) -> None:
    prompt = Prompt()
    vae = prompt.add("MoESRFCDAsVAE", model=prompt.model())
    prompt.save(
        prompt.add("VAEDecode", samples=prompt.add("EmptyLatentImage", width=64, height=64, batch_size=1), vae=vae)
    )
    assert "choose a KL f8 decoder" in comfy.failure(prompt)["exception_message"]
