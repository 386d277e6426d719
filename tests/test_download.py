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

from moesr.cli import main
from moesr.errors import CheckpointError, SettingError
from moesr.library import download as downloads
from moesr.library import model_folders as library
from moesr.library.catalogue import CATALOGUE, Entry, HubFile, RemoteFile
from moesr.library.download import Downloaded, download
from tests.local_server import DATA, OTHER, Server, digest, isolate, running, serve, weights


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty library."""
    isolate(monkeypatch)
    monkeypatch.setenv("MOESR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(library, "_added", [])


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
        "closed": (files[:2], True),
    }
    for name, (parts, closed) in known.items():
        entry = Entry(name, "of this test", parts, "a licence", "https://example.org", closed)
        monkeypatch.setitem(CATALOGUE, name, entry)
    return CATALOGUE["two-stages"]


@pytest.fixture
def at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the server appear without a process and a connection, for tests of what lies around them."""

    def fetch(file: RemoteFile, target: Path, progress: Any) -> None:
        path = file.url.removeprefix(server.url(""))
        server.seen.append(path)
        if progress:
            progress(file.name, len(server.files[path]), file.size)
        target.write_bytes(server.files[path])

    monkeypatch.setattr(downloads, "_fetch", fetch)


def held(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
def test_no_room_and_no_rights(server: Server, model: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="file: cannot be written"):
        download(model.name, to=tmp_path / "file")
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(CheckpointError, match="24 kB are needed, 10 bytes are free"):
        download(model.name)
    assert server.seen == []


# The process that fetches


def remote(server: Server, data: bytes = DATA) -> RemoteFile:
    return RemoteFile("m.safetensors", server.url(), len(data), digest(data))


def test_a_plain_address(server: Server, tmp_path: Path) -> None:
    seen: list[int] = []
    downloads._fetch(remote(server), tmp_path / "m.safetensors", lambda _, done, total: seen.append(done), 60)
    assert held(tmp_path) == {"m.safetensors": DATA}
    assert seen == sorted(seen)
    assert max(seen) <= len(DATA)


@pytest.mark.parametrize(
    ("act", "said"),
    [(serve(status=404), "404"), (serve(OTHER), "hash"), (serve(stall=60), "no byte for 20")],
    ids=["refused", "another file", "silent"],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(server: Server, tmp_path: Path, act: Any, said: str) -> None:
    server.acts = [act]
    timeout = 20 if "no byte" in said else 60  # the process takes seconds to start
    with pytest.raises(CheckpointError, match=said) as caught:
        downloads._fetch(remote(server), tmp_path / "m.safetensors", None, timeout)
    assert "\n" not in str(caught.value)
    assert held(tmp_path) == {}


def test_cancelling_ends_the_process(server: Server, tmp_path: Path) -> None:
    server.acts = [serve(stall=600)]
    started: list[Any] = []

    def cancel(name: str, done: int, total: int | None) -> None:
        if server.seen:
            raise KeyboardInterrupt

    real = downloads.subprocess.Popen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
        with pytest.raises(KeyboardInterrupt):
            downloads._fetch(remote(server), tmp_path / "m.safetensors", cancel, 60)
    assert started[0].poll() is not None
    assert held(tmp_path) == {}


@pytest.fixture
def hub_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> Entry:
    address = HubFile("someone/models", "Unet/m.safetensors", "c" * 40)
    file = RemoteFile("m.safetensors", address, len(DATA), digest(DATA))
    entry = Entry("from-hub", "of this test", (file,), "a licence", "https://example.org")
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
    monkeypatch.setenv("HF_ENDPOINT", server.url("/"))
    server.files = {f"/someone/models/resolve/{'c' * 40}/Unet/m.safetensors": DATA}
    return entry


def test_a_hub(server: Server, hub_model: Entry, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    assert download(hub_model.name).fetched == ("m.safetensors",)
    assert held(tmp_path / "home") == {"from-hub.safetensors": DATA}


def test_without_the_hub_library_it_says_what_to_install(hub_model: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        download(hub_model.name)


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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("typed", "terminal", "agreed"),
    [("y\n", True, True), ("n\n", True, False), ("", True, False), ("y\n", False, False)],
)
def test_the_question_of_the_licence(
    model: Entry, capsys: Any, monkeypatch: pytest.MonkeyPatch, typed: str, terminal: bool, agreed: bool
) -> None:
    keyboard = io.StringIO(typed)
    monkeypatch.setattr(keyboard, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", keyboard)
    assert main(["download", "closed"]) == (0 if agreed else 1)
    said = capsys.readouterr().err
    assert "a licence" in said
    assert ("[y/N]" in said) == terminal
    assert main(["download", "closed", "--yes"]) == 0
