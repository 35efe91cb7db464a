"""Trying a file in the runtime that it is for, beside ONNX Runtime, before it gets its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor

from csa2glmha.core.errors import CheckpointError, ExportError
from csa2glmha.export.openvino import HINT, OpenVinoSession, default_precision, openvino_version
from csa2glmha.export.targets import Target
from csa2glmha.export.tensorrt import PROFILE, STRONGLY_TYPED, refused
from csa2glmha.export.verify import Case, Check

#: In dB. bf16 gives 58 and more for a denoiser; at 40 a restored image of 31 dB loses half a dB.
_CLOSE = 40.0


@dataclass(frozen=True)
class Trial:
    """What a runtime made of a file.

    Attributes:
        runtime: as people know it.
        version: of it; None: it was not run.
        sizes: "open" or "fixed", where it was run.
        relative: largest difference to PyTorch in float32, over the range of PyTorch's output.
        psnr: of its default precision's output to PyTorch's, in dB.
        note: why it was not run, or what else there is to know.
    """

    runtime: str
    version: str | None = None
    sizes: str | None = None
    relative: float | None = None
    psnr: float | None = None
    note: str = ""

    def describe(self) -> str:
        """One line for people."""
        if self.version is None:
            return f"not run in {self.runtime}{self.note}"
        parts = [f"{self.runtime} {self.version}, {self.sizes} sizes"]
        if self.relative is not None:
            parts[0] += f": largest difference in f32 {self.relative:.1e} of the range"
        if self.psnr is not None:
            parts.append(f"in its default precision {self.psnr:.1f} dB to PyTorch")
        return "; ".join([*parts, *([self.note] if self.note else [])])


def try_file(path: Path, target: Target, check: Check, lossy: bool = False) -> tuple[Trial, ...]:
    """What the target's runtime made of the file; ONNX Runtime has run it before.

    Args:
        path: the file.
        target: that it is for.
        check: inputs, and the outputs of PyTorch.
        lossy: the file is not to agree with PyTorch in float32, as one in eight bits is not.

    Raises:
        ExportError: the runtime is installed, and its output in float32 differs or there is none.
    """
    if target.package == "onnxruntime":
        return ()
    if target.name == "tensorrt":
        return (_read_for_tensorrt(path),)
    if target.package != "openvino":
        return (Trial(target.title, note=f", which is not run from here; try {target.how}"),)
    version = openvino_version()
    if version is None:
        return (Trial(target.title, note=": it is not installed; pip install csa2glmha[openvino]"),)
    sizes = ("fixed",) if _is_fixed(path) else ("open", "fixed")
    return tuple(_tried(path, check, Trial(target.title, version, each), lossy) for each in sizes)


def _is_fixed(path: Path) -> bool:
    """The file takes inputs of one shape only."""
    graph = onnx.load(path).graph
    return all(size.HasField("dim_value") for size in graph.input[0].type.tensor_type.shape.dim)


def _read_for_tensorrt(path: Path) -> Trial:
    proto = onnx.load(path)
    stops = refused(proto)
    verdict = (
        f"TensorRT 8.6 knows no {', '.join(stops)}"
        if stops
        else "operators and types are those of TensorRT 8.6 and 10"
    )
    described = {each.key: each.value for each in proto.metadata_props}
    half = described.get("precision") == "fp16"
    types, since = (STRONGLY_TYPED, "from 10 on, ") if half else ("", "")
    command = " ".join(part for part in ("trtexec --onnx=FILE", types, described.get(PROFILE, "")) if part)
    return Trial("TensorRT", note=f", read only: {verdict}; {since}try {command}")


def _tried(path: Path, check: Check, trial: Trial, lossy: bool) -> Trial:
    where, fixed = trial.describe(), trial.sizes == "fixed"
    if lossy:
        outputs = _outputs(path, check, where, None, fixed)
        return replace(trial, psnr=min(case.psnr(output) for output, case in outputs))
    outputs = _outputs(path, check, where, "f32", fixed)
    try:
        exact = max(case.differences(output)[1] for output, case in outputs)
    except ExportError as error:
        raise ExportError(f"{where}: {error}") from error
    if exact > check.tolerance:
        raise ExportError(
            f"{where}: the output in float32 differs from PyTorch's by {exact:.1e} of its range, tolerance "
            f"{check.tolerance:.1e}: another version of it may do better, or use ONNX Runtime"
        )
    # Compiling takes seconds, and most CPUs have nothing but float32.
    if default_precision() != "f32":
        try:
            outputs = _outputs(path, check, where, None, fixed)
        except ExportError as error:
            note = f"its default precision fails ({error}): set {HINT} to f32"
            return replace(trial, relative=exact, note=note)
    psnr = min(case.psnr(output) for output, case in outputs)
    note = "" if psnr >= _CLOSE else f"that is far from float32: set {HINT} to f32"
    return replace(trial, relative=exact, psnr=psnr, note=note)


def _outputs(
    path: Path, check: Check, where: str, precision: str | None, fixed: bool
) -> list[tuple[Tensor, Case]]:
    try:
        session = OpenVinoSession(path, precision=precision, fixed=fixed)
        names = [each.name for each in session.get_inputs()]
        output = session.get_outputs()[0].name
        found = []
        for case in check.cases:
            arrays = {name: value.numpy() for name, value in zip(names, case.inputs, strict=True)}
            found.append((torch.from_numpy(session.run([output], arrays)[0]).float(), case))
        return found
    except (CheckpointError, RuntimeError) as error:
        raise ExportError(f"{where}: {error}") from error
