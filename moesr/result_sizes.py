"""How large results are: times the input, or by width, height or megapixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .errors import SettingError
from .settings import SETTINGS

#: Choices of a form with a fixed value.
BUTTONS = {"x2": 2.0, "x4": 4.0}
#: Choices of a form that take a value, with what it is called, and its first value.
KINDS = {
    "Times": ("Times as wide and high", 3),
    "Width": ("Width in pixels", 1920),
    "Height": ("Height in pixels", 1080),
    "Megapixels": ("Megapixels", 8),
}


@dataclass(frozen=True)
class TargetSize:
    """What a user wants of the size of results."""

    #: One of KINDS.
    kind: str
    #: In the unit of its kind.
    value: float

    def find_scale(self, width: int, height: int) -> float:
        """Output pixels per input pixel along a side, for a picture of that size. Raises SettingError."""
        scales = {
            "Width": self.value / width,
            "Height": self.value / height,
            "Megapixels": math.sqrt(self.value * 1e6 / (width * height)),
        }
        scale, setting = scales.get(self.kind, self.value), SETTINGS["scale"]
        if self.kind != "Times" and not setting.minimum <= scale <= setting.maximum:
            raise SettingError(
                f"{self.kind.lower()} {self.value:g}: that is {scale:.3g} times {width} x {height}; "
                f"give one that is {setting.minimum:g} to {setting.maximum:g} times as large"
            )
        return setting.check(scale)

    @property
    def tag(self) -> str:
        """What file names say: x4, 1920w, 1080h, 8mp."""
        return {
            "Width": f"{self.value:g}w", "Height": f"{self.value:g}h", "Megapixels": f"{self.value:g}mp",
        }.get(self.kind, f"x{self.value:g}")  # fmt: skip


def read_size(choice: str, value: Any) -> TargetSize:
    """The size that a form says. Raises SettingError."""
    if choice in BUTTONS:
        return TargetSize("Times", BUTTONS[choice])
    if choice not in KINDS:
        raise SettingError(f"size {str(choice)[:60]!r}: choose one of {', '.join([*BUTTONS, *KINDS])}")
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise SettingError(f"size: give the {KINDS[choice][0].lower()}, a number above 0")
    return TargetSize(choice, float(value))


def choose_button(scale: float) -> tuple[str, float]:
    """The choice of a form, and its value, for a scale."""
    return next((name for name, value in BUTTONS.items() if value == scale), "Times"), scale
