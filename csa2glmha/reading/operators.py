"""Operators that see all pixels of an image at once, besides channel attention.

A network is run at two sizes. An axis that is longer in one of them is of pixels; an operator that sums over
such an axis, or mixes along it without end, gives something else for a tile than for the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from csa2glmha.reading.recording import Call, Operation, Recording, Value

#: Reductions, in words: global where their result has fewer axes of pixels than what they take.
_REDUCTIONS = {
    "mean": "mean over all pixels",
    "sum": "sum over all pixels",
    "prod": "product over all pixels",
    "amax": "maximum over all pixels",
    "amin": "minimum over all pixels",
    "max": "maximum over all pixels",
    "min": "minimum over all pixels",
    "argmax": "maximum over all pixels",
    "argmin": "minimum over all pixels",
    "median": "median over all pixels",
    "var": "variance over all pixels",
    "std": "deviation over all pixels",
    "var_mean": "variance over all pixels",
    "linalg_vector_norm": "norm over all pixels",
    "norm": "norm over all pixels",
    "logsumexp": "sum over all pixels",
    "any": "condition over all pixels",
    "all": "condition over all pixels",
    "_adaptive_avg_pool2d": "pooling to a fixed size",
    "adaptive_max_pool2d": "pooling to a fixed size",
    "_adaptive_avg_pool3d": "pooling to a fixed size",
    "avg_pool2d": "pooling over all pixels",
    "max_pool2d_with_indices": "pooling over all pixels",
    "upsample_bilinear2d": "resize to a fixed size",
    "upsample_bicubic2d": "resize to a fixed size",
    "upsample_nearest2d": "resize to a fixed size",
    "_upsample_bilinear2d_aa": "resize to a fixed size",
    "_upsample_bicubic2d_aa": "resize to a fixed size",
}
#: Operators along one axis: global where that axis is of pixels.
_ALONG = {
    "_softmax": "softmax over all pixels",
    "softmax": "softmax over all pixels",
    "_safe_softmax": "softmax over all pixels",
    "_log_softmax": "softmax over all pixels",
    "topk": "top-k over all pixels",
    "sort": "sorting of all pixels",
    "argsort": "sorting of all pixels",
    "kthvalue": "sorting of all pixels",
    "cumsum": "running sum over all pixels",
    "cumprod": "running product over all pixels",
}
_WHOLE_ATTENTION = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
_FOURIER = ("_fft_r2c", "_fft_c2r", "_fft_c2c")
_NORMS = {
    "native_group_norm": "group norm over all pixels",
    "native_layer_norm": "layer norm over all pixels",
    "native_batch_norm": "instance norm over all pixels",
    "_native_batch_norm_legit": "instance norm over all pixels",
}


@dataclass(frozen=True)
class GlobalOperator:
    """Something that sees all pixels at once.

    Attributes:
        module: name of the module that it is in, "" for the network itself.
        kind: what it is, in words.
        operators: how many there are of it.
    """

    module: str
    kind: str
    operators: int = 1


def global_operators(
    small: Recording, large: Recording, without: Collection[str] = (), known: Collection[int] = ()
) -> tuple[GlobalOperator, ...]:
    """The global operators of a network, from its passes at two sizes.

    Args:
        small, large: recordings of the same network.
        without: names of modules whose operators are not wanted, with all that is in them.
        known: indices of other operators of the first pass that are not wanted.
    """
    counts: dict[tuple[str, str], int] = {}
    for first, second in _matched(small, large):
        if first.index in known:
            continue
        kind = _kind(first, second)
        path = first.call.path
        if kind is not None and not any(path == name or path.startswith(name + ".") for name in without):
            counts[path, kind] = counts.get((path, kind), 0) + 1
    return tuple(GlobalOperator(path, kind, count) for (path, kind), count in counts.items())


def _matched(small: Recording, large: Recording) -> Iterator[tuple[Operation, Operation]]:
    """The same operators of both passes, call by call; calls that did different things are left out."""
    others = _by_call(large)
    for key, operations in _by_call(small).items():
        other = others.get(key, [])
        if [each.name for each in operations] == [each.name for each in other]:
            yield from zip(operations, other, strict=True)


def _by_call(recording: Recording) -> dict[tuple[str, int], list[Operation]]:
    numbers: dict[Call, tuple[str, int]] = {}
    seen: dict[str, int] = {}
    for call in recording.calls:
        numbers[call] = (call.path, seen.get(call.path, 0))
        seen[call.path] = numbers[call][1] + 1
    operations: dict[tuple[str, int], list[Operation]] = {}
    for operation in recording.operations:
        operations.setdefault(numbers[operation.call], []).append(operation)
    return operations


def _growing(first: Value, second: Value) -> list[int]:
    """The axes that differ in length: those of pixels."""
    return [
        axis for axis, (one, other) in enumerate(zip(first.shape, second.shape, strict=False)) if one != other
    ]


def _kind(first: Operation, second: Operation) -> str | None:
    """What a pair of operators is, None where it is not global."""
    if not first.inputs or not first.outputs or all(value.constant for value in first.inputs):
        return None
    name = first.name.rstrip("_")
    axes = _growing(first.inputs[0], second.inputs[0])
    if name in _WHOLE_ATTENTION:
        return "attention over all pixels" if axes else None
    if name in ("bmm", "mm", "baddbmm"):
        return _product(first, second)
    if name.startswith("_scaled_dot_product"):
        keys = _growing(first.inputs[1], second.inputs[1])
        return "attention over all pixels" if any(axis >= 2 for axis in keys) else None
    if not axes:
        return None
    if name in _REDUCTIONS:
        left = _growing(first.outputs[0], second.outputs[0])
        return _REDUCTIONS[name] if len(left) < len(axes) else None
    dims = first.inputs[0].tensor.ndim
    if name in _ALONG:
        return _ALONG[name] if _axis(first, dims) in axes else None
    if name in _FOURIER:
        given: Collection[int] = first.args[1]
        return "Fourier transform of the whole map" if any(axis % dims in axes for axis in given) else None
    if name in _NORMS and _normalises(first, dims, axes):
        return _NORMS[name]
    return None


def _axis(operation: Operation, dims: int) -> int:
    """The axis that an operator runs along."""
    names: Callable[..., object] = operation.function
    position = next(
        index
        for index, argument in enumerate(names._schema.arguments)  # type: ignore[attr-defined]
        if argument.name == "dim"
    )
    given = operation.args[position] if position < len(operation.args) else operation.kwargs.get("dim", -1)
    return int(given) % dims


def _product(first: Operation, second: Operation) -> str | None:
    """Whether a matrix product sums over pixels."""
    left = first.args[-2] if first.name != "baddbmm" else first.args[1]
    other = second.args[-2] if second.name != "baddbmm" else second.args[1]
    return "product summed over all pixels" if left.tensor.ndim - 1 in _growing(left, other) else None


def _normalises(operation: Operation, dims: int, axes: list[int]) -> bool:
    """Whether a norm's statistics are over pixels."""
    if operation.name == "native_layer_norm":
        normalised: Collection[int] = operation.args[1]
        return any(axis >= dims - len(normalised) for axis in axes)
    if operation.name in ("native_batch_norm", "_native_batch_norm_legit"):
        # In evaluation batch norm has statistics of its own; with those of the image it is an instance norm.
        return bool(operation.args[-3])
    return any(axis >= 2 for axis in axes)
