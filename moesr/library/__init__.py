"""Models by name: the folders that hold them, the catalogue of published ones, and their download."""

from .model_folders import (  # noqa: I001  # several names per line
    DEFAULT, EMBEDDED, add_folder, compute_fingerprint, download_folder, find, folders, host_folders, installed, names,
    suggest, user_folders,
)  # fmt: skip

__all__ = [
    "DEFAULT", "EMBEDDED", "add_folder", "compute_fingerprint", "download_folder", "find", "folders", "host_folders",
    "installed", "names", "suggest", "user_folders",
]  # fmt: skip
