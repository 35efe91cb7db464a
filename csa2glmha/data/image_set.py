"""Folders of images, with their targets where there are any."""

from __future__ import annotations

import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from csa2glmha.core.device import total_memory
from csa2glmha.core.environment import cpu_count
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.decode import decode
from csa2glmha.data.folders import Files, list_with_foreign
from csa2glmha.data.images import FOREIGN_SUFFIXES, SUFFIX_LIST, SUFFIXES, check_channels, to_tensor
from csa2glmha.data.pairing import pair_names
from csa2glmha.data.stored import Pixels, StoredImage, UnreadableError
from csa2glmha.networks import scaled


@dataclass
class _Entry:
    name: str
    input: Path
    target: Path | None

    @property
    def paths(self) -> list[Path]:
        return [self.input] if self.target is None else [self.input, self.target]


@dataclass
class ImageSet:
    """The readable images of a folder, or of a folder of inputs and one of targets.

    Made by :meth:`find`, which decodes every file once. So its length counts images that do read, and
    training does not stop hours later on a damaged file. What is decoded is kept, as stored in the file
    (8-bit images take a byte a sample), until a budget is used up; the rest is decoded again when read.

    Attributes:
        channels: Channels of every image: 1 or 3.
        skipped: Files left out, each with the reason.
        further: Files of which only the first image is read, with what else they hold.
        how: How inputs and targets were paired; "" where it is by equal names.
        copies: How many inputs are equal to their targets.
    """

    channels: int
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    further: list[tuple[Path, str]] = field(default_factory=list)
    how: str = ""
    copies: int = 0
    _entries: list[_Entry] = field(default_factory=list)
    _cache: dict[Path, Pixels] = field(default_factory=dict, repr=False)
    _checksums: dict[Path, int] = field(default_factory=dict, repr=False)

    @classmethod
    def find(
        cls,
        folder: Path,
        channels: int,
        targets: Path | None = None,
        cache_bytes: int = 512 * 2**20,
        pair: str | None = None,
        smallest: int = 1,
        scale: Fraction = Fraction(1),
    ) -> ImageSet:
        """Search a folder and its subfolders, linked ones too, for images, in the order of their names.

        Files that cannot be read are left out, and listed in :attr:`skipped`. With ``targets``, inputs
        are paired with the files there by name, as :func:`~csa2glmha.data.pairing.pair_names` does it; an
        input without one, or one of another size than ``scale`` says, is left out likewise.

        Args:
            folder: Searched for png, jpg, jpeg, bmp, tif, tiff, webp, ppm and pgm files, in any case.
            channels: 1 or 3, as in :func:`~csa2glmha.data.images.read_image`.
            targets: Folder of the target images, if there are any.
            cache_bytes: How much decoded data to keep in memory.
            pair: How the names of inputs and targets differ; None finds it out.
            smallest: Least height and width; smaller images are left out.
            scale: Height and width of targets over those of inputs; others are left out.

        Raises:
            DataError: a folder is missing, or none of its images can be used.
            UsageError: an image would be its own target, or ``pair`` is not valid.
        """
        check_channels(channels)
        found = cls(channels)
        if targets is None:
            entries = [_Entry(name, path, None) for name, path in found._list(folder)]
        else:
            entries = found._pair(folder, targets, pair)
        with ThreadPoolExecutor(min(8, cpu_count())) as pool:
            # Half of it: an image is more than its samples while a network runs on it.
            read = partial(_decode_entry, smallest=smallest, scale=scale, room=total_memory() // 2)
            results = pool.map(read, entries)
            for entry, result in zip(entries, results, strict=True):
                if isinstance(result, tuple):
                    found.skipped.append(result)
                else:
                    cache_bytes -= found._add(entry, result, cache_bytes)
        if not found._entries:
            what = f"no readable image in {str(folder)!r}" + (
                f" with a target in {str(targets)!r}" if targets else ""
            )
            raise DataError(f"{what}: {found.describe_skipped()}; give a folder with {SUFFIX_LIST} images")
        return found

    def _list(self, folder: Path) -> Files:
        wanted = f"{SUFFIX_LIST} images"
        files, foreign = list_with_foreign(folder, SUFFIXES, FOREIGN_SUFFIXES, "image folder", wanted)
        self.skipped += foreign
        return files

    def _pair(self, folder: Path, targets: Path, pattern: str | None) -> list[_Entry]:
        refuse_same_folder(folder, targets, pattern)
        inputs, others = self._list(folder), self._list(targets)
        self.skipped = list(dict.fromkeys(self.skipped))  # those of one folder, where both are one
        if pattern is None:
            # Where one folder lies in the other, what is in it has one meaning only.
            inputs, others = _outside(inputs, folder, targets), _outside(others, targets, folder)
        pairing = pair_names([name for name, _ in inputs], [name for name, _ in others], pattern)
        if pairing.problem and inputs and others:
            raise DataError(
                f"no image in {str(folder)!r} with a target in {str(targets)!r}: {pairing.problem}"
            )
        self.how = pairing.how
        self.skipped += [(inputs[position][1], reason) for position, reason in pairing.unpaired]
        entries = [_Entry(*inputs[one], others[other][1]) for one, other in pairing.pairs]
        for entry in entries:
            refuse_same_file(*entry.paths)
        return entries

    def _add(self, entry: _Entry, stored: dict[Path, StoredImage], budget: int) -> int:
        """Take an image in; returns how many bytes it takes from the budget."""
        self._entries.append(entry)
        self.further += [(path, each.further) for path, each in stored.items() if each.further]
        pixels = {path: each.pixels for path, each in stored.items()}
        if entry.target is not None and np.array_equal(pixels[entry.input], pixels[entry.target]):
            self.copies += 1
        size = sum(each.nbytes for each in pixels.values())
        if size <= budget:
            self._cache.update(pixels)
            return size
        self._checksums.update({path: _checksum(each) for path, each in pixels.items()})
        return 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> list[str]:
        """The names of the inputs in order, as :meth:`read` gives them."""
        return [entry.name for entry in self._entries]

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return name, input and target or None: the name is the path inside the folder, with ``/``.

        Images are float32 (C, H, W) in [0, 1], as :func:`~csa2glmha.data.images.read_image` gives them.

        Raises:
            DataError: a file that was readable no longer is, or holds another image.
        """
        entry = self._entries[index]
        return entry.name, self._read(entry.input), None if entry.target is None else self._read(entry.target)

    def _read(self, path: Path) -> Tensor:
        pixels = self._cache.get(path)
        if pixels is None:
            try:
                pixels = decode(path).pixels
            except UnreadableError as error:
                raise DataError(
                    f"image {str(path)!r} was there and no longer is as it was: {error}; put it back"
                ) from error
            if _checksum(pixels) != self._checksums.get(path):
                raise DataError(
                    f"image {str(path)!r} was changed since it was first read; put it back as it was"
                )
        return to_tensor(pixels, self.channels)

    def describe_skipped(self) -> str:
        """Count the skipped files by reason: ``3 files skipped (2 not an image, 1 empty)``."""
        if not self.skipped:
            return "no files skipped"
        reasons = Counter(reason.partition(":")[0] for _, reason in self.skipped)
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        return f"{len(self.skipped)} file{'s' * (len(self.skipped) > 1)} skipped ({counts})"

    def notes(self, folder: Path) -> tuple[str, ...]:
        """What the user should know: what was left out, how pairs were found, what is odd about them."""
        said = skipped_note(folder, self.skipped, self.describe_skipped())
        if self.further:
            said += (
                f"{folder}: left out: {_listed([f'{path.name}: {what}' for path, what in self.further])}",
            )
        if self.how:
            said += (f"{folder}: {self.how}",)
        if self.copies:
            said += (
                f"{folder}: {self.copies} of {len(self)} inputs are equal to their targets, pixel for pixel: "
                "figures against the ground truth say nothing of restoration there",
            )
        return said


def skipped_note(
    folder: Path, skipped: list[tuple[Path, str]], summary: str | None = None
) -> tuple[str, ...]:
    """One note on files that were left out, each with its reason; none if there are none."""
    if not skipped:
        return ()
    listed = _listed([f"{path.name} ({reason})" for path, reason in skipped])
    return (f"{folder}: {summary or f'{len(skipped)} files skipped'}: {listed}",)


def refuse_same_folder(folder: Path, targets: Path, pair: str | None) -> None:
    """Raise UsageError where inputs and targets are in one folder and nothing tells them apart."""
    if pair is None and folder.is_dir() and targets.is_dir() and folder.samefile(targets):
        raise UsageError(
            f"--targets {targets}: is the same folder as --data, where every image is its own ground truth; "
            "give the folder of the ground truth, or say how the names differ, such as --pair blur=sharp "
            "for its folders, or --pair '{}_input={}_gt'"
        )


def refuse_same_file(image: Path, target: Path) -> None:
    """Raise UsageError for a file that is its own target, under whatever name."""
    if image.exists() and target.exists() and image.samefile(target):
        raise UsageError(
            f"--targets: {str(target)!r} is the same file as its input {str(image)!r}; give the folder of "
            "the ground truth"
        )


def _outside(files: Files, folder: Path, other: Path) -> Files:
    """The files of a folder that are not in the other, where that is a part of it."""
    if other.resolve() == folder.resolve() or not other.resolve().is_relative_to(folder.resolve()):
        return files
    inside = other.resolve()
    return [(name, path) for name, path in files if inside not in path.resolve().parents]


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")


def _checksum(pixels: Pixels) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data, zlib.crc32(str(pixels.shape).encode()))


def _decode_entry(
    entry: _Entry, smallest: int, scale: Fraction, room: int
) -> dict[Path, StoredImage] | tuple[Path, str]:
    """Decode input and target; where that fails, return the file at fault and the reason."""
    decoded: dict[Path, StoredImage] = {}
    for path in entry.paths:
        try:
            decoded[path] = decode(path, room)
        except UnreadableError as error:
            return path, str(error)
        height, width = decoded[path].pixels.shape[:2]
        if min(height, width) < smallest:
            return path, f"too small: {width}x{height}, at least {smallest}x{smallest} pixels are needed"
    shapes = [each.pixels.shape[:2] for each in decoded.values()]
    (height, width), (target_height, target_width) = shapes[0], shapes[-1]
    if len(shapes) > 1 and (target_height, target_width) != (scaled(height, scale), scaled(width, scale)):
        times = "" if scale == 1 else f", which is to be {scale} times as large"
        return (
            entry.input,
            f"not of its target's size: {width}x{height} against {target_width}x{target_height}{times}",
        )
    return decoded
