"""Published models that `download` knows: what they are, where their files are, and under which licence.

Sizes and hashes are those of the files' own pages; where nobody publishes them they are None, never guessed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository at a fixed commit."""

    repo: str
    path: str
    revision: str

    @property
    def url(self) -> str:
        """Its plain address; HF_ENDPOINT names a mirror."""
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.repo}/resolve/{self.revision}/{self.path}"


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: its name on this disk, its address, and bytes and SHA-256 (hex) where they are known."""

    name: str
    address: str | HubFile
    size: int | None = None
    sha256: str | None = None

    @property
    def url(self) -> str:
        return self.address if isinstance(self.address, str) else self.address.url


@dataclass(frozen=True)
class Entry:
    """A published model. In the library it is the file NAME.suffix, or the folder NAME if it has several files."""

    name: str
    about: str
    files: tuple[RemoteFile, ...]
    licence: str
    page: str
    non_commercial: bool = False

    @property
    def size(self) -> int:
        """Bytes of the files whose size is known."""
        return sum(file.size or 0 for file in self.files)

    def places(self) -> tuple[str, ...]:
        """Where its files go, relative to a folder of the library."""
        if len(self.files) == 1:
            return (self.name + PurePosixPath(self.files[0].name).suffix,)
        return tuple(f"{self.name}/{file.name}" for file in self.files)


def _moesr(path: str, size: int | None = None, sha256: str | None = None) -> RemoteFile:
    address = HubFile("amandaa/moe_sr", path, "30cc3a72ac454b33bda9a99e56e6040c15ad4849")
    return RemoteFile(PurePosixPath(path).name, address, size, sha256)


_STAGES = (
    "6ef6213edbeb39b1444069ab457de1dfbd26f75a3810b06806c7d2e52afd16fc",
    "fe9655c4be438ba238f647038a731ac49fe78c9745789a1dc50c4fd204adcc5f",
    "31b3559cf41dce1dbc91ab7cdd1df2d6f443b566395660f8e04f5556fa91418e",
    "8d149f21c1e037967ea270418fef3dbff6c90216f07f243675cf391879f98e76",
)
_MOESR_LICENCE = "Apache-2.0"
_MOESR_PAGE = "https://huggingface.co/amandaa/moe_sr"


def _resshift(name: str, about: str, weights: str, first_stage: str = "autoencoder_vq_f4.pth") -> Entry:
    release = "https://github.com/zsyOAOA/ResShift/releases/download/v2.0/"
    return Entry(
        name=f"resshift-{name}",
        about=f"ResShift: {about}",
        files=tuple(RemoteFile(file, release + file) for file in (weights, first_stage)),
        licence="S-Lab License 1.0: non-commercial use only",
        page="https://github.com/zsyOAOA/ResShift",
        non_commercial=True,
    )


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="moesr-x8",
            about="MoESR x8 of the authors: four time experts and the frequency-compensated decoder",
            files=(
                *(_moesr(f"Unet/moe_stage{i}.ckpt", 3650066050, sha256) for i, sha256 in enumerate(_STAGES)),
                _moesr("first_stage_models/vq-f4/fa_vae.pth"),
            ),
            licence=_MOESR_LICENCE,
            page=_MOESR_PAGE,
        ),
        Entry(
            name="fa-vae-kl-f8",
            about="frequency-compensated decoder for Stable Diffusion 1.5 latents (360 MB)",
            files=(_moesr("first_stage_models/kl-f8/fa_vae.pth"),),
            licence=_MOESR_LICENCE,
            page=_MOESR_PAGE,
        ),
        Entry(
            name="ldm-sr",
            about="LDM-SR x4, one expert; it does not say its scale: give --model-scale 4",
            files=(RemoteFile("model.ckpt", "https://heibox.uni-heidelberg.de/f/578df07c8fc04ffbadf3/?dl=1"),),
            licence="MIT for the code, nothing said of the weights",
            page="https://github.com/CompVis/latent-diffusion",
        ),
        _resshift("realsr-v1", "photographs x4, 15 steps, 300k iterations", "resshift_realsrx4_s15_v1.pth"),
        _resshift("realsr-v2", "photographs x4, 15 steps, 500k iterations", "resshift_realsrx4_s15_v2.pth"),
        _resshift("realsr-v3", "photographs x4, 4 steps", "resshift_realsrx4_s4_v3.pth"),
        _resshift("bicsr", "bicubic x4, 4 steps", "resshift_bicsrx4_s4.pth"),
        _resshift("inpaint-imagenet", "inpainting, 4 steps", "resshift_inpainting_imagenet_s4.pth"),
        _resshift(
            "inpaint-face", "inpainting of faces, 4 steps", "resshift_inpainting_face_s4.pth",
            "celeba256_vq_f4_dim3_face.pth",
        ),
        _resshift(
            "faceir", "restoration of faces, 4 steps", "resshift_faceir_s4.pth", "ffhq512_vq_f8_dim8_face.pth"
        ),
    )
}  # fmt: skip
