"""The UNet: averaged Space MoE, and the grouped form with recorded permutations and gradients."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from moesr.config import UNetConfig
from moesr.networks.space_moe import SpaceMoE, average_experts
from moesr.networks.unet import UNet

from .case import Case, recorded

GRADIENT = 1e-4


def config_of(values: dict[str, Any], weights: dict[str, Tensor], space_experts: int) -> UNetConfig:
    """Our config of a recorded one. Its attention rates may name some that this depth does not reach."""
    rates = [2**i for i in range(len(values["channel_mult"]))]
    same = ("in_channels", "out_channels", "model_channels", "num_res_blocks", "num_head_channels")
    return UNetConfig(
        **{name: values[name] for name in same},
        channel_mult=tuple(values["channel_mult"]),
        attention_downsamples=tuple(r for r in rates if r in values["attention_resolutions"]),
        space_experts=space_experts,
        ffn_mult=_ffn_mult(weights),
    )


def _ffn_mult(weights: dict[str, Tensor]) -> float:
    """Hidden width of the FFNs per channel."""
    shape = next((v.shape for k, v in weights.items() if k.endswith("moe_blocks.0.0.weight")), (4, 1))
    return shape[0] / shape[1]


def space_experts(keys: Iterable[str]) -> int:
    """How many FFN experts a layer has: 0 for plain LDM."""
    return len({k.partition("moe_blocks.")[2].split(".")[0] for k in keys if "moe_blocks." in k})


def averaged_unet(values: dict[str, Any], weights: dict[str, Tensor]) -> UNet:
    """The form of inference, from weights of any number of FFN experts."""
    network = UNet(config_of(values, weights, min(space_experts(weights), 1)))
    network.load_state_dict(average_experts(weights))
    return network.eval()


@torch.no_grad()
def averaged(case: Case) -> None:
    network = averaged_unet(case.config, case.weights())
    for layer, heads in case.meta.get("num_heads", {}).items():
        case.expect(f"heads of {layer}", getattr(network.get_submodule(layer), "heads", None), heads)
    for tag in case.tags(r"(.+)\.x"):
        hooks = case.named(f"{tag}.hook.")
        with recorded(network, list(hooks)) as seen:
            case.compare(f"{tag}.y", network(case.inputs[f"{tag}.x"], case.inputs[f"{tag}.t"]))
        for name, value in seen.items():
            case.compare(f"{tag}.hook.{name}", value, leading=True)


def grouped(case: Case) -> None:
    weights = case.weights()
    network = UNet(config_of(case.config, weights, space_experts(weights)))
    network.load_state_dict(weights)
    network.eval()
    for tag in case.tags(r"(.+)\.x"):
        network.zero_grad(set_to_none=True)
        y = _with_permutations(network, case, tag)
        case.compare(f"{tag}.y", y)
        (y * case.inputs[f"{tag}.lossweight"]).sum().backward()
        _gradients(network, case, tag)


def _with_permutations(network: UNet, case: Case, tag: str) -> Tensor:
    layers = [name for name, module in network.named_modules() if isinstance(module, SpaceMoE)]
    case.expect(f"{tag}: layers with a permutation", sorted(layers), case.tags(rf"{re.escape(tag)}\.perm\.(.+)"))
    handles = []
    for layer in layers:
        permutation = case.inputs[f"{tag}.perm.{layer}"]
        handles.append(network.get_submodule(layer).register_forward_pre_hook(lambda _, a, p=permutation: (*a, p)))
    try:
        return network(case.inputs[f"{tag}.x"], case.inputs[f"{tag}.t"])
    finally:
        for handle in handles:
            handle.remove()


def _gradients(network: UNet, case: Case, tag: str) -> None:
    """Gradients of the named parameters, of their first rows, and the norm of every parameter's."""
    found = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in network.named_parameters()}
    for key, value in case.named(f"{tag}.").items():
        rows = re.fullmatch(r"grad(?:\d+rows)?\.(.+)", key)  # grad32rows: the first 32 rows were recorded
        if rows:
            case.compare(f"{tag}.{key}", found[rows[1]][: len(value)], rtol=GRADIENT)
    norms = case.meta.get("grad_l2", {}).get(tag, {})
    # Biases before a norm of single channels have no gradient but rounding's, which scales with the others.
    noise = 1e-6 * max(norms.values(), default=0.0)
    for key, norm in norms.items():
        case.expect(f"{tag}: norm of d/d{key}", found[key].double().norm().item(), norm, rtol=GRADIENT, atol=noise)
    for key in case.meta.get("grad_none", {}).get(tag, []):
        case.expect(f"{tag}: gradient of {key}", found[key].any().item(), False)
