"""Autoencoders and the frequency blocks of their decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moesr.checkpoints.detect import read_autoencoder_config
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.frequency import AdaptiveFrequencyFilter, AFFBlock, AFFUNet, InvertedResidual

from .case import Case, recorded

VQ = 1.5e-5  # absolute


def _every_input(case: Case, network: nn.Module, weights: dict[str, Tensor]) -> None:
    network.load_state_dict(weights)
    network.eval()
    for tag in case.tags(r"(.+)\.x"):
        case.compare(f"{tag}.y", network(case.inputs[f"{tag}.x"]))


@torch.no_grad()
def frequency_filter(case: Case) -> None:
    c = case.config
    case.expect("slope of the leaky ReLU", c.get("leaky", 0.1), 0.1)
    network = AdaptiveFrequencyFilter(
        c["hidden_size"], c["hidden_size_factor"], c["num_blocks"], c["sparsity_threshold"]
    )
    _every_input(case, network, case.weights())


@torch.no_grad()
def frequency_block(case: Case) -> None:
    c = case.config
    channels, out, factor = c["in_channels"], c["out_channels"], c["hidden_size_factor"]
    block = AFFBlock(channels, out, factor)
    block.mlp = InvertedResidual(channels, out, int(c["mlp_ratio"]))
    block.filter = AdaptiveFrequencyFilter(out, factor, c["num_blocks"])
    _every_input(case, block, case.weights())


@torch.no_grad()
def frequency_unet(case: Case) -> None:
    c = case.config
    case.expect("output channels", c["in_ch"] * c["ch_mul"][0], c["out_ch"])
    _every_input(case, AFFUNet(c["in_ch"], tuple(c["ch_mul"]), c["hidden_size_factor"]), case.weights())


def autoencoder_of(c: dict[str, Any], weights: dict[str, Tensor]) -> Autoencoder:
    """The autoencoder of the recorded config; what that does not say (fusion, refinement) is read off the keys."""
    d = c | c["ddconfig"]
    blocks = d["num_res_blocks"]
    told: dict[str, Any] = {
        **{name: d[name] for name in ("in_channels", "ch", "z_channels", "embed_dim", "n_embed") if name in d},
        "kind": "kl" if d["double_z"] else "vq",
        "out_channels": d["out_ch"],
        "ch_mult": tuple(d["ch_mult"]),
        "num_res_blocks": tuple(blocks) if isinstance(blocks, list) else blocks,
        "scale_factor": 1.0,
    }
    if "hidden_size_factor" in d:
        told["filter_expansion"] = d["hidden_size_factor"]
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    network = Autoencoder(replace(read_autoencoder_config(shapes), **told))
    network.load_state_dict(weights)
    return network.eval()


def _decode(case: Case, network: Autoencoder, tag: str, run: Callable[[], Tensor]) -> Tensor:
    """The result of `run`, with the decoder's recorded inner states compared on the way."""
    with recorded(network.decoder, list(case.named(f"{tag}.hook."))) as seen:
        image = run()
    for name, value in seen.items():
        case.compare(f"{tag}.hook.{name}", value, leading=True)
    return image


@torch.no_grad()
def vq_model(case: Case) -> None:
    """The frequency-compensated decoder: latent, features, codes, and images at every recorded fidelity."""
    network = autoencoder_of(case.config, case.weights())
    for tag in case.tags(r"(.+)\.img"):
        image = case.inputs[f"{tag}.img"]
        case.compare(f"{tag}.prequant", network.encode(image))
        features = network.features(image)
        assert features is not None, f"{case.name}: this decoder takes no features"
        case.compare(f"{tag}.enc_fea0", features, leading=True)
        z = case.inputs[f"{tag}.z"]
        indices = network.quantize.indices(z)
        case.compare(f"{tag}.indices", indices.reshape(case.outputs[f"{tag}.indices"].shape))
        case.compare(f"{tag}.quant", network.quantize(z))
        fidelities = {key: float(key) for key in case.named(f"{tag}.decode_w")}
        for key, fidelity in fidelities.items():

            def decode(fidelity: float = fidelity, z: Tensor = z, features: Tensor = features) -> Tensor:
                return network.decode(z, features, fidelity)

            # inner states were recorded at full fidelity
            full = fidelity == max(fidelities.values())
            case.compare(f"{tag}.decode_w{key}", _decode(case, network, tag, decode) if full else decode())


@torch.no_grad()
def kl_model(case: Case) -> None:
    network = autoencoder_of(case.config, case.weights())
    for tag in case.tags(r"(.+)\.z"):
        z = case.inputs[f"{tag}.z"]
        case.compare(f"{tag}.decode", _decode(case, network, tag, lambda z=z: network.decode(z)))
    for key in case.tags(r"((?:.+\.)?img)"):
        image = case.inputs[key]
        mean, log_variance = network.moments(image).chunk(2, dim=1)
        case.compare(f"{key}.mean", mean)
        case.compare(f"{key}.mean", network.encode(image))
        case.compare(f"{key}.logvar", log_variance)
        case.compare(f"{key}.decode_of_mode", network.decode(network.encode(image)))


@torch.no_grad()
def vq(case: Case) -> None:
    """A plain first stage. Inputs are called x and x_<size>; so are what they give."""
    network = autoencoder_of(case.config, case.weights())
    for size in case.tags(r"x(|_.+)"):
        case.compare(f"z{size}", network.encode(case.inputs[f"x{size}"]), atol=VQ)
        z = case.outputs[f"z{size}"]
        results: dict[str, Callable[[], Tensor]] = {
            "indices": lambda z=z: network.quantize.indices(z),
            "z_q": lambda z=z: network.quantize(z),
            "rec": lambda z=z: network.decode(z),
            "rec_noquant": lambda z=z: network.decode(z, quantize=False),
        }
        for name, result in results.items():
            if f"{name}{size}" in case.outputs:
                case.compare(f"{name}{size}", result(), atol=VQ)
