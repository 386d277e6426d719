"""What the result must keep: a picture to paint on, and the map made of the paint, white where it is protected."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageFilter, ImageStat

from ..errors import SettingError
from ..images.files import to_pil
from ..images.write import encode_image
from .gradio_versions import gradio_version, list_uploads, make, make_refusal
from .limits import Limits
from .uploads import Upload, open_picture, shrink

#: Long side of the picture that is painted on, in pixels.
SIDE = 512
#: Alpha of the paint, 0 to 255.
_ALPHA = 178
_PAINT = f"rgba(79, 70, 229, {_ALPHA / 255:.3f})"
#: Standard deviation of the blur that softens the borders of the map, in pixels of the picture that is painted on.
_BLUR = 3
#: Mean difference of small copies, in grey levels, from which on two pictures are not the same.
_DIFFERENCE = 12
#: Paintings that Gradio may hold between their arrival and their use.
_HELD = 32

HINT = (
    "Paint over what must stay as it is in your picture. The result has fidelity 1 there; elsewhere it has the "
    "fidelity under Advanced."
)
NO_PICTURE = "Drop a picture first."
SEVERAL = "Several pictures were dropped. Protection is for a single one."


def make_painter(gr: Any) -> Any:
    """An ImageEditor; where Gradio has none, a field for a map that was made elsewhere."""
    if gradio_version() < (4, 0):
        return make(gr.File, label="Grey picture: white is protected", height=150, elem_id="moesr-painter")
    painter = make(
        gr.ImageEditor, type="pil", image_mode="RGBA", sources=(), transforms=(), layers=False, height=340,
        brush=make(gr.Brush, default_size=40, colors=[_PAINT], default_color=_PAINT, color_mode="fixed"),
        label="Painting", show_label=False, show_download_button=False, show_share_button=False, buttons=[],
        elem_id="moesr-painter",
    )  # fmt: skip
    convert = painter.convert_and_format_image

    def convert_small(file: Any, *values: Any, **options: Any) -> Any:
        """Gradio would decode whatever a client sends, however many pixels it has."""
        if file is not None:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file.path) as image:
                if image.width * image.height > (2 * SIDE) ** 2:
                    raise make_refusal(f"protect: {image.width} x {image.height} pixels are no painting of this page")
        return convert(file, *values, **options)

    painter.convert_and_format_image = convert_small
    return painter


def drop_unused(painter: Any) -> None:
    """Gradio holds each painting until it is used: let go of all but the newest."""
    held = getattr(painter, "blob_storage", {})
    while len(held) > _HELD:
        held.pop(next(iter(held)), None)


def draw_background(upload: Upload) -> Any:
    """The painter's value for a picture whose size was checked: the picture without paint. Raises ImageError."""
    return {"background": _shrink(upload), "layers": [], "composite": None} if gradio_version() >= (4, 0) else None


def read_painting(
    painted: Any, uploads: Sequence[Upload], accept: Callable[[Sequence[Path]], Upload], limits: Limits
) -> bytes:
    """The map as a PNG, empty if nothing is protected. painted: the painter's value. accept: makes an upload of paths.

    Raises SettingError if there are several pictures, or another than the one that was painted on; ImageError for a map
    that cannot be read.
    """
    layers = [layer.getchannel("A") for layer in painted["layers"]] if isinstance(painted, dict) else []
    files = [] if isinstance(painted, dict) else list_uploads(painted)
    if not files and not any(layer.getbbox() for layer in layers):
        return b""
    if len(uploads) != 1:
        raise SettingError(
            f"protect: this belongs to one picture, and {len(uploads)} were dropped; drop one, or clear what is painted"
        )
    if files:
        return read_map(accept(files[0]), limits)
    if not _is_alike(painted["background"], _shrink(uploads[0])):
        raise SettingError(f"protect: another picture than {uploads[0].name} was painted on; paint again")
    plane = layers[0]
    for layer in layers[1:]:
        plane = ImageChops.lighter(plane, layer.resize(plane.size))
    plane = plane.point([min(255, round(alpha * 255 / _ALPHA)) for alpha in range(256)])
    return encode_image(plane.filter(ImageFilter.GaussianBlur(_BLUR)), "PNG")


def read_map(upload: Upload, limits: Limits) -> bytes:
    """A map that was made elsewhere, as a grey PNG. Raises ImageError."""
    return encode_image(to_pil(open_picture(upload, limits)).convert("L"), "PNG")


def _shrink(upload: Upload) -> Image.Image:
    """The picture with a long side of SIDE; a small one is enlarged, for strokes finer than its pixels."""
    small = shrink(upload, SIDE)
    scale = SIDE / max(small.size)
    return small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))


def _is_alike(first: Image.Image | None, second: Image.Image) -> bool:
    """Whether two pictures are the same, but for their size and losses of compression."""
    if first is None or abs(first.width / first.height - second.width / second.height) > 0.05:
        return False
    small = [image.convert("L").resize((16, 16), Image.Resampling.BOX) for image in (first, second)]
    return ImageStat.Stat(ImageChops.difference(*small)).mean[0] < _DIFFERENCE
