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
            sentence += f" [{setting.span}]" if setting.span else ""
            metavar = (setting.unit or name).split("_")[-1].upper()
            parser.add_argument(option, type=setting.read, default=setting.default, metavar=metavar, help=sentence)


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
    say(f"error: {line}")
    return 1


def say(line: str) -> None:
    """A line on stderr, where it is in the way of no output."""
    print(line, file=sys.stderr)


def open_model(options: argparse.Namespace) -> Any:
    """The model that the options ask for; what had to be assumed about its files is said."""
    from ..model import load

    model = load(
        options.model, dtype=options.dtype, device=options.device, residency=options.residency,
        scale=options.model_scale, timesteps=options.model_timesteps, compile=getattr(options, "compile", False),
    )  # fmt: skip
    for note in model.notes:
        say(f"note: {note}")
    return model


class Bar:
    """A progress bar on stderr, drawn with the first thing that is shown, gone at the end.

    options: those of tqdm; by default for the fraction of a run.
    """

    def __init__(self, name: str = "", **options: Any) -> None:
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._name, self._options = name, options or {"bar_format": layout}
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def move(self, done: float, total: float | None, *, name: str = "", text: str = "") -> None:
        """To `done` of `total`, with a text behind it; another name begins another bar."""
        from tqdm import tqdm

        if self._bar is None or (name and name != self._name):
            self.__exit__()
            self._name = name or self._name
            self._bar = tqdm(desc=self._name, initial=done, total=total, leave=False, **self._options)
        self._bar.n, self._bar.total = done, total
        self._bar.set_postfix_str(text)

    def note(self, line: str) -> None:
        from tqdm import tqdm

        tqdm.write(f"note: {line}", file=sys.stderr)

    def show(self, event: Event) -> None:
        """Move it to an event of the pipeline: tile 3/12, step 7/50."""
        if event.note:
            self.note(event.note)
        self.move(event.fraction, 1.0, text=event.text)
