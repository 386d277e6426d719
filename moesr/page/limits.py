"""What a page accepts, and what it says when that is not enough."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ImageError, SettingError


@dataclass(frozen=True)
class Limits:
    """Limits of a page; every message that comes of them says the figure and the way out."""

    #: Of one upload.
    file_bytes: int = 256 * 2**20
    #: Pictures of one job.
    files: int = 200
    #: Of one picture.
    input_pixels: int = 64_000_000
    output_pixels: int = 400_000_000
    #: Jobs in the queue.
    waiting: int = 50
    #: Seconds of work on a job, 0 for no limit.
    seconds: float = 0.0
    #: Seconds for which uploads and results stay on disk.
    keep_seconds: float = 24 * 3600.0
    #: Of uploads and results together.
    disk_bytes: int = 20 * 10**9

    def check_files(self, count: int) -> None:
        """Raises SettingError for more pictures than a job may have."""
        if count > self.files:
            raise SettingError(f"{count} pictures: this page takes {self.files} at a time; send the others afterwards")

    def check_bytes(self, name: str, count: int) -> None:
        """Raises ImageError for a file that is too large."""
        if count > self.file_bytes:
            raise ImageError(
                f"{name}: {count / 1e6:.1f} MB, this page takes files of at most {self.file_bytes / 1e6:.0f} MB; "
                "save it as JPEG or WebP, or make it smaller"
            )

    def check_input(self, name: str, width: int, height: int) -> None:
        """Raises ImageError for a picture with too many pixels."""
        if width * height > self.input_pixels:
            raise ImageError(
                f"{name}: {width} x {height} is {format_megapixels(width * height)}, this page takes at most "
                f"{format_megapixels(self.input_pixels)}; cut the picture into smaller ones"
            )

    def check_output(self, name: str, width: int, height: int, scale: float) -> None:
        """Raises ImageError for a picture whose result would have too many pixels."""
        pixels = width * height * scale**2
        if pixels > self.output_pixels:
            raise ImageError(
                f"{name}: {width} x {height} at x{scale:g} would be {format_megapixels(pixels)}, this page makes "
                f"at most {format_megapixels(self.output_pixels)}; choose a smaller scale or picture"
            )


#: For a page that others can reach.
PUBLIC = Limits(
    file_bytes=20 * 2**20,
    files=8,
    input_pixels=4_000_000,
    output_pixels=36_000_000,
    waiting=20,
    seconds=600.0,
    keep_seconds=3600.0,
    disk_bytes=2 * 10**9,
)
#: For the person at the machine.
LOCAL = Limits()


def format_megapixels(count: float) -> str:
    """A number of pixels for people: 0.4 MP, 16 MP."""
    return f"{count / 1e6:.1f} MP" if count < 10e6 else f"{count / 1e6:.0f} MP"
