"""What `export` does: any checkpoint or student file to ONNX."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csa2glmha.data.images import bundled_images
from csa2glmha.data.open import open_data
from csa2glmha.errors import ExportError, UsageError
from csa2glmha.export.metadata import metadata_of
from csa2glmha.export.onnx import PRECISIONS, ExportReport, check_opset, export_onnx
from csa2glmha.export.quantize import quantize
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.export.translate import LOWEST_OPSET
from csa2glmha.files import atomic_path, ensure_writable
from csa2glmha.options import ConvertOptions
from csa2glmha.progress import say
from csa2glmha.report.evaluate import judge, restore
from csa2glmha.storage import LoadedModel, load_model

#: Held-out images that the loss of a lower precision is measured on, at most.
JUDGED_IMAGES = 8


@dataclass(frozen=True)
class ExportChoices:
    """How a file is exported; see :func:`~csa2glmha.export.onnx.export_onnx`."""

    opset: int | None = None
    plain: bool = False
    precision: str = "fp32"
    half_io: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class PrecisionLoss:
    """What a lower precision costs, PSNR in dB, means over images.

    Attributes:
        images: how many.
        data: where they are from.
        exact, lower: against the ground truth, where there is one, of the network in float32 and of the file.
        agreement: of the file with the network in float32.
    """

    images: int
    data: str
    exact: float | None
    lower: float | None
    agreement: float

    def describe(self, precision: str) -> str:
        """One line for people."""
        against = f"{self.agreement:.2f} dB to float32"
        if self.exact is not None and self.lower is not None:
            both = f"{self.exact:.3f} dB in float32, {self.lower:.3f} dB in {precision}"
            against = f"{both} ({self.lower - self.exact:+.3f}), {against}"
        return f"PSNR: {against}, on {self.images} held-out images ({self.data})"


def export_file(
    model: Path, output: Path | None, choices: ExportChoices, options: ConvertOptions
) -> tuple[ExportReport, PrecisionLoss | None]:
    """Export a student, or an unconverted checkpoint, to ONNX.

    Args:
        model: the file.
        output: of the ONNX file, ending in .onnx; None: the model's name with .onnx.
        choices: how.
        options: of them those on data and the seed. Data are used for int8, and where they are given, to
            measure what fp16 costs.

    Raises:
        UsageError: choices that exclude each other, or an output that is the model itself.
        Csa2GlmhaError: the file is unusable, or the ONNX outputs differ from PyTorch's.
    """
    _check_choices(choices)
    loaded = load_model(model)
    if loaded.model.fixed_size is not None and (choices.precision == "int8" or options.data is not None):
        raise UsageError(
            f"{model}: has a mask baked in; int8 and --data need a model that takes its mask as an input: "
            "convert without --mask"
        )
    output = _output_file(model, output)
    ensure_writable(output, choices.overwrite)
    for note in loaded.checkpoint.notes:
        say(note)
    if choices.precision == "int8":
        report = _export_int8(loaded, output, choices, options)
    else:
        report = _export(loaded, output, choices)
    measured = choices.precision == "int8" or (choices.precision == "fp16" and options.data is not None)
    return report, _loss(loaded, output, options) if measured else None


def _check_choices(choices: ExportChoices) -> None:
    """Refuse, before anything is read, what cannot be made.

    Raises:
        UsageError: with the option at fault.
    """
    precision, opset = choices.precision, choices.opset
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: unknown; give {', '.join(PRECISIONS)}")
    check_opset(opset)
    if choices.half_io and precision != "fp16":
        raise UsageError(f"--io fp16: goes with --precision fp16, not {precision}; leave it out")
    if precision == "fp32":
        return
    if choices.plain:
        raise UsageError(f"--precision {precision}: needs the rewrites for deployment; leave out --plain")
    if opset is not None and opset < LOWEST_OPSET:
        raise UsageError(f"--opset {opset}: fp16 and int8 need {LOWEST_OPSET} or later")


def _output_file(model: Path, output: Path | None) -> Path:
    """The file to write, which no reader takes for something else, and which is not the model itself."""
    if output is not None and output.suffix.lower() != ".onnx":
        raise UsageError(f"-o {output}: run, evaluate and bench know ONNX files by the suffix .onnx; add it")
    output = output or model.with_suffix(".onnx")
    if output.exists() and output.samefile(model):
        raise UsageError(f"-o {output}: is the model itself, which is never replaced; give another name")
    return output


def _export(loaded: LoadedModel, output: Path, choices: ExportChoices) -> ExportReport:
    example = bundled_images(3)[0][1]
    if loaded.model.in_channels != 3:
        example = example[:1].repeat(loaded.model.in_channels, 1, 1)
    arguments: dict[str, Any] = {
        "opset": choices.opset,
        "plain": choices.plain,
        "precision": choices.precision,
        "half_io": choices.half_io,
    }
    metadata = metadata_of(loaded)
    return export_onnx(
        loaded.model, output, metadata=metadata, example=example, overwrite=choices.overwrite, **arguments
    )


def _export_int8(
    loaded: LoadedModel, output: Path, choices: ExportChoices, options: ConvertOptions
) -> ExportReport:
    data = open_data(loaded.model, options)
    crops = data.calibration(options.calibration_size, options.calibration_crops, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        exact, lower = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        report = _export(loaded, exact, replace(choices, precision="fp32"))
        if not report.rewritten:
            raise ExportError(f"int8 needs the rewrites for deployment, but it was {report.notes[0]}")
        say(f"calibrating int8 on {options.calibration_crops} crops: {data.source}")
        count = quantize(exact, lower, crops)
        OnnxModel(lower)  # that it loads
        with atomic_path(output) as temporary:
            temporary.write_bytes(lower.read_bytes())
    note = f"{count} convolutions in int8, the rest in float32"
    return replace(
        report, path=output, parity=(), notes=(*report.notes, note), size_bytes=output.stat().st_size
    )


def _loss(loaded: LoadedModel, output: Path, options: ConvertOptions) -> PrecisionLoss:
    """Compare the file with the network in PyTorch on held-out images."""
    data, file = open_data(loaded.model, options), OnnxModel(output)
    examples = data.examples(options.input_size, options.seed)[:JUDGED_IMAGES]
    taken = len(file.input_names)
    models = {"exact": restore(loaded.model), "lower": lambda inputs: file(*inputs[:taken])[0]}
    judged = judge(models, examples, "exact", data.spectral)
    return PrecisionLoss(
        len(examples),
        data.source,
        judged["exact"].truth.get("psnr"),
        judged["lower"].truth.get("psnr"),
        judged["lower"].teacher["psnr"],
    )
