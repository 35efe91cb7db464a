"""ONNX files on images of any size: padded to what a file takes, cropped again, and checked.

Files of ours take any size, or say which one. Files of others often fail where a side is no multiple of 2, 8
or 64, or hold for one size only, and say nothing of either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError
from csa2glmha.data.batches import Inputs
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.inference.grid import Tile, divide_axis
from csa2glmha.inference.tiles import restore_separately
from csa2glmha.networks import reflect_pad_to_multiple, scaled

#: Sides that networks ask for a multiple of.
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
#: Context of tiles; small ones have a quarter of their side.
_OVERLAP = 64


class FittedOnnx:
    """An ONNX file as a network from images to images of the same size, or to logits.

    Args:
        model: the open file.

    Attributes:
        foreign: it is not one of ours.
    """

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._multiple = MULTIPLES[0]
        self.foreign = model.foreign

    def __call__(self, inputs: Inputs) -> Tensor:
        """Run the file.

        Args:
            inputs: (B, C, H, W) each, in call order; those that the file does not take are left out.

        Returns:
            (B, C', H, W), or logits (B, classes) of images as large as the file takes them.

        Raises:
            DataError: the file fails, or its output is of another size or not finite.
        """
        taken = inputs[: len(self._model.input_names)]
        if self._model.classifies:
            return self._finite(self._model(*taken), taken[0])
        if not self.foreign or len(taken) > 1:
            return self._checked(taken)
        if self._model.fixed_size is not None:
            return self._in_tiles(taken[0], self._model.fixed_size)
        return self._padded(taken[0])

    def _padded(self, image: Tensor) -> Tensor:
        """Padded to the smallest multiple that the file takes, which is kept for the next image."""
        height, width = image.shape[-2:]
        first: DataError | None = None
        tried: set[tuple[int, ...]] = set()
        for multiple in MULTIPLES[MULTIPLES.index(self._multiple) :]:
            padded = reflect_pad_to_multiple(image, multiple)
            if tuple(padded.shape) in tried:
                continue
            tried.add(tuple(padded.shape))
            try:
                output = self._of_same_size((padded,))
            except DataError as error:
                first = first or error
                continue
            self._multiple = multiple
            # Another multiple is no cure for values: it would only be tried in vain, and kept by chance.
            return self._finite(output, padded)[..., :height, :width]
        assert first is not None
        raise first

    def _in_tiles(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Tiles of the one size that the file takes; a smaller image is padded to it."""
        height, width = image.shape[-2:]
        for axis, side in ((2, size[0]), (3, size[1])):
            while image.shape[axis] < side:
                image = _extended(image, axis, side)
        rows, columns = (
            divide_axis(length, side, min(_OVERLAP, side // 4), 1)
            for length, side in zip(image.shape[-2:], size, strict=True)
        )
        tiles = [Tile(row, column) for row in rows for column in columns]
        return restore_separately(self._checked, (image,), tiles)[..., :height, :width]

    def _checked(self, inputs: Inputs) -> Tensor:
        return self._finite(self._of_same_size(inputs), inputs[0])

    def _of_same_size(self, inputs: Inputs) -> Tensor:
        output = self._model(*inputs)
        height, width = inputs[0].shape[-2:]
        scale = self._model.facts.scale
        if output.shape[-2:] != (scaled(height, scale), scaled(width, scale)):
            raise DataError(
                f"{str(self._model.path)!r} makes {output.shape[-1]}x{output.shape[-2]} pixels of "
                f"{width}x{height}; only networks whose output is as large as their input can be used"
            )
        return output

    def _finite(self, output: Tensor, image: Tensor) -> Tensor:
        if not torch.isfinite(output).all():
            height, width = image.shape[-2:]
            raise DataError(
                f"{str(self._model.path)!r} makes values that are not finite of an input of "
                f"{width}x{height} pixels"
            )
        return output


def _extended(image: Tensor, axis: int, side: int) -> Tensor:
    """By reflection, as far as one reflection reaches."""
    length = image.shape[axis]
    missing = min(side - length, max(length - 1, 1))
    last = torch.arange(length - 1, length - 1 - missing, -1).sub(1 if length > 1 else 0)
    return torch.cat((image, image.index_select(axis, last.clamp_min(0))), axis)
