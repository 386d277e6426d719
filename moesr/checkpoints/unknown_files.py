"""What a file is that is none of ours, in one line that also says what to do."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

AGAIN = "download it again"
OURS = "give model_stage0 to 3.ckpt with fa_vae.pth, a checkpoint of LDM-SR or ResShift, or a converted .safetensors"
UPSCALER = "use the Load Upscale Model node, or the upscaler list of the WebUI"
DIFFUSION = "use the Load Checkpoint node, or the checkpoint list of the WebUI"

#: As much of a key is looked at; no network has longer ones.
LONGEST_KEY = 200

#: How files begin that are mistaken for checkpoints: (bytes, at, what it is).
_BEGINNINGS: tuple[tuple[bytes, int, str], ...] = (
    (b"GGUF", 0, f"a GGUF file, quantised for another program; {OURS}"),
    (b"\x89PNG", 0, "a PNG picture"),
    (b"\xff\xd8\xff", 0, "a JPEG picture"),
    (b"GIF8", 0, "a GIF picture"),
    (b"WEBP", 8, "a WebP picture"),
    (b"II*\0", 0, "a TIFF picture"),
    (b"MM\0*", 0, "a TIFF picture"),
    (b"BM", 0, "a BMP picture"),
    (b"\x89HDF", 0, f"an HDF5 file (Keras); {OURS}"),
    (b"\x93NUMPY", 0, f"a NumPy array; {OURS}"),
    (b"%PDF", 0, "a PDF document"),
    (b"7z\xbc\xaf", 0, "a 7z archive; unpack it and give what is inside"),
    (b"Rar!", 0, "a RAR archive; unpack it and give what is inside"),
    (b"\x1f\x8b", 0, "a gzip archive; unpack it and give what is inside"),
    (b"\xfd7zXZ", 0, "an xz archive; unpack it and give what is inside"),
    (b"\x28\xb5\x2f\xfd", 0, "a zstandard archive; unpack it and give what is inside"),
    (b"ustar", 257, "a tar archive; unpack it and give what is inside"),
)

#: Other networks by their keys: every pattern of a line must match the beginning of some key.
_NETWORKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (r"in_to_dim\.", r"blocks\.0\.blocks\.0\.gamma", r"upscale\."),
        f"the convolutional upscaler by umzi2 that is also called MoESR, a different network; {UPSCALER}",
    ),
    ((r".*(lora_up|lora_down|lora_A|lora_B|lora\.up|lora\.down|hada_w1|lokr_w1)",),
     "a LoRA, an addition to an image generator and no model by itself; load it beside its checkpoint"),
    ((r"(control_model|controlnet_cond_embedding|input_hint_block|controlnet_blocks)\.",),
     "a ControlNet; use the Load ControlNet Model node"),
    ((r"conditioner\.embedders\.", r"model\.diffusion_model\."), f"a Stable Diffusion XL checkpoint; {DIFFUSION}"),
    ((r"cond_stage_model\.", r"model\.diffusion_model\..*\.transformer_blocks\."),
     f"a Stable Diffusion checkpoint; {DIFFUSION}"),
    ((r"(model\.diffusion_model\.)?double_blocks\.0\.", r"(model\.diffusion_model\.)?single_blocks\.0\."),
     f"a Flux checkpoint; {DIFFUSION}"),
    ((r"(model\.diffusion_model\.)?joint_blocks\.0\.",), f"a Stable Diffusion 3 checkpoint; {DIFFUSION}"),
    ((r"(model\.diffusion_model\.)?(input_blocks|down_blocks)\..*\.transformer_blocks\.",),
     f"the UNet of an image generator (Stable Diffusion); {DIFFUSION}"),
    ((r"(single_)?transformer_blocks\.0\.",), f"the transformer of an image generator; {DIFFUSION}"),
    ((r"(encoder\.down_blocks|decoder\.up_blocks)\.0\.",),
     "a VAE of Stable Diffusion in the layout of diffusers; give the decoder fa_vae.pth"),
    ((r"model\.0\.weight", r"model\.1\.sub\.0\."), f"an ESRGAN upscaler; {UPSCALER}"),
    ((r"(body|RRDB_trunk)\.0\.(rdb1|RDB1)\.",), f"an ESRGAN upscaler; {UPSCALER}"),
    ((r"conv_first\.", r"before_RG\.", r"layers\.0\."), f"a DAT upscaler; {UPSCALER}"),
    ((r"conv_first\.", r"layers\.0\.residual_group\..*conv_block\.cab"), f"a HAT upscaler; {UPSCALER}"),
    ((r"conv_first\.", r"layers\.0\.residual_group\."), f"a SwinIR upscaler, or one of its kin; {UPSCALER}"),
    ((r"body\.0\.weight", r"body\.1\.weight", r"body\.2\.weight"), f"a Real-ESRGAN compact upscaler; {UPSCALER}"),
    ((r"block_1\.c1_r\.",), f"a SPAN upscaler; {UPSCALER}"),
    ((r"feats\.0\.weight", r"feats\.1\."), f"a PLKSR upscaler; {UPSCALER}"),
    ((r"unet1\.conv1\.", r"unet2\.conv1\."), f"a Real-CUGAN upscaler; {UPSCALER}"),
    ((r"conv_first\.", r"(conv_last|upsample|upconv|conv_up|conv_before_upsample)",), f"an upscaler; {UPSCALER}"),
    ((r".*text_model\.encoder\.layers\.0\.",), f"a text encoder (CLIP); {OURS}"),
    ((r"encoder\.block\.0\.layer\.0\.SelfAttention\.",), f"a text encoder (T5); {OURS}"),
    ((r"emb_params|string_to_param|clip_l$|clip_g$",), f"a textual inversion embedding; {OURS}"),
    (
        (r"experts\.0\.", r"first_stage_model\."),
        "a converted model, but its header has lost the metadata that describes the networks; convert it anew, or copy "
        "the metadata along when you save it",
    ),
    ((r"features\.0\.weight",), f"a classifier such as VGG or AlexNet, used for metrics; {OURS}"),
)  # fmt: skip


def describe_file(path: Path, head: bytes, size: int, members: Sequence[str] | None = None) -> str:
    """What a file is that no reader knows, and what to do. head: its first bytes; members: names in a zip archive."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not size:
        return f"an empty file; {AGAIN}"
    if members is not None:
        some = ", ".join(one_line(n, 40) for n in members[:3]) or "nothing"
        return f"a zip archive with {some} in it, not a checkpoint; unpack it and give what is inside"
    if text.startswith(b"version https://git-lfs"):
        return f"a git-lfs pointer, not the file itself; run `git lfs pull`, or {AGAIN} from the page of the model"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return f"a web page, most likely an error page, instead of a checkpoint; {AGAIN}, logged in if the page asks"
    if text.startswith(b"<?xml"):
        return f"an XML file, most likely an error of the server; {AGAIN}"
    if not head.strip(b"\0"):
        return f"full of zeros, a download that did not finish; {AGAIN}"
    for beginning, at, name in _BEGINNINGS:
        if head[at:].startswith(beginning):
            return name if ";" in name else f"{name}, not a checkpoint; {OURS}"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle that torch.save did not write; save the weights with torch.save or safetensors"
    if _is_text(head):
        kind = "a JSON file" if text.startswith((b"{", b"[")) else "a text file"
        return f"{kind} instead of a checkpoint; {OURS}"
    if path.suffix.lower() == ".safetensors":
        return f"not a safetensors file, or a damaged one; {AGAIN}"
    return f"not a checkpoint, or a damaged one; {AGAIN}"


def find_other_network(keys: Collection[str]) -> str | None:
    """What network these keys are of, and where to load it, if it is a known one of others; else None."""
    names = [key[:LONGEST_KEY] for key in keys]
    for patterns, name in _NETWORKS:
        if all(any(re.match(pattern, key) for key in names) for pattern in patterns):
            return name
    return None


def describe_keys(keys: Collection[str]) -> str:
    """For keys of a network that nobody here knows."""
    some = ", ".join(one_line(key, 60) for key in list(keys)[:3])
    return f"no model that is known here ({len(keys)} tensors such as {some}); {OURS}"


def describe_cut(size: int) -> str:
    """For a file that ends too early."""
    return f"cut off or damaged, {size / 1e6:.1f} MB are there; {AGAIN}"


def one_line(text: object, length: int = 120) -> str:
    """Text from a file or a library, fit for one line of a terminal: no line ends, no control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * length]).split())
    return line if len(line) <= length else f"{line[:length]}..."


def _is_text(head: bytes) -> bool:
    try:
        text = head[:1024].decode()
    except UnicodeDecodeError as error:
        if error.start < min(len(head), 1024) - 4:  # else the last character was cut in two
            return False
        text = head[: error.start].decode()
    return all(c.isprintable() or c in "\t\r\n\f" for c in text)
