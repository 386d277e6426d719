"""Every path on a pretended device: nothing mixed up, few copies, no waiting per tile, memory as estimated."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moesr
from moesr import run_plan
from moesr.evaluation import selftest
from moesr.evaluation.nano_models import NANO_KL, build_autoencoder, build_nano
from moesr.evaluation.parity import synthetic_picture
from moesr.evaluation.selftest import SelfTest
from moesr.images.files import Picture
from moesr.networks import layers
from moesr.runtime import Runtime
from moesr.sd15_decoder import LatentDecoder
from moesr.tiling import estimate_tile_memory
from tests.pretended_device import OnDevice, pretended_device
from tests.small_models import save_nano

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")

#: What one step may call on the device for one tile of the nano models (about 240 are called,
#: some of which torch takes apart further).
OPERATORS_PER_STEP = 260


def batch() -> Tensor:
    """Two RGB images as ComfyUI gives them, float32 [2, 20, 28, 3]."""
    return torch.from_numpy(np.stack([synthetic_picture(28)[:20], synthetic_picture(28)[8:]])).float() / 255


def cutout() -> np.ndarray:
    """A picture with alpha: a hole, a soft edge, an opaque part. uint8 [24, 20, 4]."""
    alpha = np.clip(np.arange(24 * 20).reshape(24, 20, 1) - 100, 0, 255).astype(np.uint8)
    return np.concatenate([synthetic_picture(24)[:, :20], alpha], axis=2)


def deep() -> Picture:
    """A picture of 16 bits."""
    return Picture(synthetic_picture(12).astype(np.float32) / 255, bits=16)


def decode_alone(device: torch.device) -> Tensor:
    """Latents of Stable Diffusion, that a host keeps on the CPU, through the KL decoder."""
    decoder = LatentDecoder(build_autoencoder(NANO_KL).to(device), device, torch.float32, Runtime())
    return decoder.decode(torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(2)), tile=64)


def upscale_on(device: torch.device, kind: str, image: Callable[[], Any], **settings: Any) -> Any:
    return moesr.upscale(build_nano(kind, device), image(), steps=2, **settings)


def values(out: Any) -> np.ndarray:
    if isinstance(out, Picture):
        return out.floats().rgb * 255
    return np.asarray(out, np.float32) * (255 if isinstance(out, Tensor) else 1)


CASES: dict[str, Callable[[torch.device], Any]] = {
    "tiny": lambda device: moesr.upscale(moesr.load("tiny", dtype="fp32", device=device), synthetic_picture(16)),
    "experts, batch, tiles": lambda device: upscale_on(device, "ddpm", batch, tile=64, tile_batch=2),
    "skip, mask, alpha, wrap": lambda device: upscale_on(
        device, "residual_shift", cutout, wrap=True, color_fix="wavelet", mask=np.eye(24, 20, dtype=np.float32)
    ),
    "swin, 16 bits, other scale": lambda device: upscale_on(device, "swin", deep, scale=3),
    "KL f8": decode_alone,
}


@pytest.mark.parametrize("name", CASES)
def test_every_path_keeps_to_its_device(name: str) -> None:
    want = values(CASES[name](CPU))
    with pretended_device() as device:
        got = CASES[name](CUDA)
        assert not isinstance(got, OnDevice)  # the same kind comes back, for hosts that know the CPU only
        assert device.uploaded
        assert device.downloaded
    assert np.abs(values(got) - want).max() <= 1


def test_residency_moves_experts_and_lets_go_of_all(tmp_path: Path) -> None:
    path, picture = save_nano("ddpm", tmp_path), synthetic_picture(16)
    with pretended_device() as device:
        results, live = [], []
        for residency in ("all", "stream"):
            model = moesr.load(path, device="cuda", dtype="fp32", residency=residency)
            results.append(moesr.upscale(model, picture))
            live.append(device.live)
            model.close()
            del model
            gc.collect()
            assert device.live == 0
        assert np.array_equal(*results)
        assert live[1] < 0.75 * live[0]  # two of four experts, and the decoder


@pytest.mark.parametrize("tile", [0, 64])
def test_copies_per_picture_and_work_per_step(tile: int) -> None:
    """What crosses: the LR image, noise, and once per run matrices and weights; back comes the picture, in bytes."""
    side, scale = 24, 4
    with pretended_device() as device:
        model = build_nano("residual_shift", CUDA)

        def count(steps: int) -> dict[str, int]:
            device.reset()
            moesr.upscale(model, synthetic_picture(side), steps=steps, tile=tile)
            return {
                "uploaded": device.uploaded, "downloaded": device.downloaded, "reads": device.scalar_reads,
                "operators": sum(device.operators.values()), "downloads": device.downloads,
            }  # fmt: skip

        two, four = count(2), count(4)
        lr = latent = side * side * 3 * 4
        resizing = 4 * (64 * 19 + 32 * 11) if tile == 0 else 4 * (64 * 19 + 24 * 9)
        blending = 4 * 2 * (24 + 96) if tile == 0 else 4 * 4 * (14 + 56)
        assert two["uploaded"] == lr + 2 * latent + resizing + blending
        assert two["downloads"] == 1
        assert two["downloaded"] == (side * scale) ** 2 * 3
        assert two["reads"] == 3  # are latent and picture finite, and has the LR image pure black or white?
        step = {name: (four[name] - two[name]) / 2 for name in two}
        assert step["downloaded"] == step["reads"] == 0  # nothing waits for the device while it samples
        assert step["uploaded"] == latent  # noise
        assert step["operators"] <= (1 if tile == 0 else 4) * OPERATORS_PER_STEP


@pytest.mark.parametrize(("kind", "side"), [("tiny", 32), ("ddpm", 24), ("swin", 32)])
def test_memory_is_as_estimated(kind: str, side: int) -> None:
    """The peak beside the weights and what the run keeps anyway, within 20 % of the estimate."""
    with pretended_device() as device:
        model = moesr.load("tiny", dtype="fp32", device="cuda") if kind == "tiny" else build_nano(kind, CUDA)
        gc.collect()
        start = device.live
        device.reset()
        moesr.upscale(model, synthetic_picture(side), steps=1, tile=0)
        estimate = estimate_tile_memory(model.config.autoencoder, CUDA, side * model.scale)
        assert 0.8 < (device.peak - start) / estimate < 1.2


def test_frames_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies on the device does not depend on the number of frames, by one call or by two as the nodes make them."""
    monkeypatch.setattr(run_plan, "LARGEST_GROUP", 2)
    frames, peaks = torch.from_numpy(np.stack([synthetic_picture(8)] * 9)).float() / 255, []
    with pretended_device() as device:
        model = build_nano("swin", CUDA)
        for count in (3, 9):
            gc.collect()
            device.reset()
            out = moesr.upscale(model, frames[:count], steps=1)
            latents = moesr.sample_latents(model, frames[:count], steps=1)
            assert torch.equal(moesr.decode_latents(model, latents, frames[:count]), out)
            peaks.append(device.peak)
            assert out.shape == (count, 32, 32, 3)
        gc.collect()
        gc.disable()  # nothing waits for the collector of cycles
        try:
            before = device.live
            moesr.upscale(model, frames[:3], steps=1, callback=lambda _: None)
            assert device.live == before
        finally:
            gc.enable()
    assert peaks[0] == peaks[1]


def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended device sees what a real one would not forgive, or would be slow at."""

    def upscale() -> Any:
        return moesr.upscale(model, synthetic_picture(16), steps=1)

    with pretended_device() as device:
        model = build_nano("residual_shift", CUDA)
        # A parameter that did not move with its network.
        model.autoencoder.post_quant_conv.bias = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        with pytest.raises(RuntimeError, match="at least two devices"):
            upscale()
        model = build_nano("residual_shift", CUDA)
        # Noise of a generator on the CPU, drawn on the device.
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            torch.randn(3, generator=torch.Generator(), device=CUDA)
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            torch.zeros(3, device=CUDA).normal_(generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            torch.zeros(3, device=CUDA).numpy()
        # A value that is read per tile.
        device.reset()
        upscale()
        before, attend = device.scalar_reads, layers.attention
        monkeypatch.setattr("moesr.networks.unet.attention", lambda q, k, v: attend(q, k, v) * (q.sum().item() * 0 + 1))
        device.reset()
        upscale()
        assert device.scalar_reads > before


@pytest.mark.parametrize("row", ["memory", "residency"])
def test_the_self_test_on_a_device(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory row meets a limit that really raises, at the allocation that does not fit."""
    monkeypatch.setattr(selftest, "synthetic_picture", lambda side: synthetic_picture(min(side, 32)))
    load = moesr.load
    monkeypatch.setattr(selftest, "load", lambda *a, **k: load(*a, **{**k, "dtype": "fp32"}))
    with pretended_device():
        result = next(iter(SelfTest(CUDA, quick=True).run((row,))))
    assert result.passed, result.summary


# ---- other backends


def operators_with_mps() -> dict[str, dict[str, Any]]:
    """torch's own table of operators, by name."""
    torchgen = pytest.importorskip("torchgen")
    yaml = pytest.importorskip("yaml")
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    if not table.is_file():
        pytest.skip("this torch comes without its table of operators")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {entry["func"].split("(")[0]: entry for entry in yaml.load(table.read_text(), loader)}


def runs_on_mps(name: str, table: dict[str, dict[str, Any]]) -> bool:
    """Whether an operator has a kernel for MPS, or is made of others."""
    entry = table[name.removeprefix("aten.").removesuffix(".default")]
    if "structured_delegate" in entry:
        return runs_on_mps(entry["structured_delegate"], table)
    keys = [key.strip() for keys in entry.get("dispatch", {}) for key in keys.split(",")]
    return not keys or any(key == "MPS" or key.startswith("Composite") for key in keys)


def test_mps_needs_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No float64 on the device, and no operator that MPS lacks."""
    table = operators_with_mps()
    assert not runs_on_mps("aten._linalg_det", table) or not runs_on_mps("aten.geqrf", table)  # the table does tell
    monkeypatch.setattr(torch, "inference_mode", lambda *_: torch.no_grad())  # composites come apart before we see them
    with pretended_device("mps") as device:
        where = torch.device("mps:0")
        runs: dict[str, dict[str, Any]] = {
            "ddpm": {"sampler": "dpmpp_2m", "tile": 64},
            "residual_shift": {"wrap": True, "color_fix": "wavelet", "mask": np.eye(24, 20, dtype=np.float32)},
            "swin": {"scale": 3},
        }
        for kind, settings in runs.items():
            moesr.upscale(build_nano(kind, where), cutout(), steps=2, **settings)
        decode_alone(where)
        names = {name for name in device.operators if name.startswith("aten.")}
        assert len(names) > 50
        assert not [name for name in names if not runs_on_mps(name, table)]
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(3, dtype=torch.float64, device=where)
