"""Export of networks to ONNX, each file checked against PyTorch before it gets its name."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.core.child import run_module
from csa2glmha.core.errors import CheckpointError, DataError, ExportError, UsageError
from csa2glmha.core.files import atomic_path, ensure_writable
from csa2glmha.export import translate
from csa2glmha.export.lowering.rewrite import deploy, to_half
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.families.registry import is_lowered
from csa2glmha.networks import RestorationModel

#: The newest that ONNX Runtime implements since 1.18; newer files give warnings or errors in 1.20, which is
#: two years old.
DEFAULT_OPSET = 21
#: PyTorch's exporter builds its graphs in opset 18 and converts them upwards from there, to 20 where it can.
LOWEST_OPSET, PLAIN_OPSET = 18, 20

PRECISIONS = ("fp32", "fp16", "int8")
#: On :attr:`SizeParity.relative`. Half precision carries 11 bits; what that costs is for images to tell.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}

_SIMPLIFY_SECONDS = 600


@dataclass(frozen=True)
class SizeParity:
    """How far ONNX Runtime's output is from PyTorch's for one input size.

    Attributes:
        shape: of the (first) input, (B, C, H, W).
        max_abs: largest absolute difference.
        relative: that over the range (largest minus smallest value) of PyTorch's output.
    """

    shape: tuple[int, ...]
    max_abs: float
    relative: float


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        opset: version of the ONNX operators in it.
        rewritten: the network was rewritten for deployment first.
        simplified: onnxsim's graph was written, not the exporter's.
        notes: warnings for the user, one line each.
        parity: the agreement with PyTorch, one entry per input size tried.
        size_bytes: of the file.
    """

    path: Path
    opset: int
    rewritten: bool
    simplified: bool
    notes: tuple[str, ...]
    parity: tuple[SizeParity, ...]
    size_bytes: int


@dataclass(frozen=True)
class _Case:
    """Inputs of one size and PyTorch's output for them."""

    inputs: tuple[Tensor, ...]
    expected: Tensor


def export_onnx(
    model: RestorationModel,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
    plain: bool = False,
    precision: str = "fp32",
    half_io: bool = False,
    tolerance: float | None = None,
    example: Tensor | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write ``model`` as one self-contained ONNX file that takes any batch, height and width.

    (Any batch of its ``fixed_size``, if it has one.)

    The inputs have the names of ``model.input_names`` and the output is "output"; padding and cropping
    are in the graph, and all operators are standard ones. The network is rewritten for deployment
    (:func:`~csa2glmha.export.lowering.rewrite.deploy`); where that cannot be, or on request, it is exported
    plainly, and simplified by onnxsim where that works. The file is checked by the ONNX checker and, at
    three input sizes, against PyTorch's outputs of the model as it is in float32; only if all is well does it
    appear under ``path``. The model itself is not changed.

    Args:
        model: on any device, in any mode; exported as it is in evaluation mode.
        path: of the file.
        metadata: stored in the file's metadata, beside the precision and whether it was rewritten.
        opset: version of the ONNX operators; None: :data:`DEFAULT_OPSET`, of plain exports
            :data:`PLAIN_OPSET`.
        plain: no rewrites.
        precision: "fp32" or "fp16": convolutions and maps in half precision, statistics in float32.
        half_io: in half precision inputs and output are, too.
        tolerance: on :attr:`SizeParity.relative`; None: that of :data:`TOLERANCES`.
        example: (in_channels, H, W) or (1, in_channels, H, W), an image to compare the outputs on, of any
            size: crops are taken from it, or from its periodic continuation where it is too small.
            Default: a synthetic image.
        overwrite: replace an existing file.

    Raises:
        UsageError: the opset is not supported, or half precision is asked for without rewrites.
        DataError: the example does not fit the model.
        OutputError: the file exists and ``overwrite`` is false, or it cannot be written.
        ExportError: the model cannot be converted, or the outputs disagree.
    """
    check_opset(opset)
    _check_example(model, example)
    if precision not in TOLERANCES:
        raise UsageError(f"precision {precision}: unknown; give {' or '.join(TOLERANCES)}")
    if precision != "fp32" and plain:
        raise UsageError(
            f"precision {precision} needs the rewrites of the deployment graph: leave out --plain"
        )
    if half_io and precision != "fp16":
        raise UsageError("fp16 inputs and outputs need precision fp16")
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    metadata = {**(metadata or {}), "precision": precision}
    ensure_writable(path, overwrite)
    network = copy.deepcopy(model).to("cpu", torch.float32).eval()
    cases = _cases(network, example)
    notes: list[str] = []
    deployed = None
    if not plain:
        try:
            deployed = deployed_graph(network, opset or DEFAULT_OPSET, precision, half_io)
        except translate.UntranslatableError as error:
            reason = _first_line(error)
            if precision != "fp32":
                raise ExportError(
                    f"{type(model).__name__} cannot be exported in {precision}: {reason}"
                ) from error
            notes.append(f"exported without rewrites for deployment: {reason}")
    metadata["rewritten"] = str(deployed is not None).lower()
    with atomic_path(path) as temporary:
        if deployed is not None:
            proto, simplified = deployed, False
            parity = _write_and_verify(proto, temporary, metadata, cases, tolerance)
        else:
            proto, parity, simplified = _write_plain(
                network, temporary, metadata, cases, tolerance, opset or PLAIN_OPSET, notes
            )
    written_opset = proto.opset_import[0].version
    if opset is not None and written_opset != opset:
        notes.append(f"the exporter could not give opset {opset}, the file has opset {written_opset}")
    return ExportReport(
        path=path,
        opset=written_opset,
        rewritten=deployed is not None,
        simplified=simplified,
        notes=tuple(notes),
        parity=parity,
        size_bytes=path.stat().st_size,
    )


def deployed_graph(
    network: RestorationModel, opset: int, precision: str = "fp32", half_io: bool = False
) -> onnx.ModelProto:
    """The network's deployment form as an ONNX model.

    Raises:
        UntranslatableError: it has no such form.
    """
    if opset < translate.LOWEST_OPSET:
        raise translate.UntranslatableError(f"opset {opset} has no GELU operator")
    if not is_lowered(network):
        raise translate.UntranslatableError(f"{network.architecture} has no lowering for deployment")
    deployed = deploy(network)
    if precision == "fp16":
        to_half(deployed)
    return translate.translate(deployed, input_axes(network), opset, half_io)


def _write_plain(
    network: RestorationModel,
    path: Path,
    metadata: Mapping[str, str],
    cases: list[_Case],
    tolerance: float,
    opset: int,
    notes: list[str],
) -> tuple[onnx.ModelProto, tuple[SizeParity, ...], bool]:
    """Write the network as it stands; also whether it is simplified."""
    plain = _convert(network, cases[0].inputs, opset)
    try:
        proto = _simplify(plain)
        return proto, _write_and_verify(proto, path, metadata, cases, tolerance), True
    except ExportError as error:
        notes.append(f"the ONNX graph was left unsimplified: {error}")
        return plain, _write_and_verify(plain, path, metadata, cases, tolerance), False


def check_opset(opset: int | None) -> None:
    """Raise UsageError for a version of the operators that cannot be written; None leaves it open."""
    highest = onnx.defs.onnx_opset_version()
    if opset is not None and not LOWEST_OPSET <= opset <= highest:
        raise UsageError(f"opset {opset} is not supported: choose one from {LOWEST_OPSET} to {highest}")


def _check_example(model: RestorationModel, example: Tensor | None) -> None:
    if example is None:
        return
    if example.ndim not in (3, 4) or example.shape[-3] != model.in_channels or example.numel() == 0:
        raise DataError(
            f"the example image for the ONNX check has shape {tuple(example.shape)}: "
            f"give (1, {model.in_channels}, height, width)"
        )


# --- Inputs to compare on ---------------------------------------------------------------------------


def _cases(network: RestorationModel, example: Tensor | None) -> list[_Case]:
    """The size that is traced, as a batch; another one; and one that needs padding, if the network pads.

    A network for one size only is tried at that one, as a batch and singly.
    """
    if network.fixed_size is not None:
        return [_case(network, example, batch, *network.fixed_size) for batch in (2, 1)]
    m = network.size_multiple
    cases = [_case(network, example, 2, 5 * m, 7 * m), _case(network, example, 1, 8 * m, 6 * m)]
    try:
        cases.append(_case(network, example, 1, 6 * m + 3, 4 * m + 5))
    except DataError:
        cases.append(_case(network, example, 1, 6 * m, 5 * m))
    return cases


def _case(network: RestorationModel, example: Tensor | None, batch: int, height: int, width: int) -> _Case:
    shapes = network.input_shapes(height, width, batch)
    inputs = tuple(_synthetic_image(shape) for shape in shapes)
    if example is not None:
        inputs = (_crops(example, shapes[0]), *inputs[1:])
    with torch.no_grad():
        return _Case(inputs, network(*inputs))


def _synthetic_image(shape: tuple[int, ...]) -> Tensor:
    """Smooth shading with a little noise, in [0, 1]: statistics of an image, not of white noise."""
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    coarse = torch.rand(batch, channels, 5, 5, generator=generator)
    shading = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return (shading + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)


def _crops(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One crop per batch entry, side by side, of the image's periodic continuation."""
    batch, _, height, width = shape
    image = image.detach().to("cpu", torch.float32).reshape(-1, *image.shape[-3:])[0]
    rows = torch.arange(height) % image.shape[1]
    columns = torch.arange(batch * width) % image.shape[2]
    return torch.stack(image[:, rows][:, :, columns].split(width, dim=2))


# --- Conversion -------------------------------------------------------------------------------------


def _convert(network: RestorationModel, inputs: tuple[Tensor, ...], opset: int) -> onnx.ModelProto:
    # The torch.export route (dynamo=True), though it takes seconds per transformer block where the
    # TorchScript route takes a tenth of one: that one is deprecated, silently fixes the padding to the
    # traced size, and gives larger graphs (a rank-8 student of 15 layers: 1900 operators against 1575,
    # both simplified). In ONNX Runtime the two are equally fast once _clean has removed the value_info.
    try:
        with _silence():
            program = torch.onnx.export(
                network,
                inputs,
                dynamo=True,
                opset_version=opset,
                input_names=list(network.input_names),
                output_names=["output"],
                dynamic_shapes=_dynamic_shapes(network),
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
    # The exporter lets through whatever its many stages raise.
    except Exception as error:
        name = type(network).__name__
        raise ExportError(
            f"{name} cannot be converted to ONNX opset {opset}: {_first_line(_root_cause(error))}; "
            "try another opset, or use the PyTorch checkpoint"
        ) from error
    return _clean(proto)


def _dynamic_shapes(network: RestorationModel) -> tuple[dict[int, str], ...]:
    """For each input, the axes that vary and the names they get, found by varying one size at a time."""
    m = network.size_multiple
    reference = network.input_shapes(m, m, 1)
    varied = {"batch": network.input_shapes(m, m, 2)}
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


def _clean(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what only describes the exporter's work, such as stack traces, and name the output's axes."""
    graph = proto.graph
    # Optional shapes of intermediate results. Here they are formulas of height and width, some are wrong,
    # and they made ONNX Runtime 4 to 10 % slower.
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    # The output has the input's size, which the exporter knows only as min(height, padded height).
    (output,) = graph.output
    for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
        dimension = output.type.tensor_type.shape.dim[axis]
        if not dimension.HasField("dim_value"):  # it has one in a network for one size only
            dimension.dim_param = name
    return proto


def _simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
    """onnxsim's version of ``proto``, which stays as it is.

    It runs in a process of its own, because a crash in its native code must not end ours.

    Raises:
        ExportError: onnxsim failed.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "plain.onnx"), Path(folder, "simplified.onnx")
            source.write_bytes(proto.SerializeToString())
            run_module("onnxsim", [str(source), str(target)], _SIMPLIFY_SECONDS)
            return _clean(onnx.load(target))
    except OSError as error:
        raise ExportError(f"onnxsim failed: {error.strerror or error}; temporary files: $TMPDIR") from error
    # What onnx raises of a file that is not whole has no base class that onnx says to use.
    except Exception as error:
        raise ExportError(f"onnxsim failed: {_first_line(error)}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's remarks on its own stages from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# --- Verification -----------------------------------------------------------------------------------


def _write_and_verify(
    proto: onnx.ModelProto,
    path: Path,
    metadata: Mapping[str, str] | None,
    cases: list[_Case],
    tolerance: float,
) -> tuple[SizeParity, ...]:
    """Write ``proto`` to ``path`` and hold the file against the checker and PyTorch.

    Raises:
        ExportError: it fails either.
    """
    onnx.helper.set_model_props(proto, dict(metadata or {}))
    path.write_bytes(proto.SerializeToString())
    try:
        onnx.checker.check_model(str(path), full_check=True)
        runtime = OnnxModel(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, CheckpointError) as error:
        raise ExportError(
            f"the ONNX graph is not valid: {_first_line(error)}; "
            "try another opset, or use the PyTorch checkpoint"
        ) from error
    parity = tuple(_compare(runtime, case) for case in cases)
    for size in parity:
        # Written so that NaN fails.
        if not size.relative <= tolerance:
            raise ExportError(
                f"ONNX Runtime's output differs from PyTorch's by {size.relative:.1e} of its range "
                f"(largest difference {size.max_abs:.1e}) for input {size.shape}, tolerance {tolerance:.1e}: "
                "use the PyTorch checkpoint, or raise the tolerance if that is good enough"
            )
    return parity


def _compare(runtime: OnnxModel, case: _Case) -> SizeParity:
    shape = tuple(case.inputs[0].shape)
    try:
        output = runtime(*case.inputs)
    except DataError as error:
        raise ExportError(f"the ONNX graph does not run: {error}; use the PyTorch checkpoint") from error
    if output.shape != case.expected.shape:
        raise ExportError(
            f"the ONNX graph gives an output of shape {tuple(output.shape)} for input {shape}, "
            f"PyTorch {tuple(case.expected.shape)}: use the PyTorch checkpoint"
        )
    max_abs = float((output - case.expected).abs().max())
    spread = float(case.expected.max() - case.expected.min())
    # A constant output has no range to measure by: then only equality will do.
    relative = max_abs / spread if spread != 0 else (0.0 if max_abs == 0 else float("inf"))
    return SizeParity(shape, max_abs, relative)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
