"""From an image file to its samples as stored, its alpha and its colour profile."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from csa2glmha.data.stored import (
    CMYK,
    DAMAGED,
    MAX_PIXELS,
    Pixels,
    StoredImage,
    UnreadableError,
    check_room,
    checked_samples,
    further_text,
    turned,
)
from csa2glmha.data.tiff import read_tiff

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES = (*_TIFF_STARTS, b"\x89PNG", b"\xff\xd8", b"BM", b"RIFF", b"P2", b"P3", b"P5", b"P6")
#: What other files begin with, wherever in the first bytes, for a true reason.
_FOREIGN = {b"GIF8": "GIF", b"ftyphei": "HEIC", b"ftypmif": "HEIF", b"ftypavi": "AVIF", b"JXL ": "JPEG XL"}
_PNM_MAXIMUM = re.compile(rb"P[2356](?:(?:\s|#[^\n]*\n)+([0-9]+)){3}")
#: Deflate makes nothing smaller than by this factor.
_MOST_DEFLATED = 1032
_COLOUR_CHUNKS = (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"mDCV", b"cLLI")
_EXIF_ORIENTATION = 0x0112

# OpenCV reports every unreadable file on stderr; this module reports them itself, and by name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

#: Readers of headers. Not Image.open: that has a limit of its own, and warns on stderr.
_HEADERS: dict[bytes, Callable[[io.BytesIO], ImageFile]] = {
    b"\x89P": PngImagePlugin.PngImageFile,
    b"\xff\xd8": JpegImagePlugin.JpegImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"RI": WebPImagePlugin.WebPImageFile,
    **dict.fromkeys((b"P2", b"P3", b"P5", b"P6"), PpmImagePlugin.PpmImageFile),
}


def decode(path: Path, room: int | None = None, with_alpha: bool = False) -> StoredImage:
    """Read an image file.

    Args:
        path: png, jpg, bmp, tif, webp, ppm or pgm; what counts is how the file begins, not its name.
        room: bytes of memory that may be used; a larger image is told by its header, and not decoded.
        with_alpha: read the alpha channel too.

    Raises:
        UnreadableError: the file cannot be used.
    """
    data = _read(path, room)
    if data.startswith(_TIFF_STARTS):
        return read_tiff(data, room)
    header = _header(data)
    if header is not None:
        check_room(*header.size, 4 * _sample_bytes(data) + 12, room)
        if header.mode == "CMYK":
            raise UnreadableError(CMYK)
    elif data.startswith(b"\x89PNG"):  # Pillow refuses some that have much to say beside the image
        width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
        check_room(width, height, 4 * _sample_bytes(data) + 12, room)
    if data.startswith(b"\x89PNG") and _png_bytes(data) > _MOST_DEFLATED * len(data):
        raise UnreadableError(DAMAGED)  # the decoder would be long in finding out
    # Not IMREAD_UNCHANGED, which would ignore the EXIF orientation.
    pixels = _opencv(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    pixels = np.ascontiguousarray(checked_samples(pixels))
    return StoredImage(
        pixels,
        _alpha(data, header, pixels) if with_alpha else None,
        None if header is None else _profile(header.info),
        "" if header is None else _further(data, header, with_alpha),
        _colour_chunks(data) if data.startswith(b"\x89PNG") else b"",
    )


def _read(path: Path, room: int | None) -> bytes:
    try:
        # A pipe of that name would be waited for.
        if path.exists() and not path.is_file():
            raise UnreadableError("not a regular file")
        size = path.stat().st_size
        if room is not None and size > room:
            raise UnreadableError(f"too large for the memory: a file of {size / 1e9:.2f} GB")
        # Not cv2.imread: on some systems it cannot open names outside the local code page.
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"not to be opened: {error.strerror or error}") from error
    if not data:
        raise UnreadableError("empty")
    if not data.startswith(_SIGNATURES):
        for start, name in _FOREIGN.items():
            if start in data[:16]:
                raise UnreadableError(f"{name}, which is not read")
        raise UnreadableError("not an image")
    # libpng would complain on stderr, past OpenCV's log level.
    if data.startswith(b"\x89PNG") and b"IEND" not in data:
        raise UnreadableError(DAMAGED)
    maximum = _PNM_MAXIMUM.match(data)
    # OpenCV scales other maxima in some PNM variants, and leaves them in others.
    if maximum and int(maximum[1]) not in (255, 65535):
        raise UnreadableError(f"of an unsupported depth: largest value {int(maximum[1])}, not 255 or 65535")
    return data


def _header(data: bytes) -> ImageFile | None:
    """The header as Pillow reads it, without decoding; None where it cannot: OpenCV may."""
    try:
        return _HEADERS[data[:2]](io.BytesIO(data))
    except Exception:  # damaged bytes make the reader fail in any way there is
        return None


def _opencv(data: bytes, how: int) -> Pixels:
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise UnreadableError(f"too large: at most {MAX_PIXELS} pixels can be read") from error
        pixels = None
    if pixels is None:
        raise UnreadableError(DAMAGED)
    return pixels


def _sample_bytes(data: bytes) -> int:
    maximum = _PNM_MAXIMUM.match(data)
    if maximum:
        return 1 if int(maximum[1]) == 255 else 2
    return 2 if data.startswith(b"\x89PNG") and data[24:25] == b"\x10" else 1


def _png_bytes(data: bytes) -> int:
    """What the header says that the samples take."""
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26].ljust(10, b"\0"))
    samples = {2: 3, 4: 2, 6: 4}.get(colour, 1)
    return int(width * height * depth * samples // 8)


def _alpha(data: bytes, header: ImageFile | None, pixels: Pixels) -> Pixels | None:
    """The alpha channel, turned as the colours were."""
    stored = _opencv(data, cv2.IMREAD_UNCHANGED)
    if stored.ndim != 3 or stored.shape[-1] != 4:
        return None
    orientation = 1 if header is None else header.getexif().get(_EXIF_ORIENTATION, 1)
    stored = turned(stored, orientation)
    # Were the orientation told otherwise than OpenCV takes it, alpha would lie askew over the colours.
    if stored.shape[:2] != pixels.shape[:2] or not np.array_equal(stored[..., 2::-1], pixels):
        raise UnreadableError("of an alpha channel that cannot be placed: remove it first")
    return np.ascontiguousarray(stored[..., 3])


def _colour_chunks(data: bytes) -> bytes:
    """Chunks before the image data: length, name, content and checksum of each."""
    at, found = 8, b""
    while at + 12 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in _COLOUR_CHUNKS:
            found += data[at:end]
        at = end
    return found


def _profile(info: dict[str | tuple[int, int], Any]) -> bytes | None:
    profile = info.get("icc_profile")
    return profile if isinstance(profile, bytes) and profile else None


def _further(data: bytes, header: ImageFile, with_alpha: bool) -> str:
    """Frames of an animation; pictures that cameras put into a JPEG beside the photograph do not count."""
    if data.startswith(b"\xff\xd8"):
        return ""
    frames = further_text(getattr(header, "n_frames", 1) - 1, "frame")
    # One colour that stands for transparency: OpenCV makes no alpha channel of it.
    keyed = with_alpha and "transparency" in header.info and header.mode in ("1", "L", "I;16", "I", "RGB")
    return " and ".join(filter(None, (frames, "the transparency of one colour" if keyed else "")))
