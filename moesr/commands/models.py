"""`info`, `models`, `download` and `convert`: model files."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..errors import format_size
from .common import Bar, add_model_options, add_overwrite, check_new, say


def add(commands: Any) -> None:
    """Add the commands to the parser's."""
    info = commands.add_parser("info", help="say what a model file is")
    info.add_argument("file", metavar="FILE", help="name, file or folder")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)
    add_model_options(info)

    download = commands.add_parser("download", help="fetch a published model into the library")
    download.add_argument("name", metavar="NAME", help="as `models` lists them")
    download.add_argument("--to", metavar="DIR", help="the folder to put it in (default: the library's own)")
    download.add_argument("--yes", action="store_true", help="agree to a non-commercial licence without being asked")
    download.add_argument("--force", action="store_true", help="fetch again what is there")
    download.set_defaults(run=_download)
    models = commands.add_parser("models", help="list the models of the library, and those that can be fetched")
    models.set_defaults(run=_models)

    conv = commands.add_parser("convert", help="make one small file of training checkpoints")
    sources = "stage files and a decoder, a ResShift network and its first stage, or a folder with them"
    conv.add_argument("sources", nargs="+", metavar="SRC", help=sources)
    conv.add_argument("-o", "--output", required=True, metavar="OUT", help="the .safetensors file to write")
    conv.add_argument("--dtype", default="fp16", help="fp16 (default), bf16, fp32")
    conv.add_argument("--scale", type=int, help="scale of released files, which do not say it")
    conv.add_argument("--timesteps", type=int, help="15 or 4: of ResShift's files, where their name lacks it")
    add_overwrite(conv)
    conv.set_defaults(run=_convert)


def _info(options: argparse.Namespace) -> int:
    from ..checkpoints.describe import describe, format_facts
    from ..library import find

    facts = describe(find(options.file), options.model_scale, options.model_timesteps)
    print(json.dumps(facts, indent=2) if options.json else format_facts(facts))
    return 0


def _models(options: argparse.Namespace) -> int:
    from os.path import isdir

    from ..library import folders, installed
    from ..library.catalogue import CATALOGUE

    there = installed()
    print("in the library:")
    for name, path in there.items():
        print(f"  {name:<26} {path}")
    print("to be had with `python -m moesr download NAME`:")
    for entry in CATALOGUE.values():
        if entry.name not in there:
            size = f", more than {format_size(entry.size)}" if entry.size else ""
            print(f"  {entry.name:<26} {entry.about}{size}; {entry.licence}")
    print("folders, in the order in which they are searched:")
    for folder in folders():
        print(f"  {folder}{'' if isdir(folder) else '  (not there)'}")
    return 0


def _download(options: argparse.Namespace) -> int:
    from ..library.catalogue import CATALOGUE, Entry
    from ..library.download import download

    def agree(entry: Entry) -> bool:
        if options.yes:
            return True
        say(f"{entry.name}: {entry.about}; {entry.licence} ({entry.page})")
        if not sys.stdin.isatty():
            return False
        print("Fetch it under that licence? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    with Bar(unit="B", unit_scale=True) as bar:
        done = download(
            options.name, to=options.to, agree=agree, force=options.force,
            progress=lambda name, size, total: bar.move(size, total, name=name),
        )  # fmt: skip
    if not done.fetched:
        print(f"{done.path}: there already, nothing was fetched")
        return 0
    print(f"{done.path}: {', '.join(done.fetched)} fetched; licence: {CATALOGUE[options.name].licence}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from ..checkpoints.convert import convert
    from ..checkpoints.describe import describe, format_facts

    check_new(options.output, options)
    with Bar(unit="B", unit_scale=True, disable=None) as bar:

        def show(done: int, total: int, what: str) -> None:
            bar.move(done, total, name=what)

        path = convert(options.sources, options.output, options.dtype, options.scale, show, options.timesteps)
    print(format_facts(describe(path)))
    return 0
