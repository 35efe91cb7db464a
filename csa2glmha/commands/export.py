"""What `export` does: any checkpoint or student file to ONNX."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from csa2glmha.checkpoint.student import LoadedModel, load_model, weight_bytes
from csa2glmha.config.data import CalibrationOptions, DataOptions
from csa2glmha.config.options import WorkOptions, flag_of
from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import atomic_path, ensure_writable, scratch_folder
from csa2glmha.core.hub import beside
from csa2glmha.core.locks import exclusive_file
from csa2glmha.core.progress import say
from csa2glmha.data.batches import Data
from csa2glmha.data.images import bundled_images
from csa2glmha.data.open import as_trained, open_data
from csa2glmha.export.headroom import Headroom, measure_headroom
from csa2glmha.export.metadata import metadata_of
from csa2glmha.export.needs import needs_of
from csa2glmha.export.onnx import PRECISIONS, ExportReport, check_opset, export_onnx
from csa2glmha.export.quantize import quantize
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.export.targets import DEFAULT_TARGET, target_of
from csa2glmha.export.trial import try_file
from csa2glmha.export.verify import Check, cases_for
from csa2glmha.metrics.evaluate import evaluate, restore
from csa2glmha.metrics.outputs import PSNR_SCALE, Scale
from csa2glmha.networks import RestorationModel
from csa2glmha.report.metrics import AGREEMENT, PSNR, Metric

#: Held-out images that the loss of a lower precision is measured on, at most.
EVALUATED_IMAGES = 8
#: Options that say what int8 is calibrated on, and what it and fp16 are evaluated on.
_DATA, _CALIBRATION = tuple(DataOptions.model_fields), tuple(CalibrationOptions.model_fields)


@dataclass(frozen=True)
class ExportChoices:
    """How a file is exported; see :func:`~csa2glmha.export.onnx.export_onnx`."""

    opset: int | None = None
    plain: bool = False
    precision: str = "fp32"
    half_io: bool = False
    overwrite: bool = False
    target: str = DEFAULT_TARGET.name
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PrecisionLoss:
    """What a lower precision costs, means over images: PSNR in dB, or of classifiers top-1 and KL divergence.

    Attributes:
        images: how many.
        data: where they are from.
        degradation: how inputs were made of clean images; None where they were not.
        exact, lower: against the ground truth, where there is one, of the network in float32 and of the file.
        agreement: of the file with the network in float32.
        metric: that exact and lower are of.
        scale: of the agreement.
    """

    images: int
    data: str
    degradation: str | None
    exact: float | None
    lower: float | None
    agreement: float
    metric: Metric = PSNR
    scale: Scale = PSNR_SCALE

    def describe(self, precision: str) -> str:
        """One line for people."""
        metric, scale = self.metric, self.scale
        against = f"{scale.label.replace(' to the teacher', '')} {scale.show(self.agreement)} to float32"
        if self.exact is not None and self.lower is not None:
            exact, lower = (metric.number(each, "ground_truth") for each in (self.exact, self.lower))
            name = metric.truth_label or metric.label
            both = f"{name} {exact}{metric.unit} in float32, {lower}{metric.unit} in {precision}"
            against = f"{both} ({metric.change(self.exact, self.lower, 'ground_truth')}), {against}"
        made = "" if self.degradation is None else f"; degradation: {self.degradation}"
        return f"{against}, on {self.images} held-out images ({self.data}{made})"


def export_file(
    model: Path, output: Path | None, choices: ExportChoices, options: WorkOptions
) -> tuple[ExportReport, PrecisionLoss | None]:
    """Export a student, or an unconverted checkpoint, to ONNX.

    Args:
        model: the file.
        output: of the ONNX file, ending in .onnx; None: the model's name with .onnx.
        choices: how.
        options: of them those on data and the seed. Data calibrate int8 and show what it costs; what fp16
            costs is measured where any of them is given. Without a folder they are the photographs that
            come with scikit-image, degraded as the student's metadata say.

    Raises:
        UsageError: choices that exclude each other, or an output that is the model itself.
        Csa2GlmhaError: the file is unusable, or the ONNX outputs differ from PyTorch's.
    """
    _check_choices(choices)
    loaded = load_model(model, options.weights, options)
    evaluated = choices.precision == "int8" or (
        choices.precision == "fp16" and not options.model_fields_set.isdisjoint(_DATA)
    )
    if choices.shape is not None and evaluated:
        # Crops for int8, and the images that show what a precision costs, have sizes of their own.
        shape = "x".join(map(str, choices.shape))
        raise UsageError(f"--shape {shape}: int8 and --data need a file that takes any size; leave it out")
    if loaded.model.fixed_size is not None and evaluated:
        raise UsageError(
            f"{model}: has a mask baked in; int8 and --data need a model that takes its mask as an input: "
            "convert without --mask"
        )
    output = _output_file(model, output, options.stem_of(model))
    with exclusive_file(output):
        ensure_writable(output, choices.overwrite)
        return _written(loaded, output, choices, options, evaluated)


def _written(
    loaded: LoadedModel, output: Path, choices: ExportChoices, options: WorkOptions, evaluated: bool
) -> tuple[ExportReport, PrecisionLoss | None]:
    """Make the file, once nothing is in the way."""
    for note in loaded.checkpoint.notes:
        say(note)
    _say_unused(choices.precision, options)
    if not evaluated:
        return _export(loaded, output, choices), None
    options = as_trained(loaded.checkpoint.metadata, _with_task(loaded, options))
    data = open_data(loaded.model, options)
    for note in data.notes:
        say(note)
    # Elsewhere at first: what cannot be evaluated must not be left under the name that was asked for.
    with scratch_folder(2 * weight_bytes(loaded.model), output.parent) as folder:
        draft = folder / "draft.onnx"
        if choices.precision == "int8":
            report = _export_int8(loaded, draft, choices, data, options)
        else:
            report = _export(loaded, draft, choices)
        loss = _loss(loaded, draft, data, options)
        if choices.precision == "fp16":
            report = replace(report, headroom=_headroom(draft, data, options) or report.headroom)
        with atomic_path(output) as temporary:
            temporary.write_bytes(draft.read_bytes())
    return replace(report, path=output), loss


def _check_choices(choices: ExportChoices) -> None:
    """Refuse, before anything is read, what cannot be made.

    Raises:
        UsageError: with the option at fault.
    """
    precision, opset = choices.precision, choices.opset
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: unknown; give {', '.join(PRECISIONS)}")
    check_opset(opset, choices.plain)
    target_of(choices.target)
    if choices.target == "tensorrt" and precision == "int8":
        raise UsageError(
            "--precision int8: TensorRT takes eight bits in a form of its own; give --precision fp16, or let "
            "TensorRT quantise the float file"
        )
    if choices.half_io and precision != "fp16":
        raise UsageError(f"--io fp16: goes with --precision fp16, not {precision}; leave it out")


def _say_unused(precision: str, options: WorkOptions) -> None:
    """Tell of options on data that were given and change nothing."""
    unused = {"fp32": (*_DATA, *_CALIBRATION), "fp16": _CALIBRATION, "int8": ()}[precision]
    given = [flag_of(name, getattr(options, name)) for name in unused if name in options.model_fields_set]
    if given:
        say(f"{', '.join(given)}: not used with --precision {precision}")


def _with_task(loaded: LoadedModel, options: WorkOptions) -> WorkOptions:
    """Degrade the photographs that come with this tool, which are clean, as the student's images were.

    Images of the user's are inputs unless --degrade says otherwise, here as in all commands.
    """
    task = loaded.checkpoint.metadata.get("task") if loaded.is_student else None
    if not task or options.data is not None or options.degrade is not None:
        return options
    say(f"no --degrade: {task}, which this student was made with")
    return options.model_copy(update={"degrade": task})


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """The whole numbers of a shape such as "1x3x512x512"; None stays None.

    Raises:
        UsageError: it is no such text.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--shape {text}: give batch x channels x height x width, such as 1x3x512x512")
    return tuple(map(int, parts))


def _output_file(model: Path, output: Path | None, stem: str) -> Path:
    """The file to write, which no reader takes for something else, and which is not the model itself."""
    if output is not None and output.suffix.lower() != ".onnx":
        raise UsageError(f"-o {output}: run, evaluate and bench know ONNX files by the suffix .onnx; add it")
    output = output or beside(model, f"{stem}.onnx")
    if output.exists() and output.samefile(model):
        raise UsageError(f"-o {output}: is the model itself, which is never replaced; give another name")
    return output


def _export(loaded: LoadedModel, output: Path, choices: ExportChoices) -> ExportReport:
    arguments: dict[str, Any] = {
        "opset": choices.opset,
        "plain": choices.plain,
        "precision": choices.precision,
        "half_io": choices.half_io,
        "target": target_of(choices.target),
        "shape": choices.shape,
        "metadata": metadata_of(loaded),
        "example": _example(loaded.model),
        "overwrite": choices.overwrite,
    }
    return export_onnx(loaded.model, output, **arguments)


def _example(model: RestorationModel) -> tuple[Tensor]:
    """A photograph, with the channels that the model takes."""
    photograph = bundled_images(3)[0][1]
    return (photograph if model.in_channels == 3 else photograph[:1].repeat(model.in_channels, 1, 1),)


def _export_int8(
    loaded: LoadedModel, output: Path, choices: ExportChoices, data: Data, options: WorkOptions
) -> ExportReport:
    crops = data.calibration(options.calibration_size, options.calibration_crops, options.seed)
    exact = output.with_suffix(".float.onnx")
    report = _export(loaded, exact, replace(choices, precision="fp32"))
    say(f"calibrating int8 on {options.calibration_crops} crops: {data.source}")
    count = quantize(exact, output, crops)
    proto, size = onnx.load(output), output.stat().st_size
    note = f"{count} convolutions in int8, the rest in float32; {len(proto.graph.node)} nodes"
    # The float file was tried already, and nobody gets that one.
    check = Check(cases_for(loaded.model, _example(loaded.model)), tolerance=math.inf)
    tried = try_file(output, target_of(choices.target), check, lossy=True)
    notes, needs = (*report.notes, note), needs_of(proto)
    return replace(report, parity=(), nodes=(0, 0), notes=notes, size_bytes=size, needs=needs, tried=tried)


def _headroom(file: Path, data: Data, options: WorkOptions) -> Headroom | None:
    """On the same images as :func:`_loss`."""
    examples = data.examples(options.input_size, options.seed)[:EVALUATED_IMAGES]
    return measure_headroom(file, [example.inputs for example in examples])


def _loss(loaded: LoadedModel, file: Path, data: Data, options: WorkOptions) -> PrecisionLoss:
    """Compare the file with the network in PyTorch on held-out images."""
    lower = OnnxModel(file)
    examples = data.examples(options.input_size, options.seed)[:EVALUATED_IMAGES]
    taken = len(lower.input_names)
    models = {"exact": restore(loaded.model), "lower": lambda inputs: lower(*inputs[:taken])[0]}
    evaluated = evaluate(models, examples, "exact", data.outputs)
    scale = data.outputs.scale
    metric = PSNR if scale is PSNR_SCALE else AGREEMENT
    return PrecisionLoss(
        len(examples),
        data.source,
        data.degradation,
        evaluated["exact"].ground_truth.get(metric.name),
        evaluated["lower"].ground_truth.get(metric.name),
        evaluated["lower"].teacher[scale.metric],
        metric,
        scale,
    )
