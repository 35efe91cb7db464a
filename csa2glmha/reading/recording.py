"""One forward pass of any network, written down operator by operator.

Sources of research code are too different to be read, and ``torch.fx`` does not get through most of them. But
all run: what they run is a list of operators on tensors, with the modules that were called in between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from csa2glmha.core.users_code import calls_users_code
from csa2glmha.reading.memory import memory_of, overlap, written_by
from csa2glmha.reading.products import OnProducts

calls_users_code(__file__)


@dataclass(frozen=True, eq=False, repr=False)
class Value:
    """A tensor as it was at one moment of the pass: one that is written to becomes another value.

    Attributes:
        tensor: its data, unchanged by what came later.
        producer: what made it; None: it was there before. Where an operator has written to a part of it, or
            to what it is a part of, it is not among the operator's results.
        constant: it is made of parameters, buffers and numbers alone, not of the inputs.
        name: of the parameter or buffer that it is, empty for all else.
    """

    tensor: Tensor
    producer: Operation | None = None
    constant: bool = False
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.tensor.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Product:
    """One matrix product as the code calls it; values stand for tensors.

    Attributes:
        number: among all products of the pass.
        inputs: all tensors that it took.
        outputs: what it gave.
    """

    number: int
    inputs: tuple[Value, ...]
    outputs: list[Value] = field(default_factory=list)


@dataclass(eq=False, repr=False)
class Call:
    """One call of one module; in ``args``, ``kwargs`` and ``result`` values stand for tensors.

    Attributes:
        path: the module's name in the network.
        first, last: the operators in between, as a range of their indices.
        parent: the call in which it happened.
        products: the number of matrix products before it.
    """

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    first: int
    parent: Call | None
    products: int = 0
    last: int = 0
    result: Any = None

    @property
    def inputs(self) -> tuple[Value, ...]:
        """All tensors it was called with."""
        return values_in((self.args, dict(self.kwargs)))

    @property
    def outputs(self) -> tuple[Value, ...]:
        """All tensors it returned."""
        return values_in(self.result)

    def covers(self, operation: Operation) -> bool:
        """It happened during the call."""
        return self.first <= operation.index < self.last


@dataclass(frozen=True, eq=False, repr=False)
class Operation:
    """One operator that ran, maybe for a ``product``; in ``args`` and ``kwargs`` values stand for tensors."""

    index: int
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    call: Call
    product: Product | None = None
    outputs: list[Value] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """All tensors it took."""
        return values_in((self.args, dict(self.kwargs)))


@dataclass(frozen=True, repr=False)
class Recording:
    """All operators and module calls of one pass, in their order."""

    operations: list[Operation]
    calls: list[Call]
    result: Any

    @property
    def outputs(self) -> tuple[Value, ...]:
        """All tensors that the network returned."""
        return values_in(self.result)

    def calls_of(self, path: str) -> list[Call]:
        """Every call of one module."""
        return [call for call in self.calls if call.path == path]


def values_in(structure: object) -> tuple[Value, ...]:
    """Every value in nested tuples, lists and dictionaries."""
    return tuple(leaf for leaf in tree_leaves(structure) if isinstance(leaf, Value))


def record(module: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Recording:
    """Run ``module`` once, as it is used (evaluation mode, no gradients), and write down what happens.

    Args:
        module: any; it is left in the mode that it was in.
        inputs, kwargs: of the call.
    """
    modes = {each: each.training for each in module.modules()}
    recorder = _Recorder(module, tuple(inputs), dict(kwargs or {}))
    module.eval()
    try:
        with torch.no_grad(), recorder, recorder.on_products:
            result = module(*inputs, **(kwargs or {}))
    finally:
        recorder.close()
        for each, mode in modes.items():
            each.training = mode
    return recorder.recording(result)


class _Recorder(TorchDispatchMode):
    """Sees every operator below autograd, and by hooks every call of a module."""

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.on_products = OnProducts(self._see_product)
        self._product: Product | None = None
        # A value keeps its tensor alive, so that no other gets its id.
        self._values: dict[int, Value] = {}
        self._sharing: dict[int, list[tuple[Tensor, Value]]] = defaultdict(list)
        self._tensors: list[Tensor] = []
        for name, tensor in _state(module):
            self._hold(tensor, Value(tensor.detach(), constant=True, name=name))
        for leaf in tree_leaves((inputs, kwargs)):
            if isinstance(leaf, Tensor):
                self._hold(leaf, Value(leaf))
        self.calls = [Call("", module, self.held(inputs), self.held(kwargs), 0, None)]
        self._open = list(self.calls)
        self._hooks = [
            hook for name, each in module.named_modules() if name for hook in self._watch(name, each)
        ]

    def recording(self, result: Any) -> Recording:
        """All of it, after the pass that gave ``result``."""
        whole = self.calls[0]
        whole.last, whole.result = len(self.operations), self.held(result)
        return Recording(self.operations, self.calls, whole.result)

    def close(self) -> None:
        """Take the hooks off again."""
        for hook in self._hooks:
            hook.remove()

    def held(self, structure: Any) -> Any:
        """The same with values in place of tensors."""
        return tree_map(lambda leaf: self._value(leaf) if isinstance(leaf, Tensor) else leaf, structure)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        held, held_kwargs = self.held(args), self.held(kwargs)
        if func._schema.is_mutable:
            for tensor in written_by(func, args, kwargs):
                self._keep_apart(tensor)
        result = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        taken = held, held_kwargs, self._open[-1], self._product
        operation = Operation(len(self.operations), name, func, *taken)
        self.operations.append(operation)
        random = torch.Tag.nondeterministic_seeded in func.tags
        constant = not random and all(value.constant for value in operation.inputs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                value = Value(tensor, operation, constant)
                operation.outputs.append(value)
                self._hold(tensor, value)
        if func._schema.is_mutable:
            for tensor in written_by(func, args, kwargs):
                self._after_writing(tensor, operation)
        return result

    def _see_product(
        self, number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        self._product = Product(number, values_in(self.held((args, dict(kwargs)))))
        try:
            result = func(*args, **kwargs)
            self._product.outputs.extend(values_in(self.held(result)))
        finally:
            self._product = None
        return result

    def _watch(self, name: str, module: nn.Module) -> Iterator[Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            at = len(self.operations), self._open[-1], self.on_products.count
            call = Call(name, module, self.held(args), self.held(kwargs), *at)
            self.calls.append(call)
            self._open.append(call)

        def after(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            call = self._open.pop()
            call.last, call.result = len(self.operations), self.held(result)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def _value(self, tensor: Tensor) -> Value:
        """What a tensor is now. One that nobody made is an attribute of a module, or a number."""
        known = self._values.get(id(tensor))
        if known is None:
            known = Value(tensor, constant=True)
            self._hold(tensor, known)
        return known

    def _hold(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._tensors.append(tensor)
        self._sharing[memory_of(tensor)].append((tensor, value))

    def _keep_apart(self, tensor: Tensor) -> None:
        """Copy the data of all values in this memory, before somebody writes to it."""
        for held, value in self._sharing[memory_of(tensor)]:
            if overlap(held, tensor):
                object.__setattr__(value, "tensor", value.tensor.clone())

    def _after_writing(self, written: Tensor, operation: Operation) -> None:
        """Whatever lies in this memory is another value from now on.

        That of the written tensor is a result of ``operation``; the others are made by it in a way not known.
        """
        memory, made = memory_of(written), self._values[id(written)]
        apart = [each for each in self._sharing[memory] if not overlap(each[0], written)]
        lying = {id(tensor): tensor for tensor, _ in self._sharing[memory] if overlap(tensor, written)}
        self._sharing[memory] = apart
        for tensor in lying.values():
            value = made
            if tensor is not written:
                value = Value(tensor, operation, made.constant and self._values[id(tensor)].constant)
            self._values[id(tensor)] = value
            self._sharing[memory].append((tensor, value))


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
