"""Settings and models that several tests use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import moesr
from tests import training_setup
from tests.batch_jobs import draw, hashes
from tests.small_models import PROCESSES, save_nano

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture
def seeded() -> Iterator[None]:
    """The same numbers of torch's global generator in every test, which is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        yield


@pytest.fixture(scope="session", params=sorted(PROCESSES))
def nano(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a model of random weights and the full structure, over either process."""
    return save_nano(request.param, tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="session")
def model(nano: Path) -> moesr.SRModel:
    """The same, loaded once for all: tests leave it as it is."""
    return moesr.load(nano, residency="all")


@pytest.fixture(scope="session")
def shift_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_nano("residual_shift", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(8):
        draw(folder / "ab"[i % 2] / f"{i}.png", i)
    return folder


@pytest.fixture(scope="session")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LPIPS of random weights, without those of VGG."""
    return training_setup.write_metrics(tmp_path_factory.mktemp("weights") / "metrics")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_setup.write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def expected(shift_model: str, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the results of one worker that nothing happened to."""
    out = tmp_path_factory.mktemp("expected")
    report = moesr.batch(photos, out, workers=1, model=shift_model, steps=1)
    assert (report.done, report.failed) == (8, [])
    return hashes(out)
