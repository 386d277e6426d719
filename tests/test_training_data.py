"""Training images of every kind become the pixels they show; bad ones are one line before a run starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.utils.data import DataLoader, IterableDataset

from moesr.cli import main
from moesr.errors import ImageError, MoESRError, SettingError
from moesr.images.files import Picture, read_image, write_image
from moesr.training.data import PhotoCrops
from moesr.training.data.degradation import degradation
from moesr.training.data.kernels import sharpen

SIDE = 40
BICUBIC = degradation("bicubic", 4)


def photo(seed: int = 0, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A smooth picture without symmetry, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def crops(source: Any, crop: int = SIDE, **options: Any) -> PhotoCrops:
    return PhotoCrops(source, crop, 4, options.pop("degrade", BICUBIC), 100, **options)


def whole(source: Any) -> np.ndarray:
    """The one SIDE x SIDE picture of a source as [H, W, 3] in 0 .. 255, turned and mirrored as item 0 is."""
    return ((crops(source)[0]["hr"] + 1) * 127.5).permute(1, 2, 0).numpy()


def turned(pixels: np.ndarray) -> np.ndarray:
    """What item 0 does to a SIDE x SIDE picture, from a tensor that needs no conversion."""
    return whole([torch.tensor(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 127.5 - 1])


def line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photographs in two folders, of three formats without loss."""
    out = tmp_path / "photos"
    (out / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.webp", "c.BMP", "more/a.png", "more/b.tif", "z.png")):
        Image.fromarray(photo(i, 60, 70 + i)).save(out / name, lossless=True)  # which only WebP heeds
    return out


# items


def test_items_depend_on_seed_and_index_alone(folder: Path, tmp_path: Path) -> None:
    degrade = degradation("blind", 4)
    data = crops(folder, 32, degrade=degrade, seed=5)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    again = PhotoCrops(moved, 32, 4, degrade, 9, seed=5)
    for index in (8, 0, 3):
        for name in ("hr", "lr"):
            assert torch.equal(data[index][name], again[index][name])
    other = crops(folder, 32, degrade=degrade, seed=6)
    assert not torch.equal(data[3]["hr"], other[3]["hr"])
    pairs = [data.pair(i) for i in range(24)]
    assert len({pair.name for pair in pairs}) == 6
    assert len({pair.facts for pair in pairs}) == 24


def test_workers_see_the_same_data(folder: Path) -> None:
    data = PhotoCrops(folder, 32, 4, degradation("mixed:0.5", 4), 8)
    for one, two in zip(DataLoader(data, batch_size=4), DataLoader(data, batch_size=4, num_workers=2)):
        assert torch.equal(one["lr"], two["lr"])
        assert torch.equal(one["hr"], two["hr"])


def test_crops_are_pieces_of_the_photo_in_all_eight_positions() -> None:
    pixels = photo(0, 20, 24)
    views = {}
    for turn in range(4):
        view = np.rot90(pixels, turn)
        views |= {(turn, mirror): view[:, ::-1] if mirror else view for mirror in (False, True)}
    seen = set()
    for item in (crops([pixels], 16)[i]["hr"] for i in range(50)):
        crop = ((item + 1) * 127.5).round().permute(1, 2, 0).numpy()
        for position, view in views.items():
            windows = np.lib.stride_tricks.sliding_window_view(view, (16, 16, 3))
            seen |= {position} if bool((windows == crop).all(axis=(-3, -2, -1)).any()) else set()
    assert len(seen) == 8


def test_the_target_of_usm_is_sharpened(folder: Path) -> None:
    usm, plain = (crops(folder, 32, degrade=degradation(name, 4)) for name in ("blind:usm", "blind"))
    assert torch.equal(usm[0]["hr"], sharpen((plain[0]["hr"][None] + 1) / 2)[0] * 2 - 1)


# kinds of pictures


def test_grey_palette_and_black_and_white(tmp_path: Path) -> None:
    grey = Image.fromarray(photo()).convert("L")
    wanted = turned(np.asarray(grey)[..., None].repeat(3, axis=2))
    palette = grey.convert("P")
    for name, image in (("grey.png", grey), ("palette.png", palette), ("grey.tif", grey)):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / name)
        assert np.allclose(whole(tmp_path / name), wanted, atol=1e-3), name
    bits = grey.convert("1")
    (tmp_path / "bits").mkdir()
    bits.save(tmp_path / "bits" / "bits.png")
    assert set(np.unique(whole(tmp_path / "bits").round())) == {0, 255}


@pytest.mark.parametrize("kind", ["png", "webp", "grey", "deep", "palette"])
def test_alpha_is_laid_on_white(kind: str, tmp_path: Path) -> None:
    rgb, alpha = photo(1).astype(np.float32), photo(2)[..., 0]
    path = tmp_path / f"a.{'webp' if kind == 'webp' else 'png'}"
    if kind == "palette":
        alpha = np.where(alpha > 128, 255, 0).astype(np.uint8)
        rgb = np.where(alpha[..., None], np.array([200, 10, 30], np.float32), np.float32(0))
        image = Image.fromarray((alpha > 0).astype(np.uint8))
        image.putpalette(bytes([0, 0, 0, 200, 10, 30]))
        image.save(path, transparency=0)
    elif kind == "grey":
        rgb = rgb[..., :1].repeat(3, axis=2)
        Image.fromarray(np.stack([rgb[..., 0].astype(np.uint8), alpha], axis=2)).save(path)
    elif kind == "deep":
        write_image(path, Picture(rgb / 255, alpha.astype(np.float32) / 255, bits=16))
    else:
        pixels = np.concatenate([rgb.astype(np.uint8), alpha[..., None]], axis=2)
        Image.fromarray(pixels).save(path, lossless=True, exact=True)
    share = alpha[..., None].astype(np.float32) / 255
    assert np.allclose(whole(tmp_path), turned(rgb * share + 255 * (1 - share)), atol=0.02)


@pytest.mark.parametrize("grey", [True, False])
def test_16_bits_are_kept(grey: bool, tmp_path: Path) -> None:
    values = photo().astype(np.float32) / 255 * 0.9 + 0.0217  # between the steps of 8 bits
    values = values[..., :1].repeat(3, axis=2) if grey else values
    write_image(tmp_path / "deep.png", Picture(values, grey=grey, bits=16))
    result = whole(tmp_path)
    assert np.allclose(result, turned(values * 255), atol=0.01)
    assert np.abs(result - result.round()).max() > 0.3


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.fromarray(photo()).convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(whole(tmp_path) - turned(photo())).mean() < 6


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_orientation_is_applied(kind: str, tmp_path: Path) -> None:
    for orientation in (3, 5, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / str(orientation)).mkdir()
        path = tmp_path / str(orientation) / f"a.{kind}"
        Image.fromarray(photo(0, 40, 56)).save(path, exif=exif, lossless=True)
        upright = torch.tensor(read_image(path).rgb).permute(2, 0, 1) * 2 - 1
        for index in range(3):
            one, two = (crops(source, 16)[index]["hr"] for source in (path.parent, [upright]))
            assert torch.allclose(one, two, atol=1e-5), orientation


def test_exif_that_nobody_can_parse_is_ignored(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff nonsense")
    assert np.allclose(whole(tmp_path), turned(photo()), atol=1e-3)


# datasets


def of(make: Callable[[np.ndarray], Any]) -> list[Any]:
    return [make(photo(i, 60, 70)) for i in range(4)]


SOURCES: dict[str, Callable[[np.ndarray], Any]] = {
    "PIL": Image.fromarray,
    "array": lambda pixels: pixels,
    "array with alpha": lambda pixels: np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
    "bytes": lambda pixels: torch.tensor(pixels).permute(2, 0, 1),
    "floats": lambda pixels: torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1,
    "doubles": lambda pixels: torch.tensor(pixels).permute(2, 0, 1).double() / 127.5 - 1,
    "labelled": lambda pixels: (Image.fromarray(pixels), 7),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_dataset_is_as_good_as_a_folder(kind: str, tmp_path: Path) -> None:
    for i, image in enumerate(of(Image.fromarray)):
        image.save(tmp_path / f"{i}.png")
    files, dataset = crops(tmp_path, 32), crops(of(SOURCES[kind]), 32)
    for index in range(6):
        assert torch.allclose(files[index]["hr"], dataset[index]["hr"], atol=1e-6)
        assert torch.allclose(files[index]["lr"], dataset[index]["lr"], atol=1e-6)


@pytest.mark.parametrize(
    "item",
    [
        photo()[..., 0],
        photo()[..., :1],
        torch.tensor(photo()[..., 0])[None],
        torch.tensor(photo()[..., 0])[None] / 127.5 - 1,
    ],
    ids=["[H, W]", "[H, W, 1]", "bytes [1, H, W]", "floats [1, H, W]"],
)
def test_grey_items(item: Any) -> None:
    assert np.allclose(whole([item]), turned(photo()[..., :1].repeat(3, axis=2)), atol=1e-3)


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


class Broken(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        if index == 0:
            return photo()
        raise OSError("image file is truncated")


def test_datasets_that_are_none(tmp_path: Path) -> None:
    floats = torch.rand(3, SIDE, SIDE)
    cases: list[tuple[Any, str]] = [
        ([], "list: the dataset is empty"),
        ([b"photo.png"], "item 0 of list: bytes is no image; give PIL"),
        ([torch.rand(SIDE, SIDE, 3)], rf"torch.float32 \({SIDE}, {SIDE}, 3\) is no image"),
        ([photo().astype(np.float32)], r"float32 .* is no image"),
        ([floats * 255], r"item 0 of list: values from .* to .*; floats must be in \[-1, 1\]"),
        ([torch.full((3, SIDE, SIDE), float("nan"))], "floats must be"),
        ([photo(0, 8, 90)], f"item 0 of list: 90 x 8 is smaller than the crop {SIDE}; remove it or lower"),
        (Broken([0, 1]), r"item 1 of Broken: cannot be read \(image file is truncated\); repair"),
        (Numbers(), "Numbers: not training images; give a folder"),
        (7, "int: not training images"),
    ]
    for source, message in cases:
        with pytest.raises((ImageError, SettingError), match=message) as error:
            _ = [crops(source)[i] for i in range(20)]
        line(error)
    for source in (cases[1], cases[2], cases[3]):  # these at once
        with pytest.raises(ImageError):
            crops(source[0])


# bad folders


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / ".thumbnails").mkdir()
    Image.fromarray(photo()).save(tmp_path / ".thumbnails" / "a.png")
    for path, message in (
        (tmp_path, r"no images \(\.png"),
        (tmp_path / "none", "no such folder; give one"),
        (tmp_path / "notes.txt", "is no pack; make one"),
    ):
        with pytest.raises(ImageError, match=message) as error:
            crops(path)
        assert str(path) in line(error)


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_truncated_files_are_found_before_the_run(kind: str, folder: Path) -> None:
    path = folder / f"cut.{kind}"
    Image.fromarray(photo(0, 200, 200)).save(path)
    crops(folder)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    if kind in ("bmp", "tif"):  # their headers do not say where they end: found when read
        path = path.rename(folder.parent / path.name)
        shutil.rmtree(folder)
        folder.mkdir()
        path = path.rename(folder / path.name)
    with pytest.raises(ImageError, match=rf"cut\.{kind}: damaged picture .*; get it again") as error:
        _ = crops(folder)[0] if kind in ("bmp", "tif") else crops(folder)
    line(error)


def test_unreadable_files_are_counted(folder: Path) -> None:
    for name, data in (("m1.png", b""), ("m2.jpg", b"no picture"), ("m3.webp", b"RIFF\x10\0\0\0WEBPVP8 junk")):
        (folder / name).write_bytes(data)
    with pytest.raises(ImageError, match=r"3 of 9 images cannot be used, first: .*m1\.png: the file is empty") as error:
        crops(folder)
    line(error)
    (folder / "m1.png").unlink()
    (folder / "m3.webp").unlink()
    with pytest.raises(ImageError, match=r"1 of 7 images cannot be used, first: .*m2\.jpg: not a PNG"):
        crops(folder)


def test_a_link_to_nowhere(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "gone.png")
    with pytest.raises(ImageError, match=r"link\.png: cannot be read \(No such file or directory\); check") as error:
        crops(folder)
    line(error)


def test_small_images_are_counted(folder: Path) -> None:
    Image.fromarray(photo(0, 200, 31)).save(folder / "narrow.png")
    Image.fromarray(photo(0, 30, 50)).save(folder / "low.jpg")
    with pytest.raises(ImageError, match=r"2 of 8 images are smaller than the crop 32, first: low\.jpg \(50 x 30") as e:
        crops(folder, 32)
    assert line(e).endswith("remove what is smaller or lower the crop")
    assert len(crops(folder, 28)) == 100
    (folder / "low.jpg").unlink()
    with pytest.raises(ImageError, match=r"1 of 7 images is smaller than the crop 32, first: narrow\.png"):
        crops(folder, 32)


def test_whole_files_are_not_decoded_at_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    load = ImageFile.ImageFile.load

    def counted(image: Any) -> Any:
        decoded.append(image.filename)
        return load(image)

    Image.fromarray(photo(0, 60, 60)).save(folder / "y.jpg")
    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    data = crops(folder)
    assert decoded == []
    assert (len(data.photos), data.photos.pixels) == (7, sum(60 * (70 + i) for i in range(6)) + 3600)  # type: ignore[attr-defined]
    with (folder / "y.jpg").open("ab") as file:
        file.write(b"what some cameras append")
    crops(folder)
    assert len(decoded) == 1


def test_settings() -> None:
    for crop, message in ((30, "choose 28"), (2, "choose 4"), (0, "choose 4"), (-8, "choose 4")):
        with pytest.raises(SettingError, match=message):
            crops([photo()], crop)
    with pytest.raises(SettingError, match="seed -1"):
        crops([photo()], seed=-1)


# the command


def test_the_sheet_shows_what_a_run_sees(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "out" / "sheet.png"
    sheet.parent.mkdir()
    options = ["--crop", "32", "--count", "5", "--degradation", "blind", "--seed", "3"]
    assert main(["data", str(folder), "--preview", str(sheet), *options]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "5 pairs of blind x4 from 6 images, 0.03 MP, shorter sides 60 to 60" in said
    assert list(sheet.parent.iterdir()) == [sheet]
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"))
    data = crops(folder, 32, degrade=degradation("blind", 4), seed=3)
    panel, gap, caption = 192, 8, 36
    for index in range(5):
        row, column = divmod(index, 4)
        y, x = gap + row * (panel + caption + gap) + caption, gap + column * (2 * panel + gap)
        pair = data.pair(index)
        for i, shown in enumerate((pair.lr, pair.hr)):
            wanted = ((shown + 1) * 127.5).round().permute(1, 2, 0).numpy()
            zoom = panel // wanted.shape[0]
            part = pixels[y : y + panel, x + i * panel : x + (i + 1) * panel]
            assert np.array_equal(part, wanted.repeat(zoom, 0).repeat(zoom, 1))
        assert pixels[y - caption : y, x : x + 2 * panel].min() < 100  # the caption
    assert pixels[-1].min() == 255


def test_without_a_sheet_the_folder_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(folder), "--crop", "60"]) == 0
    assert capsys.readouterr().out == f"{folder}: 6 images, 0.03 MP, shorter sides 60 to 60\n"


def test_bad_settings_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = str(tmp_path / "sheet.png")
    for arguments, message in (
        (["--degradation", "fog"], "degradation 'fog' is unknown"),
        (["--degradation", "mixed:7"], "from 0 to 1"),
        (["--crop", "64"], "6 of 6 images are smaller"),
        (["--crop", "33"], "multiple of the scale"),
        (["--seed", "-1"], "seed -1"),
        (["--crop", "32", "--preview", sheet, "--count", "401"], "at most 400"),
        (["--crop", "32", "--preview", str(tmp_path / "sheet.txt")], "cannot write .txt"),
        (["--crop", "32", "--preview", str(tmp_path / "none" / "sheet.png")], "cannot be written"),
    ):
        assert main(["data", str(folder), *arguments]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert message in said.err
        assert said.err.count("\n") == 1
    assert not list(tmp_path.glob("*sheet*"))
    assert issubclass(ImageError, MoESRError)


def test_photographs_can_be_shown_at_several_sizes() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # as fine as pixels are: reduced by two they are grey
    seen = [crops([stripes], 32, shrink=(1, 2))[i]["hr"] for i in range(20)]
    grey = [bool((hr[:, 4:-4, 4:-4].abs() < 0.05).all()) for hr in seen]
    assert 3 < sum(grey) < 17
    assert all(hr.shape == (3, 32, 32) and float(hr.abs().max()) <= 1 for hr in seen)
    again = crops([stripes], 32, shrink=(1, 2))
    assert all(torch.equal(again[i]["hr"], hr) for i, hr in enumerate(seen))
    small = crops([stripes[:40, :40]], 32, shrink=(2,))[0]["hr"]  # too small to be reduced: as it is
    assert float(small.abs().min()) == 1
    with pytest.raises(SettingError, match="shrink"):
        crops([stripes], 32, shrink=(0,))
