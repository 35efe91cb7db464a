"""Multiply-accumulates, FLOPs and parameters, counted from the operators that actually run.

The model is copied to the ``meta`` device, where operators compute shapes and no values, and run once in
evaluation mode. A model that looks at values to decide what it runs cannot do so there: it is run with
values then, and the count holds for these inputs alone. MACs are those of PyTorch's own counter, with
formulas for a few operators that it leaves out; what else an operator costs is said by one handler of a table
in :mod:`csa2glmha.metrics.operators`. The convention:

* **MAC**: one multiply-accumulate of a convolution (grouped and transposed included) or of a matrix product
  (``mm``, ``bmm``, ``addmm``, ...; ``linear``, ``matmul`` and ``einsum`` arrive as these). Products with
  padding zeros count, and so do the cropped borders of a transposed convolution.
* **FLOP**: 2 per MAC, 1 per output element for adding a bias (or the first operand of ``addmm`` and its
  like), and the following for everything else.

  =============================================  ===========================================
  element-wise (add, mul, exp, gelu, gt, ...)    1 per output element, whatever the function
  addcmul, addcdiv, glu / lerp                   2 / 3 per output element
  sum, mean, max, cumsum, ...                    1 per input element
  L2 and other vector norms                      2 per input element (square, add)
  var, std                                       4 per input element (sum, subtract, square, add)
  softmax, log-softmax                           5 per input element (max, subtract, exp, sum, divide)
  layer and group normalisation                  5 per element, 1 more for a weight, 1 more for a bias
  batch normalisation                            2 per element (scale, shift); 7 with batch statistics
  average and max pooling                        1 per element of each window
  bilinear upsampling                            7 per output element (4 products, 3 sums)
  fused attention                                2 per MAC of both products, 6 per logit (scale, softmax)
  =============================================  ===========================================

* **Free**: views, copies, casts, padding, concatenation, indexing, selection, pixel shuffles, constants.
* Any other operator costs nothing and is listed in :attr:`Complexity.uncounted`, unless PyTorch's counter
  knows it.

Parameters are counted once each, however often they are shared; buffers are not parameters.

MACs and FLOPs are kept apart because published "FLOPs" are often MACs, and often those of convolutions only:
compare such figures with ``conv_macs``.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from csa2glmha.core.errors import Csa2GlmhaError, UsageError
from csa2glmha.core.text import first_line
from csa2glmha.metrics.operators import FORMULAS, FREE, HANDLERS
from csa2glmha.metrics.remembered import remembered
from csa2glmha.networks.foreign import named_modules
from csa2glmha.networks.probe import noise


@dataclass(frozen=True)
class ModuleCount:
    """What one module and everything below it costs in one forward pass.

    A module called twice counts twice. One registered under several names counts under the name that lies
    below its caller, or under its first name.
    """

    name: str
    type: str
    macs: int
    flops: int
    params: int
    conv_macs: int


@dataclass(frozen=True)
class Complexity:
    """What a model costs in one forward pass; the units are those of the module's convention.

    Attributes:
        input_shapes: the shapes of the inputs the count holds for.
        macs: multiply-accumulates of convolutions and matrix products.
        flops: floating-point operations of all operators.
        params: elements of all parameters, each tensor once.
        constants: elements of all buffers, such as the factors of a mask.
        conv_macs: the part of ``macs`` that convolutions do.
        by_operator: MACs by operator name, such as ``"convolution"`` and ``"bmm"``.
        modules: the same figures by qualified module name; ``""`` is the whole model.
        uncounted: operators that ran but that no handler knows, with the number of their calls.
        by_values: what the model runs depends on values, so it was run with some; others may cost something
            else.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    macs: int
    flops: int
    params: int
    constants: int
    conv_macs: int
    by_operator: dict[str, int]
    modules: dict[str, ModuleCount]
    uncounted: dict[str, int]
    by_values: bool = False

    def params_and_macs(self, names: Iterable[str]) -> tuple[int, int]:
        """What several modules have together, none of which is inside another."""
        found = [self.modules[name] for name in names]
        return sum(each.params for each in found), sum(each.macs for each in found)


#: What is to be said of a count with :attr:`Complexity.by_values`.
BY_VALUES = "what the network runs depends on its input: MACs were counted on one input, others may differ"


def count_complexity(model: nn.Module, *inputs: Tensor | tuple[int, ...]) -> Complexity:
    """Count the MACs, FLOPs and parameters of one forward pass of a model in evaluation mode.

    The model itself is not changed. As a rule it is not run either, and no values are computed, so a large
    model at a large input size takes about a second and no memory. Only where its control flow depends on
    values, a copy is run with them, on the model's device; the result says so.

    Args:
        model: the model to count.
        inputs: the positional arguments of its ``forward``: tensors, or their shapes, such as
            ``(1, 3, 256, 256)``. A shape stands for a tensor of the model's own floating-point type, where
            values matter for noise in [0, 1].

    Raises:
        UsageError: a shape is not made of positive integers, or the model does not run on these inputs.
    """
    meta_inputs = [meta_input(value, model) for value in inputs]
    shapes = tuple(tuple(value.shape) for value in meta_inputs)
    home = next((each.device for each in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    try:
        counter, by_values = _count(model, meta_inputs, torch.device("meta")), False
    except Csa2GlmhaError:
        raise
    except Exception as error:  # whatever the model raises: of these inputs, or for want of values
        if home.type == "meta":
            raise _refusal(model, shapes, error) from error
        try:
            counter, by_values = _count(model, _filled(inputs, meta_inputs), home), True
        except Exception as second:
            raise _refusal(model, shapes, second) from second

    modules = {
        name: ModuleCount(name, type(module).__name__, params=_params(module), **vars(counter.tallies[name]))
        for name, module in named_modules(model)
    }
    total = modules[""]
    return Complexity(
        input_shapes=shapes,
        macs=total.macs,
        flops=total.flops,
        params=total.params,
        constants=sum(buffer.numel() for buffer in model.buffers()),
        conv_macs=total.conv_macs,
        by_operator=dict(counter.by_operator),
        modules=modules,
        uncounted=dict(counter.uncounted),
        by_values=by_values,
    )


def _refusal(model: nn.Module, shapes: tuple[tuple[int, ...], ...], error: Exception) -> UsageError:
    given = ", ".join(map(str, shapes)) or "(none)"
    return UsageError(
        f"cannot count {type(model).__name__} on input shape {given}: {first_line(error)}; give shapes that "
        "the model's forward accepts"
    )


def _count(model: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> _OperatorCounter:
    """Run a copy of the model on a device, and count."""
    return count_call(copied(model, device).eval(), [each.to(device) for each in inputs], {}, device)


def count_call(
    twin: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> _OperatorCounter:
    """Count one call of a copy that is on the device, as its arguments are."""
    products = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter = _OperatorCounter(products)
    _follow_modules(twin, counter)
    with torch.no_grad(), device, products, counter:
        twin(*args, **kwargs)
    return counter


def format_macs(count: int) -> str:
    """Format a number of MACs or FLOPs with one decimal: ``"154.9 G"``, where G is 10^9."""
    return _with_unit(count, decimals=1)


def format_params(count: int) -> str:
    """Format a number of parameters with two decimals: ``"26.13 M"``, where M is 10^6."""
    return _with_unit(count, decimals=2)


def _with_unit(count: int, decimals: int) -> str:
    if abs(count) < 1000:
        return str(count)
    value, unit = count / 1e3, "k"
    for larger in ("M", "G"):
        # Compared as it will be printed, so that 999,960 becomes "1.0 M" and not "1000.0 k".
        if round(abs(value), decimals) < 1000:
            break
        value, unit = value / 1e3, larger
    return f"{value:.{decimals}f} {unit}"


# --- copies of the model, and its inputs --------------------------------------------------------------------


def meta_input(value: Tensor | tuple[int, ...], model: nn.Module) -> Tensor:
    """An input without values for one with them, or for a shape."""
    if isinstance(value, Tensor):
        return value.detach().to("meta")
    if not value or not all(isinstance(size, int) and size > 0 for size in value):
        raise UsageError(
            f"input shape {value!r} is not valid: give positive integers, as in (1, 3, 256, 256)"
        )
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return torch.empty(value, dtype=next(floating, torch.get_default_dtype()), device="meta")


def _filled(inputs: Sequence[Tensor | tuple[int, ...]], alike: Sequence[Tensor]) -> list[Tensor]:
    """The inputs with values: those that were given, or noise."""
    filling = noise([tuple(each.shape) for each in alike])
    return [
        given.detach() if isinstance(given, Tensor) and not given.is_meta else made.to(like.dtype)
        for given, made, like in zip(inputs, filling, alike, strict=True)
    ]


def copied(model: nn.Module, device: torch.device) -> nn.Module:
    """Copy a model with all its tensors to a device; tensors that are shared stay shared."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        # Plain attributes too: a kept activation cannot be deep-copied, a constant must change device.
        attributes = vars(module).values()
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False), *attributes):
            if isinstance(tensor, nn.Parameter):
                copied = tensor.detach().to(device, copy=True)
                memo[id(tensor)] = nn.Parameter(copied, requires_grad=tensor.requires_grad)
            elif isinstance(tensor, Tensor):
                memo[id(tensor)] = tensor.detach().to(device, copy=True)
    return copy.deepcopy(model, memo)


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- which module an operator belongs to --------------------------------------------------------------------


@dataclass
class _Tally:
    macs: int = 0
    flops: int = 0
    conv_macs: int = 0


class _Frame(NamedTuple):
    """A running module: its name, and the names of all modules that its operators are charged to."""

    name: str
    charged: frozenset[str]


class _OperatorCounter(TorchDispatchMode):
    """Charges every operator that runs to all modules on the stack of running modules.

    Args:
        products: counts multiplications and additions of products, two for each MAC; it sees operators next.
    """

    def __init__(self, products: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
        self.by_operator: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self._running: list[_Frame] = []
        self._products = products

    def enter(self, names: list[str]) -> None:
        """Start a module that is registered under these names."""
        frames = reversed(self._running)
        below = (name for frame in frames for name in names if name.startswith(_prefix(frame.name)))
        name = next(below, names[0])
        outer = self._running[-1].charged if self._running else frozenset[str]()
        # A container such as ModuleList never runs itself, so names are charged and not only the stack.
        self._running.append(_Frame(name, outer.union(_self_and_ancestors(name))))

    def leave(self) -> None:
        """End the module that started last."""
        self._running.pop()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = _operator_name(func)
        handler = HANDLERS.get(name)
        if handler is None and name not in FREE:
            # Under inference mode, linear, matmul and others arrive whole. Their parts are what is priced.
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output

        def run() -> tuple[Any, int]:
            before = self._products.get_total_flops()
            output = func(*args, **kwargs)
            return output, (self._products.get_total_flops() - before) // 2

        output, macs = remembered(func, args, kwargs, run)
        if handler is None and not macs and name not in FREE:
            self.uncounted[name] += 1
        self._charge(name, macs, 0 if handler is None else handler(args, output))
        return output

    def _charge(self, operator: str, macs: int, other_flops: int) -> None:
        if macs:
            self.by_operator[operator] += macs
        for name in self._running[-1].charged:
            tally = self.tallies[name]
            tally.macs += macs
            tally.flops += 2 * macs + other_flops
            if operator == "convolution":
                tally.conv_macs += macs


def _follow_modules(model: nn.Module, counter: _OperatorCounter) -> None:
    """Make every module of the model report to the counter when it starts and when it ends."""
    names: defaultdict[nn.Module, list[str]] = defaultdict(list)
    for name, module in named_modules(model):
        names[module].append(name)

    def follow(module: nn.Module) -> None:
        # First in, last out: what other hooks of the module compute is the module's work.
        module.register_forward_pre_hook(lambda *_: counter.enter(names[module]), prepend=True)
        module.register_forward_hook(lambda *_: counter.leave())

    for module in names:
        follow(module)


def _prefix(name: str) -> str:
    return f"{name}." if name else ""


def _self_and_ancestors(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(len(parts) + 1))


def _operator_name(func: Any) -> str:
    """Name an operator as ATen does, without overload or in-place mark; others keep their namespace."""
    name: str = func.overloadpacket.__name__
    if func.namespace != "aten":
        return f"{func.namespace}::{name}"
    return name.removesuffix("_")
