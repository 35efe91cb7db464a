"""Images as the only input of a network, among them pairs of views; cubes where no image has the channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from csa2glmha.config.data import DataOptions
from csa2glmha.config.options import WorkOptions
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.batches import Data, Example
from csa2glmha.data.crops import ImageSource
from csa2glmha.data.folders import check_folder
from csa2glmha.data.images import MemoryImages, bundled_images, read_stored
from csa2glmha.data.inputs.cubes import read_cube
from csa2glmha.data.inputs.further import FurtherData, FurtherInput, Splitter, further_inputs
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
    image_formats,
)
from csa2glmha.data.inputs.refusals import refuse_cassi_options, refuse_further_inputs
from csa2glmha.data.inputs.stretch import NOTE as STRETCH_NOTE
from csa2glmha.data.inputs.stretch import Stretched, stretch
from csa2glmha.data.inputs.units import white_of_files
from csa2glmha.data.sources import (
    IMAGE_CHANNELS,
    fitting_degradation,
    image_example,
    is_spectral,
    open_inputs,
    prepare_images,
    wants_stretch,
)
from csa2glmha.data.views import DUAL_PIXEL_CHANNELS
from csa2glmha.metrics.outputs import IMAGES, SPECTRA, Outputs
from csa2glmha.networks.foreign import alike


class ImageInputs(NeverStretched):
    """Images as they are; see :class:`csa2glmha.data.inputs.kind.InputKind`."""

    def takes(self, channels: int, bands: int) -> bool:
        """All but what is stretched."""
        return not wants_stretch(channels, bands)

    def outputs(self, network: NetworkFacts) -> Outputs:
        """Images or spectra, as the numbers of channels tell."""
        return SPECTRA if is_spectral(network.channels, network.bands) else IMAGES

    def shapes(
        self, network: NetworkFacts, height: int, width: int, batch: int = 1
    ) -> tuple[tuple[int, ...], ...]:
        """That of the image, and what goes with it, as much larger or smaller as in the example."""
        image = (batch, network.channels, height, width)
        first, *more = network.shapes or (image,)
        return (image, *(alike(shape, first, image) for shape in more))

    def open_data(self, network: NetworkFacts, options: WorkOptions) -> Data:
        """Images, some of them held out."""
        splitter = _splitter(network, options)
        data = prepare_images(
            options.data,
            options.targets,
            options.degrade,
            network.channels,
            options.seed,
            network.bands,
            options.mat_key,
            options.pair,
            self.stretches(network, options),
            network.scale,
        )
        return data if splitter is None else FurtherData.of(data, splitter)

    def open_examples(
        self, network: NetworkFacts, options: WorkOptions, teacher: bool, crop: int | None
    ) -> Examples:
        """All images of a folder, or the photographs that come with scikit-image."""
        splitter = _splitter(network, options)
        stretched, spectral = self.stretches(network, options), self.outputs(network) is SPECTRA
        if options.data is not None:  # before the question for a ground truth of images that are not there
            wanted = "images" if network.channels in IMAGE_CHANNELS else "cubes"
            check_folder(options.data, "folder", wanted)
        if options.targets is None and not teacher and (options.degrade is None or spectral):
            cubes = (
                "--targets DIR of cubes" if spectral else "--targets DIR, --degrade noise:25 for clean images"
            )
            raise UsageError(f"nothing to compare with: give {cubes}, or --teacher")
        degradation = fitting_degradation(options.degrade, network.scale)
        images, notes = _open(network, options)
        if stretched:
            images, notes = Stretched(images), (*notes, STRETCH_NOTE)
        if splitter is not None:
            images, degradation = splitter.join(images, degradation), splitter.degradation(degradation)
        read = partial(image_example, images, degradation=degradation, seed=options.seed, size=crop)

        def example(index: int) -> Example:
            found = read(index, clean_is_ground_truth=not spectral)
            return found if splitter is None else splitter.example(found, images)

        return LazyExamples(len(images), example), notes

    def open_files(self, network: NetworkFacts, options: DataOptions, cube_suffix: str) -> FileInputs:
        """Image files, two views of each, or cubes."""
        splitter = _splitter(network, options)
        further = () if splitter is None else splitter.further
        stretched, channels = self.stretches(network, options), network.channels
        suffix = cube_suffix if self.outputs(network) is SPECTRA else ""
        if channels == DUAL_PIXEL_CHANNELS:
            return FileInputs(image_formats(suffix, network.bands, views=True), lambda files: _read_views)
        if channels in IMAGE_CHANNELS:
            read = partial(_read_image, channels=channels, stretched=stretched, further=further)
            return FileInputs(image_formats(suffix, network.bands), lambda files: read)
        key = options.mat_key
        return FileInputs(
            array_formats(suffix, network.bands), lambda files: _cube_reader(files, channels, key)
        )

    def provenance(self, network: NetworkFacts, options: DataOptions) -> dict[str, str]:
        """Nothing."""
        return {}

    def constants(self, data: Data) -> dict[str, Tensor]:
        """None."""
        return {}


def _splitter(network: NetworkFacts, options: DataOptions) -> Splitter | None:
    """What goes with the images; None: nothing."""
    refuse_cassi_options(network.name, options)
    if network.count > 1 and not network.shapes:
        refuse_further_inputs(network.name, network.count)
    names, shapes = network.arguments or ("input",), network.shapes or ((1, network.channels, 1, 1),)
    further = further_inputs(network.name, names, shapes, options.further)
    return Splitter(further, network.channels) if further else None


def _open(network: NetworkFacts, options: DataOptions) -> tuple[ImageSource, tuple[str, ...]]:
    channels = network.channels
    if options.data is not None:
        return open_inputs(
            options.data,
            channels,
            options.targets,
            network.bands,
            options.mat_key,
            options.pair,
            network.scale,
        )
    if channels not in IMAGE_CHANNELS:
        raise UsageError(f"no images of {channels} channels come with this tool: give --data DIR")
    images = MemoryImages(bundled_images(channels))
    return images, (f"no --data: evaluating on {len(images)} photographs bundled with scikit-image",)


def _read_image(
    files: Files, room: int, channels: int, stretched: bool, further: Sequence[FurtherInput]
) -> Source:
    image, stored = read_stored(files[0], channels, room)
    image = stretch(image) if stretched else image
    name, (height, width) = files[0].as_posix(), image.shape[-2:]
    more = (each.for_image(name, height, width).unsqueeze(0) for each in further)
    return Source((image.unsqueeze(0), *more), stored)


def _read_views(files: Files, room: int) -> Source:
    (left, stored), (right, _) = (read_stored(path, 3, room // 2) for path in files)
    if left.shape != right.shape:
        raise DataError(f"{str(files[0])!r} is not of the size of its right view")
    return Source((torch.cat((left, right)).unsqueeze(0),), stored)


def _cube_reader(all_files: Sequence[Files], bands: int, mat_key: str | None) -> Read:
    white = white_of_files([files[0] for files in all_files], bands, mat_key)
    return lambda files, room: Source((read_cube(files[0], bands, mat_key, white).unsqueeze(0),))
