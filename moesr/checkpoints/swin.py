"""The config of a Swin UNet, from its keys and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import SwinUNetConfig
from ..errors import CheckpointError
from ..networks.swin_layers import mask_apart
from .detect import check_bound, count, reason
from .weight_reading import Shapes

#: Ends of keys that follow from the config: networks here make these tensors themselves, for any size of image.
BUFFERS = (".attn_mask", ".relative_position_index")
_TABLE = ".blocks.0.attn.relative_position_bias_table"
_MASK = ".blocks.1.attn_mask"


def is_swin(shapes: Shapes) -> bool:
    """Whether these keys, without prefix, are of a UNet with windowed attention."""
    return f"middle_block.1{_TABLE}" in shapes


def read_swin_config(shapes: Shapes) -> SwinUNetConfig:
    """The Swin UNet that has exactly these keys (BUFFERS aside): widths, levels, windows, features, mask channel.

    shapes: without prefix. The size of the latents in training follows from the masks that the file keeps of its
    shifted blocks, or from a level that was smaller than a window; where neither is there, the coarsest level was one
    window wide, as in every released file. Raises CheckpointError if the keys are of another network.
    """
    try:
        base, joined = shapes["input_blocks.0.0.weight"][:2]
        levels = _find_levels(shapes)
        windows = {i: _read_window(shapes, f"output_blocks.{first}.1") for i, (first, _) in enumerate(levels)}
        last = len(levels) - 1
        windows[last] = _read_window(shapes, "middle_block.1")
        window = max(filter(None, windows.values()))
        dim = shapes["middle_block.1.patch_embed.proj.weight"][0]
        heads = shapes[f"middle_block.1{_TABLE}"][1]
        out_channels = shapes["out.2.weight"][0]
        names = [k for k in shapes if k.startswith("feature_extractor.") and k.endswith(".op.weight")]
        halvings = check_bound(len(names))
        features = shapes[f"feature_extractor.{3 * halvings - 1}.op.weight"][0] if halvings else joined - out_channels
        lr_channels = shapes["feature_extractor.0.weight"][1] if halvings else features
        embedded = shapes["middle_block.0.emb_layers.1.weight"][0]
        if lr_channels not in (3, 4):
            raise ValueError(f"{lr_channels} channels of the LR image")
        attends = [i for i, (first, _) in enumerate(levels) if f"output_blocks.{first}.1{_TABLE}" in shapes]
        widths = [shapes[f"output_blocks.{first}.0.in_layers.2.weight"][0] for first, _ in levels]
        return SwinUNetConfig(
            in_channels=joined - features,
            out_channels=out_channels,
            model_channels=base,
            channel_mult=tuple(width // base for width in widths),
            num_res_blocks=tuple(n - 1 for _, n in levels),
            attention_downsamples=tuple(2**i for i in attends),
            num_head_channels=dim // heads,
            swin_depth=count(shapes, "middle_block.1.blocks"),
            swin_channels=dim,
            mlp_channels=shapes["middle_block.1.blocks.0.mlp.fc1.weight"][0],
            window=window,
            latent_size=_read_latent_size(shapes, levels, windows, window),
            lr_downsamples=halvings,
            mask=lr_channels == 4,
            scale_shift=embedded == 2 * shapes["middle_block.0.in_layers.2.weight"][0],
            resblock_resample=any(_resamples(shapes, i) for i in range(count(shapes, "output_blocks"))),
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"not a Swin UNet: {reason(error)}; give a checkpoint of ResShift") from error


def shift_mask(weights: Mapping[str, Tensor], config: SwinUNetConfig, prefix: str = "") -> str:
    """Which mask the network was trained with, by one that the file keeps; "released" where it keeps none.

    The window that tells is the last but one of the last row. prefix: of the network's keys.
    """
    kept = next((k for k in weights if k.startswith(prefix) and k.endswith(_MASK)), None)
    masks = torch.zeros(0, 0, 0) if kept is None else weights[kept]
    if masks.ndim != 3 or len(masks) < 2:
        return "released"
    mask = masks[-2].float()
    textbook = mask_apart(config.window, config.window // 2, "rows", torch.device("cpu"), torch.float32)
    return "textbook" if mask.shape == textbook.shape and torch.equal(mask, textbook) else "released"


def _find_levels(shapes: Shapes) -> list[tuple[int, int]]:
    """First output block of every level, full resolution first, and how many it has; an upsampling ends a level."""
    found, first = [], 0
    blocks = count(shapes, "output_blocks")
    for i in range(blocks):
        upsamples = _resamples(shapes, i) or any(f"output_blocks.{i}.{part}.conv.weight" in shapes for part in (1, 2))
        if upsamples or i == blocks - 1:
            found.append((first, i + 1 - first))
            first = i + 1
    return found[::-1]


def _resamples(shapes: Shapes, block: int) -> bool:
    """Whether an output block ends with a residual block that doubles the sides."""
    return any(f"output_blocks.{block}.{part}.in_layers.0.weight" in shapes for part in (1, 2))


def _read_window(shapes: Shapes, layer: str) -> int:
    """Side of a layer's windows: its table has (2 side - 1)^2 rows. 0 if there is no such layer."""
    rows = shapes[layer + _TABLE][0] if layer + _TABLE in shapes else 0
    side = (math.isqrt(rows) + 1) // 2
    if rows and (2 * side - 1) ** 2 != rows:
        raise ValueError(f"a table of {rows} relative positions")
    return side


def _read_latent_size(shapes: Shapes, levels: list[tuple[int, int]], windows: Mapping[int, int], window: int) -> int:
    for level, (first, _) in enumerate(levels):
        mask = shapes.get(f"output_blocks.{first}.1{_MASK}")
        if mask:
            return check_bound(math.isqrt(mask[0])) * window * 2**level
        if 0 < windows[level] < window:
            return windows[level] * 2**level
    return window * 2 ** (len(levels) - 1)
