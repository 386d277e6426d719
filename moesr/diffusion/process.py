"""A diffusion process is a few float64 arrays: z_t = a_t x0 + b_t y + s_t eps.

DDPM (arXiv 2310.12004, eq. 1 to 3): a = sqrt(alpha_bar), b = 0, s = sqrt(1 - alpha_bar).
Residual shift (ResShift): a = 1 - eta, b = eta, s = kappa sqrt(eta), where y is the encoded LR image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ProcessConfig
from ..errors import SettingError
from ..settings import SETTINGS, choose_spacing

CLEAN = -1  # index of the terminal entry of every array: z = x0
PREDICTIONS = ("eps", "x0", "residual", "eps_scale")


@dataclass(frozen=True, eq=False)
class Process:
    """Coefficients of one process at t = 0 .. T - 1 (0 has the least noise), and at t = -1, which is clean: (1, 0, 0).

    Arrays are float64 [T + 1] on the CPU. `carry` is what a step keeps of its predecessor,
    z_t = carry_t / carry_prev * z_prev + ..., and `divisor` scales the network's input. Methods that take `t` accept
    an int or an int64 tensor [B]; they compute in the dtype of the tensors that they are given.
    """

    kind: str
    predict: str
    a: Tensor
    b: Tensor
    s: Tensor
    carry: Tensor
    divisor: Tensor

    @property
    def total(self) -> int:
        """Number of timesteps the networks were trained on."""
        return len(self.a) - 1

    def timesteps(self, steps: int, spacing: str = "auto") -> list[int]:
        """Exactly `steps` timesteps from high to low, for every count 1 .. T.

        trailing: round(T (i + 1) / steps) - 1, which always starts at T - 1. leading: floor(i T / steps), plus 1 for
        DDPM when steps < T (as LDM samples); ResShift's respacing is the same without the 1. auto: leading, but
        trailing for residual shift and below 20 steps. Raises SettingError for a count or spacing that does not exist.
        """
        T = self.total
        if not 1 <= steps <= T:
            raise SettingError(f"{steps} steps: this model has {T} timesteps, ask for 1 to {T}")
        if self._spacing(steps, spacing) == "trailing":
            ascending = [round(T * (i + 1) / steps) - 1 for i in range(steps)]
        else:
            offset = int(self.kind == "ddpm" and steps < T)
            ascending = [T * i // steps + offset for i in range(steps)]
        return ascending[::-1]

    def last(self, steps: int, spacing: str = "auto") -> int:
        """Where the last step lands: clean (-1), or t = 0 for DDPM's leading spacing with steps < T, as LDM samples."""
        leading = self._spacing(steps, spacing) == "leading"
        return 0 if leading and self.kind == "ddpm" and steps < self.total else CLEAN

    def step_std(self, t: int, prev: int, *, large: bool = False) -> float:
        """Standard deviation of the noise that an ancestral step from t to prev adds; 0 when prev is clean.

        Small is the posterior's: sigma^2 = s_prev^2 / s_t^2 * v, with v = var(z_t | z_prev); large is sqrt(v), the
        paper's eq. 3. v = 1 - alpha_bar_t / alpha_bar_prev for DDPM, kappa^2 (eta_t - eta_prev) for residual shift.
        """
        if prev == CLEAN:
            return 0.0
        s_t, s_p = self.s[t].item(), self.s[prev].item()
        ratio = (self.carry[t] / self.carry[prev]).item()
        std = math.sqrt(max(s_t**2 - (ratio * s_p) ** 2, 0.0))
        return std if large else std * s_p / s_t

    def scale_input(self, z: Tensor, t: int | Tensor) -> Tensor:
        """What the network sees of z: z / divisor_t. Only the network's input is scaled, never the state."""
        return z / _at(self.divisor, t, z)

    def x0(self, out: Tensor, z: Tensor, t: int | Tensor, y: Tensor | None = None) -> Tensor:
        """The clean latent that the network's output `out` at state z stands for, by the kind of prediction.

        eps: (z - b y - s out) / a. eps_scale: (z - b y - out) / a. residual: y - out. x0: out. Not clamped.
        """
        if self.predict == "x0":
            return out
        if self.predict == "residual":
            return _require(y) - out
        noise = out if self.predict == "eps_scale" else _at(self.s, t, z) * out
        return (z - self.shift(y, t, z) - noise) / _at(self.a, t, z)

    def prior(
        self, noise: Tensor, y: Tensor | None = None, t: int | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """The state that sampling starts from at timestep t (default T - 1) for standard normal noise.

        DDPM: the noise itself. Residual shift: y + s_t noise; the vanishing a_t (x0 - y) is dropped, as ResShift does.
        out: takes the sum; it may be the noise itself.
        """
        if self.kind == "ddpm":
            return noise
        sigma = self.s[self.total - 1 if t is None else t].item()
        return torch.add(_require(y), noise, alpha=sigma, out=out)

    def add_noise(self, x0: Tensor, y: Tensor | None, noise: Tensor, t: int | Tensor) -> Tensor:
        """The forward marginal z_t = a_t x0 + b_t y + s_t noise."""
        return _at(self.a, t, x0) * x0 + self.shift(y, t, x0) + _at(self.s, t, x0) * noise

    def shift(self, y: Tensor | None, t: int | Tensor, like: Tensor) -> Tensor | float:
        """b_t y in the dtype of `like`; 0 for DDPM, which has no such term. SettingError if y is needed and absent."""
        if self.kind == "ddpm":
            return 0.0
        return _at(self.b, t, like) * _require(y)

    def shift_(self, z: Tensor, y: Tensor | None, t: int, prev: int, keep: float) -> None:
        """Adds (b_prev - keep b_t) y to z in place: the term in y of a step that keeps `keep` of z."""
        if self.kind != "ddpm":
            z.add_(_require(y), alpha=self.b[prev].item() - keep * self.b[t].item())

    def _spacing(self, steps: int, spacing: str) -> str:
        SETTINGS["spacing"].check(spacing)
        return choose_spacing(self.kind, steps) if spacing == "auto" else spacing


def ddpm(config: ProcessConfig) -> Process:
    """DDPM with betas = linspace(sqrt(start), sqrt(end), T)^2 in float64 (LDM's schedule; arXiv 2310.12004, eq. 1)."""
    root = torch.linspace(config.linear_start**0.5, config.linear_end**0.5, config.timesteps, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - root**2, dim=0)
    a = _append_clean(alpha_bar.sqrt(), 1.0)
    s = _append_clean((1 - alpha_bar).sqrt(), 0.0)
    return Process("ddpm", _check(config.predict), a, torch.zeros_like(a), s, carry=a, divisor=torch.ones_like(a))


def residual_shift(config: ProcessConfig, *, latent: bool = True) -> Process:
    """ResShift's process: sqrt(eta_i) = s_0 (e / s_0)^((i / (T - 1))^power), s_0 = min(m / kappa, m), e = etas_end.

    With normalize_input the network sees z / sqrt(kappa^2 eta + 1), or z / (3 kappa sqrt(eta) + 1) if z is no latent.
    """
    T, kappa = config.timesteps, config.kappa
    first = min(config.min_noise_level / kappa, config.min_noise_level)
    # One timestep has no slope: it is the noisiest.
    position = torch.arange(T, dtype=torch.float64) / (T - 1) if T > 1 else torch.ones(1, dtype=torch.float64)
    root = _append_clean(first * (config.etas_end / first) ** position**config.power, 0.0)
    eta, s = root**2, kappa * root
    divisor = (s**2 + 1).sqrt() if latent else 3 * s + 1
    divisor = divisor if config.normalize_input else torch.ones_like(s)
    one = torch.ones_like(s)
    return Process("residual_shift", _check(config.predict), 1 - eta, eta, s, carry=one, divisor=divisor)


def from_config(config: ProcessConfig) -> Process:
    """The process that a model was trained with. Raises SettingError for an unknown kind or prediction."""
    builders = {"ddpm": ddpm, "residual_shift": residual_shift}
    if config.kind not in builders:
        raise SettingError(f"process {config.kind!r} is unknown: choose {' or '.join(builders)}")
    return builders[config.kind](config)


def _check(predict: str) -> str:
    if predict not in PREDICTIONS:
        raise SettingError(f"prediction {predict!r} is unknown: choose one of {', '.join(PREDICTIONS)}")
    return predict


def _append_clean(values: Tensor, clean: float) -> Tensor:
    return torch.cat([values, values.new_tensor([clean])])


def _at(array: Tensor, t: int | Tensor, like: Tensor) -> Tensor | float:
    """array[t] as a factor of `like`: a number for an int, [B, 1, 1, 1] for a tensor of timesteps."""
    if isinstance(t, Tensor):
        picked = array[t.cpu()].to(like.device, like.dtype)
        return picked.reshape(-1, *[1] * (like.ndim - 1))
    return array[t].item()


def _require(y: Tensor | None) -> Tensor:
    if y is None:
        raise SettingError("this process shifts towards the encoded LR image: pass it as y")
    return y
