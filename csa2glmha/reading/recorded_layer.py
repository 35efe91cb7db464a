"""One module of a recording that attends across channels: read from all of its calls, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.reading.call import RecordedForm, read_pair
from csa2glmha.reading.check import CanonicalLayer, check_call
from csa2glmha.reading.find import Pair
from csa2glmha.reading.linear import Unreadable
from csa2glmha.reading.map_call import RecordedMap, read_map
from csa2glmha.reading.map_only import CanonicalMap, MapOnlyReader
from csa2glmha.reading.recorded import RecordedReader
from csa2glmha.reading.recording import Call, Recording
from csa2glmha.reading.replacement import Replacement


@dataclass(frozen=True)
class RecordedLayer:
    """One attention that is read, and computes what its module computes.

    Attributes:
        name: of its module in the network.
        form: the canonical form.
        reader: how the package goes on with it.
        error: largest difference of the canonical form to recorded results, as a share of the largest number.
        calls: how often the module is called in one pass.
        operators: indices of those of the first pass that make its map, where the rest of its module stays.
    """

    name: str
    module: nn.Module
    form: ChannelAttention
    reader: RecordedReader
    error: float
    calls: int
    operators: frozenset[int] = frozenset()


def projected_outside(pair: Pair, call: Call) -> bool:
    """The module that attends is inside of the one that projects."""
    return pair.first.call is not call and pair.first.call.covers(pair.second)


def read_layer(recording: Recording, name: str, pairs: list[tuple[Pair, Call]]) -> RecordedLayer:
    """Read one module from all of its calls: the whole of it, or else its map alone.

    Raises:
        Unreadable: neither is possible, and why.
    """
    try:
        return _read_whole(recording, name, pairs)
    except Unreadable as problem:
        if projected_outside(*pairs[0]):
            raise
        try:
            return _read_map(recording, name, pairs, str(problem))
        except Unreadable as other:
            same = str(other) == str(problem)
            raise problem if same else Unreadable(f"{problem}; {other}") from None


def _read_whole(recording: Recording, name: str, pairs: list[tuple[Pair, Call]]) -> RecordedLayer:
    """Read a module that is queries, keys, values, an output projection, and little besides."""
    read = [read_pair(recording, pair, call) for pair, call in pairs]
    calls, module = _calls(recording, name, pairs)
    first = read[0]
    if any(each.wiring != first.wiring for each in read):
        raise Unreadable("the module is called in different ways")
    alone = all(len(call.args) == 1 and not call.kwargs for call in calls)
    reader = RecordedReader(module, first.form, Replacement.of(module, first.form, first.wiring, alone))
    layer = RecordedLayer(name, module, first.form, reader, 0.0, len(calls))
    return checked(layer, calls, read)


def _read_map(recording: Recording, name: str, pairs: list[tuple[Pair, Call]], beside: str) -> RecordedLayer:
    """Read the attention map of a module that has more in it, which stays as it is."""
    read = [read_map(recording, pair, call, beside) for pair, call in pairs]
    calls, module = _calls(recording, name, pairs)
    first = read[0]
    if len({(each.wiring, each.given, each.left_out) for each in read}) > 1:
        raise Unreadable("the module is called in different ways")
    replacement = Replacement.of_map(module, first.wiring, first.given, first.left_out)
    reader = MapOnlyReader(module, first.form, replacement)
    operators = frozenset[int]().union(*(each.operators for each in read))
    layer = RecordedLayer(name, module, first.form, reader, 0.0, len(calls), operators)
    layer = checked(layer, calls, read)
    CanonicalMap(module, reader).check_batch(calls[0])
    return layer


def _calls(recording: Recording, name: str, pairs: list[tuple[Pair, Call]]) -> tuple[list[Call], nn.Module]:
    """All calls of a module that attends once in each, and the module."""
    calls = recording.calls_of(name)
    if [call for _, call in pairs] != calls:
        raise Unreadable(f"{len(pairs)} attentions in {len(calls)} calls of the module")
    if not name:
        raise Unreadable("it is the network itself, not a module of it")
    return calls, calls[0].module


def canonical_layer(layer: RecordedLayer) -> CanonicalLayer:
    """The layer computed by its canonical form."""
    reader = layer.reader
    if isinstance(reader, MapOnlyReader):
        return CanonicalMap(layer.module, reader)
    return CanonicalLayer(layer.module, reader)


def checked(
    layer: RecordedLayer, calls: list[Call], read: Sequence[RecordedForm | RecordedMap] = ()
) -> RecordedLayer:
    """The layer with its error over these calls.

    Raises:
        Unreadable: it is not what the module computes.
    """
    canonical = canonical_layer(layer)
    logits = [each.logits for each in read] or [None] * len(calls)
    errors = [check_call(canonical, call, recorded) for call, recorded in zip(calls, logits, strict=True)]
    error = max([layer.error, *errors])
    return replace(layer, error=error)
