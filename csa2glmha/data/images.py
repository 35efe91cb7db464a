"""Reading and writing images.

Images are float32 tensors (C, H, W) in [0, 1], channels in the order R, G, B.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch
from torch import Tensor

from csa2glmha.core.errors import DataError, UnfitError
from csa2glmha.core.files import atomic_path
from csa2glmha.data.decode import decode
from csa2glmha.data.encode import encode, largest_bits_of
from csa2glmha.data.stored import WHITE, Pixels, StoredImage, UnreadableError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_WRITABLE_CHANNELS = {".ppm": (3,), ".pgm": (1,)}
SUFFIX_LIST = "png, jpg, bmp, tif, webp, ppm or pgm"
#: Suffixes of images that are not read, so that a folder's say so.
FOREIGN_SUFFIXES = {
    **{
        f".{name}": name.upper()
        for name in ("gif", "heic", "heif", "avif", "jxl", "jp2", "j2k", "exr", "hdr")
    },
    **{f".{name}": name.upper() for name in ("pbm", "pnm", "pam", "pfm", "tga", "dds", "psd", "svg", "ico")},
    **{
        f".{name}": name.upper() for name in ("jfif", "jpe", "jxr", "apng", "qoi", "pcx", "sgi", "ras", "xcf")
    },
    **{
        f".{name}": f"raw ({name})"
        for name in ("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "raw")
    },
}

_BT601 = (0.299, 0.587, 0.114)


def read_image(path: Path, channels: int) -> Tensor:
    """Read one image file of 8 or 16 bits, or float samples in [0, 1] (tif).

    Args:
        path: The file. Its EXIF orientation is applied. An alpha channel is dropped, colours are as stored
            beside it.
        channels: 3 for R, G, B (gray is repeated), or 1 for gray (colour becomes BT.601 luma,
            0.299 R + 0.587 G + 0.114 B).

    Returns:
        float32 (channels, H, W) in [0, 1].

    Raises:
        DataError: the file cannot be read, or ``channels`` is not 1 or 3.
    """
    return read_stored(path, channels, with_alpha=False)[0]


def read_stored(
    path: Path, channels: int, room: int | None = None, with_alpha: bool = True
) -> tuple[Tensor, StoredImage]:
    """As :func:`read_image`, and what the file holds, alpha and colour profile too.

    ``room`` is how many bytes of memory may be used: a larger image is refused by its header.
    """
    check_channels(channels)
    try:
        stored = decode(path, room, with_alpha)
    except UnreadableError as error:
        way_out = f"an 8- or 16-bit {SUFFIX_LIST}"
        if "too large" in str(error):
            way_out = "a smaller image" if room is None else "more --memory, or a smaller image"
        raise DataError(f"cannot read image {str(path)!r}: {error}; give {way_out}") from error
    return to_tensor(stored.pixels, channels), stored


def write_image(
    path: Path,
    image: Tensor,
    bits: int = 8,
    alpha: Pixels | None = None,
    profile: bytes | None = None,
    colour_chunks: bytes = b"",
) -> None:
    """Write an image (C, H, W), C = 1 or 3, in the format of the suffix; values are clipped to [0, 1].

    The file appears complete or not at all; an earlier one is replaced. ``bits`` is 8, or 16 for
    png, tif, ppm and pgm. The rest is as for :func:`~csa2glmha.data.encode.encode`.

    Raises:
        UnfitError: the suffix or its depth cannot hold the image, or a value is not a number.
        OutputError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UnfitError(
            f"cannot write image {str(path)!r}: unknown suffix {path.suffix!r}; use {SUFFIX_LIST}"
        )
    if bits not in (8, 16) or bits > largest_bits(path):
        raise UnfitError(
            f"cannot write image {str(path)!r} with {bits} bits; use 8 bits, or 16 with png or tif"
        )
    writable = _WRITABLE_CHANNELS.get(suffix, (1, 3))
    if image.ndim != 3 or image.shape[0] not in writable:
        raise UnfitError(
            f"cannot write image {str(path)!r}: shape {tuple(image.shape)} is not (C, H, W) "
            f"with C = {' or '.join(map(str, writable))}; select the channels to write, or use png"
        )
    if not torch.isfinite(image).all():
        raise UnfitError(
            f"cannot write image {str(path)!r}: it has values that are not finite; check the model"
        )
    encoded = encode(image, suffix, bits, alpha, profile, colour_chunks)
    if encoded is None:
        size = f"{image.shape[2]}x{image.shape[1]}"
        raise UnfitError(f"cannot write image {str(path)!r}: {suffix} cannot hold {size} pixels; use png")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def largest_bits(path: Path) -> int:
    """How many bits a sample can have in a file of this suffix: 8 or 16."""
    return largest_bits_of(path.suffix.lower())


@dataclass
class MemoryImages:
    """Named images (C, H, W) that are in memory already, without targets; reads like an
    :class:`~csa2glmha.data.image_set.ImageSet`."""

    items: list[tuple[str, Tensor]]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return name, image and None (no target)."""
        name, image = self.items[index]
        return name, image, None


def bundled_images(channels: int) -> list[tuple[str, Tensor]]:
    """Read the natural photographs that come inside the scikit-image package, without any download.

    According to scikit-image's documentation of ``skimage.data``: astronaut (NASA) is in the public
    domain, so is rocket (SpaceX); chelsea (Stefan van der Walt), coffee (Rachel Michetti) and camera (Lav
    Varshney) are CC0, so are the textures grass, gravel and brick; motorcycle_left is of the Middlebury
    2014 stereo benchmark (Scharstein et al., GCPR 2014), whose authors permit use and publication and ask
    to be cited. The gray ones (camera, grass, gravel, brick) serve gray models only.

    Returns:
        Names and float32 images (channels, H, W) in [0, 1]; the sizes differ.

    Raises:
        DataError: ``channels`` is not 1 or 3, or this scikit-image brings none of the photographs.
    """
    check_channels(channels)
    names = ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"]
    if channels == 1:
        names += ["camera.png", "grass.png", "gravel.png", "brick.png"]
    folder = Path(str(skimage.data.__file__)).parent
    paths = [folder / name for name in names if (folder / name).is_file()]
    if not paths:
        raise DataError("the installed scikit-image brings no photographs; give a folder of your own images")
    return [(path.stem, read_image(path, channels)) for path in paths]


def check_channels(channels: int) -> None:
    """Raise DataError unless image files hold so many channels."""
    if channels == 6:
        raise DataError(
            "a model with 6 input channels takes dual-pixel pairs (left and right view), "
            "which no single image holds; give a model with 1 or 3 channels"
        )
    if channels not in (1, 3):
        raise DataError(
            f"image files hold 1 or 3 channels, but {channels} are asked for; give spectral data instead"
        )


def to_tensor(pixels: Pixels, channels: int) -> Tensor:
    """The samples of a :class:`StoredImage` as float32 (channels, H, W) in [0, 1], as :func:`read_image`."""
    image = torch.from_numpy(pixels.astype(np.float32) / np.float32(WHITE.get(pixels.dtype, 1.0)))
    if image.ndim == 2:
        return image.expand(channels, -1, -1).contiguous()
    image = image.permute(2, 0, 1)
    if channels == 3:
        return image.contiguous()
    return torch.einsum("c,chw->hw", torch.tensor(_BT601), image).clamp(max=1).unsqueeze(0)
