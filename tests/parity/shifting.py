"""Whole runs of ResShift: loops from recorded noises, picture to picture, its tiles, and its training loss."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesr.config import ModelConfig
from moesr.diffusion.samplers import Noise, ddim
from moesr.evaluation.nano_models import assemble
from moesr.evaluation.published_tiling import Average, published_windows, starts, upscale_published
from moesr.images import resize
from moesr.images.canvas import as_canvas
from moesr.images.condition import RESIZES, Condition
from moesr.images.tile_windows import Window
from moesr.model import SRModel
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.swin_unet import SwinUNet
from moesr.training.experts import Expert, ExpertConfig
from moesr.training.first_stage import FirstStage, FirstStageConfig
from moesr.training.loop import LoopConfig

from .case import Case
from .decoder import autoencoder_of
from .resshift import Chain, configs
from .swin import beside, load, stored

LATENT, IMAGE = 5e-5, 1e-4  # of loops
CPU = torch.device("cpu")


def networks(case: Case) -> tuple[SwinUNet, Autoencoder]:
    """The denoiser and the first stage that a case names; configs from the case, else from beside their weights."""
    unet, vq = (case.meta["weights"][name] for name in ("unet", "vq"))
    values = case.meta.get("vq_config") or json.loads(beside(case, vq).with_suffix(".json").read_text())["config"]
    return load(case, case.meta.get("unet_config"), unet), autoencoder_of(values, stored(beside(case, vq)))


def model_of(case: Case, chain: Chain) -> SRModel:
    """A model as `moesr.load` makes it, in memory."""
    network, autoencoder = networks(case)
    stages, scale = (chain.config.timesteps,), case.meta["diffusion"]["sf"]
    parts = network.config, autoencoder.config, chain.config
    config = ModelConfig(*parts, stages, scale, len(chain.kept), lr_resize="torch")
    return assemble(config, [network], autoencoder, device=CPU, dtype=torch.float32)


@torch.no_grad()
def loop(case: Case) -> None:
    """From the LR image to the decoded one, at every state between."""
    chain = Chain(case.meta["diffusion"])
    network, autoencoder = networks(case)
    process, timesteps = chain.process, chain.kept[::-1]
    lr, start, noises = (case.inputs[k] for k in ("lr", "noise_prior", "noise_steps"))
    shown = torch.cat([lr, case.inputs["mask"]], dim=1) if "mask" in case.inputs else lr
    if case.meta["noise_repeat"]:
        start, noises = start[:1].expand_as(start), noises[:, :1].expand_as(noises)

    condition = Condition(
        lr, case.meta["diffusion"]["sf"], autoencoder.config.factor, network.config.multiple,
        detail=network.config.detail, lr_resize="torch",
    )  # fmt: skip
    whole = Window(0, 0, *condition.cells)
    y = autoencoder.encode(torch.cat([condition.upsampled(i, whole) for i in range(len(lr))]))
    case.compare("z_y", y, atol=LATENT)
    z_start = process.prior(start, y, timesteps[0])
    case.compare("z_T", z_start, atol=LATENT)

    def predict(z: Tensor, t: int) -> Tensor:
        out = network(process.scale_input(z, t), torch.full((len(z),), t), shown)
        return process.x0(out, z, t, y)

    noise: Noise = noises.__getitem__
    states: list[Tensor] = []
    guesses: list[Tensor] = []

    def keep(_: int, __: int, z: Tensor, x0: Tensor) -> None:
        states.append(z)
        guesses.append(x0)

    z = ddim(predict, process, timesteps, z_start, noise=noise, y=y, callback=keep)
    for key, values in (("z_samples", states), ("pred_x0", guesses)):
        case.compare(key, torch.stack(values)[: len(case.outputs[key])], atol=LATENT)
    case.compare("indices", autoencoder.quantize.indices(z / autoencoder.config.scale_factor))
    case.compare("sr", autoencoder.decode(z), atol=IMAGE)


def picture(case: Case) -> None:
    """A picture by the published policy, from recorded noises, before and after rounding."""
    chain = Chain(case.meta["diffusion"])
    model = model_of(case, chain)
    unet, noises = model.config.unet, case.inputs["noise"]
    lr = case.inputs["lr_u8"]
    sf, chop, stride = case.meta["sf"], case.meta["chop_size"], case.meta["chop_stride"]
    case.expect("padding", unet.multiple * model.config.autoencoder.factor // sf, case.meta["padding_offset"])
    tiles = published_windows(lr.shape[0], lr.shape[1], chop, stride)
    case.expect("tiles", len(tiles), case.meta["tiles"])
    mask = case.inputs["mask"].numpy() if "mask" in case.inputs else None
    settings: dict[str, Any] = {
        "chop": chop, "stride": stride, "mask": mask, "noise": lambda tile, draw: noises[tile, draw]
    }  # fmt: skip
    floats = upscale_published(model, lr[None].float() / 255, **settings)
    case.compare("sr_float01", floats[0].permute(2, 0, 1), atol=2e-5)
    levels = torch.from_numpy(upscale_published(model, lr.numpy(), **settings))
    want = case.outputs["sr_u8"]
    case.done.add("sr_u8")
    case.expect("shape", levels.shape, want.shape)
    apart = (levels.int() - want.int()).abs()
    case.expect("grey levels apart", min(int(apart.max()), 1), int(apart.max()))
    case.expect("pixels that differ", min(int((apart > 0).sum()), 10), int((apart > 0).sum()))


def tile_starts(case: Case) -> None:
    case.needs_tensors = False
    for row in case.meta["starts"]:
        length, chop, stride = row["length"], row["chop"], row["stride"]
        case.expect(f"{length} by {chop} every {stride}", starts(length, chop, stride), row["starts"])


def tiling(case: Case) -> None:
    """Tiles cut, enlarged by nearest, each brighter than the last, and averaged; resizes; rounding to 8 bits."""
    if "tiling" in case.meta:
        _gather(case, **{k: case.meta["tiling"][k] for k in ("chop", "stride", "sf", "infos")})
    for key in list(case.outputs):
        enlarged = re.fullmatch(r"up_bicubic(\d+)", key)
        if enlarged:
            height, width = (side * int(enlarged[1]) for side in case.inputs["up"].shape[-2:])
            case.compare(key, RESIZES["torch"](case.inputs["up"], (height, width), {}))
        resized = re.fullmatch(r"matlab_(up|down)(\d+)", key)
        if resized:
            planes, size = case.inputs["matlab"].permute(2, 0, 1)[None], case.outputs[key].shape[:2]
            case.compare(key, resize.resize(planes, (size[0], size[1]))[0].permute(1, 2, 0))
    if "to_u8" in case.inputs:
        rgb = case.inputs["to_u8"].clamp(0, 1)
        canvas = as_canvas(np.arange(3 * rgb[0].numel(), dtype=np.uint8).reshape(*rgb.shape[1:], 3) + 20)  # not grey
        out = canvas.empty(*rgb.shape[1:])
        canvas.put(out, 0, 0, rgb, None)
        case.compare("to_u8_rgb", torch.from_numpy(out[0]))


def _gather(case: Case, chop: int, stride: int, sf: int, infos: list[list[int]]) -> None:
    image = case.inputs["im"]
    windows = published_windows(image.shape[2], image.shape[3], chop, stride)
    scaled = [w.scaled(sf) for w in windows]
    case.expect("places", [[w.y0, w.y0 + w.h, w.x0, w.x0 + w.w] for w in scaled], [list(i) for i in infos])
    means = []
    counts = []
    for plane in image:
        average = Average(len(plane), plane.shape[1] * sf, plane.shape[2] * sf, CPU)
        for i, (w, place) in enumerate(zip(windows, scaled)):
            tile = plane[:, w.y0 : w.y0 + w.h, w.x0 : w.x0 + w.w]
            large = tile.repeat_interleave(sf, 1).repeat_interleave(sf, 2) * (1 + 0.1 * i)
            average.add(large, place)
        means.append(average.rows(0, plane.shape[1] * sf))
        counts.append(average.count.expand_as(means[-1]))
    case.compare("gather", torch.stack(means))
    case.compare("count", torch.stack(counts))


def training(case: Case) -> None:
    """The loss of every image against a stub's outputs, and of the network with its gradients; straight-through."""
    _, autoencoder = networks(case)
    y_of = torch.no_grad()(autoencoder.encode)
    known = {**configs(case), **{tag: {"config": v} for tag, v in case.meta["diffusion"].items()}}
    x0, y = y_of(case.inputs["gt"]), y_of(_enlarged(case.inputs["lq"], case.inputs["gt"]))
    case.compare("z_start", x0)
    for tag in case.tags(r"([^.]+)\.model_out"):
        base, _, weighted = tag.partition("_")
        chain = Chain(_config(known, base))
        t, noise, out = (case.inputs[f"{tag}.{k}"] for k in ("t", "noise", "model_out"))
        z = chain.process.add_noise(x0, y, noise, t)
        seen: dict[str, Tensor] = {}

        def stub(z: Tensor, t: Tensor, lr: Tensor, seen: dict[str, Tensor] = seen, out: Tensor = out) -> Tensor:
            seen.update(z=z, t=t)
            return out

        errors = _expert(chain, stub).errors({"x0": x0, "y": y, "lr": case.inputs["lq"]}, t, noise)
        if weighted:
            coefficient = (1 - chain.process.b[chain.before] / chain.process.b[chain.kept])[t]
            errors = errors * (0.5 / chain.clipped()[t] * coefficient**2).float()
        guess = chain.process.x0(out, z, t, y)
        values = {"mse": errors, "z_t": z, "pred_z0": guess, "model_in": seen["z"], "model_t": seen["t"]}
        for key, value in values.items():
            case.compare(f"{tag}.{key}", value)
    if "full.gt" in case.inputs:
        _full(case, Chain(_config(known, "T15")), y_of)
    if "st.z" in case.inputs:
        _straight_through(case, autoencoder)


def _config(known: dict[str, Any], tag: str) -> dict[str, Any]:
    return known[tag].get("config", known[tag])


def _enlarged(lr: Tensor, hr: Tensor) -> Tensor:
    return RESIZES["torch"](lr, (hr.shape[-2], hr.shape[-1]), {}) if lr.shape != hr.shape else lr


def _expert(chain: Chain, network: Any) -> Expert:
    """The trainer of a network that is already there."""
    expert = Expert.__new__(Expert)
    expert.process, expert.network, expert.loop = chain.process, network, LoopConfig()
    expert.config = ExpertConfig()
    return expert


def _full(case: Case, chain: Chain, encode: Callable[[Tensor], Tensor]) -> None:
    network, _ = networks(case)
    lr, hr, t, noise = (case.inputs[f"full.{k}"] for k in ("lq", "gt", "t", "noise"))
    x0, y = encode(hr), encode(_enlarged(lr, hr))
    network.requires_grad_(True)
    seen: list[Tensor] = []
    handle = network.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    errors = _expert(chain, network).errors({"x0": x0, "y": y, "lr": lr}, t, noise)
    handle.remove()
    case.compare("full.mse", errors)
    case.compare("full.pred_z0", seen[0])
    errors.mean().backward()
    gradients = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    for key in case.named("full.grad."):
        table = "blocks.1.attn.relative_position_bias_table"  # of the first shifted block
        name = next(k for k in gradients if k.endswith(table)) if key == "rpb" else key
        case.compare(f"full.grad.{key}", gradients[name], rtol=1e-4)
    norms = case.meta["grad_norms_full"]
    case.expect("parameters with a gradient", sorted(gradients), sorted(norms))
    noise_level = 1e-6 * max(norms.values())  # biases before a norm of single channels have rounding's gradient only
    for name, norm in norms.items():
        case.expect(f"norm of d/d{name}", gradients[name].norm().item(), norm, rtol=1e-4, atol=noise_level)


def _straight_through(case: Case, autoencoder: Autoencoder) -> None:
    """The gradient passes the codes on its way to the latent, as it does where first stages are trained."""
    z = case.inputs["st.z"].clone().requires_grad_()
    stage = FirstStage.__new__(FirstStage)
    stage.network = autoencoder
    stage.config = FirstStageConfig()
    codes, _ = stage._quantise(z)
    image = autoencoder.decoder(autoencoder.post_quant_conv(codes), None, 0.0)
    case.compare("st.dec", image)
    image.clamp(-1, 1).square().mean().backward()
    assert z.grad is not None
    case.compare("st.grad_z", z.grad, rtol=1e-4)
