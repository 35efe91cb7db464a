"""Following one tensor back through a recording, and index tensors forward again.

Between a projection and the product that it goes into lie views, constants, a normalisation. Walking back
lists them; running the same operators on a tensor of indices shows which channel and which pixel has come
where, whatever the views are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from csa2glmha.reading.operands import is_product, is_projection
from csa2glmha.reading.recording import Operation, Value

#: Operators that only move numbers.
MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "movedim",
        "split",
        "split_with_sizes",
        "chunk",
        "slice",
        "narrow",
        "select",
        "unbind",
        "clone",
        "expand",
        "squeeze",
        "unsqueeze",
        "alias",
        "detach",
        "contiguous",
        "_to_copy",
        "lift_fresh",
        "unfold",
        "as_strided",
        "roll",
        "flip",
        "index_select",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
        "cat",
        "stack",
    ]
)
#: Batch norms, here with statistics of their own.
BATCH_NORMS = frozenset(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"))
_NORMS = BATCH_NORMS | frozenset(("layer_norm", "native_layer_norm", "native_group_norm"))
#: What turns logits into weights.
SOFTMAX = frozenset(("_softmax", "softmax", "_safe_softmax"))
#: Operators that make each number of the numbers at its place alone.
BY_NUMBER = frozenset(
    [
        "mul",
        "div",
        "add",
        "sub",
        "neg",
        "where",
        "masked_fill",
        "relu",
        "gelu",
        "sigmoid",
        "exp",
        "silu",
        "tanh",
        "leaky_relu",
        "elu",
        "hardtanh",
        "hardswish",
        "clamp",
        "clamp_min",
        "clamp_max",
        "softplus",
        "pow",
        "abs",
        "sqrt",
        "rsqrt",
        "square",
        "threshold",
        "dropout",
        "native_dropout",
        "celu",
        "hardsigmoid",
        "log1p",
        "erf",
    ]
)
#: Those, and norms: what may lie between a projection and its product.
ELEMENTWISE = BY_NUMBER | _NORMS | SOFTMAX
#: More than this lies between no projection and its product.
LONGEST = 80


@dataclass(frozen=True)
class Step:
    """One operator on the way, from one value to another.

    Attributes:
        kind: "move"; "scale" and "shift" by a constant; "own", times something made of the value itself,
            as a norm; "other".
        beside: the other operand of a scale, a shift, or an operator on two tensors.
    """

    kind: str
    operation: Operation
    source: Value
    result: Value
    beside: Value | float | None = None

    def replay(self, index: Tensor) -> Tensor:
        """Do to ``index`` what was done to the source where numbers were moved; -1 comes from elsewhere."""
        shape = self.result.shape
        if self.kind != "move":
            return index if tuple(index.shape) == shape else index.expand(shape)
        name = self.operation.name
        if name in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
            return index.reshape(shape)
        if name in ("_to_copy", "contiguous", "clone", "lift_fresh", "alias", "detach"):
            return index

        def stand_in(leaf: Any) -> Any:
            if leaf is self.source:
                return index
            if isinstance(leaf, Value):
                return leaf.tensor if leaf.constant else torch.full(leaf.shape, -1, dtype=index.dtype)
            return leaf

        operation = self.operation
        args, kwargs = tree_map(stand_in, (operation.args, dict(operation.kwargs)))
        made = operation.function(*args, **kwargs)
        if isinstance(made, Tensor):
            return made
        result: Tensor = made[operation.outputs.index(self.result)]
        return result


@dataclass(frozen=True)
class Trail:
    """The way from ``source`` to ``result``; steps in the order in which they ran."""

    source: Value
    result: Value
    steps: tuple[Step, ...]

    def replay(self, index: Tensor) -> Tensor:
        """An index tensor of the source's shape, as it arrives at the result."""
        for step in self.steps:
            index = step.replay(index)
        return index

    @property
    def only_moves(self) -> bool:
        """Nothing was computed on the way."""
        return all(step.kind == "move" for step in self.steps)

    def first_other(self, *allowed: str) -> Step | None:
        """The last step before the result that is neither a move nor of the kinds allowed."""
        return next((step for step in reversed(self.steps) if step.kind not in ("move", *allowed)), None)


def trail(value: Value, until: Callable[[Value], bool]) -> Trail:
    """Walk back from ``value`` until ``until`` holds, or to what is no view and no elementwise operator."""
    steps: list[Step] = []
    at = value
    while not until(at) and len(steps) < LONGEST:
        step = _step(at, until)
        if step is None:
            break
        steps.append(step)
        at = step.source
    return Trail(at, value, tuple(reversed(steps)))


def last_step(value: Value) -> Step | None:
    """The step that made ``value``; None: it was made by more than a view or an elementwise operator."""
    steps = trail(value, lambda each: each is not value).steps
    return steps[-1] if steps else None


def stop_at(stops: Collection[Value]) -> Callable[[Value], bool]:
    """Until one of these, or what a projection or a product made."""

    def until(value: Value) -> bool:
        made = value.producer
        return value in stops or is_projection(made) or is_product(made)

    return until


def _step(value: Value, until: Callable[[Value], bool]) -> Step | None:
    """The operator that made ``value``, seen from the operand that matters."""
    operation = value.producer
    if operation is None or value.constant or value not in operation.outputs:
        return None
    name = operation.name.rstrip("_") if not operation.name.endswith("__") else operation.name
    varying = [each for each in operation.inputs if not each.constant]
    if name in MOVES:
        return Step("move", operation, varying[0], value)
    if name not in ELEMENTWISE or not varying:
        return None
    if len(varying) == 1 and varying[0].tensor.numel() <= value.tensor.numel():
        return _with_constant(name, operation, varying[0], value)
    if len(varying) != 2:
        return Step("other", operation, max(varying, key=lambda each: each.tensor.numel()), value)
    first, second = varying
    for source, beside in ((first, second), (second, first)):
        if name in ("mul", "div") and made_of(beside, source):
            return Step("own", operation, source, value, beside)
    if name == "div" or not _leads(first, second, until):
        return Step("other", operation, first, value, second)
    return Step("other", operation, second, value, first)


def _with_constant(name: str, operation: Operation, source: Value, value: Value) -> Step:
    """A step with at most one operand that depends on the inputs."""
    operands = operation.args[:2]
    beside = next(
        (each for each in operands if each is not source and isinstance(each, Value | int | float)), None
    )
    plain = {"mul": "scale", "add": "shift"}.get(name, "other")
    if name == "div" and operands[0] is source:
        plain = "scale"
    if name == "sub" and operands[0] is source:
        plain = "shift"
    if operation.kwargs or len(operation.args) > 2 or beside is None:
        plain = "other"
    if operands == (source, source):
        plain = "other"
    return Step(plain, operation, source, value, beside)


def constant_of(step: Step) -> Tensor:
    """The factor of a scale, or the term of a shift, in double precision: several may be multiplied."""
    beside = step.beside
    assert beside is not None
    tensor = beside.tensor if isinstance(beside, Value) else torch.tensor(float(beside), dtype=torch.float64)
    name = step.operation.name.rstrip("_")
    tensor = tensor.detach().double()
    return tensor.reciprocal() if name == "div" else -tensor if name == "sub" else tensor


def made_of(value: Value, source: Value, depth: int = 12) -> bool:
    """``value`` is made of ``source`` and constants alone, in a few steps and without a projection."""
    roots = {source}
    at = source
    while at.producer is not None and at.producer.name in MOVES:  # norms may be taken before a view
        at = next(each for each in at.producer.inputs)
        roots.add(at)
    reached = False
    todo, seen = [(value, depth)], set()
    while todo:
        at, left = todo.pop()
        if at in roots:
            reached = True
            continue
        if at.constant or at in seen:
            continue
        seen.add(at)
        if left == 0 or at.producer is None or is_projection(at.producer) or is_product(at.producer):
            return False
        todo.extend((each, left - 1) for each in at.producer.inputs)
    return reached


def _leads(first: Value, second: Value, until: Callable[[Value], bool]) -> bool:
    """Of two operands the second is the way to go: it ends at a projection, and the first does not."""

    def ends(value: Value) -> bool:
        made = trail(value, until).source.producer
        return is_projection(made) or is_product(made)

    return ends(second) and not ends(first)
