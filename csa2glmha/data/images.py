"""Reading and writing images, and folders of images.

Images are float32 tensors (C, H, W) in [0, 1], channels in the order R, G, B.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from torch import Tensor

from csa2glmha.data.folders import list_files, stem
from csa2glmha.errors import DataError, UnfitError
from csa2glmha.files import atomic_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_SIXTEEN_BIT_SUFFIXES = (".png", ".tif", ".tiff", ".ppm", ".pgm")
_WRITABLE_CHANNELS = {".ppm": (3,), ".pgm": (1,)}
_SUFFIX_LIST = "png, jpg, bmp, tif, webp, ppm or pgm"

_SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"RIFF",
    b"P2",
    b"P3",
    b"P5",
    b"P6",
)
_PNM_MAXIMUM = re.compile(rb"P[2356](?:(?:\s|#[^\n]*\n)+([0-9]+)){3}")
_WHITE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
_BT601 = (0.299, 0.587, 0.114)

# OpenCV reports every unreadable file on stderr; this module reports them itself, and by name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_Pixels = npt.NDArray[Any]


class _UnreadableError(Exception):
    """Why a file cannot be used, in words that fit after its name; details follow a colon."""


def read_image(path: Path, channels: int) -> Tensor:
    """Read one image file of 8 or 16 bits, or float samples in [0, 1] (tif).

    Args:
        path: The file. Its EXIF orientation is applied, an alpha channel is dropped.
        channels: 3 for R, G, B (gray is repeated), or 1 for gray (colour becomes BT.601 luma,
            0.299 R + 0.587 G + 0.114 B).

    Returns:
        float32 (channels, H, W) in [0, 1].

    Raises:
        DataError: the file cannot be read, or ``channels`` is not 1 or 3.
    """
    return read_image_and_bits(path, channels)[0]


def read_image_and_bits(path: Path, channels: int) -> tuple[Tensor, int]:
    """As :func:`read_image`, and how many bits hold a sample of it: 8, or 16, also for floats."""
    _check_channels(channels)
    try:
        pixels = _decode(path)
        return _to_tensor(pixels, channels), 8 if pixels.dtype == np.uint8 else 16
    except _UnreadableError as error:
        raise DataError(
            f"cannot read image {str(path)!r}: {error}; give an 8- or 16-bit {_SUFFIX_LIST}"
        ) from error


def write_image(path: Path, image: Tensor, bits: int = 8) -> None:
    """Write an image (C, H, W), C = 1 or 3, in the format of the suffix; values are clipped to [0, 1].

    The file appears complete or not at all; an earlier one is replaced. ``bits`` is 8, or 16 for
    png, tif, ppm and pgm.

    Raises:
        UnfitError: the suffix or its depth cannot hold the image, or a value is not a number.
        OutputError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UnfitError(
            f"cannot write image {str(path)!r}: unknown suffix {path.suffix!r}; use {_SUFFIX_LIST}"
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
    encoded = _encode(image, suffix, bits)
    if encoded is None:
        size = f"{image.shape[2]}x{image.shape[1]}"
        raise UnfitError(f"cannot write image {str(path)!r}: {suffix} cannot hold {size} pixels; use png")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def largest_bits(path: Path) -> int:
    """How many bits a sample can have in a file of this suffix: 8 or 16."""
    return 16 if path.suffix.lower() in _SIXTEEN_BIT_SUFFIXES else 8


def _encode(image: Tensor, suffix: str, bits: int) -> bytes | None:
    pixels = np.empty((*image.shape[1:], image.shape[0]), np.uint8 if bits == 8 else np.uint16)
    # OpenCV wants B, G, R; a gray image has one channel, in whatever order. One by one they take less memory.
    for channel, plane in enumerate(image.detach().cpu().flip(0)):
        pixels[..., channel] = (plane.double().clamp(0, 1) * (2**bits - 1)).round().numpy()
    # What does not fit a format makes OpenCV raise or return false, depending on the format.
    try:
        done, encoded = cv2.imencode(suffix, pixels)
    except cv2.error:
        return None
    return encoded.tobytes() if done else None


@dataclass
class _Entry:
    name: str
    input: Path
    target: Path | None


@dataclass
class ImageSet:
    """The readable images of a folder, or of a folder of inputs and one of targets.

    Made by :meth:`find`, which decodes every file once. So its length counts images that do read, and
    training does not stop hours later on a damaged file. What is decoded is kept, as stored in the file
    (8-bit images take a byte a sample), until a budget is used up; the rest is decoded again when read.

    Attributes:
        channels: Channels of every image: 1 or 3.
        skipped: Files left out, each with the reason.
    """

    channels: int
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    _entries: list[_Entry] = field(default_factory=list)
    _cache: dict[Path, _Pixels] = field(default_factory=dict, repr=False)

    @classmethod
    def find(
        cls, folder: Path, channels: int, targets: Path | None = None, cache_bytes: int = 512 * 2**20
    ) -> ImageSet:
        """Search a folder and its subfolders for images, in the order of their names.

        Files that cannot be read are left out, and listed in :attr:`skipped`. With ``targets``, each
        input is paired with the file there that has the same name and subfolder, whatever the suffix; an
        input without one, or one of another size, is left out likewise.

        Args:
            folder: Searched for png, jpg, jpeg, bmp, tif, tiff, webp, ppm and pgm files, in any case.
            channels: 1 or 3, as in :func:`read_image`.
            targets: Folder of the target images, if there are any.
            cache_bytes: How much decoded data to keep in memory.

        Raises:
            DataError: a folder is missing, or none of its images can be used.
        """
        _check_channels(channels)
        found = cls(channels)
        entries = (
            found._pair(folder, targets)
            if targets
            else [_Entry(*item, None) for item in _list_images(folder)]
        )
        budget = cache_bytes
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for entry, result in zip(entries, pool.map(_decode_entry, entries), strict=True):
                if isinstance(result, tuple):
                    found.skipped.append(result)
                    continue
                found._entries.append(entry)
                size = sum(pixels.nbytes for pixels in result.values())
                if size <= budget:
                    budget -= size
                    found._cache.update(result)
        if not found._entries:
            what = f"no readable image in {str(folder)!r}" + (
                f" with a target in {str(targets)!r}" if targets else ""
            )
            raise DataError(f"{what}: {found.describe_skipped()}; give a folder with {_SUFFIX_LIST} images")
        return found

    def _pair(self, folder: Path, targets: Path) -> list[_Entry]:
        by_stem: dict[str, list[Path]] = {}
        for name, path in _list_images(targets):
            by_stem.setdefault(stem(name), []).append(path)
        entries = []
        for name, path in _list_images(folder):
            matches = by_stem.get(stem(name), [])
            if len(matches) == 1:
                entries.append(_Entry(name, path, matches[0]))
            else:
                self.skipped.append(
                    (path, "several targets of that name" if matches else "no target of that name")
                )
        return entries

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return name, input and target or None: the name is the path inside the folder, with ``/``.

        Images are float32 (C, H, W) in [0, 1], as :func:`read_image` gives them.

        Raises:
            DataError: a file that was readable no longer is.
        """
        entry = self._entries[index]
        return entry.name, self._read(entry.input), None if entry.target is None else self._read(entry.target)

    def _read(self, path: Path) -> Tensor:
        pixels = self._cache.get(path)
        return read_image(path, self.channels) if pixels is None else _to_tensor(pixels, self.channels)

    def describe_skipped(self) -> str:
        """Count the skipped files by reason: ``3 files skipped (2 not an image, 1 empty)``."""
        if not self.skipped:
            return "no files skipped"
        reasons = Counter(reason.partition(":")[0] for _, reason in self.skipped)
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        return f"{len(self.skipped)} file{'s' * (len(self.skipped) > 1)} skipped ({counts})"


@dataclass
class MemoryImages:
    """Named images (C, H, W) that are in memory already, without targets; reads like an :class:`ImageSet`."""

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
    _check_channels(channels)
    names = ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"]
    if channels == 1:
        names += ["camera.png", "grass.png", "gravel.png", "brick.png"]
    folder = Path(str(skimage.data.__file__)).parent
    paths = [folder / name for name in names if (folder / name).is_file()]
    if not paths:
        raise DataError("the installed scikit-image brings no photographs; give a folder of your own images")
    return [(path.stem, read_image(path, channels)) for path in paths]


def _check_channels(channels: int) -> None:
    if channels == 6:
        raise DataError(
            "a model with 6 input channels takes dual-pixel pairs (left and right view), "
            "which no single image holds; give a model with 1 or 3 channels"
        )
    if channels not in (1, 3):
        raise DataError(
            f"image files hold 1 or 3 channels, but {channels} are asked for; give spectral data instead"
        )


def _list_images(folder: Path) -> list[tuple[str, Path]]:
    return list_files(folder, SUFFIXES, "image folder", f"{_SUFFIX_LIST} images")


def _decode_entry(entry: _Entry) -> dict[Path, _Pixels] | tuple[Path, str]:
    """Decode input and target; where that fails, return the file at fault and the reason."""
    decoded: dict[Path, _Pixels] = {}
    for path in (entry.input, entry.target):
        if path is None:
            continue
        try:
            decoded[path] = _decode(path)
        except _UnreadableError as error:
            return path, str(error)
    heights_and_widths = [pixels.shape[:2] for pixels in decoded.values()]
    if len(set(heights_and_widths)) > 1:
        (height, width), (target_height, target_width) = heights_and_widths
        return (
            entry.input,
            f"not of its target's size: {width}x{height} against {target_width}x{target_height}",
        )
    return decoded


def _decode(path: Path) -> _Pixels:
    """Decode to (H, W) or (H, W, RGB) of uint8, uint16 or float32 in [0, 1]."""
    try:
        # Not cv2.imread: on some systems it cannot open names outside the local code page.
        data = path.read_bytes()
    except OSError as error:
        raise _UnreadableError(f"not to be opened: {error.strerror or error}") from error
    _check_container(data)
    try:
        # Not IMREAD_UNCHANGED, which would ignore the EXIF orientation.
        pixels: _Pixels | None = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        )
    except cv2.error:
        pixels = None
    if pixels is None:
        raise _UnreadableError("truncated or damaged")
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(_checked_samples(pixels))


def _check_container(data: bytes) -> None:
    if not data:
        raise _UnreadableError("empty")
    if not data.startswith(_SIGNATURES):
        raise _UnreadableError("not an image")
    # libpng would complain on stderr, past OpenCV's log level.
    if data.startswith(b"\x89PNG") and b"IEND" not in data:
        raise _UnreadableError("truncated or damaged")
    maximum = _PNM_MAXIMUM.match(data)
    # OpenCV scales other maxima in some PNM variants, and leaves them in others.
    if maximum and int(maximum[1]) not in (255, 65535):
        raise _UnreadableError(f"of an unsupported depth: largest value {int(maximum[1])}, not 255 or 65535")


def _checked_samples(pixels: _Pixels) -> _Pixels:
    if pixels.dtype in _WHITE:
        return pixels
    if pixels.dtype.kind != "f":
        raise _UnreadableError(f"of an unsupported depth: {pixels.dtype} samples, not 8 or 16 bit or float")
    # Written so that NaN fails too.
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise _UnreadableError(f"not scaled to [0, 1]: float values {pixels.min():g} to {pixels.max():g}")
    return pixels.astype(np.float32)


def _to_tensor(pixels: _Pixels, channels: int) -> Tensor:
    image = torch.from_numpy(pixels.astype(np.float32) / np.float32(_WHITE.get(pixels.dtype, 1.0)))
    if image.ndim == 2:
        return image.expand(channels, -1, -1).contiguous()
    image = image.permute(2, 0, 1)
    if channels == 3:
        return image.contiguous()
    return torch.einsum("c,chw->hw", torch.tensor(_BT601), image).clamp(max=1).unsqueeze(0)
