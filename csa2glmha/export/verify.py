"""Comparing an exported file with PyTorch, on inputs of three sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.core.errors import CheckpointError, DataError, ExportError
from csa2glmha.core.text import first_line
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.networks import RestorationModel

#: Sides that files are compared at are multiples of no less than this.
_LEAST_STEP = 8


@dataclass(frozen=True)
class SizeParity:
    """How far ONNX Runtime's output is from PyTorch's for one input size.

    Attributes:
        shape: of the (first) input, (B, C, H, W).
        max_abs: largest absolute difference.
        relative: that over the range (largest minus smallest value) of PyTorch's output.
    """

    shape: tuple[int, ...]
    max_abs: float
    relative: float


@dataclass(frozen=True)
class Case:
    """Inputs of one size and PyTorch's output for them."""

    inputs: tuple[Tensor, ...]
    expected: Tensor

    def differences(self, output: Tensor) -> tuple[float, float]:
        """The largest difference of another output, and its share of the range of PyTorch's.

        Infinite where one of the two has a value that is no number.

        Raises:
            ExportError: it has another shape; the message goes on from what made it.
        """
        if output.shape != self.expected.shape:
            shapes = tuple(output.shape), tuple(self.inputs[0].shape), tuple(self.expected.shape)
            raise ExportError("gives an output of shape {} for input {}, PyTorch {}".format(*shapes))
        largest = float((output - self.expected).abs().max())
        if math.isnan(largest):
            return math.inf, math.inf
        spread = float(self.expected.max() - self.expected.min())
        # A constant output has no range to measure by: then only equality will do.
        return largest, largest / spread if spread else (0.0 if largest == 0 else math.inf)

    def psnr(self, output: Tensor) -> float:
        """That of another output to PyTorch's, in dB, of the range of PyTorch's; minus infinity of NaN."""
        spread = float(self.expected.max() - self.expected.min())
        error = float((output - self.expected).square().mean()) / max(spread**2, 1e-30)
        if math.isnan(error):
            return -math.inf
        return -10 * math.log10(error) if error > 0 else math.inf


def check_example(model: RestorationModel, example: Sequence[Tensor] | None) -> None:
    """Raise DataError where inputs to compare on have not the channels that the model's have."""
    if example is None:
        return
    m = model.size_multiple
    shapes = model.input_shapes(*(model.fixed_size or (m, m)))
    for name, given, shape in zip(model.input_names, example, shapes, strict=False):
        if len(shape) != 4:
            if given.shape[1:] != shape[1:]:
                raise DataError(
                    f"the example {name} for the ONNX check has shape {tuple(given.shape)}: give {shape}"
                )
        elif given.ndim not in (3, 4) or given.shape[-3] != shape[1] or given.numel() == 0:
            raise DataError(
                f"the example {name} for the ONNX check has shape {tuple(given.shape)}: "
                f"give (1, {shape[1]}, height, width)"
            )


def cases_for(network: RestorationModel, example: Sequence[Tensor] | None) -> list[Case]:
    """The size that is traced, as a batch; another one; and one that needs padding, if the network pads.

    A network for one size only is tried at that one, as a batch and singly. One that takes single images is
    tried on such.
    """
    most = 2 if network.batches else 1
    if network.fixed_size is not None:
        return [_case(network, example, batch, *network.fixed_size) for batch in range(most, 0, -1)]
    # At smaller sizes the deepest features of networks that pad by themselves would be a single pixel, which
    # PyTorch's exporter takes for a constant.
    m = network.size_multiple * math.ceil(_LEAST_STEP / network.size_multiple)
    cases = [_case(network, example, most, 5 * m, 7 * m), _case(network, example, 1, 8 * m, 6 * m)]
    try:
        cases.append(_case(network, example, 1, 6 * m + 3, 4 * m + 5))
    except DataError:
        cases.append(_case(network, example, 1, 6 * m, 5 * m))
    return cases


def case_of(network: RestorationModel, example: Sequence[Tensor] | None, shape: Sequence[int]) -> Case:
    """The one size that a file of fixed sizes takes, from the shape (B, C, H, W) of its first input."""
    batch, _, height, width = shape
    return _case(network, example, batch, height, width)


def _case(
    network: RestorationModel, example: Sequence[Tensor] | None, batch: int, height: int, width: int
) -> Case:
    given = list(example or ())
    shapes = network.input_shapes(height, width, batch)
    inputs = tuple(
        _input(given[index] if index < len(given) else None, shape) for index, shape in enumerate(shapes)
    )
    with torch.no_grad():
        return Case(inputs, network(*inputs))


def _input(given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """An input of this shape, made of the given one if there is one."""
    if len(shape) == 4:
        return _synthetic_image(shape) if given is None else _crops(given, shape)
    if given is None:
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return given[:1].detach().to("cpu", torch.float32).expand(shape).contiguous()


def _synthetic_image(shape: tuple[int, ...]) -> Tensor:
    """Smooth shading with a little noise, in [0, 1]: statistics of an image, not of white noise."""
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    coarse = torch.rand(batch, channels, 5, 5, generator=generator)
    shading = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return (shading + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)


def _crops(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One crop per batch entry, side by side, of the image's periodic continuation."""
    batch, _, height, width = shape
    image = image.detach().to("cpu", torch.float32).reshape(-1, *image.shape[-3:])[0]
    rows = torch.arange(height) % image.shape[1]
    columns = torch.arange(batch * width) % image.shape[2]
    return torch.stack(image[:, rows][:, :, columns].split(width, dim=2))


@dataclass(frozen=True)
class Check:
    """What a file is held against before it gets its name.

    Attributes:
        cases: inputs and PyTorch's outputs.
        tolerance: on :attr:`SizeParity.relative`.
    """

    cases: list[Case]
    tolerance: float

    def write(
        self, proto: onnx.ModelProto, path: Path, metadata: Mapping[str, str]
    ) -> tuple[SizeParity, ...]:
        """Write ``proto`` to ``path`` and hold the file against the ONNX checker and PyTorch.

        Raises:
            ExportError: it fails either.
        """
        onnx.helper.set_model_props(proto, dict(metadata))
        path.write_bytes(proto.SerializeToString())
        try:
            onnx.checker.check_model(str(path), full_check=True)
            runtime = OnnxModel(path)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, CheckpointError) as error:
            raise ExportError(
                f"the ONNX graph is not valid: {first_line(error)}; "
                "try another opset, or use the PyTorch checkpoint"
            ) from error
        parity = tuple(_compare(runtime, case) for case in self.cases)
        for size in parity:
            # Written so that NaN fails.
            if not size.relative <= self.tolerance:
                raise ExportError(
                    f"ONNX Runtime's output differs from PyTorch's by {size.relative:.1e} of its range "
                    f"(largest difference {size.max_abs:.1e}) for input {size.shape}, "
                    f"tolerance {self.tolerance:.1e}: use the PyTorch checkpoint, "
                    "or raise the tolerance if that is good enough"
                )
        return parity

    def agrees(self, runtime: OnnxModel, case: Case) -> bool:
        """Whether a file gives what PyTorch gives for these inputs."""
        try:
            return _compare(runtime, case).relative <= self.tolerance
        except ExportError:
            return False


def _compare(runtime: OnnxModel, case: Case) -> SizeParity:
    shape = tuple(case.inputs[0].shape)
    try:
        output = runtime(*case.inputs)
    except DataError as error:
        raise ExportError(f"the ONNX graph does not run: {error}; use the PyTorch checkpoint") from error
    try:
        return SizeParity(shape, *case.differences(output))
    except ExportError as error:
        raise ExportError(f"the ONNX graph {error}: use the PyTorch checkpoint") from error
