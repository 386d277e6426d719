"""Where models are looked for, and what a name means."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from moesr.errors import CheckpointError
from moesr.library import model_folders as library


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No folders but those of the test, and an embedded model."""
    monkeypatch.delenv("MOESR_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(library, "_added", [])
    monkeypatch.setattr(library, "EMBEDDED", tmp_path / "package" / "weights")
    monkeypatch.chdir(put(tmp_path / "package" / "weights" / "tiny.safetensors").parents[2])


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_the_order_of_the_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOESR_HOME", os.pathsep.join([str(tmp_path / "a"), "", "~/b"]))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr(library, "_PACKAGE", tmp_path / "ComfyUI" / "custom_nodes" / "pack" / "moesr")
    library.add_folder(tmp_path / "c")
    library.add_folder(str(tmp_path / "c"))
    expected = ("a", "user/b", "c", "ComfyUI/models/moesr", "data/moesr")
    assert library.folders() == [*(tmp_path / name for name in expected), library.EMBEDDED]
    assert library.download_folder() == tmp_path / "a"


def test_the_first_folder_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOESR_HOME", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    second, first = put(tmp_path / "two" / "m.safetensors"), put(tmp_path / "one" / "m.ckpt")
    assert library.find("m") == first
    assert library.find("m.safetensors") == second
    assert library.names() == ["tiny", "m"]
    assert library.installed()["m"] == first
    own = put(tmp_path / "one" / "tiny.pth")
    assert library.find("tiny") == own
    assert library.names().count("tiny") == 1


def test_names_of_files_and_folders(tmp_path: Path) -> None:
    home = tmp_path / "data" / "moesr"
    both = [put(home / "both.ckpt"), put(home / "both.safetensors")]
    put(home / "v1.5.PTH")
    put(home / "stages" / "model_stage0.ckpt")
    put(home / "published" / "Unet" / "model_stage0.ckpt")
    for nothing in ("notes.txt", "empty/readme.md", ".x8.download/moe_stage0.ckpt", "_old.ckpt", "x8.ckpt.part"):
        put(home / nothing)
    assert library.names() == ["tiny", "both", "published", "stages", "v1.5"]
    assert library.find("both") == both[1]
    assert library.find("both.ckpt") == both[0]
    assert library.find("stages") == home / "stages"
    assert library.find("tiny.safetensors") == library.EMBEDDED / "tiny.safetensors"
    for hidden in (".x8.download", "_old", "x8.ckpt"):
        with pytest.raises(CheckpointError):
            library.find(hidden)


def test_files_come_before_names_and_names_before_folders(tmp_path: Path) -> None:
    work = Path.cwd()
    put(tmp_path / "data" / "moesr" / "model.ckpt")
    local = put(work / "model.ckpt")
    put(work / "tiny" / "run.json")
    put(work / "run" / "model_stage0.ckpt")
    assert library.find("model.ckpt").samefile(local)
    assert library.find("tiny") == library.EMBEDDED / "tiny.safetensors"
    assert library.find("./tiny") == Path("tiny")
    assert library.find("run") == Path("run")
    assert library.find(str(local)) == local


@pytest.mark.parametrize(
    "name", ["../outside", "sub/../../outside", "..", ".", "", "sub/inside", "a" * 5000, "a\0b", "~no"]
)
def test_a_name_never_leaves_its_folder(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data" / "outside.safetensors")
    put(tmp_path / "data" / "moesr" / "sub" / "inside.safetensors")
    monkeypatch.chdir(tmp_path / "package")
    if name in (".", ".."):  # folders that exist are taken as folders, by whoever types them
        assert library.find(name) == Path(name)
        return
    with pytest.raises(CheckpointError) as caught:
        library.find(name)
    assert "\n" not in str(caught.value)


def test_a_missing_name_says_what_to_do(tmp_path: Path) -> None:
    put(tmp_path / "data" / "moesr" / "portraits.safetensors")
    for name, said in {
        "portrait": ("did you mean portraits?", "tiny, portraits", "python -m moesr models"),
        "moesr-x8": ("python -m moesr download moesr-x8",),
        "Resshift-realsr-v33": ("did you mean resshift-realsr-v3",),
        "zzz.safetensors": ("no such model", "tiny"),
        "models/zzz.safetensors": ("no such file or folder",),
    }.items():
        with pytest.raises(CheckpointError) as caught:
            library.find(name)
        line = str(caught.value)
        assert line.startswith(name)
        assert "\n" not in line
        for words in said:
            assert words in line
    for i in range(20):
        put(tmp_path / "data" / "moesr" / f"m{i}.ckpt")
    with pytest.raises(CheckpointError, match="and 14 more"):
        library.find("zzz")


def test_an_unreadable_folder_is_skipped_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed, plain = tmp_path / "closed", put(tmp_path / "file")
    closed.mkdir()
    monkeypatch.setenv("MOESR_HOME", os.pathsep.join([str(closed), str(plain), str(tmp_path / "none")]))
    put(tmp_path / "data" / "moesr" / "model.ckpt")
    put(tmp_path / "data" / "moesr" / "private" / "model.ckpt")
    real = Path.iterdir

    def iterdir(self: Path) -> object:
        if self.name in ("closed", "private"):
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with caplog.at_level(logging.WARNING):
        assert library.names() == ["tiny", "model"]
    assert len(caplog.records) == 2
    assert f"{closed}: cannot be read (Permission denied)" in caplog.text


def test_the_folders_of_the_hosts(tmp_path: Path) -> None:
    cases = {
        "ComfyUI/custom_nodes/ComfyUI-MoESR/moesr": "ComfyUI/models/moesr",
        "webui/extensions/sd-webui-moesr/moesr": "webui/models/MoESR",
    }
    for package, models in cases.items():
        assert library.host_folders(tmp_path / package) == [tmp_path / models]
    for package in ("src/moesr", "lib/site-packages/moesr", "custom_nodes/moesr"):
        assert library.host_folders(tmp_path / package) == []
    checkout = tmp_path / "src" / "pack"
    (checkout / "moesr").mkdir(parents=True)
    nodes = tmp_path / "ComfyUI" / "custom_nodes"
    nodes.mkdir(parents=True)
    (nodes / "pack").symlink_to(checkout)
    assert library.host_folders(nodes / "pack" / "moesr") == [tmp_path / "ComfyUI" / "models" / "moesr"]


def test_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LOCALAPPDATA", "/c/Local")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert library.user_folders("linux") == [Path("/home/ada/.local/share/moesr")]
    assert library.user_folders("darwin") == [Path("/home/ada/Library/Application Support/moesr")]
    assert library.user_folders("win32") == [Path("/c/Local/moesr")]
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert library.user_folders("linux") == [Path("/data/moesr")]
    assert library.user_folders("darwin") == [Path("/home/ada/Library/Application Support/moesr")]
    monkeypatch.delenv("LOCALAPPDATA")
    assert library.user_folders("win32") == [Path("/home/ada/AppData/Local/moesr")]

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert library.user_folders("darwin") == []
