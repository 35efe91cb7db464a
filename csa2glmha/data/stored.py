"""What all readers of image files share: samples as stored, and the reasons for not taking a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]

#: The largest value of a sample.
WHITE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
#: What OpenCV decodes at most.
MAX_PIXELS = 2**30
CMYK = "of CMYK colours: convert it to RGB first"
DAMAGED = "truncated or damaged"


class UnreadableError(Exception):
    """Why a file cannot be used, in words that fit after its name; details follow a colon."""


@dataclass(frozen=True)
class StoredImage:
    """One image as its file holds it, turned upright.

    Attributes:
        pixels: (H, W) or (H, W, RGB) of uint8, uint16, or float32 in [0, 1]; colours are not multiplied by
            alpha.
        alpha: (H, W) of the type of ``pixels``; None if there is none, or it was not asked for.
        profile: the ICC profile, as bytes.
        colour_chunks: of a PNG, the whole chunks that say how colours are meant beside a profile.
        further: what the file holds beside its first image, such as "2 further pages"; "" for nothing.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    profile: bytes | None = None
    further: str = ""
    colour_chunks: bytes = b""

    @property
    def bits(self) -> int:
        """How many bits hold a sample: 8, or 16, also for floats."""
        return 8 if self.pixels.dtype == np.uint8 else 16


def further_text(count: int, what: str) -> str:
    """Such as "1 further page"; "" for none."""
    return f"{count} further {what}{'s' * (count > 1)}" if count else ""


def checked_samples(pixels: Pixels) -> Pixels:
    """The samples as uint8, uint16 or float32 in [0, 1].

    Raises:
        UnreadableError: they are of another type, or off the scale.
    """
    if pixels.dtype in WHITE:
        return pixels
    if pixels.dtype.kind != "f":
        raise UnreadableError(f"of an unsupported depth: {pixels.dtype} samples, not 8 or 16 bit or float")
    # Written so that NaN fails too.
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UnreadableError(f"not scaled to [0, 1]: float values {pixels.min():g} to {pixels.max():g}")
    return pixels.astype(np.float32)


def check_room(width: int, height: int, bytes_per_pixel: int, room: int | None) -> None:
    """Check an image by its header, before it is decoded.

    Args:
        width, height: in pixels.
        bytes_per_pixel: as it is stored, and as float32.
        room: bytes of memory that may be used; None: no limit is known.

    Raises:
        UnreadableError: it is too large.
    """
    if width < 1 or height < 1:
        raise UnreadableError(DAMAGED)
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"too large: {width}x{height} pixels, at most {MAX_PIXELS} can be read")
    needed = width * height * bytes_per_pixel
    if room is not None and needed > room:
        raise UnreadableError(
            f"too large for the memory: {width}x{height} pixels take {needed / 1e9:.2f} GB, there are "
            f"{max(room, 0) / 1e9:.2f}"
        )


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Turn an image (H, W, ...) upright, by the orientation that EXIF and TIFF give: 1 to 8."""
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
