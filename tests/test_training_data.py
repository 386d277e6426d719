"""Training images of every kind become the pixels they show; bad ones are one line before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moesr.cli import main
from moesr.errors import ImageError, SettingError
from moesr.images.files import Picture, read_image, write_image
from moesr.training.data import BatchSource, Images, read_images
from tests.image_files import photo

SIDE = 40


def pixels(images: Images, index: int = 0) -> np.ndarray:
    return images.tensors[index].permute(1, 2, 0).numpy()


def source(images: Any, crop: int = SIDE, **options: Any) -> BatchSource:
    return BatchSource(images, **{"crop": crop, "scale": 4, "batch": 4, "recipe": "bicubic", **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photographs in two folders, of three formats without loss."""
    out = tmp_path / "photos"
    (out / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.webp", "c.BMP", "more/a.png", "more/b.tif", "z.png")):
        Image.fromarray(photo(60, 70 + i, i)).save(out / name, lossless=True)  # which only WebP heeds
    return out


def test_all_kinds_of_files_are_read_in_the_order_of_their_names(folder: Path) -> None:
    images = read_images(folder)
    assert [Path(name).relative_to(folder).as_posix() for name in images.names] == [
        "a.png", "b.webp", "c.BMP", "more/a.png", "more/b.tif", "z.png"
    ]  # fmt: skip
    for k in range(6):
        assert np.array_equal(pixels(images, k), photo(60, 70 + k, k))


def test_grey_alpha_16_bits_and_orientation(tmp_path: Path) -> None:
    rgb, alpha = photo(SIDE, SIDE, 1), photo(SIDE, SIDE, 2)[..., 0]
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "b.png")
    write_image(tmp_path / "c.png", Picture(rgb.astype(np.float32) / 255, bits=16))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(40, 56)).save(tmp_path / "d.jpg", exif=exif)
    images = read_images(tmp_path)
    assert np.array_equal(pixels(images, 0), grey[..., None].repeat(3, 2))
    share = alpha[..., None] / 255
    assert np.abs(pixels(images, 1) - (rgb * share + 255 * (1 - share))).max() < 0.51
    assert np.array_equal(pixels(images, 2), rgb)
    assert pixels(images, 3).shape == (56, 40, 3)
    assert np.abs(pixels(images, 3) - read_image(tmp_path / "d.jpg").rgb * 255).max() < 0.51


def test_a_dataset_is_as_good_as_a_folder(folder: Path) -> None:
    wanted = source(read_images(folder), 32).next(3)["hr"]
    for make in (np.asarray, Image.fromarray):
        dataset = [make(photo(60, 70 + i, i)) for i in range(6)]
        assert np.array_equal(source(dataset, 32).next(3)["hr"], wanted)


class Broken(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        raise OSError("image file is truncated")


def test_what_is_no_data_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty" / ".thumbnails").mkdir(parents=True)
    Image.fromarray(photo(SIDE, SIDE)).save(tmp_path / "empty" / ".thumbnails" / "a.png")
    cases: list[tuple[Any, str]] = [
        ([], "list: the dataset is empty"),
        ([b"photo.png"], "item 0 of list: bytes is no image; give PIL"),
        ([photo(SIDE, SIDE).astype(np.float32)], "item 0 of list: ndarray is no image"),
        (Broken([0]), r"item 0 of Broken: cannot be read \(image file is truncated\); repair"),
        (7, "int: not training images"),
        (tmp_path / "empty", r"no images \(\.png"),
        (tmp_path / "none", "no such folder; give one"),
        (tmp_path / "notes.txt", "is no pack; make one"),
    ]
    for data, message in cases:
        with pytest.raises((ImageError, SettingError), match=message) as error:
            read_images(data)
        assert "\n" not in str(error.value)


def test_bad_files_are_counted(folder: Path) -> None:
    (folder / "m1.png").write_bytes(b"")
    (folder / "m2.jpg").write_bytes(b"no picture")
    data = (folder / "z.png").read_bytes()
    (folder / "z.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"3 of 8 images cannot be used, first: .*m1\.png: the file is empty"):
        read_images(folder)
    for name in ("m1.png", "m2.jpg"):
        (folder / name).unlink()
    with pytest.raises(ImageError, match=r"1 of 6 images cannot be used, first: .*z\.png: damaged picture"):
        read_images(folder)


def test_small_images_and_wrong_settings_are_one_line(folder: Path) -> None:
    Image.fromarray(photo(30, 50)).save(folder / "low.png")
    with pytest.raises(ImageError, match=r"1 of 7 images is smaller than the crop 32, first: .*low\.png \(50 x 30"):
        source(folder, 32)
    for crop, message in ((30, "choose 28"), (2, "choose 4"), (-8, "choose 4")):
        with pytest.raises(SettingError, match=message):
            source([photo(SIDE, SIDE)], crop)
    with pytest.raises(SettingError, match="seed -1"):
        source([photo(SIDE, SIDE)], seed=-1)


# the command


def test_the_sheet_shows_what_a_run_trains_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "out" / "sheet.png"
    sheet.parent.mkdir()
    options = ["--crop", "32", "--count", "5", "--degradation", "blind", "--seed", "3"]
    assert main(["data", str(folder), "--preview", str(sheet), *options]) == 0
    assert "5 pairs of blind x4 from 6 images, 0.03 MP, shorter sides 60 to 60" in capsys.readouterr().out
    assert list(sheet.parent.iterdir()) == [sheet]
    with Image.open(sheet) as image:
        canvas = np.asarray(image.convert("RGB"))
    data = source(folder, 32, recipe="blind", seed=3)
    batch, panel, gap, caption = data.next(0, 5), 192, 8, 36
    for index in range(5):
        row, column = divmod(index, 4)
        y, x = gap + row * (panel + caption + gap) + caption, gap + column * (2 * panel + gap)
        for i, name in enumerate(("lr", "hr")):
            wanted = ((batch[name][index] + 1) * 127.5).round().permute(1, 2, 0).numpy()
            zoom = panel // wanted.shape[0]
            part = canvas[y : y + panel, x + i * panel : x + (i + 1) * panel]
            assert np.array_equal(part, wanted.repeat(zoom, 0).repeat(zoom, 1))
        assert canvas[y - caption : y, x : x + 2 * panel].min() < 100  # the caption


def test_without_a_sheet_the_folder_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(folder), "--crop", "60"]) == 0
    assert capsys.readouterr().out == f"{folder}: 6 images, 0.03 MP, shorter sides 60 to 60\n"


def test_bad_settings_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = str(tmp_path / "sheet.png")
    for arguments, message in (
        (["--crop", "64"], "6 of 6 images are smaller"),
        (["--crop", "32", "--preview", sheet, "--count", "401"], "at most 400"),
        (["--crop", "32", "--preview", str(tmp_path / "sheet.txt")], "format 'txt' is unknown"),
    ):
        assert main(["data", str(folder), *arguments]) == 1
        said = capsys.readouterr()
        assert said.err.startswith("error: ")
        assert message in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)
    assert not list(tmp_path.glob("*sheet*"))
