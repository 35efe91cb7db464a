"""From a symbolic trace to ONNX: node by node, by the handlers of :mod:`.operators`.

The trace is that of ``torch.fx``: it records the network's own code, with its shapes open, in a fraction of
a second. What depends on no input is computed now, in PyTorch, and becomes a constant.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from torch import fx, nn

from csa2glmha.core.text import first_line
from csa2glmha.export.graph import FLOAT, HALF, GraphBuilder, GraphValue, Spelling
from csa2glmha.export.operators import FUNCTIONS, METHODS, MODULES
from csa2glmha.export.shapes import AxisSize, Shape, UntranslatableError
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple

#: LayerNormalization came with it, and older runtimes stop there.
LOWEST_OPSET = 17


@contextlib.contextmanager
def _sizes_are_open() -> Iterator[None]:
    """Let networks know that sizes are symbols, as PyTorch's own exporter does."""
    known = torch.compiler.is_exporting
    torch.compiler.is_exporting = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_exporting = known


def translate(
    network: RestorationModel,
    shapes: Sequence[Sequence[int | str]],
    opset: int,
    half_io: bool = False,
    spelling: Spelling | None = None,
) -> onnx.ModelProto:
    """The network as an ONNX model.

    Args:
        network: in eval mode; weights in float32, or those of convolutions in float16.
        shapes: of the inputs, with names for open sizes. The output has the first one's open sizes.
        opset: version of the ONNX operators, :data:`LOWEST_OPSET` or later.
        half_io: inputs and output are float16, not float32.
        spelling: what suits the runtime; None: ONNX Runtime's.

    Raises:
        UntranslatableError: as its name says.
    """
    try:
        # A network may check its inputs' sizes; they are open here.
        with _sizes_are_open():
            tracer = _Tracer(autowrap_functions=(reflect_pad_to_multiple,))
            graph = tracer.trace(network, concrete_args=_left_out(network))
    # The tracer's own errors, and whatever code that knows nothing of it makes of its stand-ins for tensors.
    except Exception as error:
        raise UntranslatableError(f"no symbolic trace: {first_line(error).split('. ')[0]}") from error
    inputs = dict(zip(network.input_names, shapes, strict=True))
    emitter = _Emitter(fx.GraphModule(network, graph), opset, spelling)
    io_type = HALF if half_io else FLOAT
    values = [GraphValue(name, io_type, len(shape)) for name, shape in inputs.items()]
    half = any(parameter.dtype == torch.float16 for parameter in network.parameters())
    try:
        with torch.no_grad():
            output = emitter.run(*(emitter.builder.cast(value, HALF if half else FLOAT) for value in values))
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        # A handler, or PyTorch in its place, met arguments that it does not know.
        raise UntranslatableError(f"not translated: {error}") from error
    if not isinstance(output, GraphValue):
        raise UntranslatableError("the output does not depend on the input")
    size = shapes[0][2:] if network.scale == 1 else (f"output_{side}" for side in shapes[0][2:])
    output_shape = [shapes[0][0], network.out_channels, *size]
    return emitter.builder.model(inputs, emitter.builder.cast(output, io_type), output_shape)


def _left_out(network: RestorationModel) -> dict[str, None]:
    """The arguments that the network has beyond its inputs, such as a mask when it has one baked in."""
    arguments = list(inspect.signature(network.forward).parameters)
    return dict.fromkeys(arguments[len(network.input_names) :])


class _Tracer(fx.Tracer):
    """Takes modules for what they are that have a handler, as PyTorch's own are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)


class _Emitter(fx.Interpreter):
    """Runs a trace with :class:`GraphValue` in place of tensors."""

    def __init__(self, module: fx.GraphModule, opset: int, spelling: Spelling | None) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.builder = GraphBuilder(opset, spelling)

    def run_node(self, n: fx.Node) -> Any:
        # Names of nodes begin with the module that makes them, so that a profile can be read layer by layer.
        modules = n.meta.get("nn_module_stack", {})
        self.builder.scope = next((path for path, _ in reversed(modules.values())), "") or n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _symbolic(args, kwargs):
            return super().call_function(target, args, kwargs)
        handler = FUNCTIONS.get(target)
        if handler is None:
            raise UntranslatableError(f"function {getattr(target, '__name__', target)}")
        return handler(self.builder, *args, **kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _symbolic(args, kwargs):
            return super().call_method(target, args, kwargs)
        handler = METHODS.get(target)
        if handler is None:
            raise UntranslatableError(f"method {target}")
        return handler(self.builder, *args, **kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not _symbolic(args, kwargs):
            return super().call_module(target, args, kwargs)
        handler = MODULES.get(type(module))
        if handler is None:
            raise UntranslatableError(f"module {type(module).__name__}")
        return handler(self.builder, module, *args)


def _symbolic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    found = []
    fx.node.map_aggregate(
        (args, kwargs), lambda item: found.append(isinstance(item, (GraphValue, AxisSize, Shape)))
    )
    return any(found)
