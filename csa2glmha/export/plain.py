"""A network as it stands in ONNX: through torch.export, and simplified by onnxsim."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from csa2glmha.core.child import run_module
from csa2glmha.core.errors import ExportError, UsageError
from csa2glmha.core.text import first_line
from csa2glmha.export.frozen import FrozenError, frozen_by_exporter
from csa2glmha.export.graph import oldest_format
from csa2glmha.networks import RestorationModel

_SIMPLIFY_SECONDS = 600
#: That a graph with fewer operators may take: folded constants are larger than what they are computed from.
_MORE_ROOM = 1.1
#: In what PyTorch's exporter says of control flow that depends on values.
_DEPENDENT = ("data-dependent", "unbacked symbols")


def convert(
    network: RestorationModel, inputs: tuple[Tensor, ...], opset: int, open_sizes: bool = True
) -> onnx.ModelProto:
    """The network's graph, as PyTorch's exporter gives it, for any size or that of the inputs alone.

    Raises:
        FrozenError: it gives one for a batch, height or width only.
        ExportError: it gives none.
    """
    # The torch.export route (dynamo=True), though it takes seconds per transformer block where the
    # TorchScript route takes a tenth of one: that one is deprecated, silently fixes the padding to the
    # traced size, and gives larger graphs (a rank-8 student of 15 layers: 1900 operators against 1575,
    # both simplified). In ONNX Runtime the two are equally fast once clean has removed the value_info.
    try:
        with _silence():
            program = torch.onnx.export(
                network,
                inputs,
                dynamo=True,
                opset_version=opset,
                input_names=list(network.input_names),
                output_names=[network.output_name],
                dynamic_shapes=_dynamic_shapes(network) if open_sizes else None,
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
    # The exporter lets through whatever its many stages raise.
    except Exception as error:
        cause = _root_cause(error)
        name, reason = network.architecture, first_line(cause)
        if frozen := frozen_by_exporter(str(cause)):
            raise FrozenError(network, frozen) from error
        if any(each in reason for each in _DEPENDENT):
            raise ExportError(
                f"{name} cannot be converted to ONNX, what it runs depends on the values of its input: "
                "use the PyTorch checkpoint"
            ) from error
        raise ExportError(
            f"{name} cannot be converted to ONNX opset {opset}: {reason}; "
            "try another opset, or use the PyTorch checkpoint"
        ) from error
    if network.scale != 1:
        _name_output(proto, "output_")
    return clean(proto)


def _dynamic_shapes(network: RestorationModel) -> tuple[dict[int, str], ...]:
    """For each input, the axes that vary and the names they get, found by varying one size at a time."""
    m = network.size_multiple
    reference = network.input_shapes(m, m, 1)
    varied = {"batch": network.input_shapes(m, m, 2)} if network.batches else {}
    if network.fixed_size is None:
        varied["height"] = network.input_shapes(2 * m, m, 1)
        varied["width"] = network.input_shapes(m, 2 * m, 1)
    # Axes of further inputs get names of their own: a mask may be wider than the image it goes with.
    return tuple(
        {
            axis: name if index == 0 else f"{network.input_names[index]}_{name}"
            for name, shapes in varied.items()
            for axis, size in enumerate(shapes[index])
            if size != shape[axis]
        }
        for index, shape in enumerate(reference)
    )


def input_axes(network: RestorationModel) -> list[list[int | str]]:
    """The shapes of the inputs, with names for the axes that vary."""
    m = network.size_multiple
    sizes = network.fixed_size or (m, m)
    return [
        [axes.get(axis, size) for axis, size in enumerate(shape)]
        for shape, axes in zip(network.input_shapes(*sizes, 1), _dynamic_shapes(network), strict=True)
    ]


def fixed_axes(network: RestorationModel, shape: Sequence[int]) -> list[list[int]]:
    """The shapes of the inputs where that of the first is (B, C, H, W).

    Raises:
        UsageError: the model does not take it.
    """
    wanted = "x".join(map(str, shape))
    if len(shape) != 4 or min(shape) < 1:
        raise UsageError(f"--shape {wanted}: give batch x channels x height x width, such as 1x3x512x512")
    batch, channels, height, width = shape
    if channels != network.in_channels:
        raise UsageError(f"--shape {wanted}: the model takes {network.in_channels} channels, not {channels}")
    if network.fixed_size not in (None, (height, width)):
        sides = "x".join(map(str, network.fixed_size or ()))
        raise UsageError(f"--shape {wanted}: the model takes images of {sides} pixels only")
    return [list(each) for each in network.input_shapes(height, width, batch)]


def clean(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what only describes the exporter's work, such as stack traces, and name the output's axes."""
    graph = proto.graph
    proto.ir_version = oldest_format(proto.opset_import)
    # Optional shapes of intermediate results. Here they are formulas of height and width, some are wrong,
    # and they made ONNX Runtime 4 to 10 % slower.
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    # The output has the input's size, which the exporter knows only as min(height, padded height).
    enlarged = any(
        size.dim_param.startswith("output_") for size in graph.output[0].type.tensor_type.shape.dim
    )
    _name_output(proto, "output_" if enlarged else "")
    return proto


def _name_output(proto: onnx.ModelProto, before: str) -> None:
    """Name the axes of the output, heights and widths with a word before them."""
    (output,) = proto.graph.output
    dimensions = output.type.tensor_type.shape.dim
    for axis, name in ((0, "batch"), (2, f"{before}height"), (3, f"{before}width")):
        if axis >= len(dimensions):  # logits
            break
        dimension = dimensions[axis]
        if not dimension.HasField("dim_value"):  # it has one in a network for one size only
            dimension.dim_param = name


def is_smaller(simple: onnx.ModelProto, proto: onnx.ModelProto) -> bool:
    """Whether onnxsim's graph is worth having: it has fewer operators, or as many and takes less room.

    It can make a graph larger: it writes out what was shared, and folds small constants into large ones.
    """
    nodes, before = len(simple.graph.node), len(proto.graph.node)
    room, room_before = simple.ByteSize(), proto.ByteSize()
    return room < room_before if nodes == before else nodes < before and room <= _MORE_ROOM * room_before


def simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
    """onnxsim's version of ``proto``, which stays as it is.

    It runs in a process of its own, because a crash in its native code must not end ours.

    Raises:
        ExportError: onnxsim failed.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "plain.onnx"), Path(folder, "simplified.onnx")
            source.write_bytes(proto.SerializeToString())
            run_module("csa2glmha.export.onnxsim_process", [str(source), str(target)], _SIMPLIFY_SECONDS)
            return clean(onnx.load(target))
    except OSError as error:
        raise ExportError(f"onnxsim failed: {error.strerror or error}; temporary files: $TMPDIR") from error
    # What onnx raises of a file that is not whole has no base class that onnx says to use.
    except Exception as error:
        raise ExportError(f"onnxsim failed: {first_line(error)}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's remarks on its own stages from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # On standard error it prints the graph of what it cannot trace.
        out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with warnings.catch_warnings(), out, err:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
