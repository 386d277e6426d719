"""The command line: parse, run a command, and turn whatever happens into an exit code and lines that people read."""

from __future__ import annotations

import argparse
import errno
import logging
from collections.abc import Sequence

from .commands.common import fail
from .commands.standard_streams import tolerant_streams
from .errors import MoESRError

EXAMPLES = """examples:
  python -m moesr upscale photo.jpg -o large.png            one photo, four times as large
  python -m moesr upscale photos/ more.webp -o out/         a folder and a file, into out/
  python -m moesr upscale photo.jpg -o x8.png --model models/moesr_x8/ --steps 50
  python -m moesr upscale brick.png -o wall.png --wrap      a seamless texture stays seamless
  python -m moesr batch archive/ -o large/ --resume         thousands, which stop and go on
  python -m moesr demo                                      the same as a page in the browser
  python -m moesr info model.safetensors                    what a file is
  python -m moesr models                                    what is in the library, what can be fetched
  python -m moesr convert stages/ -o model.safetensors      released checkpoints as one small file
  python -m moesr data photos/ --preview sheet.png          what a training run would see of them
  python -m moesr evaluate --hr photos/ --html report.html  figures and pictures
  python -m moesr invention photo.jpg -o map.png            what the result invents
  python -m moesr check --quick                             is this device right? a report for an issue
  python -m moesr bench                                     how fast this machine is
"""

INTERRUPTED = 130
#: Packages that commands need, by the name under which they are imported.
_DEPENDENCIES = {"torch": "torch", "numpy": "numpy", "PIL": "pillow", "safetensors": "safetensors", "tqdm": "tqdm"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 with a line for each failure on stderr, 130 when interrupted.

    Output streams that are closed, full or cannot print a name change neither the work nor the exit code.
    """
    with tolerant_streams():
        try:
            parser = _make_parser()
            options = parser.parse_args(arguments)
            if options.command is None:
                parser.print_help()
                return 0
            logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
            return options.run(options)
        except MoESRError as error:
            return fail(str(error))
        except OSError as error:  # of files that a command reads or writes beside pictures and models
            logging.getLogger(__name__).debug("", exc_info=True)
            way_out = "free some room" if error.errno == errno.ENOSPC else "check the path and its permissions"
            return fail(f"{error.filename or 'a file'}: {error.strerror or error}; {way_out}")
        except ImportError as error:
            package = _DEPENDENCIES.get((error.name or "").partition(".")[0])
            if package is None:
                raise
            return fail(f"{package}: cannot be imported ({error}); run: pip install {package}")
        except KeyboardInterrupt:
            fail("interrupted; finished files are kept")
            return INTERRUPTED


def _make_parser() -> argparse.ArgumentParser:
    from .commands import ablate, batch, bench, check, data, demo, evaluate, invention, models, train, upscale

    parser = argparse.ArgumentParser(
        prog="python -m moesr",
        description="Diffusion super-resolution with time experts and a frequency-compensated decoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in (upscale, batch, demo, models, data, train, evaluate, invention, ablate, bench, check):
        module.add(commands)
    for command in commands.choices.values():
        command.add_argument("-v", "--verbose", action="store_true", help="say more")
    return parser
