"""From the folders a user names to images for training and images held out."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.batches import Example, Inputs
from csa2glmha.data.crops import ImageSource, TrainingCrops, calibration_crops
from csa2glmha.data.degrade import REDUCTION, Degradation, cut_to_multiple, parse_degradation
from csa2glmha.data.image_set import ImageSet, skipped_note
from csa2glmha.data.images import MemoryImages, bundled_images
from csa2glmha.data.inputs.spectral import CubeSet, SpectralPairs
from csa2glmha.data.inputs.stretch import NOTE as STRETCH_NOTE
from csa2glmha.data.inputs.stretch import Stretched
from csa2glmha.data.subset import split
from csa2glmha.data.views import DUAL_PIXEL_CHANNELS, DualViews, open_views
from csa2glmha.metrics.outputs import IMAGES, SPECTRA, Outputs
from csa2glmha.metrics.quality import SSIM_WINDOW

#: Channels of gray and colour images, and of pairs of colour images.
IMAGE_CHANNELS = (1, 3, 6)
#: Side of the crops that distillation trains on.
TRAINING_SIDE = 96
#: Side of the inputs of networks that enlarge them: outputs of 96 pixels would show little.
ENLARGED_SIDE = 64


@dataclass(frozen=True)
class ImageData:
    """Images as inputs of networks that take nothing else; see :class:`csa2glmha.data.batches.Data`.

    Attributes:
        train, held_out: disjoint sets of images.
        degrade: makes inputs of clean images; None where the images are inputs already.
        source, notes: as in :class:`csa2glmha.data.batches.Data`.
        has_ground_truth: a reference exists for the outputs.
        spectral: the outputs' channels are bands of a spectrum.
        stretched: each whole image is brought to [0, 1] first.
        scale: height and width of the outputs over those of the inputs.
    """

    train: ImageSource
    held_out: ImageSource
    degrade: Degradation | None
    source: str
    notes: tuple[str, ...]
    has_ground_truth: bool
    spectral: bool = False
    stretched: bool = False
    scale: Fraction = Fraction(1)

    @property
    def degradation(self) -> str | None:
        """What makes inputs of clean images, in the user's words."""
        return None if self.degrade is None else self.degrade.spec

    @property
    def outputs(self) -> Outputs:
        return SPECTRA if self.spectral else IMAGES

    @property
    def training_images(self) -> int:
        return len(self.train)

    @property
    def held_out_images(self) -> int:
        return len(self.held_out)

    def frame(self, size: int) -> tuple[int, int]:
        """A square."""
        return size, size

    def evaluation_size(self, size: int) -> int:
        """The same: any size will do."""
        return size

    def calibration(self, size: int, count: int, seed: int, held_out: bool = False) -> list[Inputs]:
        """As :meth:`csa2glmha.data.batches.Data.calibration`."""
        images = self.held_out if held_out else self.train
        crops, _ = calibration_crops(images, self.degrade, size, count, seed)
        return [(batch,) for batch in crops.split(2)]

    def training(self, size: int | None, seed: int) -> TrainingCrops:
        """As :meth:`csa2glmha.data.batches.Data.training`."""
        usual = ENLARGED_SIDE if self.scale > 1 else TRAINING_SIDE
        return TrainingCrops(self.train, self.degrade, size or usual, seed, not self.spectral)

    def examples(self, size: int, seed: int) -> list[Example]:
        """The central squares of the held-out images."""
        return [
            image_example(self.held_out, index, self.degrade, seed, size, not self.spectral)
            for index in range(len(self.held_out))
        ]


def image_example(
    images: ImageSource,
    index: int,
    degradation: Degradation | None,
    seed: int,
    size: int | None,
    clean_is_ground_truth: bool = True,
) -> Example:
    """One image to evaluate on; degraded with a generator of its own, so that order does not matter.

    Args:
        images: clean ones if there is a degradation, otherwise inputs.
        index: which.
        degradation: makes the input.
        seed: of the degradation.
        size: cut to the central square of at most this side of the input; None keeps whole images.
        clean_is_ground_truth: the network's output for a degraded image should be the clean one.
    """
    name, image, ground_truth = images.read(index)
    times = 1 if degradation is None else degradation.times
    larger = 1 if ground_truth is None else max(ground_truth.shape[-1] // image.shape[-1], 1)
    ground_truth = None if ground_truth is None else _centre(ground_truth, size, larger)
    image = cut_to_multiple(_centre(image, size, times), times)
    if degradation is not None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        image, ground_truth = degradation(image, generator), _wanted(image) if clean_is_ground_truth else None
    return Example(name, (image.unsqueeze(0),), ground_truth)


def _wanted(clean: Tensor) -> Tensor | None:
    """What to make of an input that was clean; None if that is not known.

    Of dual-pixel views (6, H, W) it is one view if they are the same.
    """
    if clean.shape[0] != 6:
        return clean
    left, right = clean.chunk(2)
    return left if torch.equal(left, right) else None


def _centre(image: Tensor, size: int | None, times: int = 1) -> Tensor:
    """The central square of ``times * size`` pixels, where an image so many times smaller has its own."""
    if size is None:
        return image
    top, left = (max(side // times - size, 0) // 2 * times for side in image.shape[-2:])
    size *= times
    return image[..., top : top + size, left : left + size]


def open_images(
    folder: Path,
    channels: int,
    targets: Path | None = None,
    pair: str | None = None,
    scale: Fraction = Fraction(1),
) -> tuple[ImageSource, tuple[str, ...]]:
    """All images of a folder that quality can be measured on, and notes on what was skipped.

    Raises:
        DataError: nothing usable, or dual-pixel views that are not there.
    """
    if channels == DUAL_PIXEL_CHANNELS:
        return open_views(folder, targets, pair)
    images = ImageSet.find(folder, channels, targets, pair=pair, smallest=SSIM_WINDOW, scale=scale)
    return images, images.notes(folder)


def open_inputs(
    folder: Path,
    channels: int,
    targets: Path | None,
    bands: int,
    mat_key: str | None,
    pair: str | None = None,
    scale: Fraction = Fraction(1),
) -> tuple[ImageSource, tuple[str, ...]]:
    """Inputs of a network that makes ``bands`` channels of ``channels``, and notes on what was skipped.

    Inputs are images, or cubes where no image has that many channels. Ground truth, where the bands are a
    spectrum, is a folder of cubes.

    Raises:
        DataError: nothing usable.
    """
    if channels not in IMAGE_CHANNELS:
        if targets is not None:
            raise DataError(f"--targets {targets}: cubes as inputs cannot be paired yet; leave it out")
        cubes = CubeSet.find(folder, channels, mat_key)
        return cubes, cubes.notes + skipped_note(folder, cubes.skipped)
    if targets is not None and is_spectral(channels, bands):
        pairs = SpectralPairs.find(folder, targets, bands, mat_key, pair)
        return pairs, pairs.notes + skipped_note(folder, pairs.skipped)
    return open_images(folder, channels, targets, pair, scale)


def wants_stretch(channels: int, bands: int) -> bool:
    """Whether a network of so many channels in and out is of those that take stretched images."""
    return channels == 3 and is_spectral(channels, bands)


def is_spectral(channels: int, bands: int) -> bool:
    """Whether a network of so many channels in and out makes spectra, not images."""
    return bands not in IMAGE_CHANNELS or (bands != channels and channels != DUAL_PIXEL_CHANNELS)


def prepare_images(
    folder: Path | None,
    targets: Path | None,
    degrade: str | None,
    channels: int,
    seed: int,
    bands: int | None = None,
    mat_key: str | None = None,
    pair: str | None = None,
    stretched: bool = False,
    scale: Fraction = Fraction(1),
) -> ImageData:
    """Open the images, split off the held-out ones.

    Args:
        folder: None takes the photographs that come with scikit-image.
        targets: ground truth of the images in ``folder``.
        degrade: as :func:`parse_degradation` reads it; None: the images are degraded already.
        channels: of the model's input.
        seed: decides the split.
        bands: channels of the model's output, where that makes spectra.
        mat_key: name of the array in .mat and .npz files.
        pair: how the names of images and targets differ; None finds it out.
        stretched: bring each whole image to [0, 1] first.
        scale: height and width of the model's output over those of its input.

    Raises:
        DataError, UsageError: no usable images, fewer than two, or a bad degradation.
    """
    if folder is None and degrade is None and scale > 1:
        degrade = f"{REDUCTION}:{scale}"
    degradation = fitting_degradation(degrade, scale)
    spectral = bands is not None and is_spectral(channels, bands)
    if folder is None:
        images, source, notes = _photographs(channels, degrade)
        if degrade is None and not spectral:
            degradation = parse_degradation("none")
            notes += ("no --degrade: if the model removes noise or blur, say which, e.g. --degrade noise:25",)
    else:
        images, notes = open_inputs(folder, channels, targets, bands or channels, mat_key, pair, scale)
        source = str(folder)
    if stretched:
        images, notes = Stretched(images), (*notes, STRETCH_NOTE)
    train, held_out = split(images, source, seed)
    known = targets is not None or (degradation is not None and not spectral)
    return ImageData(train, held_out, degradation, source, notes, known, spectral, stretched, scale)


def fitting_degradation(degrade: str | None, scale: Fraction) -> Degradation | None:
    """What makes inputs of clean images, for a network whose outputs are so many times larger.

    Raises:
        UsageError: not valid, or outputs would not be of the clean images' size.
    """
    if degrade is None:
        return None
    degradation = parse_degradation(degrade)
    if degradation.times == scale:
        return degradation
    if scale.denominator > 1:
        raise UsageError(f"--degrade {degrade}: no degradation is for networks that make images smaller")
    what = "of the size of their inputs" if scale == 1 else f"{scale} times as large as their inputs"
    advice = f"leave out {REDUCTION}" if scale == 1 else f"add {REDUCTION}:{scale}"
    raise UsageError(f"--degrade {degrade}: the network makes images {what}; {advice}")


def _photographs(channels: int, degrade: str | None) -> tuple[ImageSource, str, tuple[str, ...]]:
    """The photographs that come with scikit-image, the report's name for them, and notes."""
    if channels not in IMAGE_CHANNELS:
        raise DataError(f"no images of {channels} channels come with this tool: give --data DIR")
    named = bundled_images(3 if channels == DUAL_PIXEL_CHANNELS else channels)
    images: ImageSource = MemoryImages(named)
    if channels == DUAL_PIXEL_CHANNELS:
        images = DualViews(images, {})
    how = f"degraded by {degrade}" if degrade else "not degraded"
    note = (
        f"no --data: using {len(images)} photographs bundled with scikit-image, {how}; images of the model's "
        "own task serve better"
    )
    return images, bundled_source(named), (note,)


def bundled_source(images: list[tuple[str, Tensor]]) -> str:
    """How the report names the bundled photographs."""
    return "photographs bundled with scikit-image: " + ", ".join(name for name, _ in images)
