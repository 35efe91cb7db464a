"""Images as inputs of classifiers: all of any size, each brought to the one that the network takes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from csa2glmha.config.data import DataOptions
from csa2glmha.config.options import WorkOptions
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.batches import Data
from csa2glmha.data.crops import ImageSource
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import MemoryImages, bundled_images, read_stored
from csa2glmha.data.inputs.kind import (
    Examples,
    FileInputs,
    Files,
    LazyExamples,
    NetworkFacts,
    NeverStretched,
    Source,
    image_formats,
)
from csa2glmha.data.inputs.refusals import refuse_cassi_options, refuse_further_inputs
from csa2glmha.data.labels import Labels, labels_of
from csa2glmha.data.sources import bundled_source, fitting_degradation
from csa2glmha.data.subset import split
from csa2glmha.data.whole_images import ClassData, Size, Views, centred
from csa2glmha.metrics.outputs import LOGITS, Outputs

#: What a student's metadata call the size that images are brought to, as "224x224".
IMAGE_SIZE = "image_size"
#: Side where neither network nor user names one: that of most classifiers.
USUAL_SIDE = 224
#: At most so many images are held out: of eight, top-1 agreement would come in steps of an eighth.
MOST_HELD_OUT = 256


class ClassifiedImages(NeverStretched):
    """Images, with their classes where folders tell; see :class:`csa2glmha.data.inputs.kind.InputKind`."""

    def takes(self, channels: int, bands: int) -> bool:
        """Whatever a classifier takes."""
        return True

    def outputs(self, network: NetworkFacts) -> Outputs:
        """Logits."""
        return LOGITS

    def shapes(
        self, network: NetworkFacts, height: int, width: int, batch: int = 1
    ) -> tuple[tuple[int, ...], ...]:
        """One input."""
        return ((batch, network.channels, height, width),)

    def open_data(self, network: NetworkFacts, options: WorkOptions) -> Data:
        """Images of any size, an eighth of them held out."""
        self._refuse(network, options)
        images, source, labels, notes = _open(network, options)
        size, degrade = image_size(network, options), fitting_degradation(options.degrade, network.scale)
        notes += (f"images are resized and cut to {size[0]} x {size[1]} pixels", *_unused(options))
        parts = split(images, source, options.seed, MOST_HELD_OUT)
        train, held_out = (Views(part, size, labels, degrade) for part in parts)
        return ClassData(train, held_out, source, notes)

    def open_examples(
        self, network: NetworkFacts, options: WorkOptions, teacher: bool, crop: int | None
    ) -> Examples:
        """All images of a folder, or the photographs that come with scikit-image."""
        self._refuse(network, options)
        size = image_size(network, options, crop)
        images, _, labels, notes = _open(network, options)
        if labels is None and not teacher:
            raise UsageError(
                "nothing to compare with: give --teacher, or as --data a folder with a folder for each of "
                f"the {network.bands} classes"
            )
        views = Views(images, size, labels, fitting_degradation(options.degrade, network.scale))
        return LazyExamples(len(images), lambda index: views.centre(index, options.seed)), notes

    def open_files(self, network: NetworkFacts, options: DataOptions, cube_suffix: str) -> FileInputs:
        """Image files."""
        self._refuse(network, options)
        read = partial(_read_image, channels=network.channels, size=image_size(network, options))
        return FileInputs(image_formats("", network.bands), lambda files: read)

    def provenance(self, network: NetworkFacts, options: DataOptions) -> dict[str, str]:
        """The size of the images, where the network takes any."""
        return {} if network.size else {IMAGE_SIZE: "x".join(map(str, image_size(network, options)))}

    def constants(self, data: Data) -> dict[str, Tensor]:
        """None."""
        return {}

    def _refuse(self, network: NetworkFacts, options: DataOptions) -> None:
        """Raise UsageError for options that classifiers have no use for."""
        refuse_further_inputs(network.name, network.count)
        refuse_cassi_options(network.name, options)
        self.stretches(network, options)
        if options.targets is not None:
            raise UsageError(
                f"--targets {options.targets}: {network.name} makes classes, no images; true classes are "
                "those of folders in --data, one for each class"
            )


def image_size(network: NetworkFacts, options: DataOptions, side: int | None = None) -> Size:
    """Height and width that images are brought to.

    That is what the network takes, where it takes one size only. If not, it is what --input-size says, what
    the student was made with, the size of the --example, or the usual one.

    Args:
        network: of it the size, and what its file says.
        options: they may have the two options.
        side: asked for in another way.

    Raises:
        UsageError: the network does not take what is asked for.
    """
    work = options if isinstance(options, WorkOptions) else None
    if side is None and work is not None and "input_size" in work.model_fields_set:
        side = work.input_size
    if network.size is not None:
        if side is not None and network.size != (side, side):
            size = "x".join(map(str, network.size))
            raise UsageError(f"{network.name}: takes images of {size} pixels only, not of {side}x{side}")
        return network.size
    if side is not None:
        return side, side
    told = network.metadata.get(IMAGE_SIZE, "").split("x")
    if len(told) == 2 and all(each.isdecimal() and 0 < int(each) < 1 << 15 for each in told):
        return int(told[0]), int(told[1])
    shapes = () if work is None else work.example_shapes
    return (shapes[0][2], shapes[0][3]) if shapes and len(shapes[0]) == 4 else (USUAL_SIDE, USUAL_SIDE)


def _open(
    network: NetworkFacts, options: DataOptions
) -> tuple[ImageSource, str, Labels | None, tuple[str, ...]]:
    """Images, the report's name for them, their classes, and notes."""
    if network.channels not in (1, 3):
        raise DataError(f"{network.name}: takes {network.channels} channels, which no image file has")
    if options.data is None:
        named = bundled_images(network.channels)
        note = f"no --data: using {len(named)} photographs bundled with scikit-image; give a folder of images"
        return MemoryImages(named), bundled_source(named), None, (note,)
    images = ImageSet.find(options.data, network.channels)
    labels, notes = labels_of(options.data, images.names, network.bands)
    return images, str(options.data), labels, (*images.notes(options.data), *notes)


def _unused(options: WorkOptions) -> tuple[str, ...]:
    """A note on sizes of crops that are not cut here."""
    given = {"--crop": options.crop, "--calibration-size": options.calibration_size}
    named = [
        f"{flag} {value}"
        for flag, value in given.items()
        if flag.strip("-").replace("-", "_") in options.model_fields_set
    ]
    return (f"{', '.join(named)}: not used, a classifier sees images whole",) if named else ()


def _read_image(files: Files, room: int, channels: int, size: Size) -> Source:
    path: Path = files[0]
    image, stored = read_stored(path, channels, room)
    return Source((centred(image, size)[None],), stored)
