"""Models into the library, from a local server. No other address is ever contacted."""

from __future__ import annotations

import errno
import io
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moesr.checkpoints import library, transfer
from moesr.checkpoints.catalogue import CATALOGUE, Entry, HubFile, RemoteFile
from moesr.checkpoints.download import Downloaded, download
from moesr.cli import main
from moesr.errors import CheckpointError, SettingError
from tests.local_server import DATA, OTHER, Server, digest, isolate, running, weights


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty library, no pauses and no huggingface_hub."""
    isolate(monkeypatch)
    monkeypatch.setenv("MOESR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(library, "_added", [])
    monkeypatch.setattr(transfer, "PAUSES", (0.0,))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.fixture
def model(server: Server, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A model of two stages with known hashes and a decoder without, and others beside it."""
    server.files = {f"/{n}.safetensors": weights(i, 3000 + i) for i, n in enumerate(("stage0", "stage1", "decoder"))}
    files = tuple(
        RemoteFile(path[1:], server.url(path), len(data), digest(data)) for path, data in server.files.items()
    )
    decoder = RemoteFile("decoder.safetensors", server.url("/decoder.safetensors"))
    known = {
        "two-stages": ((*files[:2], decoder), False),
        "same-decoder": ((files[0], decoder), False),
        "single": ((decoder,), False),
        "closed": (files[:2], True),
    }
    for name, (parts, closed) in known.items():
        entry = Entry(name, "of this test", parts, "a licence", "https://example.org", closed)
        monkeypatch.setitem(CATALOGUE, name, entry)
    return CATALOGUE["two-stages"]


def held(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_model_is_fetched_once(server: Server, model: Entry, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="python -m moesr download two-stages"):
        library.find(model.name)
    seen: list[tuple[str, int, int | None]] = []
    done = download(model.name, progress=lambda *a: seen.append(a))
    assert done == Downloaded(tmp_path / "home" / model.name, tuple(f.name for f in model.files))
    assert library.find(model.name) == done.path
    assert held(tmp_path / "home") == {f"{model.name}/{path[1:]}": data for path, data in server.files.items()}
    assert {name for name, *_ in seen} == set(done.fetched)
    assert len(server.seen) == 3
    assert download(model.name) == Downloaded(done.path)
    assert len(server.seen) == 3


def test_a_model_of_one_file_is_a_file(server: Server, model: Entry, tmp_path: Path) -> None:
    done = download("single")
    assert done.path == library.find("single") == tmp_path / "home" / "single.safetensors"
    assert held(tmp_path / "home") == {"single.safetensors": server.files["/decoder.safetensors"]}


def test_it_is_found_in_any_folder(server: Server, model: Entry, tmp_path: Path) -> None:
    library.add_folder(tmp_path / "host")
    placed = download(model.name, to=tmp_path / "host").path
    assert placed == tmp_path / "host" / model.name
    server.seen.clear()
    assert download(model.name) == Downloaded(placed)
    assert download(model.name, to=tmp_path / "elsewhere") == Downloaded(placed)
    assert server.seen == []
    assert not (tmp_path / "elsewhere").exists()
    again = download(model.name, to=tmp_path / "elsewhere", force=True)
    assert len(again.fetched) == len(server.seen) == 3
    assert held(again.path) == held(placed)


def test_what_is_damaged_or_missing_is_fetched_alone(
    server: Server, model: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "link")  # what is in its place already is not touched
    path = download(model.name).path
    good = held(path)
    damaged = bytearray(good["stage1.safetensors"])
    damaged[-1] ^= 1
    (path / "stage1.safetensors").write_bytes(damaged)
    assert download(model.name).fetched == ("stage1.safetensors",)
    (path / "decoder.safetensors").write_bytes(b"<html>quota</html>")
    (path / "stage0.safetensors").unlink()
    assert download(model.name).fetched == ("stage0.safetensors", "decoder.safetensors")
    assert held(tmp_path / "home") == {f"{model.name}/{name}": data for name, data in good.items()}


def test_half_a_model_is_no_model(server: Server, model: Entry, tmp_path: Path) -> None:
    def cancel(name: str, done: int, total: int | None) -> None:
        if name == "stage1.safetensors" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(model.name, progress=cancel)
    assert model.name not in library.names()
    assert len(server.seen) == 2
    assert download(model.name).fetched == ("stage1.safetensors", "decoder.safetensors")
    assert held(tmp_path / "home") == {f"{model.name}/{path[1:]}": data for path, data in server.files.items()}


@pytest.mark.parametrize("linked", [True, False])
def test_the_same_file_under_another_model_is_taken(
    server: Server, model: Entry, tmp_path: Path, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "another disk")))
    mine = tmp_path / "data" / "moesr" / "mine"
    mine.mkdir(parents=True)
    for name in ("stage1.safetensors", "decoder.safetensors"):  # the decoder could be any: nobody knows its hash
        (mine / name).write_bytes(server.files[f"/{name}"])
    assert download(model.name).fetched == ("stage0.safetensors", "decoder.safetensors")
    assert download("same-decoder").fetched == ()
    assert len(server.seen) == 2
    assert held(library.find("same-decoder")) == {
        f"{n}.safetensors": server.files[f"/{n}.safetensors"] for n in ("decoder", "stage0")
    }


def test_a_licence_is_asked_for_before_anything_is_fetched(server: Server, model: Entry, tmp_path: Path) -> None:
    asked: list[Entry] = []
    for agree in (None, lambda entry: bool(asked.append(entry))):
        with pytest.raises(SettingError, match=r"a licence .*nothing was fetched"):
            download("closed", agree=agree)
    assert asked == [CATALOGUE["closed"]]
    assert server.seen == []
    assert not (tmp_path / "home").exists()
    assert len(download("closed", agree=lambda _: True).fetched) == 2
    assert download("closed").fetched == ()


@pytest.mark.parametrize("name", ["MOESR_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_a_lookup_only(server: Server, model: Entry, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(CheckpointError, match=r"not in the library, and .*OFFLINE") as caught:
        download(model.name)
    assert "\n" not in str(caught.value)
    assert server.seen == []
    monkeypatch.setenv(name, "0")
    path = download(model.name).path
    monkeypatch.setenv(name, "TRUE")
    assert download(model.name) == Downloaded(path)


def test_names_that_are_not_in_the_catalogue(server: Server, model: Entry, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="did you mean two-stages") as caught:
        download("two-stage")
    assert "\n" not in str(caught.value)
    for name in ("../two-stages", "", "https://example.org/x"):
        with pytest.raises(CheckpointError, match="no published model"):
            download(name)
    own = tmp_path / "home" / "own.safetensors"
    own.parent.mkdir()
    own.write_bytes(DATA)
    assert download("own") == Downloaded(own)


def test_no_room_and_no_rights(server: Server, model: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="file: cannot be written"):
        download(model.name, to=tmp_path / "file")
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(CheckpointError, match="24 kB are needed, 10 bytes are free"):
        download(model.name)
    assert server.seen == []


# Hugging Face


@pytest.fixture
def hub_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> Entry:
    address = HubFile("someone/models", "Unet/m.safetensors", "c" * 40)
    file = RemoteFile("m.safetensors", address, len(DATA), digest(DATA))
    entry = Entry("from-hub", "of this test", (file,), "a licence", "https://example.org")
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
    monkeypatch.setenv("HF_ENDPOINT", server.url("/"))
    server.files = {f"/someone/models/resolve/{'c' * 40}/Unet/m.safetensors": DATA}
    return entry


def fake_hub(monkeypatch: pytest.MonkeyPatch, data: bytes | Exception, calls: list[dict[str, Any]]) -> None:
    def hf_hub_download(repo_id: str, filename: str, *, local_dir: str, tqdm_class: Any, **more: Any) -> str:
        calls.append({"repo": repo_id, "file": filename, **more})
        if isinstance(data, Exception):
            raise data
        path = Path(local_dir) / filename
        path.parent.mkdir(parents=True)
        with tqdm_class(total=len(data), initial=0, unit="B", desc=filename, unit_scale=True) as bar:
            path.write_bytes(data)
            bar.update(len(data))
        return str(path)

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_through_the_hub(server: Server, hub_model: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    seen: list[tuple[str, int, int | None]] = []
    fake_hub(monkeypatch, DATA, calls)
    done = download(hub_model.name, progress=lambda *a: seen.append(a))
    assert held(tmp_path / "home") == {"from-hub.safetensors": DATA}
    assert done.fetched == ("m.safetensors",)
    assert calls[0]["repo"] == "someone/models"
    assert calls[0]["file"] == "Unet/m.safetensors"
    assert calls[0]["revision"] == "c" * 40
    assert seen == [("m.safetensors", len(DATA), len(DATA))]
    assert server.seen == []


@pytest.mark.parametrize("trouble", [RuntimeError("no\nluck"), OTHER, None])
def test_without_the_hub(
    server: Server, hub_model: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Any
) -> None:
    if trouble is not None:
        fake_hub(monkeypatch, trouble, [])
    download(hub_model.name)
    assert held(tmp_path / "home") == {"from-hub.safetensors": DATA}
    assert len(server.seen) == 1


def test_cancelling_the_hub_is_no_reason_to_try_without(
    server: Server, hub_model: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub(monkeypatch, DATA, [])

    def cancel(name: str, done: int, total: int | None) -> None:
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        download(hub_model.name, progress=cancel)
    assert server.seen == []


def test_the_real_hub_library(
    server: Server, hub_model: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    pytest.importorskip("huggingface_hub")
    seen: list[tuple[str, int, int | None]] = []
    download(hub_model.name, progress=lambda *a: seen.append(a))
    assert held(tmp_path / "home") == {"from-hub.safetensors": DATA}
    assert seen[-1] == ("m.safetensors", len(DATA), len(DATA))
    (headers,) = (headers for path, headers in server.seen if "/resolve/" in path)
    assert "hf_hub" in str(headers)  # so it was not the plain way


# The catalogue and the command line


def test_the_catalogue_is_sound() -> None:
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        assert len(set(entry.places())) == len(entry.files) > 0
        assert entry.non_commercial == ("S-Lab" in entry.licence)
        for file, place in zip(entry.files, entry.places()):
            assert file.url.startswith("https://")
            assert Path(file.name).name == file.name
            assert Path(file.name).suffix in library.SUFFIXES
            assert ".." not in Path(place).parts
            assert file.sha256 is None or (len(file.sha256) == 64 and int(file.sha256, 16))
    assert CATALOGUE["moesr-x8"].files[3].url == (
        "https://huggingface.co/amandaa/moe_sr/resolve/30cc3a72ac454b33bda9a99e56e6040c15ad4849/Unet/moe_stage3.ckpt"
    )


def test_the_commands(
    server: Server, model: Entry, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["download", model.name]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "home" / model.name) in out
    assert "stage0.safetensors, stage1.safetensors, decoder.safetensors fetched" in out
    assert main(["download", model.name]) == 0
    assert "there already, nothing was fetched" in capsys.readouterr().out
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert f"{model.name:<26} {tmp_path / 'home' / model.name}" in out
    assert "resshift-realsr-v3" in out
    assert main(["download", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("error: nothing: ")


@pytest.mark.parametrize(
    ("typed", "terminal", "agreed"),
    [("y\n", True, True), ("n\n", True, False), ("", True, False), ("y\n", False, False)],
)
def test_the_question_of_the_licence(
    model: Entry,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    terminal: bool,
    agreed: bool,
) -> None:
    keyboard = io.StringIO(typed)
    monkeypatch.setattr(keyboard, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", keyboard)
    assert main(["download", "closed"]) == (0 if agreed else 1)
    said = capsys.readouterr().err
    assert "a licence" in said
    assert ("[y/N]" in said) == terminal
    assert main(["download", "closed", "--yes"]) == 0
