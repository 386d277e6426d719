"""What is painted on the page, from the painter's value to the result; and what a result invented."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import moesr
from moesr.evaluation.invented_detail import invention
from moesr.images.files import read_image
from moesr.page import html, protection
from moesr.page.builder import build
from moesr.page.controls import CONTROLS
from moesr.page.handlers import Handlers
from moesr.page.job import JobProgress
from moesr.page.job_queue import JobQueue
from moesr.page.page_host import StandaloneHost
from moesr.page.protection import draw_background, drop_unused, make_painter
from moesr.progress import Event
from moesr.settings import SETTINGS
from moesr.settings_record import digest_file, read_record

gradio = pytest.importorskip("gradio")
pytestmark = pytest.mark.parametrize("nano", ["residual_shift"], indirect=True)

SETTINGS_OF_A_RUN = {"steps": 1, "fidelity": 0.0, "seed": 7, "color_fix": "none"}


@pytest.fixture
def page(nano: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Handlers]:
    """The functions of a page with the small model."""
    monkeypatch.setenv("MOESR_HOME", str(nano.parent))
    host = StandaloneHost(nano.stem)
    host.upload_folders[0].mkdir()
    queue = JobQueue(host)
    yield Handlers(queue)
    queue.close()
    host.close()


def send(page: Handlers, name: str = "a.png", seed: int = 0) -> str:
    """Puts a picture of 24 x 16 pixels where uploads lie."""
    path = page.host.upload_folders[0] / name
    noise = np.random.default_rng(seed).integers(0, 255, (2, 3, 3), np.uint8)
    Image.fromarray(noise).resize((24, 16), Image.Resampling.BICUBIC).save(path)
    return str(path)


def paint(page: Handlers, path: str) -> dict[str, Any]:
    """The painter's value after the left half was painted over."""
    value = page.offer_painting([path])[1]
    layer = Image.new("RGBA", value["background"].size)
    ImageDraw.Draw(layer).rectangle((0, 0, layer.width // 2, layer.height), fill=(79, 70, 229, 178))
    return {**value, "layers": [layer]}


def upscale(page: Handlers, files: list[str], painted: Any, **changes: Any) -> tuple[str, str]:
    """What the page says at the end of a run, and its results."""
    settings = {name: SETTINGS_OF_A_RUN.get(name, SETTINGS[name].default) for name in CONTROLS}
    settings |= changes
    *_, last = page.run(files, painted, page.facts.default, "x4", None, "png", *settings.values())
    return last[0], last[1]


def last_job(page: Handlers) -> Any:
    return list(page.queue._jobs.values())[-1]


def test_what_is_painted_is_protected_and_recorded(page: Handlers, nano: Path) -> None:
    path = send(page)
    said, results = upscale(page, [path], paint(page, path))
    assert "Done: 1 picture" in said
    (result,) = last_job(page).results
    assert result.protect.name in results
    with Image.open(result.protect) as plane:
        assert (plane.mode, plane.size) == ("L", (512, 341))
        assert plane.getextrema() == (0, 255)
        expected = moesr.upscale(moesr.load(nano), read_image(path), **SETTINGS_OF_A_RUN, protect=plane)
    assert np.array_equal(np.asarray(Image.open(result.path)), expected.rgb)
    upscale(page, [path], {**paint(page, path), "layers": []})
    assert not np.array_equal(np.asarray(Image.open(last_job(page).results[0].path)), expected.rgb)
    record = read_record(result.path)
    assert record is not None
    assert record["protect"] == digest_file(result.protect)
    assert "protect" not in (read_record(last_job(page).results[0].path) or {})
    assert "its protect map is not in the file" in page.restore_settings([str(result.path)])[0]


def test_a_painting_is_for_the_one_picture_it_was_painted_on(page: Handlers) -> None:
    first, second = send(page), send(page, "b.png", seed=1)
    painted = paint(page, first)
    assert "this belongs to one picture, and 2 were dropped" in upscale(page, [first, second], painted)[0]
    assert "another picture than b.png was painted on; paint again" in upscale(page, [second], painted)[0]
    assert page.offer_painting([first, second])[1] is page.offer_painting([])[1] is None
    assert "fidelity is 1 everywhere as it is" in upscale(page, [first], painted, fidelity=1)[0]


def test_a_map_is_sent_where_there_is_nothing_to_paint_on(page: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "gradio_version", lambda: (3, 41))
    path = send(page)
    assert page.offer_painting([path])[1] is None
    said, _ = upscale(page, [path], SimpleNamespace(name=send(page, "map.png", seed=1), orig_name=None))
    assert "Done: 1 picture" in said
    assert last_job(page).results[0].record["protect"]
    said, _ = upscale(page, [path], SimpleNamespace(name="/etc/passwd", orig_name=None))
    assert "passwd: no upload of this page" in said


def test_the_painter_takes_paintings_only_and_holds_few(page: Handlers) -> None:
    with gradio.Blocks():
        painter = make_painter(gradio)
    buffer = io.BytesIO()
    Image.new("1", (2000, 2000)).save(buffer, "PNG")
    with pytest.raises(gradio.Error, match="2000 x 2000 pixels are no painting"):
        painter.convert_and_format_image(buffer.getvalue())
    painter.blob_storage = dict.fromkeys(map(str, range(40)))
    drop_unused(painter)
    assert list(painter.blob_storage) == [str(i) for i in range(8, 40)]
    value = draw_background(page._accept([Path(send(page))]))
    assert painter.postprocess(value).background.path


def test_what_was_invented_is_what_invention_finds(page: Handlers, nano: Path) -> None:
    path = send(page)
    upscale(page, [path], None)
    (result,) = last_job(page).results
    steps = list(page.find_invented(page.host.url(result.path)))
    assert "Done: 4 tries compared" in steps[-1][0]
    found, expected = last_job(page).invented, invention(moesr.load(nano), read_image(path), **SETTINGS_OF_A_RUN)
    assert np.array_equal(np.asarray(Image.open(found.path)), expected.draw()[0, :64])
    assert (found.share, found.lr_consistency) == (expected.share, expected.lr_consistency)
    assert f"{expected.share:.1%} of the pixels of a.png" in steps[-1][1]
    assert f"({expected.lr_consistency:.1f} dB)" in steps[-1][1]
    last_try = JobProgress(Event("sample", done=0.75, share=0.25))
    assert "try 4 of 4" in html.draw_progress(last_try, None, seeds=4)


def test_looking_is_cancelled_and_says_so(page: Handlers) -> None:
    upscale(page, [send(page)], None)
    address = page.host.url(last_job(page).results[0].path)
    looking = page.find_invented(address)
    job_id = next(looking)[5]
    page.cancel(job_id)
    *_, last = looking
    assert ">Cancelled<" in last[0]
    assert last[1] == ""
    assert last_job(page).invented is None
    Path(last_job(page).uploads[0].path).unlink()
    assert "a.png" in list(page.find_invented(address))[-1][0]
    assert "the upload is not there any more" in list(page.find_invented(f"{address}x"))[-1][0]
    page.queue._jobs.clear()
    assert "too old to look into" in list(page.find_invented(address))[-1][0]


def test_nothing_listens_to_changes_of_html(page: Handlers) -> None:
    config: Any = build(page.queue).blocks.get_config_file()
    kinds = {part["id"]: part["type"] for part in config["components"]}
    listened = {kinds[part] for call in config["dependencies"] for part, event in call["targets"] if event == "change"}
    assert listened
    assert "html" not in listened, "Gradio 4 says that HTML changed whenever anything does: the page never rests"
