"""What every operator costs: multiply-accumulates that PyTorch's counter leaves out, and what else there is.

The convention is told in :mod:`csa2glmha.metrics.complexity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: FLOPs that are not part of a MAC, from an operator's arguments and its output.
Handler = Callable[[tuple[Any, ...], Any], int]


def _convolution(args: tuple[Any, ...], output: Any) -> int:
    # (input, weight, bias, ...)
    return 0 if args[2] is None else _first(output).numel()


def _fused_attention(args: tuple[Any, ...], output: Any) -> int:
    # query (B, h, L, E), key (B, h, S, E), value (B, h, S, Ev).
    query, key = args[:2]
    logits: int = math.prod(query.shape[:-1]) * key.shape[-2]
    return 6 * logits


def _per_output(flops: int) -> Handler:
    return lambda args, output: flops * _first(output).numel()


def _per_input(flops: int) -> Handler:
    return lambda args, output: flops * int(args[0].numel())


def _statistics_norm(weight: int) -> Handler:
    """Price a normalisation whose weight is the given argument and whose bias is the next."""

    def handler(args: tuple[Any, ...], output: Any) -> int:
        affine = sum(parameter is not None for parameter in args[weight : weight + 2])
        return (5 + affine) * int(args[0].numel())

    return handler


def _batch_norm(args: tuple[Any, ...], output: Any) -> int:
    # (input, weight, bias, running_mean, running_var, training, ...)
    return (7 if args[5] else 2) * int(args[0].numel())


def _pooling(args: tuple[Any, ...], output: Any) -> int:
    # (input, kernel_size, ...); a kernel of one number is square.
    kernel = args[1] if len(args[1]) == 2 else args[1] * 2
    window: int = math.prod(kernel)
    return window * _first(output).numel()


def _first(output: Any) -> Tensor:
    """Return the result itself of an operator that also returns indices or statistics."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _names(
    """
    abs add atan atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max clamp_min cos
    div elu eq erf exp expm1 floor floor_divide fmod ge gelu gt hardsigmoid hardswish hardtanh isfinite
    isinf isnan le leaky_relu log log10 log1p log2 log_sigmoid_forward logical_and logical_not logical_or
    logical_xor lt maximum minimum mish mul ne neg pow _prelu_kernel reciprocal relu remainder round rsqrt
    rsub sigmoid sign silu sin softplus sqrt sub tanh threshold trunc
    """
)

_REDUCTIONS = _names(
    """
    _adaptive_avg_pool2d all amax amin any argmax argmin cummax cummin cumprod cumsum max mean min prod sum
    """
)

_Shape = tuple[int, ...]


def _addbmm(summand: _Shape, left: _Shape, right: _Shape, **rest: object) -> int:
    return 2 * math.prod(left) * right[-1]


def _attention(query: _Shape, key: _Shape, value: _Shape, *rest: object, **more: object) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


#: Twice the MACs of operators that PyTorch's counter leaves out, from the shapes of their arguments.
FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: lambda matrix, vector, **rest: 2 * math.prod(matrix),
    torch.ops.aten.dot: lambda left, right, **rest: 2 * math.prod(left),
    torch.ops.aten.addmv: lambda summand, matrix, vector, **rest: 2 * math.prod(matrix),
    torch.ops.aten.addbmm: _addbmm,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _attention,
}

HANDLERS: dict[str, Handler] = {
    "convolution": _convolution,
    **dict.fromkeys(["mm", "bmm", "mv", "dot"], _per_output(0)),
    **dict.fromkeys(["addmm", "addmv", "baddbmm", "addbmm"], _per_output(1)),
    "_scaled_dot_product_cudnn_attention": _fused_attention,
    "_scaled_dot_product_efficient_attention": _fused_attention,
    "_scaled_dot_product_flash_attention": _fused_attention,
    "_scaled_dot_product_flash_attention_for_cpu": _fused_attention,
    "_scaled_dot_product_fused_attention_overrideable": _fused_attention,
    **dict.fromkeys(_ELEMENTWISE, _per_output(1)),
    **dict.fromkeys(["addcmul", "addcdiv", "glu"], _per_output(2)),
    "lerp": _per_output(3),
    **dict.fromkeys(_REDUCTIONS, _per_input(1)),
    "linalg_vector_norm": _per_input(2),
    **dict.fromkeys(["var", "std", "var_mean", "std_mean"], _per_input(4)),
    **dict.fromkeys(["_softmax", "_safe_softmax", "_log_softmax"], _per_input(5)),
    "native_layer_norm": _statistics_norm(weight=2),
    "native_group_norm": _statistics_norm(weight=1),
    "native_batch_norm": _batch_norm,
    "avg_pool2d": _pooling,
    "max_pool2d_with_indices": _pooling,
    "upsample_bilinear2d": _per_output(7),
}

FREE = _names(
    """
    _reshape_alias _to_copy _unsafe_view alias arange as_strided cat channel_shuffle clone constant_pad_nd
    copy detach diag_embed diagonal empty empty_like empty_strided expand eye fill flip full full_like
    gather im2col index index_put index_select lift_fresh masked_fill narrow new_empty new_full new_ones
    new_zeros ones ones_like permute pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
    repeat replication_pad1d replication_pad2d roll scalar_tensor scatter select select_scatter slice
    slice_scatter split split_with_sizes squeeze stack t transpose tril triu unbind unfold unsafe_split
    unsqueeze upsample_nearest2d view view_as_complex view_as_real where zero zeros zeros_like
    """
)
