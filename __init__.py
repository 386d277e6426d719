"""ComfyUI's entry to MoESR. The folder is the node pack; the library is the package `moesr` inside it."""

import sys

# pytest and the WebUIs import this folder too; only ComfyUI has this module.
if "folder_paths" in sys.modules:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web/comfy"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
