"""Reading a network that is given in memory, of no family, on inputs that it takes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from csa2glmha.core.text import listed
from csa2glmha.networks.probe import noise
from csa2glmha.reading.network import Readings, read_network

#: A recording is made of this height and width at most: it is as good as one of a large image.
_HEIGHT, _WIDTH = 64, 96
#: Sizes that a file may ask for.
_LARGEST = 1024


def read_given(model: nn.Module, inputs: Sequence[Tensor]) -> Readings:
    """Read the attention of ``model`` by recording, and let it carry the readers, as its copies do.

    Args:
        model: the network; it gets the attribute ``recorded_readers``.
        inputs: that it takes, of which a part is used.
    """
    try:
        readings = read_network(model, narrowed(inputs))
    except Exception:  # a part may be too small for it; what it raises on the whole is the user's to see
        readings = read_network(model, tuple(each[:1] for each in inputs))
    readings.carried_by(model)
    return readings


def read_shaped(model: nn.Module, shapes: Sequence[Sequence[object]]) -> Readings:
    """The same on noise of these shapes, which a file gave.

    Raises:
        ValueError: they are no shapes of inputs.
    """
    return read_given(model, noise([tuple(_size(size) for size in shape) for shape in shapes]))


def _size(value: object) -> int:
    if not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise ValueError(f"{value!r} is no size of an input")
    return value


def narrowed(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first of a batch, no larger than is good for a recording, and not square where it can be cut."""
    first = inputs[0]
    if first.ndim != 4:
        return tuple(each[:1] for each in inputs)
    low, wide = min(first.shape[2], _HEIGHT), min(first.shape[3], _WIDTH)
    if low == wide and wide % 2 == 0:
        wide //= 2
    return tuple(
        each[:1, :, :low, :wide] if each.ndim == 4 and each.shape[2:] == first.shape[2:] else each[:1]
        for each in inputs
    )


def refusals(readings: Readings) -> tuple[str, ...]:
    """A line for each reason for which attention across channels was not read."""
    by_reason: dict[str, list[str]] = {}
    for each in readings.refused:
        by_reason.setdefault(each.reason, []).append(each.name)
    return tuple(f"not converted: {listed(names, 3)}: {reason}" for reason, names in by_reason.items())
