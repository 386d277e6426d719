"""`invention`: a map of what a result invents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..input_files import Source
from .common import Bar, add_model_options, add_overwrite, add_settings, open_model, positive

_SETTINGS = ("scale", "fidelity", "restore", "seed", "steps", "tile")


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("invention", help="a map of what a result invents")
    parser.add_argument("input", metavar="IN", help="a picture")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the map, a PNG file")
    parser.add_argument("--seeds", type=positive, default=4, metavar="N", help="results that are compared (default: 4)")
    parser.add_argument("--hr", metavar="FILE", help="the original: also say how well the map tells where errors are")
    add_settings(parser, "model", *_SETTINGS, "dtype", "device", "residency")
    add_model_options(parser)
    add_overwrite(parser)
    parser.set_defaults(run=_measure)


def _measure(options: argparse.Namespace) -> int:
    from PIL import Image

    from ..evaluation.invented_detail import correlate_ranks, invention
    from ..images.files import read_image
    from ..result_files import Target, check_targets, save_new

    output = Path(options.output)
    if output.suffix.lower() != ".png":
        raise SettingError(f"{output}: the map is a PNG file; give a name that ends in .png")
    check_targets([Target(Source(Path(options.input)), output)], overwrite=options.overwrite)
    model, picture = open_model(options), read_image(options.input)
    hr = read_image(options.hr).floats().rgb[None] if options.hr else None
    settings = {name: getattr(options, name) for name in _SETTINGS}
    with Bar("invention") as bar:
        found = invention(model, picture, options.seeds, callback=bar.show, **settings)
    follows = ""
    if hr is not None:
        follows = f"; rank correlation with the error {correlate_ranks(found.compare_error(hr)):.2f}"
    drawn = Image.fromarray(found.draw()[0])
    saved = save_new(output, lambda file: drawn.save(file, "PNG"), replaces=options.overwrite)
    print(f"{saved}: {found.describe()}{follows}")
    return 0
