"""The command line: upscale, info, train."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import MoESRError, SettingError

EXAMPLES = """examples:
  python -m moesr upscale photo.jpg -o large.png            one photo, four times as large
  python -m moesr upscale photos/ more.webp -o out/         a folder and a file, into out/
  python -m moesr upscale photo.jpg -o x8.png --model models/moesr_x8/ --steps 50
  python -m moesr upscale brick.png -o wall.png --wrap      a seamless texture stays seamless
  python -m moesr info model.safetensors                    what a file is
"""

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 with a line for each failure on stderr, 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        return options.run(options)
    except MoESRError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; finished files are kept")
        return INTERRUPTED


def _upscale(options: argparse.Namespace) -> int:
    found, missing = _inputs(options.inputs, options.recursive)
    outputs = _outputs(found, Path(options.output))
    failed = [f"{path}: no such file or folder" for path in missing]
    if not found and not missing:
        failed.append(f"{', '.join(options.inputs)}: no pictures in there")
    done = 0
    try:
        model = _model(options) if found else None
        for (source, _), target in zip(found, outputs):
            error = _upscale_one(model, source, target, options)
            failed += [error] if error else []
            done += not error
    finally:
        if failed and done + len(failed) > 1:
            print(f"{done} done, {len(failed)} failed:", file=sys.stderr)
        for line in failed:
            _fail(line)
    return 1 if failed else 0


def _model(options: argparse.Namespace) -> Any:
    from .model import load

    model = load(
        options.model,
        dtype=options.dtype,
        device=options.device,
        residency=options.residency,
        scale=options.model_scale,
    )
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    return model


def _upscale_one(model: Any, source: Path, target: Path, options: argparse.Namespace) -> str | None:
    """Upscale a file; the line that says what went wrong, or None. Raises what is wrong for all files: settings."""
    from .images.compare import side_by_side
    from .images.files import read, write
    from .pipeline import upscale

    try:
        picture = read(source)
        if options.bits:
            picture = replace(picture, bits=options.bits)
        mask = read(Path(options.mask)).rgb[..., 1] if options.mask else None
        with _Bar(source.name) as bar:
            result = upscale(
                model, picture, scale=options.scale, steps=options.steps, sampler=options.sampler,
                spacing=options.spacing, eta=options.eta, seed=options.seed, fidelity=options.fidelity,
                color_fix=options.color_fix, tile=options.tile, tile_batch=options.tile_batch, wrap=options.wrap,
                mask=mask, callback=bar.show,
            )  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, result)
        print(f"{target}: {result.rgb.shape[1]} x {result.rgb.shape[0]}")
        if options.side_by_side:
            beside = target.with_name(f"{target.stem}_compare.png")
            write(beside, side_by_side(picture, result))
            print(f"{beside}: input, bicubic and result side by side")
    except SettingError:
        raise
    except MoESRError as error:
        return str(error)
    except OSError as error:
        return f"{target}: cannot be written ({error.strerror or error}); check the folder and its space"
    except Exception as error:  # one broken file must not take the others with it
        logging.getLogger(__name__).info("%s", source, exc_info=True)
        return f"{source}: {type(error).__name__}: {' '.join(str(error).split())}; run with --verbose and report it"
    return None


class _Bar:
    """A progress bar that says where the run is: tile 3/12, step 7/50, expert 2."""

    def __init__(self, name: str) -> None:
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=1.0, desc=name, bar_format=layout, leave=False)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, event: Any) -> None:
        """Move the bar to an event of the pipeline."""
        share = (event.tile - 1) / event.tiles
        if event.phase == "sample":
            self.bar.n = 0.05 + 0.75 * (event.step - 1 + share) / event.steps
            text = f"tile {event.tile}/{event.tiles}, step {event.step}/{event.steps}, expert {event.expert}"
        else:
            self.bar.n = 0.05 * share if event.phase == "encode" else 0.8 + 0.2 * share
            text = f"{event.phase} tile {event.tile}/{event.tiles}"
        self.bar.set_postfix_str(text)


def _inputs(names: Sequence[str], recursive: bool) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pictures, each with the folder it keeps below OUT, and the names that do not exist.

    Files come in the order given, folders' pictures in order of name; `recursive` looks into folders' folders too.
    """
    from .images.files import READ_SUFFIXES

    found: list[tuple[Path, Path]] = []
    missing: list[str] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(path.rglob("*") if recursive else path.iterdir())
            pictures = [p for p in inside if p.is_file() and p.suffix.lower() in READ_SUFFIXES]
            found += [(p, p.parent.relative_to(path)) for p in pictures]
        elif path.exists():
            found.append((path, Path()))
        else:
            missing.append(name)
    return found, missing


def _outputs(inputs: Sequence[tuple[Path, Path]], output: Path) -> list[Path]:
    """Where each result goes: OUT itself if it names a picture, else OUT/<stem>.png; clashes get -2, -3."""
    from .images.files import WRITE_SUFFIXES

    if output.suffix.lower() in WRITE_SUFFIXES and not output.is_dir():
        if len(inputs) > 1:
            raise SettingError(f"{output}: one file for {len(inputs)} pictures; give a folder")
        return [output] * len(inputs)
    if output.exists() and not output.is_dir():
        raise SettingError(
            f"{output}: a file that is no picture; give a folder, or a name ending in .png, .jpg or .webp"
        )
    taken: set[str] = set()
    targets = []
    for path, folder in inputs:
        target, count = output / folder / f"{path.stem}.png", 1
        while str(target).lower() in taken:
            count += 1
            target = target.with_name(f"{path.stem}-{count}.png")
        taken.add(str(target).lower())
        targets.append(target)
    return targets


def _info(options: argparse.Namespace) -> int:
    from .checkpoints.describe import as_text, describe
    from .checkpoints.library import find

    facts = describe(find(options.file), options.model_scale)
    print(json.dumps(facts, indent=2) if options.json else as_text(facts))
    return 0


def _train(options: argparse.Namespace) -> int:
    import torch

    from .training.config import load as load_config
    from .training.export import export
    from .training.stages import train

    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(options.config, options.override)
    out = Path(options.out)
    if options.stage == "export":
        print(export(config, out, Path(options.to or out / f"{config.model.name or 'model'}.safetensors")))
        return 0
    if not options.data:
        raise SettingError("no training images: give a folder with --data")
    train(options.stage, config, Path(options.data), out, Path(options.metrics) if options.metrics else None)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m moesr",
        description="Diffusion super-resolution with time experts and a frequency-compensated decoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    up = commands.add_parser("upscale", help="make pictures larger")
    up.add_argument("inputs", nargs="+", metavar="IN", help="pictures, or folders of pictures")
    up.add_argument("-o", "--output", required=True, metavar="OUT", help="a .png, .jpg or .webp file, or a folder")
    up.add_argument("--model", default="tiny", help="name, file or folder (default: the embedded tiny)")
    up.add_argument("--scale", type=float, help="how much larger (default: the model's own)")
    up.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    up.add_argument("--sampler", default="auto", help="auto, ddpm, ddpm_large, ddim, dpmpp_2m")
    up.add_argument("--spacing", default="auto", help="auto, leading, trailing")
    up.add_argument("--eta", type=float, default=1.0, help="noise of each step: 0 deterministic, 1 ancestral")
    up.add_argument("--seed", type=int, default=0, help="another seed, other details")
    up.add_argument("--fidelity", type=float, default=1.0, help="0 generative to 1 faithful")
    up.add_argument("--color-fix", default="adain", help="adain, wavelet, none")
    up.add_argument("--tile", type=_size, default="auto", help="side of a tile in output pixels, 0 for none")
    up.add_argument("--tile-batch", type=_size, default="auto", help="tiles at a time")
    up.add_argument("--wrap", action="store_true", help="keep a seamless texture seamless")
    up.add_argument("--mask", help="a grey picture: white where the result counts, black for plain bicubic")
    up.add_argument("--bits", type=int, choices=(8, 16), help="bits a sample of a PNG (default: as in the input)")
    up.add_argument("--recursive", action="store_true", help="folders with all that is below them, structure kept")
    up.add_argument("--side-by-side", action="store_true", help="also write OUT_compare.png")
    up.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16")
    up.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    up.add_argument("--residency", default="auto", help="auto, all, stream: which experts stay on the device")
    up.set_defaults(run=_upscale)

    info = commands.add_parser("info", help="say what a model file is")
    info.add_argument("file", metavar="FILE", help="name, file or folder")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)
    for command in (up, info):
        command.add_argument("--model-scale", type=int, help="scale of released files, which do not say it (8)")

    train = commands.add_parser("train", help="train a model, stage by stage")
    train.add_argument("stage", choices=["first-stage", "experts", "decoder", "export"])
    train.add_argument("config", help="a name (tiny) or a .json file")
    train.add_argument("--data", help="folder of photographs")
    train.add_argument("--out", required=True, help="folder of the run; an interrupted run goes on from it")
    train.add_argument("--metrics", help="folder of the LPIPS weights (default: MOESR_METRICS)")
    train.add_argument("--override", action="append", metavar="KEY=VALUE", help="as decoder.loop.steps=100")
    train.add_argument("--to", help="for export: the file to write")
    train.add_argument("--threads", type=int, help="CPU threads")
    train.set_defaults(run=_train)
    for command in (up, info, train):
        command.add_argument("-v", "--verbose", action="store_true", help="say more")
    return parser


def _size(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 1
