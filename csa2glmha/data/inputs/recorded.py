"""Recorded measurements of a CASSI camera, and the scale that their files have them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csa2glmha.core.dispersion import DISPERSION, dispersed_width
from csa2glmha.core.errors import DataError
from csa2glmha.core.progress import progress
from csa2glmha.data.arrays import SUFFIX_LIST, SUFFIXES, find_array
from csa2glmha.data.folders import list_files
from csa2glmha.data.inputs.cassi import disperse
from csa2glmha.data.units import DEPTHS, Extent, White, counted, file_names, refuse_blank, refuse_negative

#: What the files of the published MST call a measurement.
USUAL = "meas_real"
#: Light is compared with what a white scene gives behind the same mask, where that is this share of the
#: median or more: elsewhere noise and rounding decide.
_LIT = 0.5
#: The brightest pixels but one in a thousand, as a share of white. A real camera's were 0.68 to 0.86, sums of
#: bands 0.5 to 0.7; a sum taken as relative to white is ``bands / 2`` times that.
_QUANTILE = 0.999
_RELATIVE, _SUMMED, _WHITE = 1.5, 3.0, 1.2
_HOW = (
    "give --measurement-scale, the stored value that is 1, where 1 is white through a half-open mask: 4095 "
    "for counts of 12 bits"
)


@dataclass(frozen=True)
class StoredMeasurement:
    """A measurement (H, W') as it is in its file."""

    values: Tensor
    extent: Extent


def read_stored_measurement(path: Path, key: str | None = None) -> StoredMeasurement:
    """Read a measurement; what its numbers mean is for :func:`white_of_measurements` to say.

    Args:
        path: a .mat, .npy, .npz or .tif file.
        key: the measurement's name in a .mat or .npz file; without, it is "meas_real" or the only 2-D array.

    Raises:
        DataError: the file cannot be read, or holds no such 2-D array of finite numbers.
    """
    array = find_array(path, 2, key, usual=USUAL).read()
    if array.dtype.kind not in "uif":
        raise DataError(f"{str(path)!r} holds numbers of type {array.dtype}; store floats or integers")
    with np.errstate(over="ignore"):
        values = np.array(array, np.float32, order="C")
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise DataError(
            f"{str(path)!r} holds {bad} NaN or infinite values among {values.size}; repair or remove the file"
        )
    bits = array.dtype.itemsize * 8 if array.dtype.kind in "ui" else None
    extent = Extent.of(values, bits)
    refuse_negative(path, extent)
    return StoredMeasurement(torch.from_numpy(values), extent)


def white_of_measurements(
    stored: Mapping[Path, StoredMeasurement], mask: Tensor, bands: int, scale: float | None = None
) -> White:
    """The stored value that is 1, where 1 is what a white scene gives through a mask that is half open.

    Fractions are relative to white, or sums over the bands, which a white scene of ``bands`` bands and this
    mask bounds. Whole numbers are counts, of as many bits as the largest one needs.

    Args:
        stored: measurements of one camera, by file.
        mask: (H, W), which all of them fit.
        bands: of the model.
        scale: what the user says it is; None: to be told from the numbers.

    Raises:
        DataError: they allow more than one reading, or none.
    """
    if not stored:
        return White(scale or 1.0)
    names = file_names(list(stored))
    extents = {path: each.extent for path, each in stored.items()}
    high = max(extent.high for extent in extents.values())
    if scale is not None:
        return White(scale, (f"{names}: measurements divided by {scale:g}, as --measurement-scale says",))
    if high > 1 and all(extent.whole for extent in extents.values()):
        if high <= bands or high >= 2 ** DEPTHS[-1]:
            raise DataError(f"{names}: whole numbers up to {high:g}, of which the scale is unknown; {_HOW}")
        white = counted(extents)
        return White(white.value, tuple(f"{note}; other scales: --measurement-scale" for note in white.notes))
    brightest = max(_brightness(each.values, mask, bands) for each in stored.values())
    if high <= 1 or brightest <= _RELATIVE:
        return White(
            1.0,
            (
                f"{names}: measurements up to {high:g}, taken as relative to white; other scales: "
                "--measurement-scale",
            ),
        )
    if brightest > _SUMMED and brightest / (bands / 2) <= _WHITE:
        return White(
            bands / 2,
            (
                f"{names}: measurements up to {high:g}, taken as sums over {bands} bands and divided by "
                f"{bands / 2:g}; other scales: --measurement-scale",
            ),
        )
    raise DataError(
        f"{names}: measurements up to {high:g}, neither relative to white nor sums over {bands} bands; {_HOW}"
    )


def scale_measurement(stored: StoredMeasurement, white: float, bands: int) -> Tensor:
    """The measurement in the scale of :func:`csa2glmha.data.inputs.cassi.measure`."""
    return stored.values * (bands / 2 / white)


def _brightness(values: Tensor, mask: Tensor, bands: int) -> float:
    """How bright the brightest pixels are against white, if the values are relative to white."""
    white = disperse(mask.expand(bands, -1, -1), DISPERSION).sum(dim=0)
    lit = white >= _LIT * white.median()
    ratio = values[lit] * (bands / 2) / white[lit].clamp_min(1e-6)
    return float(np.quantile(ratio.numpy(), _QUANTILE))


def misfit(measurement: Tensor, mask: Tensor, bands: int) -> str | None:
    """Why a measurement does not fit a mask; None: it does."""
    height, width = mask.shape
    spread = dispersed_width(width, bands) - width
    if tuple(measurement.shape) == (height, width + spread):
        return None
    found = f"{_size(measurement)}, the mask needs {height}x{width + spread}"
    if tuple(measurement.shape) == (width, height + spread):
        return f"{found}: the mask seems transposed"
    if measurement.shape[0] == height and measurement.shape[1] == width:
        return f"{found}: a measurement is {spread} columns wider than its mask"
    if measurement.shape[0] <= height and spread < measurement.shape[1] <= width + spread:
        return f"{found}: cut the mask as the measurement was cut"
    return found


@dataclass
class RecordedMeasurements:
    """The recorded measurements of a folder, all through one mask.

    Attributes:
        mask: (H, W).
        bands: of the model.
        skipped: files left out, each with the reason.
        notes: what was taken for white.
    """

    mask: Tensor
    bands: int
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    _entries: list[tuple[str, Tensor]] = field(default_factory=list)

    @classmethod
    def find(
        cls, folder: Path, mask: Tensor, bands: int, mat_key: str | None = None, scale: float | None = None
    ) -> RecordedMeasurements:
        """Search a folder and its subfolders for measurements that fit the mask.

        Args:
            folder: searched for mat, npy, npz, tif and tiff files, in any case.
            mask: (H, W); measurements are of the same height, and wider by the dispersion.
            bands: of the model.
            mat_key: name of the measurement in .mat and .npz files; without, each must hold one 2-D array.
            scale: as in :func:`white_of_measurements`.

        Raises:
            DataError: the folder is missing, or nothing in it can be used; the first reason is given.
        """
        found = cls(mask, bands)
        stored: dict[Path, StoredMeasurement] = {}
        names = {}
        files = list_files(folder, SUFFIXES, "folder", f"{SUFFIX_LIST} files, or images")
        for name, path in progress(files, what="reading measurements", unit="file"):
            try:
                measurement = read_stored_measurement(path, mat_key)
                reason = misfit(measurement.values, mask, bands)
                if reason is not None:
                    raise DataError(reason)
                refuse_blank(path, measurement.extent)
            except DataError as error:
                found.skipped.append((path, str(error)))
                continue
            stored[path], names[path] = measurement, name
        if not stored:
            path, reason = found.skipped[0] if found.skipped else (folder, f"it has no {SUFFIX_LIST} file")
            raise DataError(
                f"no measurement in {str(folder)!r} fits a mask of {_size(mask)}: {path.name}: {reason}"
            )
        white = white_of_measurements(stored, mask, bands, scale)
        found.notes = white.notes
        for path, each in stored.items():
            found._entries.append((names[path], scale_measurement(each, white.value, bands)))
        return found

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return the name (path inside the folder, with ``/``), the measurement (1, H, W'), and None."""
        name, measurement = self._entries[index]
        return name, measurement.unsqueeze(0), None


def _size(plane: Tensor) -> str:
    return "x".join(map(str, plane.shape))
