"""Packs, validation sets and batches on the device: what goes in comes out, and what is held back never does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moesr.cli import main
from moesr.errors import ImageError, SettingError
from moesr.training.data import BatchSource, Pack, PreparedBatches
from moesr.training.data.pack import find_sharp_size, measure_detail, write_pack
from moesr.training.data.photos import open_photos

TABLE = "file\tsource\tpath\tauthor\tlicence\tkind\n"


def draw_photo(seed: int, height: int, width: int, detailed: tuple[int, int] = (0, 0)) -> Image.Image:
    """Shallow waves, with random rectangles in the 256 x 256 pixels from `detailed` (top, left)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([90 + 40 * np.sin(y / 70 + seed), 100 + 40 * np.sin(x / 60), 90 + 0 * x], 2)
    for _ in range(300):
        h, w = rng.integers(4, 40, 2)
        top, left = detailed[0] + rng.integers(0, 256 - h), detailed[1] + rng.integers(0, 256 - w)
        pixels[top : top + h, left : left + w] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("photos")
    for k in range(4):
        draw_photo(k, 288, 320, (16, 48)).save(out / f"photo{k}.png")
    draw_photo(9, 600, 700).save(out / "large.png")
    return out


@pytest.fixture(scope="module")
def pack(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return write_pack(
        open_photos(folder), tmp_path_factory.mktemp("pack") / "pack.bin", max_mb=5, leave_out=["photo2.png"]
    )


def test_a_pack_holds_the_most_detailed_parts(pack: Pack, folder: Path) -> None:
    assert pack.photographs == ["large.png", "photo0.png", "photo1.png", "photo3.png"]
    names = [photo.name.rpartition(": ")[2] for photo in pack.photos]
    assert "photo0_48_16.webp" in names[:4]  # where its detail lies
    assert {name.split("_")[0] for name in names[:4]} == {"large", "photo0", "photo1", "photo3"}  # one of each first
    assert all(name.startswith("large") for name in names[4:])
    smooth, other = (measure_detail(photo.read()).mean() for photo in pack.photos[4:])
    assert smooth < other  # every third part is a smooth one
    part = np.asarray(Image.fromarray(pack.photos[names.index("photo0_48_16.webp")].read()).convert("L"), float)
    with Image.open(folder / "photo0.png") as image:
        wanted = np.asarray(image.convert("L"), float)[16:272, 48:304]
    assert 10 * np.log10(255**2 / ((part - wanted) ** 2).mean()) > 32  # of the luminance: colours are 4:2:0


def test_a_pack_keeps_to_its_size_and_is_the_same_again(pack: Pack, folder: Path, tmp_path: Path) -> None:
    again = write_pack(open_photos(folder), tmp_path / "again.bin", max_mb=5, leave_out=["photo2"])
    assert again.path.read_bytes() == pack.path.read_bytes()
    limit = pack.path.stat().st_size / 2e6 + 0.01
    half = write_pack(open_photos(folder), tmp_path / "half.bin", max_mb=limit, leave_out=["photo2"])
    assert 0 < len(half) < len(pack)
    assert half.path.stat().st_size <= limit * 1e6
    with pytest.raises(SettingError, match="hold no part"):
        write_pack(open_photos(folder), half.path, max_mb=0.001)
    assert len(Pack(half.path)) == len(half)  # it stays, and nothing else does
    assert {p.name for p in tmp_path.iterdir()} == {"again.bin", "half.bin"}
    with pytest.raises(SettingError, match="left out"):
        write_pack(open_photos(folder), half.path, max_mb=1, leave_out=["large", *(f"photo{k}" for k in range(4))])
    half.path.write_bytes(half.path.read_bytes()[:500])
    with pytest.raises(ImageError, match="is no pack; make one"):
        Pack(half.path)


def test_blurred_photographs_are_reduced() -> None:
    sharp = draw_photo(0, 256, 256)
    assert find_sharp_size(sharp) == 1
    assert find_sharp_size(sharp.resize((512, 512), Image.Resampling.BICUBIC)) in (1.5, 2.0)


def batches(source: Any, **options: Any) -> BatchSource:
    named: dict[str, Any] = {"crop": 64, "scale": 4, "batch": 6, "recipe": "bicubic=1,web=1,blind=1", "seed": 1}
    return BatchSource(source, **{**named, **options})


def test_batches_are_a_function_of_seed_and_step(pack: Pack) -> None:
    one, two = batches(pack), batches(pack.path)
    one.next(0)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):  # what training computes in makes no difference
            first = one.next(7)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    for name, value in two.next(7).items():
        assert torch.equal(first[name], value), name
    assert first["hr"].shape == (6, 3, 64, 64)
    assert first["lr"].shape == (6, 3, 16, 16)
    assert first["restore"].shape == (6,)
    for name in ("hr", "lr"):
        assert -1 <= float(first[name].min()) < -0.5 < 0.5 < float(first[name].max()) <= 1
    for other in (one.next(8), batches(pack, seed=2).next(7)):
        assert not torch.equal(other["hr"], first["hr"])
    with pytest.raises(SettingError, match="crop 30"):
        batches(pack, crop=30)
    with pytest.raises(ImageError, match="smaller than the crop 512"):
        batches(pack, crop=512)


def test_batches_that_are_made_ahead_are_the_same(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order of steps. Streams are the GPU's own, here they do nothing."""
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_, **__: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    source = batches(pack, crop=32, batch=2)
    ahead = PreparedBatches(source)
    for step in (0, 0, 1, 5, 6):
        (batch,), expected = ahead(step), source.next(step)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_crops_are_the_images_pixels_in_all_positions() -> None:
    pixels = np.asarray(draw_photo(0, 256, 256))[20:56, 30:70]
    source = batches([pixels], crop=24, recipe="bicubic", shrink=1.0, colour=0.0)
    seen = set()
    views = {(t, m): np.rot90(pixels, t)[:, :: 1 - 2 * m] for t in range(4) for m in (0, 1)}
    for hr in torch.cat([source.next(step)["hr"] for step in range(8)]):
        crop = ((hr + 1) * 127.5).round().permute(1, 2, 0).numpy()
        for position, view in views.items():
            windows = np.lib.stride_tricks.sliding_window_view(view, (24, 24, 3))
            seen |= {position} if bool((windows == crop).all(axis=(-3, -2, -1)).any()) else set()
    assert len(seen) == 8


def test_detail_is_preferred_and_images_are_reduced() -> None:
    pixels = np.full((256, 512, 3), 128, np.uint8)
    pixels[:, 256:] = np.random.default_rng(0).integers(0, 256, (256, 256, 3))

    def share_with_detail(source: BatchSource) -> float:
        hr = torch.cat([source.next(step)["hr"] for step in range(20)])
        return float((hr.std((1, 2, 3)) > 0.05).float().mean())

    plain = {"crop": 32, "colour": 0.0, "recipe": "bicubic"}
    assert share_with_detail(batches([pixels], **plain)) > 0.6  # 0.55 of all places
    assert share_with_detail(batches([pixels], smooth=True, **plain)) < 0.6
    checks = (np.indices((256, 256)) // 2).sum(0) % 2 * 255
    source = batches([np.stack([checks] * 3, 2).astype(np.uint8)], **plain)
    spread = torch.cat([source.next(step)["hr"] for step in range(8)]).std((1, 2, 3))
    assert float(spread.max()) > 0.8  # hardly reduced
    assert float(spread.min()) < 0.2  # by 2 or more: grey


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, names = tmp_path / "table.tsv", tmp_path / "names.txt"
    rows = [f"photo{k}.png\ta/b\tdir/{k}.jpg\tAnn\tCC0-1.0\tface\n" for k in range(4)]
    table.write_text(TABLE + "".join(rows))
    names.write_text("# held back\nphoto1.png\n")
    pack = tmp_path / "pack.bin"
    assert main(["data", str(folder), "--pack", str(pack), "--max-mb", "1", "--leave-out", str(names)]) == 0
    assert "photo1.png" not in Pack(pack).photographs
    assert main(["data", "--notice", str(table), "--leave-out", str(names)]) == 0
    assert "https://github.com/a/b\nCC0-1.0: Ann (0.jpg, 2.jpg, 3.jpg)" in capsys.readouterr().out
    for out in ("one", "two"):
        assert main(["data", str(folder), "--sets", str(tmp_path / out), "--only", str(names)]) == 0
    for name in ("hr", "clean", "degraded", "blind"):
        (path,) = (tmp_path / "one" / name).iterdir()
        assert path.name == "photo1.png"
        assert path.read_bytes() == (tmp_path / "two" / name / path.name).read_bytes()
        with Image.open(path) as image:
            assert image.size == ((320, 288) if name == "hr" else (80, 72))
    capsys.readouterr()
    for arguments, message in (
        (["--notice", str(names)], "no column 'author'"),
        ([str(folder), "--sets", str(tmp_path / "three"), "--only", str(table)], "none of the 5 photographs"),
        ([], "PHOTOS: missing"),
    ):
        assert main(["data", *arguments]) == 1
        assert message in capsys.readouterr().err
