"""`upscale`: pictures and folders in, larger pictures out."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from .. import input_files, result_files
from ..errors import ImageError, MoESRError, SettingError, find_reason
from ..images.files import WRITE_SUFFIXES, read_image, write_image
from ..images.read import is_cut_short
from ..images.write import check_size
from ..result_files import Target
from ..settings import SETTINGS, result_size
from ..settings_record import (
    describe_settings,
    digest_bytes,
    digest_file,
    find_difference,
    read_record,
    to_texts,
)  # fmt: skip
from .common import Bar, add_model_options, add_settings, fail, open_model, say

#: Settings that have an option each.
SETTINGS_OF_A_RUN = (
    "model", "scale", "fidelity", "restore", "seed", "steps", "color_fix", "wrap", "sampler", "spacing", "eta", "tile",
    "tile_overlap", "tile_batch",
)  # fmt: skip
#: Settings that may be grey pictures.
_MAPS = ("protect", "mask", "fidelity")
_FILE_FLAGS = {
    "--recursive": "folders with all that is below them, structure kept",
    "--compare": "also write OUT_compare.png: input, result and difference",
    "--overwrite": "replace files that are there; inputs are never replaced",
    "--skip-existing": "pass over results of the same input and settings; with --overwrite, make the others anew",
    "--allow-truncated": "read a JPEG or PNG that is cut short as far as it goes",
    "--strip-metadata": "write pixels and colour profile only; --skip-existing then goes by name and size",
}


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    up = commands.add_parser("upscale", help="make pictures larger")
    up.add_argument("inputs", nargs="+", metavar="IN", help="pictures, or folders of pictures; - is standard input")
    up.add_argument(
        "-o", "--output", required=True, metavar="OUT",
        help="a file (its suffix is its format), a folder, or - for standard output",
    )  # fmt: skip
    add_settings(up, *(name for name in SETTINGS_OF_A_RUN if name != "fidelity"))
    up.add_argument(
        "--fidelity", type=_read_fidelity, metavar="NUMBER|FILE",
        help=f"{SETTINGS['fidelity'].sentence} [{SETTINGS['fidelity'].span}] Or a grey picture: white is 1.",
    )  # fmt: skip
    for name in ("protect", "mask"):
        up.add_argument(f"--{name}", metavar="FILE", help=f"A grey picture. {SETTINGS[name].sentence}")
    add_settings(up, "steady", "dtype", "device", "residency")
    up.add_argument("--compile", action="store_true", help="torch.compile the experts: for many pictures on a GPU")
    files = up.add_argument_group("files")
    files.add_argument(
        "--format", choices=result_files.FORMATS, metavar="KIND",
        help=f"of results in a folder: {', '.join(result_files.FORMATS)} (as the input); default png",
    )  # fmt: skip
    files.add_argument("--quality", type=int, metavar="Q", help="of JPEG and WebP results, 1 to 100 (default: 95)")
    files.add_argument("--bits", type=int, choices=(8, 16), help="bits per sample of a PNG (default: as in the input)")
    for option, sentence in _FILE_FLAGS.items():
        files.add_argument(option, action="store_true", help=sentence)
    up.set_defaults(run=_upscale)
    add_model_options(up)


def _read_fidelity(text: str) -> Any:
    """A number, or the name of a file that there is."""
    return text if os.path.isfile(text) else SETTINGS["fidelity"].read(text)


def _upscale(options: argparse.Namespace) -> int:
    to_stream, output = options.output == input_files.STREAM, Path(options.output)
    to_file = not to_stream and result_files.is_picture_name(options.output)
    passed_over = input_files.PassedOver()
    folder = None if to_stream or to_file else output
    sources, missing = input_files.find_sources(
        options.inputs, folder, recursive=options.recursive, passed_over=passed_over
    )
    failed = [f"{name}: no such file or folder" for name in missing] + passed_over.unreadable
    if not sources and not failed:
        failed.append(f"{', '.join(options.inputs)}: no pictures in there")
    if (to_stream or to_file) and len(sources) > 1:
        raise SettingError(f"{output}: one file for {len(sources)} pictures; give a folder")
    run = _Run(options, _plan(options, sources, output, to_file, to_stream))
    done = 0
    try:
        if sources:
            run.prepare(None if to_stream else output.parent if to_file else output)
        for target in run.todo:
            error = run.upscale_one(target)
            failed += [error] if error else []
            done += not error
    finally:
        if run.finished:
            say(f"{len(run.finished)} of {len(sources)} results were there already")
        if passed_over.describe():
            say(passed_over.describe())
        if failed and done + len(failed) > 1:
            say(f"{done} done, {len(failed)} failed:")
        for line in failed:
            fail(line)
    return 1 if failed else 0


def _plan(
    options: argparse.Namespace, sources: list[input_files.Source], output: Path, to_file: bool, to_stream: bool
) -> list[Target]:
    """Where each result goes. Raises SettingError for options that contradict each other."""
    suffix = result_files.FORMATS[options.format or "png"]
    if to_stream:
        if options.compare or options.format == "same":
            raise SettingError("-: standard output takes one result; choose --format png, jpg or webp and nothing else")
        if getattr(sys.stdout, "name", "") == os.devnull:
            raise SettingError("-: standard output is closed; give a file or a folder")
        if sys.stdout.isatty():
            raise SettingError("-: standard output is a terminal; send it to a file or a program")
        targets = [Target(source, Path(input_files.STREAM + suffix)) for source in sources]
    elif to_file:
        if options.format not in (None, "same") and WRITE_SUFFIXES[suffix] != WRITE_SUFFIXES[output.suffix.lower()]:
            raise SettingError(f"{output}: not a file of --format {options.format}; leave one of them out")
        compare = result_files.name_compare(output) if options.compare else None
        targets = [Target(source, output, compare) for source in sources]
    else:
        folders = {source.folder for source in sources}
        targets = list(
            result_files.plan_targets(sources, output, suffix=suffix, compare=options.compare, folders=folders)
        )
    suffixes = {target.path.suffix.lower() for target in targets}
    kinds = {WRITE_SUFFIXES[suffix] for suffix in suffixes}
    if options.bits == 16 and not kinds <= {"PNG", "TIFF"}:
        raise SettingError("--bits 16: only PNG and TIFF have them; choose --format png or tiff")
    if options.quality is not None and (not 1 <= options.quality <= 100 or kinds <= {"PNG", "TIFF"}):
        raise SettingError(f"--quality {options.quality}: 1 to 100, of --format jpg or webp; others lose nothing")
    return targets


class _Run:
    """The pictures of one command, with one model and the same settings; with `--steady` they are frames in order."""

    def __init__(self, options: argparse.Namespace, targets: list[Target]) -> None:
        self.options, self.todo = options, targets
        self.finished: list[Target] = []
        given = {name: getattr(options, name) for name in (*SETTINGS_OF_A_RUN, *_MAPS)}
        self._map_files = {name: Path(given[name]) for name in _MAPS if isinstance(given[name], str)}
        self._settings = {name: given[name] for name in {*SETTINGS_OF_A_RUN} - {"model", *self._map_files}}

    def prepare(self, folder: Path | None) -> None:
        """Everything that can be wrong before the first picture; `folder` is where results go. Raises MoESRError."""
        from ..images.motion import Steadier

        options = self.options
        if options.steady:
            self._check_frames()
        self._steadier = Steadier(options.steady)
        if folder is not None:
            result_files.clean_folders(self.todo)
            find_difference = self._find_difference if options.skip_existing else None
            self.todo, self.finished = result_files.check_targets(
                self.todo, overwrite=options.overwrite, find_difference=find_difference
            )
            result_files.check_writable(folder)
            result_files.check_space(self.todo, folder, self._record["scale"])
        if self.todo:
            maps = {name: read_image(path).floats().rgb[..., 1] for name, path in self._map_files.items()}
            self._arguments = {**self._settings, **maps}

    def _check_frames(self) -> None:
        """Raises SettingError unless the pictures may be the frames of one video, all of which are made."""
        if len(self.todo) < 2 or self.options.skip_existing:
            problem = "--skip-existing leaves frames out" if len(self.todo) > 1 else "one picture"
            raise SettingError(f"--steady: {problem}; it needs all frames of a video, in order")
        sizes: dict[tuple[int, int], Path] = {}
        for path in (target.source.path for target in self.todo):
            with suppress(Exception), Image.open(path) as image:  # what cannot be read is said when its turn comes
                sizes.setdefault(image.size, path)
        if len(sizes) > 1:
            words = ", ".join(f"{path} has {width} x {height}" for (width, height), path in list(sizes.items())[:2])
            raise SettingError(f"--steady: {words}; it needs frames of one size")

    def upscale_one(self, target: Target) -> str | None:
        """Upscale a file; the line that says what went wrong, or None. Raises what is wrong for all: settings."""
        from ..images.comparison import draw_comparison
        from ..pipeline import upscale

        options, name = self.options, target.source.path.name
        try:
            picture, digest = _read(target.source, options.allow_truncated)
            for note in picture.notes:
                say(f"{target.source.path}: {note}")
            if options.output != input_files.STREAM:
                height, width = picture.rgb.shape[:2]
                height, width = result_size(height, width, self._record["scale"])
                check_size(target.path, WRITE_SUFFIXES[target.path.suffix.lower()], height, width)
            if options.bits:
                picture = replace(picture, bits=options.bits)
            with Bar(name) as bar:
                result = upscale(self._model, picture, **self._arguments, callback=bar.show)
            if options.steady:
                result = self._steadier.steady_image(picture, result)
            if target.compare is not None:  # first, as a result that is there says that all is done
                self._save(target, target.compare, draw_comparison(picture, result), digest)
            self._save(target, target.path, result, digest)
        except SettingError:
            raise
        except MoESRError as error:
            return str(error)
        except OSError as error:
            return f"{target.path}: cannot be written ({error.strerror or error}); check the folder and its space"
        except Exception as error:  # one broken file must not take the others with it
            logging.getLogger(__name__).info("%s", target.source.path, exc_info=True)
            words = f"{type(error).__name__}: {find_reason(error)}"
            return f"{target.source.path}: {words}; run with --verbose and report it"
        return None

    def _save(self, target: Target, path: Path, picture: Any, digest: str) -> None:
        strip, buffer = self.options.strip_metadata, io.BytesIO()
        kind = WRITE_SUFFIXES[path.suffix.lower()]
        record = {**self._record, "input_hash": digest}
        picture = replace(picture, metadata=picture.metadata.with_text(to_texts(record)))
        for line in write_image(buffer, picture, format=kind, quality=self.options.quality, metadata=not strip):
            say(f"{path}: {line}")
        data = buffer.getvalue()
        if self.options.output == input_files.STREAM:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        saved = result_files.save_new(path, lambda file: file.write(data), replaces=target.replaces)
        height, width = picture.rgb.shape[:2]
        note = "" if saved == path else f" ({path.name} was taken by another file meanwhile)"
        what = ", input, result and difference" if path == target.compare else ""
        print(f"{saved}: {width} x {height}{what}{note}")

    @cached_property
    def _model(self) -> Any:
        return open_model(self.options)

    @cached_property
    def _record(self) -> dict[str, Any]:
        """What makes the result what it is, but for the input."""
        from ..library import find

        config, path = self._model.config, find(self.options.model)
        settings = describe_settings(config, path, self._settings, maps=self._map_files, bits=self.options.bits)
        return {**settings, "steady": self.options.steady or None}  # as in records that do not say it

    def _find_difference(self, target: Target, path: Path) -> str | None:
        """Why the file at `path` is not the result of this input and these settings, None if it is."""
        try:
            found = read_record(path)
            if found is not None and is_cut_short(path):
                return "it is cut short"
            if found is not None:
                return find_difference(found, {**self._record, "input_hash": digest_file(target.source.path)})
            if not self.options.strip_metadata:
                return "it does not say that it is a result"
            with Image.open(path) as result, Image.open(target.source.path) as source:
                scale, (width, height) = self._record["scale"], source.size
                if result.size not in (result_size(width, height, scale), result_size(height, width, scale)):
                    return "it is no result of this size"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"it cannot be compared ({error})"
        return None


def _read(source: input_files.Source, allow_truncated: bool) -> tuple[Any, str]:
    """The picture of a source, and the digest of its bytes."""
    if not source.is_stream:
        return read_image(source.path, allow_truncated=allow_truncated), digest_file(source.path)
    if sys.stdin is None:
        raise ImageError("-: standard input is closed")
    data = sys.stdin.buffer.read()
    return read_image(data, name=input_files.STREAM, allow_truncated=allow_truncated), digest_bytes(data)
