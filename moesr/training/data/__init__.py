"""Training data: photographs, packs, crops, and the degradations that make LR images of them."""

from .crops import PhotoCrops
from .pack import Pack
from .source import BatchSource

__all__ = ["BatchSource", "Pack", "PhotoCrops"]
