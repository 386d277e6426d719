"""The networks as they are written down in the papers: nothing fused, folded, chunked or left out.

For tests of equality, and for `python -m moesr bench`, which measures the networks against these in the same process.
All take one of our networks for its weights. The encoder runs to its end although its second level is all that is
needed, attention holds its whole matrix, and complex maps are four real ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with the whole matrix. q, k, v: [batch, heads, N, dim]."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v


def _res_block(block: Any, x: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x)))
    h = block.conv2(F.silu(block.norm2(h)))
    return (block.get_submodule(block.skip)(x) if block.skip else x) + h


def _level(level: Any, x: Tensor) -> Tensor:
    for block in level.block:
        x = _res_block(block, x)
    return x


def mid_attention(block: Any, x: Tensor) -> Tensor:
    """The attention block of encoder and decoder, [B, C, H, W]."""
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (block.q, block.k, block.v))
    out = attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
    return x + block.proj_out(out)


def _middle(mid: Any, x: Tensor) -> Tensor:
    x = _res_block(mid.block_1, x)
    if hasattr(mid.attn_1, "q"):
        x = mid_attention(mid.attn_1, x)
    return _res_block(mid.block_2, x)


def features(autoencoder: Any, lr_up: Tensor) -> Tensor:
    """Features of the LR image for the fusion, [B, C, H / 2, W / 2], on the way through the whole encoder."""
    encoder = autoencoder.encoder
    h, levels = encoder.conv_in(lr_up), []
    for level in encoder.down:
        h = _level(level, h)
        levels.append(h)
        if level.downsample is not None:
            h = level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
    encoder.conv_out(F.silu(encoder.norm_out(_middle(encoder.mid, h))))
    return levels[1]


def _dense_block(block: Any, x: Tensor) -> Tensor:
    inputs = [x]
    for conv in (block.conv1, block.conv2, block.conv3, block.conv4):
        inputs.append(F.leaky_relu(conv(torch.cat(inputs, dim=1)), 0.2))
    return x + 0.2 * block.conv5(torch.cat(inputs, dim=1))


def fusion(layer: Any, decoded: Tensor, lr: Tensor, fidelity: float) -> Tensor:
    """Decoder features corrected by those of the LR image."""
    h = _res_block(layer.encode_enc_1, torch.cat([lr, decoded], dim=1))
    for block in layer.encode_enc_2:
        h = h + 0.2 * _dense_block(block.rdb3, _dense_block(block.rdb2, _dense_block(block.rdb1, h)))
    return decoded + fidelity * _res_block(layer.encode_enc_3, h)


def frequency_filter(layer: Any, x: Tensor) -> Tensor:
    """x + irfft2(filter(X) * X): two complex block-diagonal maps, as products of real and imaginary parts."""
    b, c, h, w = x.shape
    spectrum = torch.fft.rfft2(x.float(), norm="ortho")
    parts = spectrum.reshape(b, layer.blocks, c // layer.blocks, h, w // 2 + 1)
    w1, b1, w2, b2 = (p.float() for p in (layer.w1, layer.b1, layer.w2, layer.b2))

    def map_(real: Tensor, imag: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        def product(part: Tensor, matrix: Tensor) -> Tensor:
            return torch.einsum("bkihw,kio->bkohw", part, matrix)

        out = product(real, weight[0]) - product(imag, weight[1]) + bias[0][None, :, :, None, None]
        return out, product(imag, weight[0]) + product(real, weight[1]) + bias[1][None, :, :, None, None]

    real, imag = map_(parts.real, parts.imag, w1, b1)
    real, imag = map_(F.leaky_relu(real, 0.1), F.leaky_relu(imag, 0.1), w2, b2)
    shrunk = torch.complex(F.softshrink(real, layer.threshold), F.softshrink(imag, layer.threshold))
    return x + torch.fft.irfft2(shrunk.reshape(spectrum.shape) * spectrum, s=(h, w), norm="ortho").to(x.dtype)


def inverted_residual(layer: Any, x: Tensor) -> Tensor:
    """1 x 1, batch norm, leaky ReLU; 3 x 3 depthwise, the same; 1 x 1, batch norm; residual if it fits."""
    h = F.leaky_relu(layer.block["exp_1x1"].block(x), 0.1)
    h = F.leaky_relu(layer.block["conv_3x3"].block(h), 0.1)
    h = layer.block["red_1x1"].block(h)
    return x + h if layer.skip else h


def frequency_block(block: Any, x: Tensor) -> Tensor:
    """One AFF block."""
    u = inverted_residual(block.mlp, block.norm1(x)) + block.up_dim(x)
    return u + frequency_filter(block.filter, block.norm2(u))


def frequency_unet(network: Any, x: Tensor) -> Tensor:
    """The AFF U-Net."""
    full = frequency_block(network.conv1, x)
    half = frequency_block(network.conv2, F.max_pool2d(full, 2))
    quarter = frequency_block(network.conv3, F.max_pool2d(half, 2))
    for block in network.context_refine:
        quarter = frequency_block(block, quarter)
    half = frequency_block(network.up_conv3, torch.cat([half, network.up3(quarter)], dim=1))
    return frequency_block(network.up_conv2, torch.cat([full, network.up2(half)], dim=1))


def decode(autoencoder: Any, z: Tensor, lr_features: Tensor | None, fidelity: float = 1.0) -> Tensor:
    """The image of a latent of a VQ stage without `lr_skip`: nearest codes, then the whole decoder."""
    book, decoder = autoencoder.quantize.embedding.weight, autoencoder.decoder
    cells = z.float().movedim(1, -1).reshape(-1, z.shape[1])
    distance = (
        cells.square().sum(1, keepdim=True) + book.float().square().sum(1) - 2 * cells @ book.float().T
    )  # fmt: skip
    z = book[distance.argmin(1)].view(z.shape[0], *z.shape[2:], -1).movedim(-1, 1)
    h = _middle(decoder.mid, decoder.conv_in(autoencoder.post_quant_conv(z)))
    for i in reversed(range(len(decoder.up))):
        h = _level(decoder.up[i], h)
        if i == 1 and lr_features is not None:
            h = fusion(decoder.fusion_layer_1, h, lr_features, fidelity)
        if decoder.up[i].upsample is not None:
            h = decoder.up[i].upsample.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
    h = frequency_unet(decoder.unet_1, h)
    return decoder.conv_out(F.silu(decoder.norm_out(h)))


def features_and_decode(autoencoder: Any, z: Tensor, lr_up: Tensor) -> Tensor:
    """What a tile costs: features of the LR image, then its decoding at full fidelity."""
    return decode(autoencoder, z, features(autoencoder, lr_up))


def step(network: Any, x: Tensor, t: Tensor, lr: Tensor) -> Tensor:
    """One evaluation of a time expert."""
    half = network.config.model_channels // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = t.float()[:, None] * frequencies
    emb = network.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype))
    h, skips = torch.cat([x, lr], dim=1), []
    for block in network.input_blocks:
        h = _layers(block, h, emb)
        skips.append(h)
    h = _layers(network.middle_block, h, emb)
    for block in network.output_blocks:
        h = _layers(block, torch.cat([h, skips.pop()], dim=1), emb)
    return network.out(h)


def _layers(block: Any, x: Tensor, emb: Tensor) -> Tensor:
    for layer in block:
        kind = type(layer).__name__
        if kind == "ResBlock":
            h = layer.in_layers(x) + layer.emb_layers(emb)[:, :, None, None]
            x = layer.skip_connection(x) + layer.out_layers(h)
        elif kind == "AttentionBlock":
            b, c, height, width = x.shape
            qkv = layer.qkv(layer.norm(x).flatten(2)).view(b, layer.heads, 3, c // layer.heads, height * width)
            out = attention(*qkv.transpose(-1, -2).unbind(2)).transpose(-1, -2).reshape(b, c, height * width)
            x = x + layer.proj_out(out).view(x.shape)
        elif kind == "SpaceMoE":
            tokens = layer.moe_norm(x.flatten(2).transpose(1, 2))
            x = x + layer.moe_blocks[0](tokens).transpose(1, 2).reshape(x.shape)
        elif kind == "Upsample":
            x = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        else:
            x = layer(x)
    return x
