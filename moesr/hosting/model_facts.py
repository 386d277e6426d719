"""Facts about the library's models, without reading weights: what doors show of them, and the hash for results."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.model_files import open_model
from ..config import ModelConfig
from ..diffusion.process import from_config
from ..errors import CheckpointError, SettingError
from ..library import DEFAULT, compute_fingerprint, installed, suggest
from ..settings import resolve


@dataclass(frozen=True)
class Plan:
    """The steps of a run, in order."""

    #: Number of the expert of each step.
    experts: list[int]
    #: Noise level of each step, 0 to 1.
    noise: list[float]
    #: Timestep of each step.
    timesteps: list[int]

    def describe(self) -> str:
        lines = [f"{len(self.timesteps)} steps, {len(set(self.experts))} experts at work"]
        for expert, group in itertools.groupby(range(len(self.experts)), key=self.experts.__getitem__):
            first, *others = group
            last = others[-1] if others else first
            steps = f"steps {first + 1} to {last + 1}" if others else f"step {first + 1}"
            times = " to ".join(str(self.timesteps[i]) for i in dict.fromkeys((first, last)))
            lines.append(f"expert {expert}: {steps} (t {times})")
        return "\n".join(lines)


def plan_steps(config: ModelConfig, *, steps: int | None = None, sampler: str = "auto", spacing: str = "auto") -> Plan:
    """Which expert works at which step. Raises SettingError for steps that the model does not have."""
    process = from_config(config.process)
    settings = resolve(config, steps=steps, sampler=sampler, spacing=spacing)
    timesteps = process.timesteps(settings.steps, settings.spacing)
    levels, highest = process.s.tolist(), float(process.s.max())
    experts = [bisect_right(config.stages, t) for t in timesteps]
    return Plan(experts, [levels[t] / highest for t in timesteps], timesteps)


class ModelFacts:
    """Names, configs and hashes of the library's models. Each file is opened once, until it changes.

    Only names in the library are ever opened: a path that a client sends is no name. default: the one that a door
    starts with. May be shared between threads. Raises SettingError if the default is not there.
    """

    def __init__(self, default: str = DEFAULT) -> None:
        self.default = default
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[ModelConfig, tuple[str, ...]]] = {}
        self._hashes: dict[str, str] = {}
        self.find_path(default)

    def list_names(self) -> list[str]:
        """The library's models, the default first."""
        return sorted(installed(), key=lambda name: name != self.default)

    def find_path(self, name: str) -> Path:
        """The file or folder of a model. Raises SettingError for what is no name in the library."""
        there = installed()
        if name not in there:
            some = ", ".join(list(there)[:8])
            raise SettingError(f"model {name!r} is not in the library ({some}){suggest(name, there)}")
        return there[name]

    def read_config(self, name: str) -> ModelConfig:
        """What a model is, without reading its weights. Raises SettingError, or CheckpointError for a broken file."""
        return self._open(name)[0]

    def list_notes(self, name: str) -> tuple[str, ...]:
        """A line for everything that had to be assumed about a model's files. Raises as `read_config`."""
        return self._open(name)[1]

    def compute_hash(self, name: str) -> str:
        path = self.find_path(name)
        key = read_file_states(path)
        with self._lock:
            if key not in self._hashes:
                self._hashes[key] = compute_fingerprint(path)
            return self._hashes[key]

    def _open(self, name: str) -> tuple[ModelConfig, tuple[str, ...]]:
        path = self.find_path(name)
        key = read_file_states(path)
        with self._lock:
            if key not in self._opened:
                try:
                    files = open_model(path)
                except CheckpointError as error:
                    raise CheckpointError(str(error).replace(str(path), name)) from error
                self._opened[key] = files.config, files.notes
            return self._opened[key]


def read_file_states(path: Path) -> str:
    """A text that changes when the file does, or those in a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return "|".join(f"{p}:{p.stat().st_mtime_ns}:{p.stat().st_size}" for p in files)
