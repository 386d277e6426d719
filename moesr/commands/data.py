"""`data`: check training images, look at what a run would see of them, and make packs and validation sets."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from .common import positive


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    data = commands.add_parser("data", help="check training images, look at LR/HR pairs, make a pack")
    data.add_argument("photos", metavar="PHOTOS", nargs="*", help="folders of photographs, or packs")
    data.add_argument("--preview", metavar="SHEET", help="write a contact sheet (.png, .jpg, .webp) of LR/HR pairs")
    degradations = "bicubic, mild, web, blind"
    data.add_argument(
        "--degradation", default="bicubic", metavar="NAME",
        help=f"{degradations}, or NAME=WEIGHT,... (default: bicubic)",
    )  # fmt: skip
    data.add_argument("--scale", type=positive, default=4, help="between LR and HR (default: 4)")
    data.add_argument("--crop", type=positive, default=256, help="side of an HR crop in pixels (default: 256)")
    data.add_argument("--count", type=positive, default=12, help="pairs on the sheet (default: 12)")
    data.add_argument("--seed", type=int, default=0, help="another seed, other pairs (default: 0)")
    data.add_argument("--pack", metavar="FILE", help="write detailed and some smooth parts into one file for training")
    data.add_argument("--max-mb", type=float, default=25, help="size of the pack in MB, at most (default: 25)")
    data.add_argument("--leave-out", metavar="NAMES", help="file with names of photographs that must not be trained on")
    data.add_argument("--sets", metavar="DIR", help="write HR pictures and their clean, degraded and blind LR")
    data.add_argument("--only", metavar="NAMES", help="file with names of the photographs that --sets is made of")
    data.add_argument("--notice", metavar="TABLE", nargs="+", help="print who made the photographs of these tables")
    data.add_argument("--bench", action="store_true", help="measure images per second of training batches")
    data.add_argument("--device", default="cpu", help="where --bench computes (default: cpu)")
    data.add_argument("--batch", type=positive, default=16, help="crops per batch of --bench (default: 16)")
    data.set_defaults(run=_data)


def _data(options: argparse.Namespace) -> int:
    from ..errors import SettingError
    from ..images.files import write_image
    from ..result_files import save_new
    from ..training.data.contact_sheet import draw_sheet
    from ..training.data.notice_table import credit_photographs, read_table
    from ..training.data.pack import write_pack
    from ..training.data.photos import open_photos, read_images
    from ..training.data.validation_sets import read_names, write_sets

    left_out = read_names(Path(options.leave_out)) if options.leave_out else []
    for path in options.notice or []:
        print(credit_photographs(read_table(Path(path)), leave_out=left_out))
    if options.notice:
        return 0
    if not options.photos:
        raise SettingError("PHOTOS: missing; give a folder with photographs, or a pack")
    source = options.photos[0] if len(options.photos) == 1 else options.photos
    if options.bench:
        print(_measure(source, options))
    elif options.pack:
        pack = write_pack(open_photos(source), Path(options.pack), max_mb=options.max_mb, leave_out=left_out)
        size = Path(options.pack).stat().st_size / 1e6
        print(f"{options.pack}: {len(pack)} parts of {len(pack.photographs)} files, {size:.2f} MB")
    elif options.sets:
        only = read_names(Path(options.only)) if options.only else []
        count = write_sets(open_photos(source), Path(options.sets), only=only, scale=options.scale,
                           seed=options.seed)  # fmt: skip
        print(f"{options.sets}: {count} HR pictures and three LR of each")
    else:
        images = read_images(source)
        batches = _open_source(images, options)
        if options.preview:
            path, sheet = Path(options.preview), draw_sheet(batches, options.count)
            # A photograph that happens to be there is not replaced: the sheet gets a number.
            kind = path.suffix.removeprefix(".") or "png"
            path = save_new(path, lambda file: write_image(file, sheet, format=kind))
            pairs = f"{options.count} pairs of {options.degradation} x{options.scale}"
            print(f"{path}: {pairs} from {_summarise(images)}")
        else:
            print(f"{', '.join(options.photos)}: {_summarise(images)}")
    return 0


def _open_source(source: Any, options: argparse.Namespace) -> Any:
    from ..training.data.batch_source import BatchSource

    return BatchSource(
        source, crop=options.crop, scale=options.scale, batch=options.batch, recipe=options.degradation,
        device=options.device, seed=options.seed,
    )  # fmt: skip


def _measure(source: Any, options: argparse.Namespace) -> str:
    import torch

    batches = _open_source(source, options)
    batches.next(0)
    done, start, busy = 0, time.perf_counter(), time.process_time()
    while done < 3 or time.perf_counter() - start < 5:
        batches.next(done)["restore"].sum().item()  # waits for the device
        done += 1
    seconds, busy = (t / (done * options.batch) for t in (time.perf_counter() - start, time.process_time() - busy))
    what = f"{options.degradation} x{options.scale}, crop {options.crop}, batch {options.batch}"
    where = f"{options.device}, {torch.get_num_threads()} threads"
    rate = f"{1 / seconds:.0f} images per second, {seconds * 1e3:.2f} ms per image"
    return f"{what} on {where}: {rate} ({busy * 1e3:.2f} ms of CPU)"


def _summarise(images: Any) -> str:
    count = len(images.tensors)
    sizes = [image.shape[1:] for image in images.tensors]
    sides, pixels = [min(size) for size in sizes], sum(height * width for height, width in sizes)
    return f"{count} image{'s' * (count > 1)}, {pixels / 1e6:.2f} MP, shorter sides {min(sides)} to {max(sides)}"
