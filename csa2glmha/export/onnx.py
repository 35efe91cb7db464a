"""Export of networks to ONNX, each file checked against PyTorch before it gets its name."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor

from csa2glmha.core.errors import ExportError, UsageError
from csa2glmha.core.files import atomic_path, ensure_writable
from csa2glmha.core.text import first_line
from csa2glmha.export import translate
from csa2glmha.export.asked import Asked, Form
from csa2glmha.export.branches import cases_of_branches
from csa2glmha.export.frozen import SINGLE_IMAGES, FrozenError, check_frozen
from csa2glmha.export.graph import opset_of
from csa2glmha.export.half import in_half
from csa2glmha.export.headroom import Headroom, measure_headroom
from csa2glmha.export.lowering.rewrite import deploy, to_half
from csa2glmha.export.needs import Need, needs_of
from csa2glmha.export.output_size import tie_output
from csa2glmha.export.plain import convert, fixed_axes, input_axes, is_smaller, simplify
from csa2glmha.export.shapes import UntranslatableError
from csa2glmha.export.targets import DEFAULT_TARGET, Target
from csa2glmha.export.trial import Trial, try_file
from csa2glmha.export.verify import Check, SizeParity, case_of, cases_for, check_example
from csa2glmha.families.registry import is_lowered
from csa2glmha.networks import RestorationModel

#: PyTorch's exporter builds its graphs in opset 18 and converts them upwards from there, to 20 where it can.
LOWEST_PLAIN_OPSET, PLAIN_OPSET = 18, 20

PRECISIONS = ("fp32", "fp16", "int8")
#: On :attr:`SizeParity.relative`. Half precision carries 11 bits; what that costs is for images to tell.
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3}


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
        nodes: in the exporter's graph and in onnxsim's; see ``simplified``.
        tried: what the runtime that the file is for made of it.
        ir_version: of the file's own format.
        runtime: that it is for, as people know it.
        needs: the first version of each runtime that loads it.
        headroom: of a file in half precision.
    """

    path: Path
    opset: int
    rewritten: bool
    simplified: bool
    notes: tuple[str, ...]
    parity: tuple[SizeParity, ...]
    size_bytes: int
    nodes: tuple[int, int] = (0, 0)
    tried: tuple[Trial, ...] = ()
    ir_version: int = 0
    runtime: str = DEFAULT_TARGET.title
    needs: tuple[Need, ...] = ()
    headroom: Headroom | None = None


@dataclass(frozen=True)
class _Written:
    """A file that agrees with PyTorch, under its temporary name."""

    opset: int
    ir_version: int
    simplified: bool
    nodes: tuple[int, int]
    parity: tuple[SizeParity, ...]
    needs: tuple[Need, ...]


def export_onnx(
    model: RestorationModel,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
    plain: bool = False,
    precision: str = "fp32",
    half_io: bool = False,
    target: Target = DEFAULT_TARGET,
    shape: Sequence[int] | None = None,
    tolerance: float | None = None,
    example: Sequence[Tensor] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write ``model`` as one self-contained ONNX file that takes any batch, height and width.

    (Any batch of its ``fixed_size``, if it has one. Single images, where the network takes no others, or
    where its code makes a plain number of the batch, which its graph then holds as it was at one run.)

    The inputs have the names of ``model.input_names``, the output has that of ``model.output_name``; padding
    and cropping are in the graph, and all operators are standard ones. The network is rewritten for
    deployment (:func:`~csa2glmha.export.lowering.rewrite.deploy`); where that cannot be, or on request, it is
    exported plainly. Either graph is simplified by onnxsim where that makes it smaller. The output's height
    and width follow from a fixed input by ONNX's shape inference. The file appears under ``path`` only if the
    ONNX checker and PyTorch's outputs at three input sizes agree with it. The model itself is not changed.

    Args:
        model: on any device, in any mode; exported as it is in evaluation mode.
        path: of the file.
        metadata: stored in the file's metadata, beside the precision and whether it was rewritten.
        opset: version of the ONNX operators; None: that of the target, of plain exports no less than
            :data:`LOWEST_PLAIN_OPSET` and no more than :data:`PLAIN_OPSET`.
        plain: no rewrites.
        precision: "fp32" or "fp16": convolutions and maps in half precision, statistics in float32.
        half_io: in half precision inputs and output are, too.
        target: the runtime that the file is for. One that is installed is tried as well, see
            :func:`~csa2glmha.export.trial.try_file`.
        shape: (B, C, H, W) of the (first) input, the only one that the file is to take; None: any.
        tolerance: on :attr:`SizeParity.relative`; None: that of :data:`TOLERANCES`.
        example: inputs to compare the outputs on, (C, H, W) or (B, C, H, W) each, of any size: crops are
            taken from them, or from their periodic continuation. Where there is none: a synthetic image.
        overwrite: replace an existing file.

    Raises:
        UsageError: the opset is not supported, or the model does not take the shape.
        DataError: the example does not fit the model.
        OutputError: the file exists and ``overwrite`` is false, or it cannot be written.
        FrozenError: without ``shape``, of code that makes plain numbers of height or width.
        ExportError: the model cannot be converted, or the outputs disagree, in ONNX Runtime or in the
            runtime that the file is for.
    """
    check_opset(opset, plain)
    check_example(model, example)
    _check_precision(precision, half_io)
    ensure_writable(path, overwrite)
    network = copy.deepcopy(model).to("cpu", torch.float32).eval()
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    form = Form(opset or target.opset, precision, half_io, target.spelling)
    asked = Asked(form, metadata or {}, opset, plain, target, shape, limit, example)
    try:
        return _exported(network, path, asked)
    except FrozenError as error:
        if error.axes != {"batch"}:
            raise
    network.batches = False
    report = _exported(network, path, asked)
    return replace(report, notes=(*report.notes, SINGLE_IMAGES))


def _exported(network: RestorationModel, path: Path, asked: Asked) -> ExportReport:
    """Write the file of a network that may be changed."""
    form, target, shape, example = asked.form, asked.target, asked.shape, asked.example
    axes = input_axes(network) if shape is None else fixed_axes(network, shape)
    cases = cases_for(network, example) if shape is None else [case_of(network, example, shape)]
    notes: list[str] = []
    if shape is None:
        cases += cases_of_branches(network, cases[0], notes)
    check = Check(cases, asked.tolerance)
    with atomic_path(path) as temporary:
        deployed = None if asked.plain else _deployed(network, form, axes, notes)
        written = deployed and _rewritten(deployed, temporary, network, asked, check, notes)
        rewritten = written is not None
        if written is None:
            plain_opset = asked.opset or min(max(target.opset, LOWEST_PLAIN_OPSET), PLAIN_OPSET)
            form = replace(form, opset=plain_opset)
            proto = _plainly(network, form, check.cases[0].inputs, shape is None)
            try:
                written = _write(proto, temporary, network, asked, check, notes, rewritten=False)
            except ExportError as error:
                check_frozen(temporary, network, check, error)
                raise
        tried = try_file(temporary, target, check)
        inputs = [case.inputs for case in cases]
        headroom = measure_headroom(temporary, inputs) if form.precision == "fp16" else None
    if asked.opset is not None and written.opset != asked.opset:
        notes.append(f"the exporter could not give opset {asked.opset}, the file has opset {written.opset}")
    return ExportReport(
        path,
        rewritten=rewritten,
        notes=tuple(notes),
        size_bytes=path.stat().st_size,
        tried=tried,
        runtime=target.title,
        headroom=headroom,
        **vars(written),
    )


def _check_precision(precision: str, half_io: bool) -> None:
    if precision not in TOLERANCES:
        raise UsageError(f"precision {precision}: unknown; give {' or '.join(TOLERANCES)}")
    if half_io and precision != "fp16":
        raise UsageError("fp16 inputs and outputs need precision fp16")


def _deployed(
    network: RestorationModel, form: Form, axes: Sequence[Sequence[int | str]], notes: list[str]
) -> onnx.ModelProto | None:
    """As :func:`deployed_graph`; None, and a note, where a plain export takes its place."""
    try:
        return deployed_graph(network, form, axes)
    except UntranslatableError as error:
        notes.append(f"exported without rewrites for deployment: {first_line(error)}")
        return None


def _rewritten(
    deployed: onnx.ModelProto,
    path: Path,
    network: RestorationModel,
    asked: Asked,
    check: Check,
    notes: list[str],
) -> _Written | None:
    """The rewritten network's file; None, and a note, where it is refused: a plain export may do better."""
    try:
        return _write(deployed, path, network, asked, check, notes, rewritten=True)
    except ExportError as error:
        notes.append(f"exported without rewrites for deployment, with them: {first_line(error)}")
        return None


def _plainly(
    network: RestorationModel, form: Form, inputs: tuple[Tensor, ...], open_sizes: bool
) -> onnx.ModelProto:
    """The network as PyTorch's exporter has it."""
    proto = convert(network, inputs, form.opset, open_sizes)
    return in_half(proto, form.half_io) if form.precision == "fp16" else proto


def deployed_graph(
    network: RestorationModel, form: Form, axes: Sequence[Sequence[int | str]] | None = None
) -> onnx.ModelProto:
    """The network's deployment form as an ONNX model.

    Args:
        network: teacher or student.
        form: how it is written.
        axes: shapes of the inputs, with names for open sizes; None: any size is taken.

    Raises:
        UntranslatableError: it has no such form.
    """
    if not is_lowered(network):
        raise UntranslatableError(f"{network.architecture} has no lowering for deployment")
    deployed = deploy(network, form.spelling.channels_last)
    if form.precision == "fp16":
        to_half(deployed)
    shapes = input_axes(network) if axes is None else axes
    return translate.translate(deployed, shapes, form.opset, form.half_io, form.spelling)


def _write(
    proto: onnx.ModelProto,
    path: Path,
    network: RestorationModel,
    asked: Asked,
    check: Check,
    notes: list[str],
    *,
    rewritten: bool,
) -> _Written:
    """Write a graph, or onnxsim's where that is smaller and agrees with PyTorch."""
    metadata = asked.describe(network) | {"rewritten": str(rewritten).lower()}
    proto = tie_output(proto, network) if asked.shape is None else proto
    before = after = len(proto.graph.node)
    try:
        simple = simplify(proto)
        after = len(simple.graph.node)
        if is_smaller(simple, proto):
            return _written(simple, True, (before, after), check.write(simple, path, metadata))
    except ExportError as error:
        notes.append(f"the ONNX graph was left unsimplified: {error}")
    return _written(proto, False, (before, after), check.write(proto, path, metadata))


def _written(
    proto: onnx.ModelProto, simplified: bool, nodes: tuple[int, int], parity: tuple[SizeParity, ...]
) -> _Written:
    opset, needs = opset_of(proto) or 0, needs_of(proto)
    return _Written(opset, proto.ir_version, simplified, nodes, parity, needs)


def check_opset(opset: int | None, plain: bool) -> None:
    """Raise UsageError for a version of the operators that cannot be written; None leaves it open."""
    lowest = LOWEST_PLAIN_OPSET if plain else translate.LOWEST_OPSET
    highest = onnx.defs.onnx_opset_version()
    if opset is not None and not lowest <= opset <= highest:
        kind = " plainly" if plain else ""
        raise UsageError(f"opset {opset} cannot be written{kind}: choose one from {lowest} to {highest}")
