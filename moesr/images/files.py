"""Pictures on disk: read without losing anything, written whole or not at all. See docs/files.md."""

from .picture import Metadata, Picture, luma, on_white
from .read import READ_FORMATS, READ_SUFFIXES, explained, from_pil, read_image, read_text, to_pil, upright_size
from .write import FORMATS, WRITE_SUFFIXES, write_image

__all__ = [
    "FORMATS", "READ_FORMATS", "READ_SUFFIXES", "WRITE_SUFFIXES", "Metadata", "Picture", "explained", "from_pil",
    "luma", "on_white", "read_image", "read_text", "to_pil", "upright_size", "write_image",
]  # fmt: skip
