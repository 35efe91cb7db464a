"""From samples to an image file, with its alpha and its colour profile."""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
import tifffile
from PIL import Image
from torch import Tensor

from csa2glmha.data.stored import Pixels

_SIXTEEN_BIT_SUFFIXES = (".png", ".tif", ".tiff", ".ppm", ".pgm")
_ALPHA_SUFFIXES = (".png", ".tif", ".tiff", ".webp")
_PROFILE_SUFFIXES = (*_ALPHA_SUFFIXES, ".jpg", ".jpeg")
#: Bytes of a profile that one segment of a JPEG holds.
_SEGMENT = 65519


def largest_bits_of(suffix: str) -> int:
    """How many bits a sample can have in a file of this suffix, lower case: 8 or 16."""
    return 16 if suffix in _SIXTEEN_BIT_SUFFIXES else 8


def holds_alpha(suffix: str) -> bool:
    """Whether a file of this suffix, lower case, holds an alpha channel."""
    return suffix in _ALPHA_SUFFIXES


def holds_profile(suffix: str) -> bool:
    """Whether a profile is written into files of this suffix, lower case."""
    return suffix in _PROFILE_SUFFIXES


def fits_profile(profile: bytes, channels: int) -> bool:
    """Whether an ICC profile is of images of so many channels, and of a size that every format takes."""
    return len(profile) <= 255 * _SEGMENT and profile[16:20] == (b"GRAY" if channels == 1 else b"RGB ")


def encode(
    image: Tensor,
    suffix: str,
    bits: int,
    alpha: Pixels | None = None,
    profile: bytes | None = None,
    colour_chunks: bytes = b"",
) -> bytes | None:
    """Encode an image (C, H, W), C = 1 or 3; None where the format cannot hold it.

    Args:
        image: values are clipped to [0, 1].
        suffix: of the format, lower case.
        bits: of a sample.
        alpha: (H, W), as :class:`~csa2glmha.data.stored.StoredImage` holds it; only where
            :func:`holds_alpha`. A gray image becomes one of three equal channels then.
        profile: an ICC profile; only where :func:`holds_profile`.
        colour_chunks: of a PNG, as :class:`~csa2glmha.data.stored.StoredImage` holds them; left out of
            other formats.
    """
    if alpha is not None or profile is not None:
        if suffix in (".tif", ".tiff"):
            return _tiff(_samples(image, bits, alpha), profile)
        if suffix == ".webp":
            return _webp(_samples(image, bits, alpha), profile)
    # What does not fit a format makes OpenCV raise or return false, depending on the format.
    try:
        done, encoded = cv2.imencode(suffix, _samples(image, bits, alpha, blue_first=True))
    except cv2.error:
        return None
    if not done:
        return None
    data = encoded.tobytes()
    if suffix == ".png":
        return _png_with(data, profile, colour_chunks)
    return data if profile is None else _jpeg_with(data, profile)


def _samples(image: Tensor, bits: int, alpha: Pixels | None, blue_first: bool = False) -> Pixels:
    """(H, W, 1, 3 or 4) as files hold it; OpenCV wants B, G, R."""
    gray, planes = image.shape[0] == 1, image.detach().cpu()
    channels = 4 if alpha is not None else image.shape[0]
    pixels = np.empty((*image.shape[1:], channels), np.uint8 if bits == 8 else np.uint16)
    # One by one they take less memory.
    for channel in range(min(channels, 3)):
        plane = planes[0 if gray else 2 - channel if blue_first else channel]
        pixels[..., channel] = (plane.double().clamp(0, 1) * (2**bits - 1)).round().numpy()
    if alpha is not None:
        pixels[..., 3] = _as_bits(alpha, bits)
    return pixels


def _as_bits(alpha: Pixels, bits: int) -> Pixels:
    if alpha.dtype.itemsize * 8 == bits:
        return alpha
    white = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1
    levels: Pixels = np.round(alpha.astype(np.float64) / white * (2**bits - 1))
    return levels


def _tiff(pixels: Pixels, profile: bytes | None) -> bytes:
    buffer = io.BytesIO()
    channels = pixels.shape[-1]
    tifffile.imwrite(
        buffer,
        pixels[..., 0] if channels == 1 else pixels,
        photometric="minisblack" if channels == 1 else "rgb",
        extrasamples=["unassalpha"] if channels == 4 else None,
        compression="zlib",
        metadata=None,
        iccprofile=profile,
    )
    return buffer.getvalue()


def _webp(pixels: Pixels, profile: bytes | None) -> bytes | None:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    try:
        # As OpenCV writes it, without loss; exact: also where alpha is nought.
        image.save(buffer, "WEBP", lossless=True, exact=True, icc_profile=profile or b"")
    except (OSError, ValueError):
        return None
    return buffer.getvalue()


def _png_with(data: bytes, profile: bytes | None, chunks: bytes) -> bytes:
    """A PNG with these chunks, and one for the profile, after IHDR: 25 bytes, after a signature of 8."""
    if profile is not None:
        content = b"iCCPICC profile\0\0" + zlib.compress(profile)
        chunks += (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
    return data[:33] + chunks + data[33:]


def _jpeg_with(data: bytes, profile: bytes) -> bytes:
    """A JPEG with the profile in APP2 segments, after JFIF's own segment (APP0), which comes first."""
    start = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    parts = [profile[at : at + _SEGMENT] for at in range(0, len(profile), _SEGMENT)]
    segments = b""
    for number, part in enumerate(parts, start=1):
        content = b"ICC_PROFILE\0" + bytes((number, len(parts))) + part
        segments += b"\xff\xe2" + (len(content) + 2).to_bytes(2, "big") + content
    return data[:start] + segments + data[start:]
