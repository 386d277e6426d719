"""Damaged checkpoints at random: one line that says so, or a right result; never code, hangs or memory."""

from __future__ import annotations

import io
import os
import random
import resource
import time
import zipfile
from pathlib import Path

import pytest
import torch

from moesr.checkpoints.model_files import open_model, save_model
from moesr.config import ModelConfig
from moesr.errors import MoESRError
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.denoiser import denoiser
from moesr.networks.unet import UNet
from tests.checkpoint_files import CANARY, FIRST, PAYLOADS, legacy, random_state, stage_state, unet

STRUCTURE = 0.8  # share of mutations that aim at lists of tensors, not at the tensors


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small whole models: converted, zip, zip made anew of its pickle, and of old torch; with a payload inside."""
    folder = tmp_path_factory.mktemp("good")
    config = ModelConfig(unet=unet(1), autoencoder=FIRST, stages=(1000,), scale=4)
    vae = random_state(Autoencoder, FIRST, 1)
    save_model(folder / "converted", config, [random_state(UNet, config.unet)], vae, torch.float16)
    os.environ["CANARY_FILE"] = str(folder / "canary")
    value = {"state_dict": stage_state(unet(2)), "callbacks": PAYLOADS["os.system"](), "more": PAYLOADS["exec"]()}
    torch.save(value, folder / "zip")
    legacy(folder / "old", value)
    return {name: (folder / name).read_bytes() for name in ("converted", "zip", "old")}


def structure(name: str, content: bytes) -> list[range]:
    """Where a file's lists of tensors are."""
    if name == "converted":
        return [range(8 + int.from_bytes(content[:8], "little"))]
    if name == "old":
        return [range(content.index(b"input_blocks"), content.index(b"loss") if b"loss" in content else 60_000)]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        listing = archive.infolist()[0]
        return [range(listing.header_offset, listing.file_size), range(archive.start_dir, len(content))]


def mutate(content: bytes, aims: list[range], rng: random.Random) -> bytes:
    aim = rng.choice(aims) if rng.random() < STRUCTURE else range(len(content))
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(aim.start, min(aim.stop, max(aim.start + 1, len(changed))))
        other = rng.randrange(aim.start, min(aim.stop, max(aim.start + 1, len(changed))))
        length = rng.choice((1, 1, 2, 4, 8, 60, 1000))
        kind = rng.randrange(9)
        if kind == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = rng.randbytes(length)
        elif kind == 4:
            changed[at:at] = changed[other : other + length]
        elif kind == 5:
            changed[at : at + length] = changed[other : other + length]
        elif kind == 6:
            number = rng.choice((0, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
            changed[at : at + 8] = rng.choice((number.to_bytes(8, "little"), str(number).encode()))
        elif kind == 7 and changed[at : at + 1]:
            changed[at] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """The zip file with a changed list of tensors whose checksum is right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            part = old.read(member)
            if member.filename.endswith("data.pkl"):
                part = mutate(part, [range(len(part))], rng)
            new.writestr(member.filename, part)
    return made.getvalue()


def test_mutations_give_one_line_or_a_right_result(tmp_path: Path, good: dict[str, bytes]) -> None:
    """250 of them, or MOESR_FUZZ."""
    rng = random.Random(2310)
    aims = {name: structure(name, content) for name, content in good.items()}
    (tmp_path / "x.ckpt").write_bytes(good["converted"])
    right = dict(open_model(tmp_path / "x.ckpt").experts[0])
    loaded, slowest, peak = 0, 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rounds = int(os.environ.get("MOESR_FUZZ", "250"))
    for i in range(rounds):
        name = ("converted", "zip", "pickle", "old")[i % 4]
        content = mutate_pickle(good["zip"], rng) if name == "pickle" else mutate(good[name], aims[name], rng)
        path = tmp_path / f"{i}.ckpt"
        path.write_bytes(content)
        began = time.monotonic()
        try:
            files = open_model(path)
            state = {**files.experts[0], **files.decoder}
            assert all(v.isfinite().numel() == v.numel() for v in state.values())  # every number was read
            network = denoiser(files.config.unet).state_dict()
            assert all(state[k].shape == v.shape and state[k].is_floating_point() for k, v in network.items())
            loaded += 1
            if name == "converted" and content[aims[name][0].stop :] == good[name][aims[name][0].stop :]:
                assert all(torch.equal(files.experts[0][k], v) for k, v in right.items())
        except MoESRError as error:
            line = str(error)
            assert "\n" not in line, line
            assert line.isprintable(), line
            assert len(line) < 1000 + len(str(path)), line
        slowest = max(slowest, time.monotonic() - began)
        path.unlink()
    assert slowest < 5
    assert 0.02 * rounds < loaded < 0.9 * rounds, loaded  # neither refuses everything nor misses everything
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**19  # KiB
    assert not Path(os.environ["CANARY_FILE"]).exists()
    assert CANARY not in os.environ
