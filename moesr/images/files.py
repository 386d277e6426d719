"""Pictures on disk: read without losing anything, written whole or not at all. See docs/files.md."""

from .picture import Metadata, Picture, lay_on_white, luma
from .read import (
    READ_FORMATS,
    READ_SUFFIXES,
    explain_errors,
    from_pil,
    read_image,
    read_text,
    read_upright_size,
    to_pil,
)  # fmt: skip
from .write import WRITE_SUFFIXES, write_image

__all__ = [
    "READ_FORMATS", "READ_SUFFIXES", "WRITE_SUFFIXES", "Metadata", "Picture", "explain_errors", "from_pil",
    "lay_on_white", "luma", "read_image", "read_text", "read_upright_size", "to_pil", "write_image",
]  # fmt: skip
