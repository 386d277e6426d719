"""`demo`: the page in a browser."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from dataclasses import replace
from typing import Any

from ..errors import SettingError
from .common import positive

ANYWHERE = "0.0.0.0"


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    demo = commands.add_parser("demo", help="the page: drop pictures in a browser")
    demo.add_argument("--model", default="tiny", help="the model that the page starts with (default: tiny)")
    demo.add_argument("--port", type=positive, help="port (default: a free one from 7860 on)")
    demo.add_argument(
        "--listen", nargs="?", const=ANYWHERE, metavar="ADDRESS",
        help="let others reach the page, at this address of the machine (default: any), with limits for a public page",
    )  # fmt: skip
    demo.add_argument(
        "--auth", metavar="USER:PASSWORD", help="ask for it (or MOESR_DEMO_AUTH, which others cannot see)"
    )
    demo.add_argument("--root-path", default="", metavar="PATH", help="where a reverse proxy serves the page")
    demo.add_argument("--max-size", type=positive, metavar="MB", help="of an uploaded file")
    demo.add_argument("--max-input", type=positive, metavar="MP", help="megapixels of a picture that is sent")
    demo.add_argument("--max-output", type=positive, metavar="MP", help="megapixels of a result")
    demo.add_argument("--max-files", type=positive, metavar="N", help="pictures at a time")
    demo.add_argument("--max-queue", type=positive, metavar="N", help="jobs in line")
    demo.add_argument("--max-seconds", type=positive, metavar="S", help="of work on a job")
    demo.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, mps; several as cuda:0,cuda:1 work side by side"
    )
    demo.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16")
    demo.add_argument("--no-browser", action="store_true", help="do not open a browser")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from ..page.limits import LOCAL, PUBLIC
    from ..page.server import LOOPBACK, Page

    limits = LOCAL if options.listen is None else PUBLIC
    given = {
        "file_bytes": options.max_size and options.max_size * 10**6,
        "input_pixels": options.max_input and options.max_input * 10**6,
        "output_pixels": options.max_output and options.max_output * 10**6,
        "files": options.max_files,
        "waiting": options.max_queue,
        "seconds": options.max_seconds,
    }
    page = Page(
        model=options.model,
        address=options.listen or LOOPBACK,
        port=options.port,
        auth=_auth(options.auth or os.environ.get("MOESR_DEMO_AUTH")),
        limits=replace(limits, **{name: value for name, value in given.items() if value}),
        devices=tuple(options.device.split(",")),
        dtype=options.dtype,
        root_path=options.root_path,
        browser=not options.no_browser and options.listen is None and _has_browser(),
    )
    print(f"MoESR is at {page.url} (Ctrl-C ends it)", flush=True)
    ended = threading.Event()
    for name in ("SIGTERM", "SIGHUP"):  # SIGHUP: the terminal was closed; nohup has it ignored
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: ended.set())
    try:
        while not ended.wait(1):
            pass
    except KeyboardInterrupt:
        print()
    finally:
        page.close()
    return 0


def _auth(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    user, _, password = text.partition(":")
    if not user or not password:
        raise SettingError("--auth: give USER:PASSWORD, both with at least one character")
    return user, password


def _has_browser() -> bool:
    """Whether a person sits at a desktop: a browser in a terminal would only be in the way."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return (sys.platform in ("win32", "darwin") or bool(screen)) and sys.stdout.isatty()
