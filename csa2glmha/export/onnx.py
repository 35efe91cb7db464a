"""Export of networks to ONNX, each file checked against PyTorch before it gets its name."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from csa2glmha.core.errors import ExportError, UsageError
from csa2glmha.core.files import atomic_path, ensure_writable
from csa2glmha.core.text import first_line
from csa2glmha.export import translate
from csa2glmha.export.lowering.rewrite import deploy, to_half
from csa2glmha.export.plain import convert, input_axes, simplify
from csa2glmha.export.shapes import UntranslatableError
from csa2glmha.export.verify import Check, SizeParity, cases_for, check_example
from csa2glmha.families.registry import is_lowered
from csa2glmha.networks import RestorationModel

#: The newest that ONNX Runtime implements since 1.18; newer files give warnings or errors in 1.20, which is
#: two years old.
DEFAULT_OPSET = 21
#: PyTorch's exporter builds its graphs in opset 18 and converts them upwards from there, to 20 where it can.
LOWEST_PLAIN_OPSET, PLAIN_OPSET = 18, 20

PRECISIONS = ("fp32", "fp16", "int8")
#: On :attr:`SizeParity.relative`. Half precision carries 11 bits; what that costs is for images to tell.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}


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
class _Written:
    """A file that agrees with PyTorch, under its temporary name."""

    opset: int
    rewritten: bool
    simplified: bool
    parity: tuple[SizeParity, ...]


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
    example: Sequence[Tensor] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write ``model`` as one self-contained ONNX file that takes any batch, height and width.

    (Any batch of its ``fixed_size``, if it has one.)

    The inputs have the names of ``model.input_names``, the output has that of ``model.output_name``; padding
    and cropping are in the graph, and all operators are standard ones. The network is rewritten for
    deployment (:func:`~csa2glmha.export.lowering.rewrite.deploy`); where that cannot be, or on request, it is
    exported plainly, and simplified by onnxsim where that works. The file appears under ``path`` only if the
    ONNX checker and PyTorch's outputs at three input sizes agree with it. The model itself is not changed.

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
        example: inputs to compare the outputs on, (C, H, W) or (B, C, H, W) each, of any size: crops are
            taken from them, or from their periodic continuation. Where there is none: a synthetic image.
        overwrite: replace an existing file.

    Raises:
        UsageError: the opset is not supported, or half precision is asked for without rewrites.
        DataError: the example does not fit the model.
        OutputError: the file exists and ``overwrite`` is false, or it cannot be written.
        ExportError: the model cannot be converted, or the outputs disagree.
    """
    check_opset(opset, plain)
    check_example(model, example)
    _check_precision(precision, plain, half_io)
    ensure_writable(path, overwrite)
    network = copy.deepcopy(model).to("cpu", torch.float32).eval()
    check = Check(cases_for(network, example), TOLERANCES[precision] if tolerance is None else tolerance)
    notes: list[str] = []
    described = {**(metadata or {}), "precision": precision}
    if network.scale != 1:
        described["scale"] = str(network.scale)
    with atomic_path(path) as temporary:
        deployed = None if plain else _deployed(network, opset or DEFAULT_OPSET, precision, half_io, notes)
        described["rewritten"] = str(deployed is not None).lower()
        if deployed is not None:
            written = _Written(_opset(deployed), True, False, check.write(deployed, temporary, described))
        else:
            written = _write_plain(network, temporary, described, check, opset or PLAIN_OPSET, notes)
    if opset is not None and written.opset != opset:
        notes.append(f"the exporter could not give opset {opset}, the file has opset {written.opset}")
    return ExportReport(path, notes=tuple(notes), size_bytes=path.stat().st_size, **vars(written))


def _check_precision(precision: str, plain: bool, half_io: bool) -> None:
    if precision not in TOLERANCES:
        raise UsageError(f"precision {precision}: unknown; give {' or '.join(TOLERANCES)}")
    if precision != "fp32" and plain:
        raise UsageError(
            f"precision {precision} needs the rewrites of the deployment graph: leave out --plain"
        )
    if half_io and precision != "fp16":
        raise UsageError("fp16 inputs and outputs need precision fp16")


def _deployed(
    network: RestorationModel, opset: int, precision: str, half_io: bool, notes: list[str]
) -> onnx.ModelProto | None:
    """As :func:`deployed_graph`; None, and a note, where a plain export can take its place.

    Raises:
        ExportError: only the deployment form has the precision, and there is none.
    """
    try:
        return deployed_graph(network, opset, precision, half_io)
    except UntranslatableError as error:
        reason = first_line(error)
        if precision != "fp32":
            name = type(network).__name__
            raise ExportError(f"{name} cannot be exported in {precision}: {reason}") from error
        notes.append(f"exported without rewrites for deployment: {reason}")
        return None


def deployed_graph(
    network: RestorationModel, opset: int, precision: str = "fp32", half_io: bool = False
) -> onnx.ModelProto:
    """The network's deployment form as an ONNX model.

    Raises:
        UntranslatableError: it has no such form.
    """
    if not is_lowered(network):
        raise UntranslatableError(f"{network.architecture} has no lowering for deployment")
    deployed = deploy(network)
    if precision == "fp16":
        to_half(deployed)
    return translate.translate(deployed, input_axes(network), opset, half_io)


def _write_plain(
    network: RestorationModel,
    path: Path,
    metadata: Mapping[str, str],
    check: Check,
    opset: int,
    notes: list[str],
) -> _Written:
    """Write the network as it stands, simplified where that works."""
    plain = convert(network, check.cases[0].inputs, opset)
    try:
        proto = simplify(plain)
        return _Written(_opset(proto), False, True, check.write(proto, path, metadata))
    except ExportError as error:
        notes.append(f"the ONNX graph was left unsimplified: {error}")
        return _Written(_opset(plain), False, False, check.write(plain, path, metadata))


def _opset(proto: onnx.ModelProto) -> int:
    return int(proto.opset_import[0].version)


def check_opset(opset: int | None, plain: bool) -> None:
    """Raise UsageError for a version of the operators that cannot be written; None leaves it open."""
    lowest = LOWEST_PLAIN_OPSET if plain else translate.LOWEST_OPSET
    highest = onnx.defs.onnx_opset_version()
    if opset is not None and not lowest <= opset <= highest:
        kind = " plainly" if plain else ""
        raise UsageError(f"opset {opset} cannot be written{kind}: choose one from {lowest} to {highest}")
