"""`python -m moesr evaluate`: what is paired, measured, printed, drawn and refused."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import moesr
from moesr.cli import main
from moesr.evaluation.metric_suite import Suite
from moesr.evaluation.metrics import psnr_y, ssim_y
from moesr.evaluation.quality_benchmark import Benchmark, match
from moesr.evaluation.report import CROP, find_most_different
from tests.image_files import photo, planes
from tests.training_setup import write_metrics, write_niqe

Shown = pytest.CaptureFixture[str]


def picture(seed: int, height: int = 64, width: int = 80) -> np.ndarray:
    return photo(height, width, seed)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def shrunk(pixels: np.ndarray, scale: int = 4) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.array(image.resize((image.width // scale, image.height // scale), Image.Resampling.BICUBIC))


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b", "c")):
        save(tmp_path / "hr" / f"{name}.png", picture(seed))
    return tmp_path / "hr"


@pytest.fixture
def lr(hr: Path, tmp_path: Path) -> Path:
    for path in hr.iterdir():
        save(tmp_path / "lr" / f"{path.stem}_x4.png", shrunk(np.array(Image.open(path))))
    return tmp_path / "lr"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of LPIPS-alex, and parameters in the shape of NIQE's."""
    return write_niqe(write_metrics(tmp_path_factory.mktemp("weights") / "metrics"))


def run(capsys: Shown, *arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr without the progress bar's."""
    code = main(["evaluate", *map(str, arguments)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    lines = re.split(r"[\r\n]+", shown.err)
    return code, shown.out, [line for line in lines if line.startswith(("error:", "note:"))]


def read_json(capsys: Shown, *arguments: object) -> dict[str, Any]:
    code, out, errors = run(capsys, *arguments, "--json")
    assert code == 0, errors
    return json.loads(out)


# A model


def test_a_model_on_lr_files(shift_model: str, hr: Path, lr: Path, weights: Path, capsys: Shown) -> None:
    options = ("--metrics", weights, "--steps", 1, "--seed", 3, "--dtype", "fp32")
    facts = read_json(capsys, "--hr", hr, "--lr", lr, "--model", shift_model, *options)
    assert facts["model"] == Path(shift_model).stem
    assert facts["settings"] | {"steps": 1, "seed": 3, "scale": 4, "dtype": "float32"} == facts["settings"]
    assert [row["name"] for row in facts["images"]] == ["a", "b", "c"]
    assert set(facts["images"][0]) == {
        "name", "psnr_y", "ssim_y", "lpips_alex", "niqe", "lr_psnr", "grid", "seconds",
    }  # fmt: skip
    for key in ("psnr_y", "ssim_y", "lpips_alex", "lr_psnr", "grid", "seconds"):
        values = [row[key] for row in facts["images"]]
        assert all(np.isfinite(values))
        assert facts["mean"][key] == pytest.approx(np.mean(values), abs=2e-6)
    assert facts["mean"]["niqe"] is None  # the images are too small for it
    assert [line.split()[0] for line in facts["left_out"]] == ["LPIPS-vgg", "DISTS", "MUSIQ", "FID"]
    small = np.array(Image.open(lr / "b_x4.png"))
    result = moesr.upscale(moesr.load(shift_model, dtype="fp32"), small, steps=1, seed=3)
    expected = psnr_y(planes(result), planes(picture(1))).item()
    assert facts["images"][1]["psnr_y"] == pytest.approx(expected, abs=1e-4)


def test_the_table(shift_model: str, hr: Path, tmp_path: Path, capsys: Shown) -> None:
    options = ("--steps", 1, "--metrics", tmp_path, "--limit", 2)
    code, out, lines = run(capsys, "--hr", hr, "--model", shift_model, *options)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["image", "PSNR-Y", "SSIM-Y", "LR-PSNR", "grid", "seconds"]
    assert [row[0] for row in rows[1:]] == ["a", "b", "mean"]
    psnr = [float(row[1]) for row in rows[1:]]
    assert psnr[2] == pytest.approx((psnr[0] + psnr[1]) / 2, abs=0.011)
    assert [line.split()[1] for line in lines] == ["LPIPS-alex", "LPIPS-vgg", "DISTS", "NIQE", "MUSIQ", "FID"]


@pytest.mark.parametrize("reduction", ["pillow", "matlab"])
def test_lr_made_from_hr(reduction: str, hr: Path, tmp_path: Path, capsys: Shown) -> None:
    odd = picture(7, 67, 83)  # the last rows and columns make no whole LR pixel
    save(hr / "odd.png", odd)
    facts = read_json(capsys, "--hr", hr, "--model", "bicubic", "--metrics", tmp_path, "--scale-from", reduction)
    small = shrunk(odd[:64, :80])
    large = np.array(Image.fromarray(small).resize((80, 64), Image.Resampling.BICUBIC))
    expected = ssim_y(planes(large), planes(odd[:64, :80])).item()
    found = facts["images"][-1]["ssim_y"]
    assert found == pytest.approx(expected, abs=1e-6 if reduction == "pillow" else 0.02)
    assert (found == pytest.approx(expected, abs=1e-6)) == (reduction == "pillow")  # borders and rounding differ


# Results of others


def test_perfect_results(hr: Path, lr: Path, tmp_path: Path, capsys: Shown) -> None:
    for path in hr.iterdir():
        save(tmp_path / "peer" / f"{path.stem}x4.png", np.array(Image.open(path)))
    for given in ([], ["--lr", lr]):
        facts = read_json(capsys, "--hr", hr, "--results", tmp_path / "peer", "--metrics", tmp_path, *given)
        assert facts["model"] == str(tmp_path / "peer")
        assert facts["mean"]["psnr_y"] is None  # infinite, which JSON cannot say
        assert facts["mean"]["ssim_y"] == 1
        assert facts["mean"]["lr_psnr"] > 45
        assert facts["mean"]["seconds"] is None


def test_bad_files_are_one_line_each_and_the_others_are_done(hr: Path, lr: Path, tmp_path: Path, capsys: Shown) -> None:
    peer = tmp_path / "peer"
    for seed, name in enumerate(("a", "b", "c", "d", "e")):
        save(hr / f"{name}.png", picture(seed))
        save(lr / f"{name}_x4.png", shrunk(picture(seed)))
        save(peer / f"{name}.png", picture(seed))
    save(peer / "b.png", picture(1, 60, 80))
    (peer / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (peer / "d.png").unlink()
    save(lr / "e_x4.png", shrunk(picture(4, 40, 80)))
    arguments = ("--hr", hr, "--lr", lr, "--results", peer, "--metrics", tmp_path, "--json")
    code, out, lines = run(capsys, *arguments)
    facts = json.loads(out)
    assert code == 1
    assert [row["name"] for row in facts["images"]] == ["a"]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    assert errors == facts["failed"]
    assert len(errors) == 4
    for said in ("b.png: the result is 80 x 60", "c.png", "d.png: no picture of that name",
                 "e_x4.png: 20 x 10 pixels do not fit its HR, 80 x 64"):  # fmt: skip
        assert sum(said in line for line in errors) == 1, said


def test_results_may_be_tiny(tmp_path: Path, capsys: Shown) -> None:
    save(tmp_path / "hr" / "dot.png", picture(0, 12, 12))
    arguments = ("--hr", tmp_path / "hr", "--results", tmp_path / "hr", "--metrics", tmp_path, "--json")
    code, out, lines = run(capsys, *arguments)
    assert code == 0
    assert json.loads(out)["images"][0] | {"ssim_y": None, "grid": None} == json.loads(out)["images"][0]
    assert any(line.startswith("note: dot: SSIM") for line in lines)


def test_names_pair_by_stem(tmp_path: Path) -> None:
    for name in ("one", "two_x4", "three"):
        save(tmp_path / "hr" / f"{name}.png", picture(0, 8, 8))
    for name in ("one.png", "onex4.png", "two_x4.webp", "threeX2.png"):
        save(tmp_path / "lr" / name, picture(0, 8, 8))
    cases, missing = match(tmp_path / "hr", lr=tmp_path / "lr")
    assert missing == []
    pairs = {c.name: c.lr.name for c in cases if c.lr}
    assert pairs == {"one": "one.png", "two_x4": "two_x4.webp", "three": "threeX2.png"}


# The report


def test_the_report_shows_images_and_where_they_differ(hr: Path, tmp_path: Path, capsys: Shown) -> None:
    large = picture(5, 240, 320)
    save(hr / "<z> & co.png", large)
    marked = large.copy()
    marked[130:200, 200:290] = 0
    for path in hr.iterdir():
        save(tmp_path / "peer" / path.name, marked if path.stem.startswith("<") else np.array(Image.open(path)))
    page = tmp_path / "deep" / "report.html"
    arguments = ("--hr", hr, "--results", tmp_path / "peer", "--metrics", tmp_path, "--html", page)
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert list(page.parent.iterdir()) == [page]
    assert run(capsys, *arguments)[0] == 1  # is there already
    text = page.read_text()
    assert "<z>" not in text
    assert text.count("<section") == 4
    assert re.search(r"(src|href)=.(?!data:|#)", text) is None  # nothing outside of the file
    kinds = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', text.split("&lt;z&gt; &amp; co</h2>")[1])
    images = [np.array(Image.open(io.BytesIO(base64.b64decode(data)))) for _, data in kinds[:6]]
    assert [kind for kind, _ in kinds[:6]] == ["jpeg"] * 3 + ["png"] * 3
    assert [image.shape for image in images] == [(240, 320, 3)] * 3 + [(CROP, CROP, 3)] * 3
    top, left = find_most_different(marked, large)
    assert np.array_equal(images[4], marked[top : top + CROP, left : left + CROP])
    assert np.array_equal(images[5], large[top : top + CROP, left : left + CROP])
    assert (images[4] == 0).all(axis=2).sum() == 70 * 90  # all of the mark is in the crop
    ssim = out.splitlines()[1].split()[-3]
    assert text.count(ssim) >= 2


# Settings and weights


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hr", "none"], "none: no such folder"),
        (["--hr", "hr", "--html", "empty"], "empty: a folder; give the name of an .html file"),
        (["--hr", "empty"], "no pictures"),
        (["--hr", "hr", "--results", "none"], "none: no such folder"),
        (["--hr", "hr", "--model", "nonesuch"], "nonesuch"),
        (["--hr", "hr", "--fidelity", "7"], "fidelity"),
    ],
)
def test_wrong_settings_are_one_line(
    shift_model: str, hr: Path, arguments: list[str], said: str, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hr.parent)
    (hr.parent / "empty").mkdir()
    model = [] if "--model" in arguments else ["--model", shift_model]
    code, out, lines = run(capsys, *arguments, *model, "--json")
    errors = [line for line in lines if line.startswith("error:")]
    assert (code, out, len(errors)) == (1, "", 1)
    assert said in errors[0]


def test_damaged_weights_leave_their_metric_out(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in weights.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = Suite(tmp_path).keys
    (tmp_path / "alexnet_features.safetensors").write_bytes(b"nonsense")
    (tmp_path / "niqe_pris_params.npz").write_bytes(b"PK nonsense")
    (tmp_path / "my_inception.pth").write_bytes(b"nonsense")
    monkeypatch.setenv("MOESR_METRICS", str(tmp_path))
    suite = Suite()
    assert set(whole) - set(suite.keys) == {"lpips_alex", "niqe"}
    assert len(suite.left_out) == 6
    assert all("\n" not in line and "left out" in line for line in suite.left_out)


def test_a_model_that_breaks_on_one_image(hr: Path, tmp_path: Path) -> None:
    def upscale(small: np.ndarray) -> np.ndarray:
        if np.array_equal(small, shrunk(picture(1))):
            raise RuntimeError("two\nlines")
        return small.repeat(4, 0).repeat(4, 1)

    benchmark = Benchmark(Suite(tmp_path), 4, upscale)
    assert [row.name for row, _ in benchmark.run(match(hr)[0])] == ["a", "c"]
    assert benchmark.failed == [f"{hr / 'b.png'}: RuntimeError: two lines"]
