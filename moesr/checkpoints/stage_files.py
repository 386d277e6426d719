"""The release's stage files: which time expert each one is, and the weights to use of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..config import UNetConfig, averaged
from ..errors import CheckpointError
from ..networks.unet import UNet
from .detect import EMA, check, compute_shapes, find_prefix, naming, read_unet_config, under
from .weight_reading import View, Weights

#: A released model has the stages 0 to 3, whose files carry these numbers behind "stage" in their names.
RELEASED_STAGES = 4
_STAGE = re.compile(r"stage[ _.-]*(\d+)", re.IGNORECASE)


def read_stage_number(path: Path) -> int | None:
    """The number behind "stage" in a file's name: 2 for `x4_stage_2_epoch=12.ckpt`. None if there is none."""
    found = _STAGE.search(path.stem)
    return int(found[1]) if found and len(found[1]) < 4 else None


def sort_stages(experts: Sequence[Weights]) -> tuple[list[Weights], list[str]]:
    """Stage files from least to most noise, and notes on what had to be assumed for that.

    By the numbers behind "stage" in their names; else by the only numbers that count 0, 1, ...; else as given. Raises
    CheckpointError if the numbers repeat, or if a stage between 0 and the last (at least 3) is missing.
    """
    numbers = [read_stage_number(w.path) for w in experts]
    known = [n for n in numbers if n is not None]
    if len(known) == len(experts):
        return _sort(experts, known), _check_numbers(experts, known)
    if len(experts) == 1:
        return list(experts), ["one expert works at all timesteps"]
    counted = _find_counting_numbers(experts)
    if counted is not None and not known:
        return _sort(experts, counted), []
    order = ", ".join(w.path.name for w in experts)
    return list(experts), [f"no stage numbers in the names: taken in the given order from least to most noise, {order}"]


def _check_numbers(experts: Sequence[Weights], numbers: list[int]) -> list[str]:
    """Notes on stage numbers that are all there; CheckpointError if they are not."""
    for n in numbers:
        if numbers.count(n) > 1:
            twice = " and ".join(str(w.path) for w, k in zip(experts, numbers) if k == n)
            raise CheckpointError(f"{twice}: both are stage {n}; give one of them")
    if sorted(numbers) == list(range(1, RELEASED_STAGES + 1)):
        return [
            f"stages numbered from 1 instead of 0: taken in that order, {experts[numbers.index(1)].path.name} first"
        ]
    missing = sorted({*range(max(RELEASED_STAGES, *numbers, len(numbers)))} - {*numbers})[:9]
    if missing:
        stages = ", ".join(map(str, missing))
        raise CheckpointError(
            f"{experts[0].path.parent}: stage {stages} missing; a model has the stages 0 to {RELEASED_STAGES - 1}: add "
            f"the file, or, if {len(numbers)} is all there are, rename without the word stage (expert0, expert1, ...)"
        )
    return []


def _find_counting_numbers(experts: Sequence[Weights]) -> list[int] | None:
    """One number of each name such that they count 0, 1, ...; None if there is none, or more than one order."""
    found = [[int(n) for n in re.findall(r"\d{1,8}", w.path.stem)] for w in experts]
    places = {tuple(column) for column in zip(*found) if sorted(column) == list(range(len(experts)))}
    return list(places.pop()) if len(places) == 1 else None


def _sort(experts: Sequence[Weights], numbers: Sequence[int]) -> list[Weights]:
    return [w for _, w in sorted(zip(numbers, experts), key=lambda pair: pair[0])]


def open_stage(weights: Weights) -> tuple[UNetConfig, View, list[str]]:
    """The UNet of one stage file as it is used: its EMA copy if all of that is there, FFN experts averaged.

    Returns the config as trained (with its number of FFN experts), the weights by the averaged network's keys, and
    notes. EMA names are the parameter's without dots. Raises CheckpointError, naming them, if tensors are missing or
    misshapen.
    """
    shapes = weights.shapes()
    prefix = find_prefix(weights)
    with naming(weights.path):
        config = read_unet_config(under(shapes, prefix))
        expected = compute_shapes(UNet, averaged(config))
    copies = {name: _list_copies(name, config.space_experts) for name in expected}
    grouped = {copy: shape for name, shape in expected.items() for copy in copies[name]}
    place = {copy: f"{EMA}diffusion_model{copy.replace('.', '')}" for copy in grouped}
    missing = [copy for copy, key in place.items() if key not in shapes]
    notes = []
    plain = {copy: prefix + copy for copy in grouped}
    check(grouped, {copy: shapes[key] for copy, key in plain.items() if key in shapes}, str(weights.path))
    if missing:
        if len(missing) < len(place):
            notes.append(f"{weights.path.name}: EMA weights incomplete ({missing[0]}), the plain weights are used")
        place = plain
    check(grouped, {copy: shapes[key] for copy, key in place.items()}, f"{weights.path}: EMA weights")
    return config, View(weights, {name: tuple(place[c] for c in copies[name]) for name in expected}), notes


def _list_copies(name: str, experts: int) -> tuple[str, ...]:
    if ".moe_blocks.0." not in name:
        return (name,)
    return tuple(name.replace(".moe_blocks.0.", f".moe_blocks.{i}.") for i in range(experts))
