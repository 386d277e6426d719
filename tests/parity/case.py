"""A recorded case: its config, its tensors, and a tally that knows what has been compared and what has not."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from . import recipe

#: max|a - b| <= tolerance * max|b|, by the type of the recorded tensor. Integers are equal.
RTOL = {torch.float32: 2e-5, torch.float64: 1e-10}


class Case:
    """NAME.json and, mostly, NAME.safetensors. `inputs`, `outputs` and `stored` are keyed without `in.`, `out.`, `w.`.

    Mismatches are collected; `finish` raises AssertionError with all of them, and also if a recorded output was neither
    compared nor declared `not_ours`, or if nothing was compared at all.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.meta: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        file = folder / f"{name}.safetensors"
        tensors = load_file(file) if file.exists() else {}
        self.inputs, self.outputs, self.stored = (
            {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("in.", "out.", "w.")
        )
        self.errors: list[str] = []
        self.done: set[str] = set()
        self.facts = 0  # how many were held against the json
        self.needs_tensors = True  # a check of the json alone says False
        self.foreign: set[str] = set()

    @property
    def config(self) -> dict[str, Any]:
        return self.meta["config"]

    def weights(self) -> dict[str, Tensor]:
        """Stored weights (fp16 upcast: it is exact), else the recipe's. Where both are there they must be the same."""
        stored = {k: v.float() if v.is_floating_point() else v for k, v in self.stored.items()}
        if "weights" not in self.meta:
            assert stored, f"{self.name}: neither weights nor a recipe for them"
            return stored
        made = recipe.weights(self.meta["weights"], self.meta["salt"], self.meta.get("gain"))
        differing = [k for k, v in stored.items() if not torch.equal(v, made[k])]
        assert not differing, f"{self.name}: the recipe gives other weights for {differing[:3]}"
        total = sum(v.double().abs().sum().item() for v in made.values())
        if "weights_checksum" in self.meta:
            self.expect("sum of |weights|", total, self.meta["weights_checksum"]["abs_sum"], rtol=1e-9)
        return made

    def tags(self, pattern: str) -> list[str]:
        """What the group of the regular expression `pattern` stands for, in every key of the inputs that fits it."""
        matches = (re.fullmatch(pattern, key) for key in self.inputs)
        return sorted({m.group(1) for m in matches if m})

    def named(self, prefix: str) -> dict[str, Tensor]:
        """The recorded outputs whose keys begin with `prefix`, keyed without it."""
        return {k.removeprefix(prefix): v for k, v in self.outputs.items() if k.startswith(prefix)}

    def compare(
        self, key: str, got: Tensor, *, rtol: float | None = None, atol: float | None = None, leading: bool = False
    ) -> None:
        """Hold `got` against the recorded output. leading: only the first channels of it (or rows) were recorded.

        Within rtol of the largest recorded value (default by its type), or within atol where that is given.
        """
        want = self.outputs[key]
        self.done.add(key)
        got = got.detach()
        if leading:
            dim = min(1, got.ndim - 1)
            got = got.narrow(dim, 0, min(want.shape[dim], got.shape[dim]))
        if got.shape != want.shape:
            self.errors.append(f"{key}: shape {list(got.shape)} instead of {list(want.shape)}")
        elif not want.is_floating_point():
            different = int((got != want).sum())
            if different or got.is_floating_point():
                self.errors.append(f"{key}: {different} of {want.numel()} differ, {got.dtype} against {want.dtype}")
        else:
            error = (got.double() - want.double()).abs().max().item()
            peak = want.double().abs().max().item()
            limit = atol if atol is not None else (rtol or RTOL[want.dtype]) * peak
            if not error <= limit:
                self.errors.append(f"{key}: off by {error:.3g}, allowed {limit:.3g} (largest value {peak:.3g})")

    def expect(self, what: str, got: Any, want: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
        """Hold a number or any value against a fact of the json: |got - want| <= atol + rtol |want|, or equal."""
        self.facts += 1
        near = got == want if rtol == atol == 0 else abs(got - want) <= atol + rtol * abs(want)
        if not near:
            self.errors.append(f"{what}: {got} instead of {want}")

    def not_ours(self, pattern: str, reason: str) -> None:
        """Declare recorded outputs that this project does not have, on purpose; the reason is for the reader."""
        assert reason
        self.foreign |= set(fnmatch.filter(self.outputs, pattern))

    def finish(self) -> None:
        """Raise AssertionError for all that was found, or if something recorded was left out."""
        left = sorted(set(self.outputs) - self.done - self.foreign)
        if left:
            self.errors.append(f"{len(left)} recorded outputs were not compared: {', '.join(left[:5])}")
        if not self.done and (self.needs_tensors or not self.facts):
            self.errors.append("nothing was compared")
        assert not self.errors, f"{self.name}:\n  " + "\n  ".join(self.errors)


@contextmanager
def recorded(module: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Fills the dict with the outputs of the named submodules, while the block runs `module`.

    A name that is no submodule but ends in `_in` or `_out` is that submodule's first input or its output.
    """
    seen: dict[str, Tensor] = {}
    handles = []
    for name in names:
        known = name in dict(module.named_modules())
        path = name if known else name.removesuffix("_in").removesuffix("_out")
        first_input = not known and name.endswith("_in")

        def keep(_: nn.Module, args: Any, out: Tensor, name: str = name, first_input: bool = first_input) -> None:
            seen[name] = args[0] if first_input else out

        handles.append(module.get_submodule(path).register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
