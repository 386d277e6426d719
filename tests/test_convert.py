"""Conversion: the same weights in one file, little memory, and never half a file."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import moesr
from moesr.checkpoints.convert import convert
from moesr.checkpoints.describe import describe, format_facts
from moesr.checkpoints.model_files import open_model
from moesr.checkpoints.weight_writing import Entry, write
from moesr.cli import main
from moesr.errors import CheckpointError, MoESRError, SettingError
from moesr.networks.autoencoder import Autoencoder
from tests.batch_jobs import ROOT, errors
from tests.checkpoint_files import FCD, random_state, read_key_table, stage_state, unet, write_checkpoint

UNET = unet(4)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four stage files with EMA and four FFN experts, and their decoder."""
    folder = tmp_path_factory.mktemp("release")
    for i in range(4):
        state = stage_state(UNET, replace(FCD, lr_fusion=False, refine=False), seed=i, ema=True)
        torch.save({"epoch": 3, "state_dict": state, "optimizer_states": [state]}, folder / f"model_stage{i}.ckpt")
    decoder = {**random_state(Autoencoder, FCD), "loss.logvar": torch.zeros(())}
    torch.save(decoder, folder / "fa_vae.pth")
    return folder


def weights(model: moesr.SRModel) -> dict[str, torch.Tensor]:
    found = {f"decoder.{k}": v for k, v in model.autoencoder.state_dict().items()}
    for i, t in enumerate((0, 250, 500, 750)):
        with model.bank.stage(t) as expert:
            found |= {f"{i}.{k}": v for k, v in expert.state_dict().items()}
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_gives_what_the_sources_give(release: Path, tmp_path: Path, dtype: str) -> None:
    path = convert([release], tmp_path / "new" / "out.safetensors", dtype)
    found = weights(moesr.load(path, dtype=dtype, device="cpu"))
    wanted = weights(moesr.load(release, dtype=dtype, device="cpu"))
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key
    assert list(path.parent.iterdir()) == [path]
    tensors = load_file(path).values()  # as other programs read it
    assert {tensor.dtype for tensor in tensors} == {DTYPES[dtype], torch.int64}  # batch norms count their batches
    assert all(tensor.data_ptr() % tensor.dtype.itemsize == 0 for tensor in tensors)


def test_progress_ends_at_the_end_and_the_header_says_where_it_comes_from(release: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    path = convert([release], tmp_path / "out.safetensors", progress=lambda *event: seen.append(event))
    done = [event[0] for event in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
    assert {event[2] for event in seen} >= {"checking model_stage2.ckpt", "writing out.safetensors"}
    facts = describe(path)
    assert facts["config"]["scale"] == 8
    assert facts["config"]["name"] == "out"
    assert [s["name"] for s in facts["sources"]] == [*(f"model_stage{i}.ckpt" for i in range(4)), "fa_vae.pth"]
    for source in facts["sources"]:
        content = (release / source["name"]).read_bytes()
        assert source["sha256"] == hashlib.sha256(content).hexdigest()
        assert source["size"] == len(content)
    assert "licence of the source files" in facts["licence"]
    assert any("x8" in note for note in facts["notes"])
    shown = format_facts(facts)
    assert facts["sources"][2]["sha256"] in shown
    assert facts["licence"] in shown


def test_converted_again_it_keeps_its_history(release: Path, tmp_path: Path) -> None:
    first = convert([release], tmp_path / "first.safetensors", "fp32")
    again = convert([first], tmp_path / "again.safetensors", "bf16")
    facts = describe(again)
    assert [s["name"] for s in facts["sources"]][-2:] == ["fa_vae.pth", "first.safetensors"]
    assert facts["licence"] == describe(first)["licence"]
    wanted = open_model(release).experts[1]["out.2.weight"]
    assert torch.equal(open_model(again).experts[1]["out.2.weight"], wanted.bfloat16())


@pytest.mark.parametrize(
    ("value", "words"),
    [(70_000.0, "7e\\+04; convert with --dtype bf16"), (float("nan"), "nan; take an earlier state of its training")],
)
def test_weights_that_half_precision_cannot_hold_are_refused(value: float, words: str, tmp_path: Path) -> None:
    state = stage_state(UNET, FCD)
    state["model.diffusion_model.out.2.bias"] = torch.full((3,), value)
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=rf"out\.2\.bias goes up to {words}"):
        convert([tmp_path / "x.ckpt"], tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.ckpt"]
    if value == 70_000.0:
        convert([tmp_path / "x.ckpt"], tmp_path / "out.safetensors", "bf16")


def test_damage_inside_of_a_source_is_found(release: Path, tmp_path: Path) -> None:
    for path in release.iterdir():
        content = bytearray(path.read_bytes())
        if path.name == "model_stage2.ckpt":
            content[len(content) // 2] ^= 1
        (tmp_path / path.name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model_stage2\.ckpt: damaged"):
        convert([tmp_path], tmp_path / "out" / "x.safetensors")
    assert not (tmp_path / "out" / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"dtype": "int8"}, "fp32, bf16, fp16"), ({"out": "model.ckpt"}, ".safetensors"), ({"scale": 0}, "scale 0"),
     ({"sources": []}, "no model"), ({"sources": ["fa_vae.pth"]}, "stage files")],
)  # fmt: skip
def test_wrong_options_are_one_line(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(release)
    with pytest.raises(MoESRError) as caught:
        convert(**{"sources": ["."], "out": tmp_path / "x.safetensors", **options})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_sources_are_never_overwritten(release: Path, tmp_path: Path) -> None:
    path = convert([release], tmp_path / "a.safetensors", "fp32")
    before = path.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(path)
    (tmp_path / "twin.safetensors").hardlink_to(path)
    for out in (path, tmp_path / "link.safetensors", tmp_path / "twin.safetensors", tmp_path / "." / "a.safetensors"):
        with pytest.raises(SettingError, match="one of the sources"):
            convert([path], out)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


# never half a file


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_interrupted_it_leaves_the_old_file(release: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"old")

    def stop(done: int, total: int, what: str) -> None:
        if done >= share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert([release], path, progress=stop)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_full_disk_is_one_line(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, limit = tmp_path / "out.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
    try:
        assert main(["convert", str(release), "-o", str(out)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    (line,) = errors(capsys.readouterr().err)
    assert str(out) in line
    assert "cannot be written" in line
    assert not list(tmp_path.iterdir())


def test_room_is_asked_for_first(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CheckpointError, match="MB are needed, 1 kB are free; make room"):
        convert([release], tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_wrong_shapes_are_not_written(tmp_path: Path) -> None:
    entries = [Entry("a", (2,), torch.float32, lambda: torch.zeros(3))]
    with pytest.raises(ValueError, match="shape"):
        write(tmp_path / "x.safetensors", entries, {})
    assert not list(tmp_path.iterdir())


def test_command_line(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(release), "-o", str(out), "--dtype", "bf16", "--scale", "4"]) == 0
    shown = capsys.readouterr().out
    assert str(out) in shown
    assert "x4" in shown
    assert "sha256" in shown
    again = ["convert", str(release), "-o", str(out), "--scale", "8"]
    before = out.read_bytes()
    assert main(again) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*again, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["convert", str(release), "-o", str(tmp_path / "x.ckpt")]) == 1
    assert capsys.readouterr().err.startswith("error:")


# memory

MEASURE = """
import sys, torch, moesr.cli, moesr.checkpoints.convert
from moesr.evaluation.speed.measure import peak
torch.nn.functional.gelu(torch.zeros(8))
with peak(torch.device("cpu")) as taken:
    moesr.checkpoints.convert.convert(sys.argv[1:-1], sys.argv[-1])
print(taken.mib)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_is_that_of_a_tensor(tmp_path: Path) -> None:
    """Files with all tensors of a released stage, at a fifth of its width: two of 152 MB."""
    names = [tmp_path / f"expert{i}.ckpt" for i in range(2)]
    write_checkpoint(names[0], read_key_table("small_stage_checkpoint"), epoch=7)
    names[1].symlink_to(names[0])
    command = [sys.executable, "-c", MEASURE, *map(str, names), str(tmp_path / "out.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24
    assert describe(tmp_path / "out.safetensors")["experts"] == 2
