"""Hostile, lying and damaged checkpoints: nothing is run, one line refuses them, or the result is right."""

from __future__ import annotations

import argparse
import builtins
import io
import os
import random
import resource
import struct
import sys
import time
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moesr.checkpoints.model_files import open_model, save_model
from moesr.checkpoints.weight_reading import Weights
from moesr.config import ModelConfig
from moesr.errors import MoESRError
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.denoiser import denoiser
from moesr.networks.unet import UNet
from tests.checkpoint_files import (
    CANARY,
    FIRST,
    PAYLOADS,
    Pretended,
    find_error,
    join_pickle,
    legacy,
    listing,
    random_state,
    stage_state,
    unet,
    write_zip,
)
from tests.mutations import mutate


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Objects as Lightning and its friends leave them; their modules are gone when the test reads the file."""

    class Kept:
        def __init__(self) -> None:
            self.state = {"weight": torch.ones(3), "path": "somewhere"}

        def __setstate__(self, state: object) -> None:
            raise AssertionError("a foreign class was brought to life")

    class Config(dict):  # type: ignore[type-arg]
        pass

    places = {
        "ModelCheckpoint": ("pytorch_lightning.callbacks.model_checkpoint", Kept),
        "AttributeDict": ("lightning_fabric.utilities.data", Config),
        "DictConfig": ("omegaconf.dictconfig", Kept),
    }
    made: dict[str, Any] = {}
    for name, (module, base) in places.items():
        kind = type(name, (base,), {"__module__": module})
        for i in range(module.count(".") + 1):
            part = ".".join(module.split(".")[: i + 1])
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        setattr(sys.modules[module], name, kind)
        made[name] = kind()
    made["AttributeDict"]["lr"] = 1e-4
    return made


def test_foreign_objects_are_neither_run_nor_in_the_way(
    tmp_path: Path, foreign: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = OrderedDict(a=torch.ones(2), b=torch.zeros(3))
    beside = {
        "callbacks": {foreign["ModelCheckpoint"].__class__: foreign["ModelCheckpoint"]},
        "hyper_parameters": foreign["AttributeDict"],
        "config": foreign["DictConfig"],
        "arguments": argparse.Namespace(lr=1.0, path=Path("x")),
        "random": [torch.get_rng_state(), random.Random(0).getstate()],
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "names": {"a", "b"},
        "few": frozenset([1]),
    }
    for path, save in ((tmp_path / "x.ckpt", torch.save), (tmp_path / "y.ckpt", lambda v, p: legacy(p, v))):
        save({**beside, "state_dict": state, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}]}, path)
    for name in [m for m in sys.modules if m.split(".")[0] in ("pytorch_lightning", "lightning_fabric", "omegaconf")]:
        monkeypatch.delitem(sys.modules, name)
    original = builtins.__import__

    def guarded(name: str, *rest: Any) -> Any:
        assert name.split(".")[0] not in ("pytorch_lightning", "lightning_fabric", "omegaconf", "argparse")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    for path in (tmp_path / "x.ckpt", tmp_path / "y.ckpt"):
        found = Weights(path)
        assert {k: v.tolist() for k, v in found.items()} == {"a": [1, 1], "b": [0, 0, 0]}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test if a payload was run."""
    monkeypatch.setenv("CANARY_FILE", str(tmp_path / "canary"))
    yield
    assert CANARY not in os.environ
    assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("form", ["zip", "old"])
def test_payloads_are_not_run(tmp_path: Path, name: str, form: str) -> None:
    payload, save = PAYLOADS[name](), torch.save if form == "zip" else lambda v, p: legacy(p, v)
    save({"state_dict": {"a": torch.ones(2), "b": payload}, "x": payload}, tmp_path / "x.ckpt")
    assert set(Weights(tmp_path / "x.ckpt")) == {"a"}
    save(payload, tmp_path / "y.ckpt")
    find_error(tmp_path / "y.ckpt")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


CALL = b"cos\nsystem\n" + text("touch $CANARY_FILE") + b"\x85R"
ONE = b"K\x01"
NO_END = 2**31 - 1
#: Lists of nine times the list before: small as they are, endless if they are spelled out.
LAUGHS = b"".join(b"](" + b"h%c" % i * 9 + b"eq%c" % (i + 1) for i in range(40))

#: Pickles by hand: each runs a command if anything is looked up, or takes all memory or time if it is believed.
HOSTILE: dict[str, bytes] = {
    "placeholder called": join_pickle(CALL, b")R)R"),
    "state of a dict": join_pickle(b"}}", text("__reduce__"), CALL, b"sb"),
    "state in slots": join_pickle(b"ccollections\nOrderedDict\n)RN}", text("__class__"), CALL, b"s\x86b"),
    "instance": join_pickle(b"(", text("touch $CANARY_FILE"), b"ios\nsystem\n"),
    "object": join_pickle(b"(cos\nsystem\n", text("touch $CANARY_FILE"), b"o"),
    "new object": join_pickle(b"cos\nsystem\n", text("x"), b"\x85\x81"),
    "name on the stack": join_pickle(text("os"), text("system"), b"\x93", text("touch $CANARY_FILE"), b"\x85R"),
    "name of no text": join_pickle(b"]]\x93"),
    "tensor of a call": join_pickle(b"ctorch._utils\n_rebuild_tensor_v2\n(", CALL, b"K\x00)))))tR"),
    "type of a call": join_pickle(b"ctorch._tensor\n_rebuild_from_type_v2\n(", CALL, b"NNNtR"),
    "hook of a tensor": join_pickle(b"ctorch._utils\n_rebuild_parameter\n(", CALL, b"K\x01", CALL, b"tR"),
    "extension": join_pickle(b"\x82\x01"),
    "persistent id": join_pickle(text("x"), b"Q"),
    "persistent id as text": join_pickle(b"Px\n"),
    "memo of nothing": join_pickle(b"h\x05"),
    "text without end": join_pickle(b"\x8d" + struct.pack("<Q", 2**62)),
    "frame without end": join_pickle(b"\x95" + struct.pack("<Q", 2**62), ONE),
    "number without end": join_pickle(b"\x8b" + struct.pack("<i", NO_END)),
    "stack is empty": join_pickle(b"R"),
    "deep list": join_pickle(b"]" * 10**5, b"a" * (10**5 - 1)),
    "deep tuple as a key": join_pickle(b"}", b")", b"\x85" * 10**5, ONE, b"s"),
    "dict in itself": join_pickle(b"}q\x00", text("state_dict"), b"h\x00s"),
    "laughs": join_pickle(b"]q\x00", LAUGHS),
    "laughs as a name": join_pickle(b"]q\x00", LAUGHS, b"2\x93"),
    "long text again and again": join_pickle(text("x" * 10**6), b"q\x00", b"h\x00h\x00\x930" * 10**4),
    "steps without end": join_pickle(b"K\x000" * 6 * 10**5),
    "nothing": join_pickle(),
    "no pickle": b"hello",
}  # fmt: skip


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    began = time.process_time()
    write_zip(tmp_path / "x.ckpt", HOSTILE[name])
    find_error(tmp_path / "x.ckpt", "x.ckpt")
    start = io.BytesIO()
    torch.save({}, start, _use_new_zipfile_serialization=False)
    head = start.getvalue()
    (tmp_path / "y.ckpt").write_bytes(head[: head.index(b".", head.index(b"little_endian")) + 1] + HOSTILE[name])
    find_error(tmp_path / "y.ckpt", "y.ckpt")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "numbers",
    [{"key": "1"}, {"numel": 2**40, "shape": (2**40,)}, {"offset": 1}, {"offset": 2**60}, {"offset": -1},
     {"stride": (2,)}, {"stride": (2**61,)}, {"stride": (-1,)}, {"shape": (2**40, 2**40), "stride": (0, 0)},
     {"shape": (-4,)}, {"shape": (1,) * 2000, "stride": (1,) * 2000}, {"shape": (4.0,)}, {"kind": "Double"}],
    ids=lambda numbers: str(numbers)[:40],
)  # fmt: skip
def test_tensors_outside_of_their_storage_are_refused(tmp_path: Path, numbers: dict[str, Any]) -> None:
    path = tmp_path / "x.pth"
    write_zip(path, listing({"a": Pretended()}), {"0": bytes(16)})
    assert Weights(path)["a"].tolist() == [0, 0, 0, 0]
    write_zip(path, listing({"a": Pretended(**numbers)}), {"0": bytes(16)})
    find_error(path, "x.pth", Weights)


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
        began = time.process_time()
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
        slowest = max(slowest, time.process_time() - began)
        path.unlink()
    assert slowest < 5
    assert 0.02 * rounds < loaded < 0.9 * rounds, loaded  # neither refuses everything nor misses everything
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**19  # KiB
    assert not Path(os.environ["CANARY_FILE"]).exists()
    assert CANARY not in os.environ
