"""A small stand-in of Gradio 3.41.2, as A1111 has it: components that remember how they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from types import ModuleType
from typing import Any, ClassVar

#: Events that MoESR's components have in every Gradio; a typo is an AttributeError.
EVENTS = ("click", "change", "input", "select", "upload", "then")
#: Options that components have in 3.41.2.
OPTIONS = (
    "value", "label", "elem_id", "choices", "type", "interactive", "visible", "variant", "open", "minimum", "maximum",
    "step", "info", "precision", "allow_custom_value", "image_mode", "scale", "min_width", "size", "show_label",
    "elem_classes", "file_count", "height", "columns", "rows", "object_fit", "allow_preview", "show_share_button",
    "show_download_button", "title", "analytics_enabled",
)  # fmt: skip
#: Options that only other versions have, and those of events.
NEWER = (
    "padding", "buttons", "delete_cache", "print_exception", "js", "queue", "concurrency_limit", "show_progress",
    "api_name", "show_api", "api_visibility",
)  # fmt: skip


class Component:
    """A component that remembers how it was made and what it was told to do."""

    made: ClassVar[list[Component]] = []

    def __init__(self, *values: Any, **options: Any) -> None:
        self.values, self.options, self.events = values, options, {}
        Component.made.append(self)

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, event: str) -> Any:
        if event not in EVENTS:
            raise AttributeError(event)

        def listen(fn=None, inputs=None, outputs=None, _js=None, queue=None, show_progress="full") -> Component:
            then = Component()
            self.events.setdefault(event, []).append((fn, inputs, outputs, _js, then))
            return then

        return listen


# What code reads that looks at signatures. setattr, as a function has no such attribute for a type checker.
_SIGNATURE = Signature([Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in OPTIONS])
vars(Component)["__init__"].__signature__ = _SIGNATURE


class Gradio(ModuleType):
    """A module `gradio` all of whose capitals are components."""

    __version__ = "3.41.2"
    Error = RuntimeError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not name[0].isupper():
            raise AttributeError(name)
        return Component

    @staticmethod
    def update(**changes: Any) -> dict[str, Any]:
        return {"__type__": "update", **changes}


def forbid_unknown(keep_known: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """In place of `compat.keep_known`, which leaves out what a version lacks: what no version has is a mistake."""

    def keep(call: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
        unknown = set(options) - {*OPTIONS, *NEWER}
        assert not unknown, f"no Gradio has {unknown}"
        return keep_known(call, options)

    return keep
