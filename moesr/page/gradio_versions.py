"""Gradio 3.41, 4 and 5, 6 behind one face: options that a version does not have are renamed or left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import MoESRError

#: What an option is called in other versions, newest first.
_NAMES = {
    "js": ("js", "_js"),
    "default_concurrency_limit": ("default_concurrency_limit", "concurrency_count"),
}


class NoGradioError(MoESRError, ImportError):
    """Gradio is not installed."""


def gradio() -> Any:
    """The gradio module. Imported late, after the page has said where temporary files go. Raises NoGradioError."""
    require_gradio()
    return import_module("gradio")


def require_gradio() -> None:
    """Raises NoGradioError without importing anything."""
    if find_spec("gradio") is None:
        raise NoGradioError("the page needs Gradio, which is not installed; run: pip install 'gradio>=3.41,<7'")


def keep_known(call: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that `call` takes, under the names that it has for them."""
    known = set(_parameters(call))
    found = {}
    for option, value in options.items():
        name = next((name for name in _NAMES.get(option, (option,)) if name in known), None)
        if name is not None:
            found[name] = value
    return found


def _parameters(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    # Forge wraps events in objects that take anything and hand it on.
    return inspect.signature(getattr(call, "replaced_event", call)).parameters


def make(cls: Any, *values: Any, **options: Any) -> Any:
    """A component or a block of Gradio, `cls(*values, **options)`, without options that this version does not have."""
    return cls(*values, **keep_known(cls.__init__, options))


def on(
    event: Callable[..., Any], function: Callable[..., Any] | None, inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (), *, api: str | None = None, **options: Any,
) -> Any:  # fmt: skip
    """Call `function` when `event` happens, a bound method such as `button.click`. api: its name for programs.

    Without one it is for the page only. Any number may run at a time: the job queue keeps the order, not Gradio.
    """
    hidden = {"api_name": False, "show_api": False} if api is None else {"api_name": api}
    if api is None and "api_visibility" in _parameters(event):
        hidden = {"api_visibility": "private"}
    options = {"concurrency_limit": None, "show_progress": "hidden", **hidden, **options}
    return event(function, list(inputs), list(outputs), **keep_known(event, options))


def update(**changes: Any) -> Any:
    """A change of a component's options or value."""
    return gradio().update(**changes)


def make_refusal(text: str) -> Exception:
    """The error that tells a client why its request cannot be; the log stays as it is, where Gradio can do that."""
    return make(gradio().Error, text, print_exception=False)


def silence_refusals() -> None:
    """Let Gradio print no traceback for its own refusals either: values out of range, unknown choices."""
    gradio().Error.print_exception = property(lambda _: False, lambda *_: None)


def by_index(function: Callable[[int], Any]) -> Callable[..., Any]:
    """A function of the index that was selected, for a component's `select` event."""

    def select(event: Any) -> Any:
        return function(event.index)

    # Gradio finds the argument by its type.
    select.__annotations__ = {"event": gradio().SelectData}
    return select


def with_client(function: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    """A generator function that gets the session that calls it as the keyword `client`."""

    def call(request: Any, *values: Any) -> Iterator[Any]:
        yield from function(*values, client=str(getattr(request, "session_hash", None) or ""))

    # Gradio finds the argument by its type.
    call.__annotations__ = {"request": gradio().Request}
    return call


def list_uploads(value: Any) -> list[list[Path]]:
    """For each file that a File component holds, the paths that say where it lies.

    Gradio 3 copies whatever file a client names, and tells only in `orig_name` what that was: both count.
    """
    files = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    found = []
    for file in files:
        if isinstance(file, (str, Path)):
            found.append([Path(file)])
        else:
            claimed = getattr(file, "orig_name", None)
            found.append([Path(file.name), *([Path(claimed)] if claimed else [])])
    return found


def gradio_version() -> tuple[int, ...]:
    """Gradio's version, as (6, 31)."""
    return tuple(int(part) for part in gradio().__version__.split(".")[:2])


def file_prefix() -> str:
    """Where files are served, relative to the page."""
    return "gradio_api/file=" if gradio_version() >= (5, 0) else "file="
