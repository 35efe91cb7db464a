"""CASSI snapshots as inputs: an initial cube and, unless it is baked in, the dispersed mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from csa2glmha.config.data import DataOptions
from csa2glmha.config.options import WorkOptions
from csa2glmha.core.dispersion import dispersed_width
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.core.progress import say
from csa2glmha.data.arrays import AmbiguousArrayError, find_array
from csa2glmha.data.batches import Data
from csa2glmha.data.images import MemoryImages
from csa2glmha.data.inputs.cassi import CassiScenes, initial_cube, shifted_mask
from csa2glmha.data.inputs.cassi_data import CassiData, prepare_cassi
from csa2glmha.data.inputs.cubes import read_cube
from csa2glmha.data.inputs.kind import (
    Examples,
    FileInputs,
    Files,
    LazyExamples,
    NetworkFacts,
    NeverStretched,
    Read,
    Source,
    array_formats,
)
from csa2glmha.data.inputs.masks import is_made_for, load_mask, mask_provenance
from csa2glmha.data.inputs.recorded import (
    USUAL,
    StoredMeasurement,
    misfit,
    read_stored_measurement,
    scale_measurement,
    white_of_measurements,
)
from csa2glmha.data.inputs.refusals import refuse_image_options
from csa2glmha.data.inputs.scenes import open_scenes
from csa2glmha.data.inputs.units import white_of_files
from csa2glmha.metrics.outputs import SPECTRA, Outputs


class CassiSnapshots(NeverStretched):
    """Snapshots through an aperture mask; see :class:`csa2glmha.data.inputs.kind.InputKind`."""

    def takes(self, channels: int, bands: int) -> bool:
        """Cubes whatever their number of bands: six are no dual-pixel views here."""
        return True

    def outputs(self, network: NetworkFacts) -> Outputs:
        """Spectra."""
        return SPECTRA

    def shapes(
        self, network: NetworkFacts, height: int, width: int, batch: int = 1
    ) -> tuple[tuple[int, ...], ...]:
        """Of the cube and, if it is an input, of the mask, which is one for the whole batch."""
        cube = (batch, network.channels, height, width)
        mask = (1, network.channels, height, dispersed_width(width, network.channels))
        return (cube,) if network.count == 1 else (cube, mask)

    def open_data(self, network: NetworkFacts, options: WorkOptions) -> CassiData:
        """Scenes, simulated or recorded, some of them held out."""
        self.stretches(network, options)
        refuse_image_options(network.name, options)
        data = prepare_cassi(
            options.data,
            options.mask,
            options.mat_key,
            network.channels,
            network.multiple,
            options.input_size,
            options.seed,
            options.mask_key,
            options.measurement_scale,
        )
        # Defaults shrink to a small mask; what was asked for is done or refused.
        for name in ("calibration_size", "crop"):
            if name in options.model_fields_set and getattr(options, name) is not None:
                data.check_side(getattr(options, name), "--" + name.replace("_", "-"))
        if options.mask is not None and "input_size" in options.model_fields_set:
            raise UsageError(
                f"--input-size {options.input_size}: with --mask the size is the mask's; leave it out"
            )
        return data

    def open_examples(
        self, network: NetworkFacts, options: WorkOptions, teacher: bool, crop: int | None
    ) -> Examples:
        """Whole scenes through the whole mask."""
        self.stretches(network, options)
        refuse_image_options(network.name, options)
        if crop is not None:
            raise UsageError(f"--crop {crop}: a scene belongs to its place under the mask; leave it out")
        if network.size is not None and options.mask is None:
            raise UsageError(f"{network.name} with a mask baked in: give the file of that mask, --mask")
        scenes, mask, recorded, _, notes = open_scenes(
            options.data,
            options.mask,
            options.mat_key,
            network.channels,
            options.input_size,
            options.seed,
            options.mask_key,
            options.measurement_scale,
        )
        _check_mask(network, options, mask)
        if recorded and not teacher:
            raise UsageError(
                f"nothing to compare with: {options.data} holds recorded measurements; give --teacher"
            )
        data = CassiData(scenes, scenes, recorded, mask, network.channels, 1, str(options.data), notes)
        return LazyExamples(len(scenes), lambda index: data.example(scenes, index)), notes

    def open_files(self, network: NetworkFacts, options: DataOptions, cube_suffix: str) -> FileInputs:
        """Recorded measurements, and cubes that measurements are simulated from."""
        self.stretches(network, options)
        if options.mask is None:
            raise UsageError(
                f"{network.name} reconstructs what was seen through an aperture mask: give its file, --mask"
            )
        mask = load_mask(options.mask, options.mask_key)
        _check_mask(network, options, mask)
        read = _Snapshots(mask, network.channels, options.mat_key, options.measurement_scale)
        return FileInputs(array_formats(cube_suffix, network.bands), read.reader)

    def provenance(self, network: NetworkFacts, options: DataOptions) -> dict[str, str]:
        """The mask, where the student is made for one."""
        return {} if options.mask is None else mask_provenance(options.mask, options.mask_key)

    def constants(self, data: Data) -> dict[str, Tensor]:
        """The dispersed mask."""
        return {"mask": data.dispersed_mask} if isinstance(data, CassiData) else {}


def _check_mask(network: NetworkFacts, options: DataOptions, mask: Tensor) -> None:
    """Raise UsageError for another mask than the one that is baked in."""
    file = options.mask
    if network.size is not None and tuple(mask.shape) != network.size:
        raise UsageError(
            f"--mask {file}: has {mask.shape[0]}x{mask.shape[1]} pixels, the one baked in has "
            f"{network.size[0]}x{network.size[1]}"
        )
    if file is not None and not is_made_for(network.metadata, file, options.mask_key):
        raise UsageError(f"--mask {file}: is not the mask that this model was made for")


@dataclass(frozen=True)
class _Snapshots:
    """Recorded measurements, and cubes that measurements are simulated of, all through one mask."""

    mask: Tensor
    bands: int
    mat_key: str | None
    scale: float | None

    def reader(self, all_files: Sequence[Files]) -> Read:
        """Tell the units from all inputs together.

        Raises:
            DataError: they cannot be told.
            UsageError: a scale of measurements, and there are none.
        """
        paths = [files[0] for files in all_files]
        recorded = {path for path in paths if self._is_measurement(path)}
        cubes = white_of_files([path for path in paths if path not in recorded], self.bands, self.mat_key)
        stored: dict[Path, StoredMeasurement] = {}
        for path in recorded:
            try:
                stored[path] = self._measurement(path)
            except DataError:
                continue  # met again when it is its turn
        if self.scale is not None and not recorded:
            raise UsageError(f"--measurement-scale {self.scale:g}: no input is a measurement; leave it out")
        white = white_of_measurements(dict(sorted(stored.items())), self.mask, self.bands, self.scale)
        for note in white.notes:
            say(note)
        dispersed = shifted_mask(self.mask, self.bands)

        def read(files: Files, room: int) -> Source:
            path = files[0]
            if path in recorded:
                measurement = scale_measurement(self._measurement(path), white.value, self.bands)
                start = initial_cube(measurement, self.bands)
            else:
                start = self._simulated(path, cubes)
            return Source((start.unsqueeze(0), dispersed))

        return read

    def _is_measurement(self, path: Path) -> bool:
        """A file with a plane is a measurement, whatever else it holds."""
        try:
            find_array(path, 2, self.mat_key, usual=USUAL)
        except AmbiguousArrayError:  # which reading it will say
            return True
        except DataError:
            return False
        return True

    def _measurement(self, path: Path) -> StoredMeasurement:
        stored = read_stored_measurement(path, self.mat_key)
        reason = misfit(stored.values, self.mask, self.bands)
        if reason is not None:
            raise DataError(f"{str(path)!r} is a measurement of {reason}; give the mask it was taken through")
        return stored

    def _simulated(self, path: Path, white: float) -> Tensor:
        cube = read_cube(path, self.bands, self.mat_key, white)
        (rows, columns), (height, width) = cube.shape[1:], self.mask.shape
        if rows < height or columns < width:
            say(f"{path}: smaller than the mask of {height}x{width}, so padded by reflection")
        if rows > height or columns > width:
            say(f"{path}: {rows}x{columns}, only its centre is under the mask of {height}x{width}")
        return CassiScenes(MemoryImages([(path.name, cube)]), self.mask).read(0)[1]
