"""Uploads of strangers: hostile files, names and paths, and settings that come with pictures."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from moesr.errors import ImageError, SettingError
from moesr.page.controls import read_form
from moesr.page.limits import PUBLIC
from moesr.page.results import delete_old
from moesr.page.uploads import Upload, accept, clean_name, open_picture, read_size, safe_stem
from moesr.result_sizes import read_size as read_target_size
from moesr.settings import read_settings, result_size
from moesr.settings_record import read_run, to_texts
from tests.image_files import encode, photo, png_chunk


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG that says it has that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data)


#: File names, their content, and what is said of it.
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "picture.svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not a PNG"),
    "page.png": (lambda: b"<html><script>alert(1)</script></html>", "not a PNG"),
    "bomb.png": (lambda: png(12_000, 12_000, zlib.compress(bytes(12_000 * 36_001), 9)[:200_000]),
                 "144 MP, this page takes at most 4.0 MP"),
    "200mp.png": (lambda: png(20_000, 10_000, b"x"), "too many pixels"),
    "cut.png": (lambda: encode(Image.fromarray(photo(30, 40)), "PNG")[:300], "damaged picture"),
    "phone.heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(50), "pip install pillow-heif|damaged"),
    "large.jpg": (lambda: b"\xff\xd8" + bytes(21 * 2**20), "22.0 MB, this page takes files of at most 21 MB"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_files_get_a_line(tmp_path: Path, name: str) -> None:
    make, said = HOSTILE[name]
    (tmp_path / name).write_bytes(make())
    upload = accept(tmp_path / name, [tmp_path])
    with pytest.raises(ImageError, match=said) as raised:
        open_picture(upload, PUBLIC)
    assert str(raised.value).startswith(f"{name}: ")
    assert str(tmp_path) not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_pixels_are_not_decoded_to_know_the_size(tmp_path: Path) -> None:
    (tmp_path / "header.png").write_bytes(png(1500, 1000, b""))
    assert read_size(Upload(tmp_path / "header.png", "header.png"), PUBLIC) == (1500, 1000)


def test_size_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    upload = Upload(tmp_path / "a.jpg", "a.jpg")
    assert read_size(upload, PUBLIC) == (30, 40)
    assert open_picture(upload, PUBLIC).rgb.shape == (40, 30, 3)


def test_only_uploads_are_opened(tmp_path: Path) -> None:
    inside, outside = tmp_path / "uploads", tmp_path / "secret.png"
    (inside / "deep").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(outside)
    Image.new("RGB", (2, 2)).save(inside / "deep" / "mine.png")
    assert accept(inside / "deep" / "mine.png", [inside]).name == "mine.png"
    os.symlink(outside, inside / "link.png")
    beside = inside / ".." / "secret.png"
    for path in (outside, beside, inside / "link.png", inside, inside / "none.png", "/etc/passwd"):
        with pytest.raises(ImageError, match="send") as raised:
            accept(path, [inside])
        assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "shown", "stem"),
    [
        ("photo.png", "photo.png", "photo"),
        ("../../etc/passwd", "passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini", "boot"),
        ("C:\\photos\\Größe ✓.jpg", "Größe ✓.jpg", "Größe _"),
        ("a\n\x1b[31mb\u202egnp.exe", "a[31mbgnp.exe", "a_31mbgnp"),
        ("<img src=x onerror=alert(1)>.png", "<img src=x onerror=alert(1)>.png", "_img src_x onerror_alert_1__"),
        ("CON.png", "CON.png", "picture_CON"),
        ("..", "..", "picture"),
        ("", "picture", "picture"),
        (".hidden.png", ".hidden.png", "hidden"),
        ("x" * 300 + ".png", "x" * 76 + ".png", "x" * 76),
    ],
)
def test_names(name: str, shown: str, stem: str) -> None:
    assert clean_name(name) == shown
    assert safe_stem(name) == stem
    assert Path(safe_stem(name)).name == safe_stem(name)


def record_in(folder: Path, text: str) -> Path:
    info = PngInfo()
    info.add_text("moesr", text)
    Image.new("RGB", (2, 2)).save(folder / "a.png", pnginfo=info)
    return folder / "a.png"


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "7", "{", '{"seed": "' + "9" * 5000 + '"}', '{"seed": 1.5}', '{"steps": 0}',
        '{"scale": NaN}', '{"scale": 1e9}', '{"fidelity": 3}', '{"fidelity": true}', '{"sampler": "euler"}',
        '{"color_fix": ["adain"]}', '{"wrap": 1}', '{"model": ""}', '{"model": "a\\nb"}', '{"tile": "big"}',
        '{"eta": {}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_records_that_make_no_sense_are_none(tmp_path: Path, text: str) -> None:
    assert read_run(record_in(tmp_path, text)) is None


def test_unknown_settings_of_newer_versions_are_left_out(tmp_path: Path) -> None:
    found = read_run(record_in(tmp_path, to_texts({"seed": 5, "mood": "blue"})["moesr"]))
    assert found is not None
    assert (found.model, found.model_hash, found.settings) == ("tiny", "", {"seed": 5})


def test_sizes_are_reached_exactly_or_refused() -> None:
    for choice, value, size, tag in (("x4", None, (244, 172), "x4"), ("Times", 2.5, (153, 108), "x2.5"),
                                     ("Width", 1921, (1921, 1354), "1921w"), ("Height", 7, (10, 7), "7h"),
                                     ("Megapixels", 1, (1191, 840), "1mp")):  # fmt: skip
        target = read_target_size(choice, value)
        assert result_size(43, 61, target.find_scale(61, 43)) == size[::-1]
        assert target.tag == tag
    for choice, value, said in (("Width", 0, "above 0"), ("Height", None, "above 0"), ("Breadth", 3, "choose one of")):
        with pytest.raises(SettingError, match=said):
            read_target_size(choice, value)
    with pytest.raises(SettingError, match=r"that is 65\.6 times 61 x 43; give one that is 0\.1 to 64 times as large"):
        read_target_size("Width", 4000).find_scale(61, 43)


def test_forms_give_words_and_leave_to_the_model() -> None:
    form = {"tile": "512", "seed": 3.0, "scale": 0, "steps": None, "fidelity": "auto", "wrap": False, "eta": 0}
    assert read_form(form) == {"tile": 512, "seed": 3, "wrap": False, "eta": 0.0}
    first, second = (read_settings({"seed": -1})["seed"] for _ in range(2))
    assert first != second


def test_the_oldest_files_go_when_they_take_too_much_room(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "upload").write_bytes(bytes(1000))
        time.sleep(0.02)
    delete_old([tmp_path], older_than=60, room=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]
