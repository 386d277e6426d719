"""Out of memory, simulated and real; weights on their way to a device; pictures larger than memory."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moesr
from moesr import canvas_memory
from moesr.checkpoints import device_upload
from moesr.config import ProcessConfig
from moesr.diffusion.process import from_config
from moesr.diffusion.samplers import sample
from moesr.errors import SettingError
from moesr.evaluation.speed.measure import peak
from moesr.images import colour, postprocess, row_bands
from moesr.images.row_bands import Store
from moesr.networks.autoencoder import Decoder, Encoder
from moesr.networks.unet import UNet
from moesr.progress import Event
from moesr.runtime import Runtime
from tests.batch_jobs import ROOT
from tests.image_files import photo
from tests.small_models import save_nano

# ---- simulated


class Counting(Runtime):
    released = 0

    def release(self) -> None:
        self.released += 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), torch.cuda.OutOfMemoryError("x")])
def test_every_allocators_error_is_known(error: Exception) -> None:
    assert Runtime().is_out_of_memory(error)
    assert not Runtime().is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize("phase", ["encode", "sample", "decode"])
def test_a_failure_in_any_phase_halves_the_tile(
    nano: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, phase: str
) -> None:
    host = Counting()
    model = moesr.load(nano, residency="all", runtime=host)
    if phase == "encode" and model.process.kind != "residual_shift":
        pytest.skip("nothing is encoded")
    kind: Any = {"encode": Encoder, "sample": UNet, "decode": Decoder}[phase]
    forward = kind.forward

    def limited(self: Any, x: Tensor, *rest: Any) -> Tensor:
        if x.shape[-1] * x.shape[-2] > (96 * 96 if phase == "encode" else 24 * 24):
            raise MemoryError
        return forward(self, x, *rest)

    want = moesr.upscale(model, photo(30, 30), tile=64, steps=2)
    monkeypatch.setattr(kind, "forward", limited)
    seen: list[Event] = []
    out = moesr.upscale(model, photo(30, 30), tile=160, steps=2, callback=seen.append)
    assert host.released == 1
    assert [e for e in seen if e.phase == phase][-1].tiles > 1
    assert "memory ran out" in caplog.text
    assert phase == "decode" or any("memory ran out" in event.note for event in seen)  # decoding was the last to tell
    assert out.shape == want.shape
    if phase == "encode":  # all of the run was done with tiles of half the side then
        assert np.mean(np.abs(out.astype(int) - want) <= 1) > 0.999


@pytest.mark.parametrize("color_fix", ["wavelet", "none"])
def test_a_failure_in_the_colour_fix_halves_its_bands(
    shift_model: str, monkeypatch: pytest.MonkeyPatch, color_fix: str
) -> None:
    host = Counting()
    model = moesr.load(shift_model, residency="all", runtime=host)
    want = moesr.upscale(model, photo(40, 10), steps=1, color_fix=color_fix)
    low_pass, put = colour.low_pass, postprocess.Canvas.put

    def limited(plane: Tensor) -> Tensor:
        if len(plane) > 120:
            raise MemoryError
        return low_pass(plane)

    def limited_put(self: Any, out: Any, image: int, start: int, rgb: Tensor, alpha: Any) -> None:
        if color_fix == "none" and rgb.shape[1] > 64:
            raise MemoryError
        put(self, out, image, start, rgb, alpha)

    monkeypatch.setattr(row_bands, "low_pass", limited)
    monkeypatch.setattr(postprocess.Canvas, "put", limited_put)
    assert np.array_equal(moesr.upscale(model, photo(40, 10), steps=1, color_fix=color_fix), want)
    assert host.released > 0
    monkeypatch.setattr(row_bands, "low_pass", lambda plane: limited(plane.repeat(99, 1)))
    if color_fix == "wavelet":
        with pytest.raises(SettingError, match="out of memory even with bands of rows of 16"):
            moesr.upscale(model, photo(40, 10), steps=1, color_fix=color_fix)


def test_other_errors_pass_through(shift_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("the size of tensor a must match the size of tensor b")

    model = moesr.load(shift_model, residency="all")
    monkeypatch.setattr(Decoder, "forward", fail)
    with pytest.raises(RuntimeError, match="must match"):
        moesr.upscale(model, photo(8, 8), steps=1)


# ---- real: the system itself refuses

LIMITED = """
import json, resource, sys
import torch
torch.set_num_threads(1)
import moesr
from moesr.runtime import trim_memory
from tests.image_files import photo

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

model, events, levels = moesr.load(sys.argv[1], residency="stream"), [], []
moesr.upscale(model, photo(16, 16), steps=4, color_fix="wavelet")  # libraries are loaded, threads exist
for _ in range(3):
    trim_memory()
    levels.append(status("RssAnon"))
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + int(sys.argv[2]), resource.RLIM_INFINITY))
    moesr.upscale(model, photo(96, 96), steps=1, tile=0, color_fix="wavelet", callback=events.append)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    last = (events[-1].phase, events[-1].tiles)
    events.clear()
trim_memory()
levels.append(status("RssAnon"))
print(json.dumps({"last": last, "levels": levels}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of address space")
def test_memory_that_the_system_refuses(tmp_path: Path) -> None:
    """With room for a part of the picture only, the run ends in tiles and gives all memory back."""
    path = save_nano("ddpm", tmp_path)
    model = moesr.load(path, residency="all")
    moesr.upscale(model, photo(16, 16), steps=1)
    with peak(model.device) as needed:
        moesr.upscale(model, photo(96, 96), steps=1, tile=0, color_fix="wavelet")
    assert needed.bytes is not None
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(needed.bytes // 3)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["last"][0] == "decode"
    assert told["last"][1] >= 4
    # Libraries fill caches of their own, once for a size of tile; what a run leaves behind would be left by each.
    levels = told["levels"]  # before each run, and at the end
    assert min(np.diff(levels)) < 2**21, levels


# ---- pictures larger than memory


def mapped_below(folder: Path) -> int:
    """How many files of a folder, deleted ones too, this process has mapped."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
@pytest.mark.parametrize("steps", [10, 2**28])
def test_large_pictures_lie_in_a_file_that_is_never_left_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: int
) -> None:
    monkeypatch.setattr(row_bands, "LARGE", steps)  # in 16 bits, and in float32
    monkeypatch.setattr(canvas_memory, "MAPPED", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    image = torch.rand(3, 8, 9) * 2 - 1
    store = Store(1, 3, 8, 9, torch.device("cpu"))
    assert mapped_below(tmp_path) == 1
    store.put(0, 0, image[:, :5])
    store.put(0, 5, image[:, 5:])
    assert (store.rows(0)(2, 8) - image[:, 2:]).abs().max() < 1e-4
    del store
    gc.collect()
    assert not mapped_below(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_where_memory_cannot_help(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(canvas_memory, "MAPPED", 10)
    monkeypatch.setattr(canvas_memory, "_reserve", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert not canvas_memory.zeros((3, 8, 9), torch.device("cpu")).any()  # in memory
    monkeypatch.setattr(canvas_memory, "HUGE", 100)
    with pytest.raises(SettingError, match=r"no room for the .* GiB .*No space left on device.*TMPDIR"):
        Store(1, 3, 8, 9, torch.device("cpu"))
    assert not list(tmp_path.iterdir())


def test_a_whole_run_through_a_file(shift_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = moesr.load(shift_model, residency="all")
    want = moesr.upscale(model, photo(40, 30), tile=96, steps=1)
    monkeypatch.setattr(canvas_memory, "MAPPED", 10)
    assert np.array_equal(moesr.upscale(model, photo(40, 30), tile=96, steps=1), want)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_a_step_takes_no_canvas_beyond_the_four_it_is_made_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sampler: str
) -> None:
    """The state, y, the prediction and the noise (or the prediction before): all in files, where they are large."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shape = (1, 24, 600, 600)  # 33 MiB
    process = from_config(ProcessConfig(kind="residual_shift", predict="residual"))
    y, seen = canvas_memory.zeros(shape, torch.device("cpu")), []

    def predict(z: Tensor, t: int) -> Tensor:
        seen.append(mapped_below(tmp_path))
        return canvas_memory.zeros_like(z)

    def noise(_: int) -> Tensor:
        return canvas_memory.zeros(shape, torch.device("cpu"))

    timesteps = process.timesteps(4)
    rest = {"noise": noise, "y": y, "allocate": canvas_memory.zeros_like}
    with peak(torch.device("cpu")) as taken:
        z = sample(
            sampler, predict, process, timesteps, process.prior(noise(-1), y, out=canvas_memory.zeros_like(y)), **rest
        )
    assert taken.bytes is not None
    assert taken.bytes < 8 * 2**20
    assert max(seen) <= 5
    del z, y, rest
    gc.collect()
    assert not mapped_below(tmp_path)


# ---- weights on their way to a device


class Late:
    """A lane whose copies are made when someone waits for them, and no earlier: the worst that a device may do."""

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.most = 0

    def buffer(self, entries: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(entries, dtype=dtype)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, 77, dtype=dtype)

    def send(self, source: Tensor, target: Tensor) -> Any:
        self.pending.append((source, target))
        self.most = max(self.most, len(self.pending))
        return SimpleNamespace(synchronize=partial(self.wait, self.pending[-1]))

    def wait(self, sent: Any) -> None:
        while any(sent is one for one in self.pending):
            source, target = self.pending.pop(0)
            target.copy_(source)

    def finish(self) -> None:
        while self.pending:
            self.wait(self.pending[0])


@pytest.mark.parametrize("entries", [1, 7, 64, 10_000])
def test_buffers_are_not_filled_again_before_they_were_read(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setattr(device_upload, "BUFFER", 2 * entries)
    state = {
        "a": torch.randn(5, 13), "none": torch.zeros(0, 4), "one": torch.tensor(3.0), "b": torch.randn(8, 4).t(),
        "count": torch.tensor(12), "half": torch.randn(31).half(),
    }  # fmt: skip
    lane = Late()
    out = device_upload.copy_through(lane, state, state, torch.bfloat16)
    assert not lane.pending
    assert lane.most <= 2
    for name, value in state.items():
        want = value.bfloat16() if value.is_floating_point() else value
        assert torch.equal(out[name], want)
        assert out[name].dtype == want.dtype
    assert device_upload.copy_to_device(state, ["a"], torch.float32, torch.device("cpu"))["a"] is state["a"]
