"""Stable Diffusion 1.5 generations decoded by a frequency-compensated KL f8 decoder; off unless our setting says so."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import MoESRError
from . import webui_api
from .opened_models import NO_DECODER, engine, list_decoders

log = logging.getLogger(__name__)

#: Latents inside the hosts are those of the decoder times this.
_FACTOR = 0.18215


def chosen_decoder() -> str | None:
    """The decoder that our setting names, None for the checkpoint's own."""
    name = webui_api.get_option("moesr_decoder")
    return None if name in (None, "", NO_DECODER) else name


def attach(checkpoint: Any) -> None:
    """From now on the checkpoint's latents are decoded as our setting says at that time. Only for SD 1.x; once."""
    own = getattr(checkpoint, "decode_first_stage", None)
    if not getattr(checkpoint, "is_sd1", False) or own is None or getattr(own, "moesr", False):
        return

    def decode_first_stage(latents: Any, *more: Any, **options: Any) -> Any:
        name = chosen_decoder()
        if name is not None:
            try:
                return _decode(name, latents / getattr(checkpoint, "scale_factor", _FACTOR))
            except MoESRError as error:
                # A generation took long: better the host's own picture than none.
                log.error("MoESR: %s; the checkpoint's own decoder is used", error)
        return own(latents, *more, **options)

    decode_first_stage.moesr = True
    checkpoint.decode_first_stage = decode_first_stage


def list_facts(checkpoint: Any) -> dict[str, str]:
    """What goes into the generation parameters of a checkpoint's pictures."""
    name = chosen_decoder()
    used = name in list_decoders() and getattr(checkpoint, "is_sd1", False)
    return {"MoESR decoder": name} if name and used else {}


def _decode(name: str, latents: Any) -> Any:
    """[B, 3, H, W] in [-1, 1] on the latents' device."""
    with webui_api.disable_autocast():
        try:
            pictures = engine().decoder(name).decode(latents)
        finally:
            engine().end_decoder_run()
    return (pictures.movedim(-1, 1) * 2 - 1).to(latents.device)
