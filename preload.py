"""Command-line flags for A1111 and Forge, which run this before they read theirs."""

from __future__ import annotations

import argparse
from contextlib import suppress


def preload(parser: argparse.ArgumentParser) -> None:
    """Adds --moesr-models-path; a second copy of MoESR finds it there already."""
    with suppress(argparse.ArgumentError):
        parser.add_argument(
            "--moesr-models-path", type=str, default=None, metavar="DIR",
            help="folder with MoESR's models, searched before models/MoESR",
        )  # fmt: skip
