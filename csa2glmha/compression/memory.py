"""`compress`: a network and batches that a program holds in memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn

from csa2glmha.checkpoint.student import save_student, student_metadata
from csa2glmha.compression.files import provenance
from csa2glmha.compression.measured import measurements_of
from csa2glmha.compression.run import ModelT, Plan, Run, Shapes, carry_out
from csa2glmha.compression.stages import Calibrate, Count, Distil, Evaluate, Initialise, MeasureRanks
from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.core.files import ensure_writable, prepare_output_dir
from csa2glmha.core.progress import quiet, say, telling
from csa2glmha.data.batches import Data, Inputs
from csa2glmha.data.given import GivenBatches, read_samples
from csa2glmha.data.open import open_data
from csa2glmha.distill import DistillSettings
from csa2glmha.distill.job import check_training
from csa2glmha.export.metadata import onnx_metadata
from csa2glmha.export.onnx import ExportReport, export_onnx
from csa2glmha.metrics.evaluate import check_sizes
from csa2glmha.networks import RestorationModel, run
from csa2glmha.reading.layers import attention_layers, glmha_layers
from csa2glmha.report.document import REPORT_FILES, write_report
from csa2glmha.report.record import build_report
from csa2glmha.report.schema import Report, Teacher

#: Samples taken of an iterable, which may have no end.
MOST_SAMPLES = 1024
_STAGES = (Calibrate(), MeasureRanks(), Initialise(), Distil(), Evaluate(), Count())
#: Options that say where files are, which are not read or written here.
_OF_FILES = (
    "data",
    "output",
    "overwrite",
    "resume",
    "mask",
    "weights",
    "baselines",
    "latency",
    "timing",
    "tensorboard",
)


@dataclass(frozen=True)
class Compression(Generic[ModelT]):
    """The result of :func:`compress`.

    Attributes:
        student: the compressed network, in eval mode on the CPU; called as the teacher is.
        record: what was measured, as in report.json.
    """

    student: ModelT
    record: Report
    _options: ConvertOptions
    _example: Inputs

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a student file, which :func:`csa2glmha.load` reads.

        Raises:
            UsageError: the network is of no known family, so that a file cannot say how to build it.
            OutputError: the file exists, or cannot be written.
        """
        student = self._known("save", "torch.save(result.student.state_dict(), ...) keeps its weights")
        ensure_writable(Path(path), overwrite)
        save_student(Path(path), student, self._metadata(student))

    def export(self, path: str | Path, overwrite: bool = False) -> ExportReport:
        """Write an ONNX file, which is compared with PyTorch at three sizes.

        Raises:
            UsageError: the network is of no known family.
            ExportError, OutputError: as :func:`csa2glmha.export.onnx.export_onnx`.
        """
        student = self._known("export", "torch.onnx.export takes result.student")
        metadata = self._metadata(student)
        described = onnx_metadata(
            Path(path).stem, student.architecture, student.hyperparameters, metadata, student.inputs
        )
        return export_onnx(
            student, Path(path), metadata=described, example=self._example, overwrite=overwrite
        )

    def report(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write report.json and report.md into a folder, which is made if need be.

        Raises:
            OutputError: there is one already, or it cannot be written.
        """
        prepare_output_dir(Path(folder), REPORT_FILES, overwrite)
        write_report(Path(folder), self.record)

    def _known(self, what: str, instead: str) -> RestorationModel:
        if not isinstance(self.student, RestorationModel):
            raise UsageError(
                f"{what}: {type(self.student).__name__} is no network that csa2glmha builds itself; {instead}"
            )
        return self.student

    def _metadata(self, student: RestorationModel) -> dict[str, str]:
        extra = provenance(self._options)
        return student_metadata(student, self.record.teacher.sha256, self._options.seed, extra)


def compress(
    model: ModelT,
    calibration: Iterable[Any] | str | Path,
    *,
    rank: int | float | str = 8,
    distill: bool | int | DistillSettings | None = None,
    held_out: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Compression[ModelT]:
    """Compress the channel attention of a network in memory.

    Args:
        model: with channel attention of a known kind, itself or anywhere in it; it is not changed. On any
            device.
        calibration: batches of its inputs, each a tensor (B, ...) or a tuple of tensors; ground truth is not
            needed. They give the statistics, and distillation samples them again. For a network of a known
            family also a folder of images, with ``degrade`` and the like.
        rank: per head of keys and values; a share of each layer's energy to keep, such as 0.99; or "full".
        distill: None or False trains nothing; True trains as long as ``distill_minutes`` says; a number is
            the steps; or all settings.
        held_out: batches to evaluate on. None: every eighth sample of ``calibration``.
        seed: of everything random.
        progress: tell on standard error what goes on.
        **options: further fields of :class:`csa2glmha.config.options.ConvertOptions`, e.g. ``rank_q=16``,
            ``calibration_crops=64`` (samples for the statistics), ``batch=4``, ``device="cuda"``.

    Returns:
        The student and the record of what was measured.

    Raises:
        UsageError, DataError: the network has no such attention, or options or batches do not fit it.

    >>> import torch, csa2glmha
    >>> from csa2glmha.families.restormer.network import Restormer
    >>> model = Restormer(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 2, 4))
    >>> batches = [torch.rand(2, 3, 16, 16) for _ in range(2)]
    >>> result = csa2glmha.compress(model, batches, rank=4, progress=False)
    >>> result.student(batches[0]).shape
    torch.Size([2, 3, 16, 16])
    >>> result.record.complexity.after.macs < result.record.complexity.before.macs
    True
    """
    with quiet(not progress), telling(progress):
        settings = _options(rank, distill, seed, options)
        device = resolve_device(settings.device)
        check_training(settings, device)
        teacher = _teacher(model, device)
        plan = Plan.of(attention_layers(teacher), settings)
        data = _data(model, calibration, held_out, settings)
        begun = _begin(teacher, data, plan, settings, device)
        if isinstance(distill, DistillSettings):
            begun.settings = distill
        carry_out(begun, _STAGES)
        return Compression(begun.student, _record(begun), settings, begun.examples[0].inputs)


def _options(
    rank: int | float | str, distill: bool | int | DistillSettings | None, seed: int, more: dict[str, Any]
) -> ConvertOptions:
    for name in _OF_FILES:
        if name in more:
            raise UsageError(f"{name}: is of files; leave it out, or use csa2glmha.convert")
    values = {"rank": rank, "seed": seed, **more}
    if distill is None or distill is False:
        values["distill"] = False
    elif isinstance(distill, DistillSettings):
        values |= {"distill_steps": distill.steps, "distill_minutes": distill.minutes}
        values |= {"batch": distill.batch, "precision": distill.precision, "loss": distill.loss}
        values = {name: value for name, value in values.items() if value is not None}
        values.pop("distill_minutes" if distill.steps is not None else "", None)
    elif distill is not True:
        values["distill_steps"] = distill
    settings = make_options(**values)
    if settings.automatic:
        raise UsageError(
            "rank auto: searches are for files; give a number or a share, or use csa2glmha.convert"
        )
    if settings.truth_weight:
        raise UsageError("truth_weight: batches have no ground truth; leave it out")
    return settings


def _teacher(model: ModelT, device: torch.device) -> ModelT:
    if not isinstance(model, nn.Module):
        raise UsageError(f"compress: a {type(model).__name__} is no nn.Module; csa2glmha.convert takes files")
    if glmha_layers(model):
        raise UsageError(f"compress: {type(model).__name__} is a student already; give its teacher")
    teacher = copy.deepcopy(model).to(device, torch.float32).eval()
    return teacher.requires_grad_(False)


def _data(
    model: nn.Module,
    calibration: Iterable[Any] | str | Path,
    held_out: Iterable[Any] | None,
    options: ConvertOptions,
) -> Data:
    if isinstance(calibration, str | Path):
        if not isinstance(model, RestorationModel):
            raise UsageError(
                f"calibration {calibration}: a folder is for networks of known families; give "
                f"{type(model).__name__} batches of its inputs"
            )
        if held_out is not None:
            raise UsageError("held_out: of a folder some images are held out by themselves; leave it out")
        return open_data(model, options.model_copy(update={"data": Path(calibration)}))
    if options.degrade is not None or options.targets is not None:
        raise UsageError("degrade and targets are for folders; give batches as the network takes them")
    samples = read_samples(calibration, "calibration", MOST_SAMPLES)
    if held_out is None:
        return GivenBatches.split(samples)
    return GivenBatches(samples, read_samples(held_out, "held_out", MOST_SAMPLES))


def _begin(
    teacher: ModelT, data: Data, plan: Plan, options: ConvertOptions, device: torch.device
) -> Run[ModelT]:
    for note in data.notes:
        say(note)
    torch.manual_seed(options.seed)
    examples = data.examples(options.input_size, options.seed)
    inputs = examples[0].inputs
    try:
        with torch.no_grad():
            output = run(teacher, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
        raise DataError(f"{type(teacher).__name__} does not run on inputs {shapes}: {reason}") from error
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        raise DataError(
            f"{type(teacher).__name__} gives no images (B, C, H, W); compress needs one output of these"
        )
    check_sizes(examples)

    def given_shapes(model: ModelT) -> Shapes:
        return tuple(tuple(each.shape) for each in inputs)

    return Run(
        teacher=teacher,
        options=options,
        data=data,
        plan=plan,
        device=device,
        examples=examples,
        shapes=given_shapes,
        finish=unchanged_module,
    )


def unchanged_module(student: ModelT) -> ModelT:
    """Nothing is done."""
    return student


def _record(run: Run[ModelT]) -> Report:
    frame = run.data.frame(run.options.input_size)
    return build_report(measurements_of(run, _described(run.teacher), frame))


def _described(model: nn.Module) -> Teacher:
    """A teacher that came from no file: its weights' checksum takes the place of the file's."""
    return Teacher(
        file=f"{type(model).__name__} in memory",
        sha256=weights_sha256(model),
        architecture=model.architecture if isinstance(model, RestorationModel) else type(model).__name__,
        hyperparameters=model.hyperparameters if isinstance(model, RestorationModel) else {},
    )


def weights_sha256(model: nn.Module) -> str:
    """Of names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
