"""A run of training as such: exact resume, kills, NaN, processes, pictures, logs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from moesr.cli import main
from moesr.errors import NumericsError, SettingError
from moesr.training.config import TrainingConfig
from moesr.training.config import load as load_config
from moesr.training.engine import LaunchedEngine
from moesr.training.loader import Loader
from moesr.training.loop import run
from moesr.training.stages import train
from tests import training_setup as setup

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("first-stage", "experts", "decoder")
#: gloo looks for an interface by the host's name, which not every machine knows.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
TASKS = ("first", "expert", "fcd")


def tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of a state, by its place in there."""
    if isinstance(state, Tensor):
        return {name: state}
    inner = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {k: v for key, value in inner for k, v in tensors(value, f"{name}/{key}").items()}


def go(name: str, settings: TrainingConfig, metrics: Path, folder: Path, stop: int | None = None) -> None:
    """Run a stage in `folder`; at step `stop` it breaks off."""
    loop, engine = settings.first_stage.loop, LaunchedEngine(settings.first_stage.loop.accumulate)
    task = setup.task(name, metrics, settings, engine)
    step: Callable[..., Any] = task.step

    def breaking(batch: Any, index: int) -> dict[str, float]:
        if index == stop:
            raise KeyboardInterrupt
        return step(batch, index)

    task.step = breaking  # type: ignore[method-assign]  # a run that is killed
    run(task, Loader(setup.item, loop, engine), loop, folder)


@pytest.mark.parametrize("name", TASKS)
def test_resume_is_exact(name: str, metrics: Path, tmp_path: Path) -> None:
    """Losses, weights, optimisers and averages are those of the run that was not stopped, to the bit."""
    settings = setup.config(steps=5, save_every=2, log_every=3)
    go(name, settings, metrics, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(name, settings, metrics, tmp_path / "broken", stop=3)
    assert torch.load(tmp_path / "broken" / "state.pt", weights_only=True)["step"] == 2
    go(name, settings, metrics, tmp_path / "broken")
    assert setup.read_log(tmp_path / "whole") == setup.read_log(tmp_path / "broken")
    whole, broken = (torch.load(tmp_path / f / "state.pt", weights_only=True) for f in ("whole", "broken"))
    a, b = tensors(whole), tensors(broken)
    assert a.keys() == b.keys()
    assert len(a) > 50
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def on_two_processes(command: list[str]) -> None:
    """Run Python with these arguments twice, as `accelerate launch` does, over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    running = []
    for rank in ("0", "1"):
        environment = {**os.environ, **LOOPBACK, **around, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        running.append(
            subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
    try:
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in running:
            process.kill()


def test_two_processes_equal_one(metrics: Path, tmp_path: Path) -> None:
    """The same global batch, shared by two, with adversary and codebook at work.

    Gradients of the first step (Adam's first moment): within 3e-3 of their norm, for float32 sums in another order
    (measured: 7e-4 where rounding decides a leaky ReLU). Losses of the steps after it: 5e-3, as Adam divides each
    gradient by its own size. A half batch's own gradient is off by about its norm. Batch norms, which the decoder has,
    share statistics on GPUs alone.
    """
    code = "import sys, pathlib; from tests import training_setup as t; t.every_stage(*map(pathlib.Path, sys.argv[1:]))"
    on_two_processes(["-c", code, str(metrics), str(tmp_path / "two")])
    setup.every_stage(metrics, tmp_path / "one")
    for name in ("first", "expert"):
        one, two = (torch.load(tmp_path / n / "1" / name / "state.pt", weights_only=True) for n in ("one", "two"))
        a, b = tensors(one["parts"]), tensors(two["parts"])
        compared = [k for k in a if k.endswith("exp_avg")]
        assert len(compared) > 20
        for part in {k.split("/")[1] for k in compared}:
            keys = [k for k in compared if k.split("/")[1] == part]
            distance = sum(float((a[k] - b[k]).square().sum()) for k in keys) ** 0.5
            norm = sum(float(a[k].square().sum()) for k in keys) ** 0.5
            assert distance < 3e-3 * norm, (name, part, distance / norm)
        losses = setup.read_log(tmp_path / "one" / "3" / name), setup.read_log(tmp_path / "two" / "3" / name)
        assert len(losses[0]) == len(losses[1]) == 3
        for x, y in zip(*losses):
            assert x == pytest.approx(y, rel=5e-3, abs=1e-6)


@pytest.mark.slow
def test_accelerate_launch_scales_all_stages(photographs: Path, metrics: Path, tmp_path: Path) -> None:
    """From photographs to a decoder on two processes; samples are rounded to fp16, and codes may flip: 5e-3."""
    path = setup.write_config(tmp_path / "config.json", "kl", steps=3, batch=4)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", "0", "-m", "moesr", "train"]
    for stage in STAGES:
        options = [str(path), "--data", str(photographs), "--metrics", str(metrics), "--out", str(tmp_path / "two")]
        environment = {**os.environ, **LOOPBACK, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        subprocess.run([*launcher, stage, *options, "--threads", "1"], cwd=ROOT, env=environment, check=True)
        train(stage, load_config(str(path)), photographs, tmp_path / "one", metrics)
    for stage in ("first_stage", "trunk", "stage0", "stage1", "decoder"):
        for a, b in zip(setup.read_log(tmp_path / "one" / stage), setup.read_log(tmp_path / "two" / stage)):
            assert a == pytest.approx(b, rel=5e-3)


def test_parts_of_a_batch_add_up_to_it(metrics: Path, tmp_path: Path) -> None:
    """Gradient accumulation: one expert's steps are the same in one, two and four parts."""
    found = []
    for parts in (1, 2, 4):
        settings = setup.config(steps=4, batch=4, accumulate=parts, lr=3e-3)  # so large that noise counts
        go("expert", settings, metrics, tmp_path / str(parts))
        found.append(setup.read_log(tmp_path / str(parts)))
    assert found[0][0]["l2"] != found[0][1]["l2"]
    for other in found[1:]:
        for a, b in zip(found[0], other):
            assert a == pytest.approx(b, rel=1e-3)


def test_numbers_that_are_not_finite_stop_and_keep_the_last_good_state(metrics: Path, tmp_path: Path) -> None:
    """A loss; and weights, which a step can break while its own loss still is a number."""
    settings = setup.config(steps=3)
    for name, line, kept in (("first", r"step 2: loss l1 is nan; last good state is .*state\.pt", 2),
                             ("expert", "weights of network are not numbers", 1)):  # fmt: skip
        task = setup.task(name, metrics, settings)
        step: Callable[..., Any] = task.step

        def break_down(batch: Any, index: int, name: str = name, task: Any = task, step: Any = step) -> Any:
            losses = step(batch, index)
            if name == "expert" and index == 1:
                next(iter(task.network.parameters())).data.fill_(float("inf"))
            return {"l1": float("nan")} if name == "first" and index == 2 else losses

        task.step = break_down  # type: ignore[method-assign]  # stands in for one of a GPU that overflows
        with pytest.raises(NumericsError, match=line):
            run(task, Loader(setup.item, task.loop, task.engine), task.loop, tmp_path / name)
        state = torch.load(tmp_path / name / "state.pt", weights_only=True)
        assert state["step"] == kept
        assert all(bool(torch.isfinite(v).all()) for v in tensors(state).values() if v.is_floating_point())


def test_tensorboard_and_sheets_have_losses_and_pictures(metrics: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    go("fcd", setup.config(steps=2, save_every=2), metrics, tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"l1", "lr"} <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("l1")] == pytest.approx([r["l1"] for r in setup.read_log(tmp_path)])
    (image,) = events.Images(events.Tags()["images"][0])
    assert (image.width, image.height, image.step) == (3 * 32, 2 * 32, 2)
    with Image.open(tmp_path / "sheets" / "000002.png") as sheet:
        assert sheet.size == (3 * 32, 2 * 32)


def test_without_accelerate_a_line_says_what_to_install(
    photographs: Path, metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "accelerate", None)
    config = setup.write_config(tmp_path / "config.json")
    options = ["--data", str(photographs), "--out", str(tmp_path / "run"), "--metrics", str(metrics)]
    assert main(["train", "first-stage", str(config), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: training needs HF accelerate: pip install 'moesr[train]'")


def test_a_batch_that_does_not_divide_is_refused(metrics: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="batch 4: 1 processes x 3 parts do not divide it; choose a multiple of 3"):
        go("expert", setup.config(batch=4, accumulate=3), metrics, tmp_path)


def test_a_state_of_another_config_is_refused(metrics: Path, tmp_path: Path) -> None:
    settings = setup.config()
    go("expert", settings, metrics, tmp_path)
    wider = replace(settings, model=replace(settings.model, unet=replace(settings.model.unet, model_channels=32)))
    with pytest.raises(SettingError, match=r"state\.pt: is of another config .* train into another folder"):
        go("expert", wider, metrics, tmp_path)


def test_fp16_needs_a_gpu_and_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SettingError, match="precision fp16"):
        LaunchedEngine(precision="fp16")
