"""The page, and the tab of other programs: one Gradio builder for Gradio 3.41 to 6. Importing it needs Gradio."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import MoESRError


class NoGradio(MoESRError, ImportError):
    """Gradio is not installed."""


if find_spec("gradio") is None:
    raise NoGradio("the page needs Gradio, which is not installed; run: pip install 'gradio>=3.41,<7'")
