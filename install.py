"""Installs what a host (A1111, Forge, ComfyUI) lacks of requirements.txt, and nothing else; run at every start.

Torch, numpy and Pillow belong to the host: if one is missing, that is said and left alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HOST_PACKAGES = ("torch", "numpy", "PIL")


def missing_requirements(requirements: Path) -> list[str]:
    """Lines of a requirements file whose package cannot be imported; package and module have one name in ours."""
    lines = (line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not find_spec(re.split(r"[<>=!~ ;\[]", line)[0])]


def main() -> None:
    """Says what is missing and installs it; a failure is told and never stops the host."""
    for name in HOST_PACKAGES:
        if not find_spec(name):
            print(f"MoESR: {name} is missing; it is part of the host: install it as the host's guide says")
    missing = missing_requirements(Path(__file__).with_name("requirements.txt"))
    if not missing:
        return
    print(f"MoESR: installing {', '.join(missing)}")
    command = [sys.executable, "-m", "pip", "install", *missing]
    if subprocess.run(command, check=False).returncode:
        print(f"MoESR: that failed; without it MoESR does not start. By hand: {' '.join(command)}")


if __name__ == "__main__":
    main()
