"""A model as samplers of other programs drive it: they know a noisy x, its sigma, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model import SRModel
from ..pipeline import Batch
from ..pipeline_run import Run
from ..settings import SETTINGS


class SigmaModel:
    """Images that wait for their noise to be taken away, in x = (z - y) / a with sigma = s / a (arXiv 2206.00364).

    z = a x0 + b y + s eps is a model's own state. For residual shift, where b = 1 - a, x is the difference from y, the
    encoded LR image; for DDPM there is no y.
    """

    def __init__(
        self, model: SRModel, image: Any, *, steps: int | None = None, tile: int | str = "auto",
        restore: float | str = "auto",
    ) -> None:  # fmt: skip
        """steps: of `schedule`. The others are those of `upscale`. Raises SettingError and ImageError."""
        given: dict[str, Any] = {name: SETTINGS[name].default for name in ("fidelity", "wrap", "tile_batch")}
        batch = Batch(
            model, image, **given, protect=None, mask=None, tile=tile, tile_overlap="auto", callback=None, steps=steps,
            restore=restore,
        )  # fmt: skip
        process, settings = model.process, batch.settings
        self._a = process.a[:-1]
        #: Of every timestep, float64 [T], rising.
        self.sigmas: Tensor = process.s[:-1] / self._a
        timesteps = process.timesteps(settings.steps, settings.spacing)
        #: Of the steps of a run, falling, and 0: float32 [steps + 1].
        self.schedule: Tensor = torch.cat([self.sigmas[timesteps], torch.zeros(1)]).float()
        every = range(process.total)[::-1]
        with torch.inference_mode():
            self._parts = [(run, y, run.make_predictor(y, every)) for run, y in map(_prepare, batch.runs())]
        #: Of a latent of all images, [B, C, h, w].
        self.shape = (batch.images, *self._parts[0][0].shape[1:])

    def find_timestep(self, sigma: float) -> int:
        """The timestep whose noise is nearest."""
        return int((self.sigmas.log() - torch.tensor(sigma, dtype=torch.float64).log()).abs().argmin())

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The clean x that is predicted for all images, [B, C, h, w] like x."""
        t = self.find_timestep(sigma)
        out = []
        for z, (_, y, predict) in zip(x.split([len(run) for run, _, _ in self._parts]), self._parts):
            z = z.float() * self._a[t].item()
            found = predict(z if y is None else z + y.to(z), t)
            out.append(found if y is None else found - y.to(found))
        return torch.cat(out).to(x)

    def to_latent(self, x: Tensor) -> Tensor:
        """The model's own latent of a clean x."""
        return x + self._join(x)

    def from_latent(self, latent: Tensor) -> Tensor:
        """x of a clean latent."""
        return latent - self._join(latent)

    def _join(self, like: Tensor) -> Tensor | float:
        ys = [y for _, y, _ in self._parts if y is not None]
        return torch.cat(ys).to(like) if ys else 0.0


def _prepare(run: Run) -> tuple[Run, Tensor | None]:
    if run.model.config.unet.takes_settings:
        run.give_settings(torch.zeros(len(run)))  # what is more faithful has weaker noise, and a host's has all of it
    return run, run.encode()
