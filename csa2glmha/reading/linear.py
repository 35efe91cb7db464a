"""Linear layers of a recording: what one does to the channels of each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.reading.recording import Operation, Value

#: Operators in the field's words.
_WORDS = {
    "native_layer_norm": "a layer norm",
    "layer_norm": "a layer norm",
    "native_group_norm": "a group norm",
    "native_batch_norm": "a batch norm",
    "_native_batch_norm_legit_no_training": "a batch norm",
    "gelu": "a GELU",
    "relu": "a ReLU",
    "silu": "a SiLU",
    "sigmoid": "a sigmoid",
    "mul": "a product with another map",
    "add": "a sum with another map",
    "div": "a division",
    "convolution": "another convolution",
    "addmm": "another linear layer",
    "mm": "another linear layer",
    "cat": "a concatenation",
    "topk": "a top-k",
    "where": "a selection",
    "avg_pool2d": "a pooling",
    "max_pool2d_with_indices": "a pooling",
    "_adaptive_avg_pool2d": "a pooling",
    "mean": "a mean",
    "upsample_bilinear2d": "a resize",
    "_upsample_bilinear2d_aa": "a resize",
    "upsample_nearest2d": "a resize",
    "_fft_r2c": "a Fourier transform",
    "_fft_c2r": "a Fourier transform",
    "_fft_c2c": "a Fourier transform",
}


class Unreadable(Exception):
    """Why an attention is not read, in the field's words."""


@dataclass(frozen=True)
class Linear:
    """A linear layer of the recording: what it does to the channels of each pixel.

    Attributes:
        matrix: (out, in), or None where it is depthwise.
        bias: (out,) or None.
        kernel: (out, k, k), where it is depthwise.
        inputs: of a depthwise layer, the input channel that every output channel sees.
    """

    operation: Operation
    source: Value
    matrix: Tensor | None
    bias: Tensor | None
    kernel: Tensor | None = None
    inputs: Tensor | None = None
    dilation: int = 1

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor in the place of the input or the result, for one image, as (channels, pixels)."""
        name = self.operation.name
        if name == "convolution":
            return tensor.flatten(2)[0]
        if name in ("mm", "bmm") and self.operation.args[0].constant:
            return tensor.reshape(*tensor.shape[-2:])
        return tensor.reshape(-1, tensor.shape[-1]).t()


def words(operation: Operation) -> str:
    """An operator in a message."""
    name = operation.name.rstrip("_")
    return _WORDS.get(operation.name, _WORDS.get(name, f"the operator {name}"))


def read_linear(operation: Operation, name: str) -> Linear:
    """A convolution or a linear layer of the recording.

    Raises:
        Unreadable: it is neither pointwise nor depthwise.
    """
    if operation.name == "convolution":
        return _read_convolution(operation, name)
    if operation.name == "addmm" and not operation.kwargs:
        bias, source, weight = operation.args[:3]
        return Linear(operation, source, _data(weight).t(), _data(bias).expand(weight.shape[1]))
    if operation.name in ("mm", "bmm"):
        left, right = operation.args[:2]
        weight = left if left.constant else right
        data = _data(weight).reshape(-1, *weight.shape[-2:])
        if not bool((data == data[:1]).all()):
            raise Unreadable(f"the projection of its {name} differs from head to head in a way not known")
        return Linear(
            operation, right if left.constant else left, data[0] if left.constant else data[0].t(), None
        )
    raise Unreadable(f"its {name} are made by {operation.name}")


def _read_convolution(operation: Operation, name: str) -> Linear:
    source, weight, bias, stride, padding, dilation, transposed, _, groups = operation.args
    kernel, data = tuple(weight.shape[2:]), _data(weight)
    offset = None if bias is None else _data(bias)
    if set(stride) != {1} or transposed:
        raise Unreadable(f"its {name} are made at another size than the maps have (strided convolution)")
    if set(kernel) == {1} and set(padding) == {0}:
        matrix = data.flatten(1)
        if groups > 1:
            matrix = torch.block_diag(*matrix.chunk(groups))
        return Linear(operation, source, matrix, offset)
    size = "x".join(map(str, kernel))
    if weight.shape[1] != 1 or groups != source.shape[1] or len(kernel) != 2:
        raise Unreadable(
            f"its {name} are made by a {size} convolution across channels, not by a 1x1 and a depthwise one"
        )
    same = [step * (length // 2) for step, length in zip(dilation, kernel, strict=True)]
    if kernel[0] != kernel[1] or kernel[0] % 2 == 0 or list(padding) != same or len(set(dilation)) > 1:
        raise Unreadable(f"its {name} are made by a depthwise {size} convolution that is not centred")
    inputs = torch.arange(data.shape[0]) // (data.shape[0] // groups)
    return Linear(operation, source, None, offset, data[:, 0], inputs, int(dilation[0]))


def _data(value: Value) -> Tensor:
    return value.tensor.detach()
