"""Training data: photographs, packs, batches of crops, and the degradations that make LR images of them."""

from .batch_source import BatchSource, PreparedBatches
from .pack import Pack
from .photos import Images, read_images

__all__ = ["BatchSource", "Images", "Pack", "PreparedBatches", "read_images"]
