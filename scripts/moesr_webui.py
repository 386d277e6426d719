"""MoESR for A1111 and Forge. All of it is in the package `moesr`; the host finds its classes here."""

from pathlib import Path

import moesr  # now: the host has this folder on sys.path only while it loads this file

HERE = Path(__file__).resolve().parent.parent
LOADED = Path(moesr.__file__).resolve().parent.parent

if HERE == LOADED:
    from moesr.webui.extras import MoESRExtras
    from moesr.webui.generation_notes import MoESRGeneration
    from moesr.webui.startup import start
    from moesr.webui.upscaler import UpscalerMoESR

    start()
    __all__ = ["MoESRExtras", "MoESRGeneration", "UpscalerMoESR"]
else:
    import logging

    logging.getLogger("moesr").error(
        "MoESR: %s is a second copy of MoESR and is not used, the one in %s is; delete one of them and restart",
        HERE,
        LOADED,
    )
