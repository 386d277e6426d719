"""`upscale`: pictures and folders in, larger pictures out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import MoESRError, SettingError
from .common import Bar, fail, of_model, open_model, size, verbose


def add(commands: Any) -> None:
    """Add the command to the parser's."""
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
    up.add_argument("--tile", type=size, default="auto", help="largest side of a tile in output pixels, 0 for none")
    up.add_argument("--tile-batch", type=size, default="auto", help="tiles at a time")
    up.add_argument("--wrap", action="store_true", help="keep a seamless texture seamless")
    up.add_argument("--mask", help="a grey picture: white where the result counts, black for plain bicubic")
    up.add_argument("--bits", type=int, choices=(8, 16), help="bits a sample of a PNG (default: as in the input)")
    up.add_argument("--recursive", action="store_true", help="folders with all that is below them, structure kept")
    up.add_argument("--side-by-side", action="store_true", help="also write OUT_compare.png")
    up.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16")
    up.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    up.add_argument("--residency", default="auto", help="auto, all, stream: which experts stay on the device")
    up.add_argument("--compile", action="store_true", help="torch.compile the experts: for many pictures on a GPU")
    up.set_defaults(run=_upscale)
    of_model(up)
    verbose(up)


def _upscale(options: argparse.Namespace) -> int:
    found, missing = _inputs(options.inputs, options.recursive)
    outputs = _outputs(found, Path(options.output))
    failed = [f"{path}: no such file or folder" for path in missing]
    if not found and not missing:
        failed.append(f"{', '.join(options.inputs)}: no pictures in there")
    done = 0
    try:
        model = open_model(options) if found else None
        for (source, _), target in zip(found, outputs):
            error = _upscale_one(model, source, target, options)
            failed += [error] if error else []
            done += not error
    finally:
        if failed and done + len(failed) > 1:
            print(f"{done} done, {len(failed)} failed:", file=sys.stderr)
        for line in failed:
            fail(line)
    return 1 if failed else 0


def _upscale_one(model: Any, source: Path, target: Path, options: argparse.Namespace) -> str | None:
    """Upscale a file; the line that says what went wrong, or None. Raises what is wrong for all files: settings."""
    from ..images.compare import side_by_side
    from ..images.files import read_image, write_image
    from ..pipeline import upscale

    try:
        picture = read_image(source)
        if options.bits:
            picture = replace(picture, bits=options.bits)
        mask = read_image(Path(options.mask)).rgb[..., 1] if options.mask else None
        with Bar(source.name) as bar:
            result = upscale(
                model, picture, scale=options.scale, steps=options.steps, sampler=options.sampler,
                spacing=options.spacing, eta=options.eta, seed=options.seed, fidelity=options.fidelity,
                color_fix=options.color_fix, tile=options.tile, tile_batch=options.tile_batch, wrap=options.wrap,
                mask=mask, callback=bar.show,
            )  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, result)
        print(f"{target}: {result.rgb.shape[1]} x {result.rgb.shape[0]}")
        if options.side_by_side:
            beside = target.with_name(f"{target.stem}_compare.png")
            write_image(beside, side_by_side(picture, result))
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


def _inputs(names: Sequence[str], recursive: bool) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pictures, each with the folder it keeps below OUT, and the names that do not exist.

    Files come in the order given, folders' pictures in order of name; `recursive` looks into folders' folders too.
    """
    from ..images.files import READ_SUFFIXES

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
    from ..images.files import WRITE_SUFFIXES

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
