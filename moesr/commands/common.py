"""What several commands share: opening a model, the progress bar, kinds of arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import SettingError
from ..progress import Event
from ..settings import LOADING, SETTINGS


def verbose(parser: argparse.ArgumentParser) -> None:
    """The option that every command has."""
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What released files do not say of themselves."""
    parser.add_argument("--model-scale", type=int, help="scale of released MoESR files, which do not say it (8)")
    parser.add_argument("--model-timesteps", type=int, help="15 or 4: of ResShift's files, where their name lacks it")


def add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    """An option for each of these settings, as the table of settings describes it."""
    for name in names:
        setting = SETTINGS.get(name) or LOADING[name]
        option, sentence = f"--{name.replace('_', '-')}", setting.sentence.replace("%", "%%")
        if setting.kind == "flag":
            parser.add_argument(option, action="store_true", help=sentence)
        else:
            values = (
                ""
                if setting.kind == "text"
                else f" [{setting.wanted.partition(' from ')[2] or '|'.join(setting.choices)}]"
            )
            metavar = (setting.unit or name).split("_")[-1].upper()
            parser.add_argument(
                option, type=setting.read, default=setting.default, metavar=metavar, help=sentence + values
            )


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


def positive_number(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """The option that lets a command replace its output file."""
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is written if it is there")


def check_new(path: str | os.PathLike[str] | None, options: argparse.Namespace) -> None:
    """Raises SettingError if there is a file at `path`, and `--overwrite` does not allow to replace it."""
    if path is not None and not options.overwrite and os.path.isfile(path):
        raise SettingError(f"{path}: is there already; --overwrite replaces it, or give another name")


def choose_parts(text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """The names in `--only A,B`, all that are known without it. Raises SettingError for one that is not known."""
    names = tuple(text.split(",")) if text else tuple(known)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SettingError(f"--only {', '.join(unknown)}: choose some of {', '.join(known)}")
    return names


def fail(line: str) -> int:
    """Say what went wrong, on one line of stderr; the exit code."""
    print(f"error: {line}", file=sys.stderr)
    return 1


def open_model(options: argparse.Namespace) -> Any:
    """The model that the options ask for; what had to be assumed about its files is said."""
    from ..model import load

    model = load(
        options.model,
        dtype=options.dtype,
        device=options.device,
        residency=options.residency,
        scale=options.model_scale,
        timesteps=options.model_timesteps,
        compile=getattr(options, "compile", False),
    )
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    return model


class Bar:
    """A progress bar that says where the run is: tile 3/12, step 7/50."""

    def __init__(self, name: str) -> None:
        from tqdm import tqdm

        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=1.0, desc=name, bar_format=layout, leave=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, event: Event) -> None:
        """Move the bar to an event of the pipeline."""
        self.bar.n = event.fraction
        if event.note:
            self.bar.write(f"note: {event.note}", file=sys.stderr)
        self.bar.set_postfix_str(event.text)
