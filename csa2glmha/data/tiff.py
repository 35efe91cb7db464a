"""Reading TIFF images as they are stored: OpenCV multiplies colours of 8 bits by their alpha."""

from __future__ import annotations

import io
import logging
import warnings

import cv2
import numpy as np
import tifffile
from PIL import TiffImagePlugin

from csa2glmha.data.stored import (
    CMYK,
    DAMAGED,
    Pixels,
    StoredImage,
    UnreadableError,
    check_room,
    checked_samples,
    further_text,
    turned,
)
from csa2glmha.data.tiff_directories import check_directories

# Both tell on stderr what they find odd about a file; this module reports what matters, and by name.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")

_ORIENTATION, _ICC = 274, 34675
_GRAY = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)
_BOTH_READ = (tifffile.COMPRESSION.NONE, tifffile.COMPRESSION.LZW, tifffile.COMPRESSION.JPEG)
_RGB, _YCC, _PALETTE = tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR, tifffile.PHOTOMETRIC.PALETTE


def read_tiff(data: bytes, room: int | None) -> StoredImage:
    """Read the first page of a TIFF file.

    Args:
        data: the file.
        room: bytes of memory that may be used, as for :func:`check_room`.

    Raises:
        UnreadableError: it is damaged, or of a kind that is not read.
    """
    try:
        check_directories(io.BytesIO(data))
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            if not isinstance(page, tifffile.TiffPage):
                raise UnreadableError(DAMAGED)
            stored = page.samplesperpixel * max(1, page.bitspersample // 8)
            check_room(page.imagewidth, page.imagelength, stored + 12, room)
            pixels, alpha = _decode(data, page)
            profile = page.tags.valueof(_ICC)
            # Smaller versions of a page are no pages of their own.
            further = (
                sum(isinstance(each, tifffile.TiffPage) and not each.is_reduced for each in file.pages) - 1
            )
    except UnreadableError:
        raise
    except Exception as error:  # damaged bytes make the decoders fail in any way there is
        raise UnreadableError(DAMAGED) from error
    return StoredImage(
        pixels,
        alpha,
        profile if isinstance(profile, bytes) else None,
        further_text(further, "page"),
    )


def _decode(data: bytes, page: tifffile.TiffPage) -> tuple[Pixels, Pixels | None]:
    photometric = page.photometric
    if photometric == tifffile.PHOTOMETRIC.SEPARATED:
        raise UnreadableError(CMYK)
    if photometric not in (*_GRAY, _RGB, _YCC, _PALETTE):
        raise UnreadableError(f"of {_name(photometric)} colours: convert it to RGB first")
    if page.samplesperpixel > 4:
        raise UnreadableError(f"no image: it has {page.samplesperpixel} channels")
    samples = _samples(data, page)
    if samples.ndim == 2:
        return np.ascontiguousarray(checked_samples(samples)), None
    colours = 3 if samples.shape[-1] >= 3 else 1
    colour, extra = samples[..., :colours], samples[..., colours:]
    # Without a word on what it is, one more channel is alpha for most programs.
    kinds = tuple(page.extrasamples) or (tifffile.EXTRASAMPLE.UNASSALPHA,)
    alpha = checked_samples(np.ascontiguousarray(extra[..., 0])) if extra.shape[-1] else None
    colour = checked_samples(np.ascontiguousarray(colour))
    if alpha is not None and kinds[0] == tifffile.EXTRASAMPLE.ASSOCALPHA:
        colour = _divided(colour, alpha)
    return (colour[..., 0] if colours == 1 else colour), alpha


def _samples(data: bytes, page: tifffile.TiffPage) -> Pixels:
    """All channels as stored, upright: (H, W) or (H, W, samples); palettes and YCbCr as RGB."""
    plain = page.photometric in (*_GRAY, _RGB) and page.bitspersample in (8, 16, 32, 64)
    if not plain:
        return _by_pillow(data)
    try:
        samples = page.asarray()
    except (ValueError, ImportError) as error:
        # Compressed in a way that tifffile has no decoder for; or damaged, which those here find out.
        try:
            return _by_opencv(data) if page.bitspersample > 8 or _opaque(page) else _by_pillow(data)
        except Exception:
            if page.compression in _BOTH_READ and page.dtype != np.float16:
                raise
            kind = f"{np.dtype(page.dtype)} samples compressed by {_name(page.compression)}"
            raise UnreadableError(f"{kind}, which are not read: save it without compression") from error
    if page.axes == "SYX":
        samples = np.moveaxis(samples, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise UnreadableError(f"not a plane of pixels: its axes are {page.axes}")
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        white = np.iinfo(samples.dtype).max if samples.dtype.kind == "u" else 1
        samples = np.asarray(white - samples, samples.dtype)
    return turned(samples, page.tags.valueof(_ORIENTATION) or 1)


def _opaque(page: tifffile.TiffPage) -> bool:
    return page.samplesperpixel in (1, 3)


def _by_opencv(data: bytes) -> Pixels:
    """What OpenCV makes of it, which of 16 bits and of images without alpha are the samples as stored."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return _by_pillow(data)
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]


def _by_pillow(data: bytes) -> Pixels:
    """What Pillow makes of it: 8 bits a sample."""
    # Its own class, not Image.open: that has a limit of its own, and warns on stderr.
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"):
        raise UnreadableError(f"of an unsupported kind: {image.mode}")
    image.load()
    wanted = {"1": "L", "P": "RGB", "PA": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}.get(image.mode)
    return np.asarray(image if wanted is None else image.convert(wanted))


def _divided(colour: Pixels, alpha: Pixels) -> Pixels:
    """Colours that were stored multiplied by alpha, as they were before; black where nothing is left."""
    white = np.iinfo(colour.dtype).max if colour.dtype.kind == "u" else 1.0
    share = alpha.astype(np.float64)[..., None] / white
    values = np.divide(colour, share, out=np.zeros(colour.shape), where=share > 0)
    values = np.clip(values, 0, white)
    return (values.round() if colour.dtype.kind == "u" else values).astype(colour.dtype)


def _name(value: int) -> str:
    return str(getattr(value, "name", f"unknown ({value})"))
