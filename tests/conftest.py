"""Settings and models that several tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.small_models import PROCESSES, save_nano

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session", params=sorted(PROCESSES))
def nano(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a model of random weights and the full structure, over either process."""
    return save_nano(request.param, tmp_path_factory.mktemp("nano"))
