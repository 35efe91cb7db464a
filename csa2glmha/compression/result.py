"""What `compress` gives: the student, its record, and the files that can be made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from torch import nn

from csa2glmha.checkpoint.foreign import weights_sha256
from csa2glmha.checkpoint.student import TEACHER_VALUES, save_student, student_metadata
from csa2glmha.compression.files import provenance
from csa2glmha.compression.measured import measurements_of
from csa2glmha.compression.pictured import Pictured
from csa2glmha.compression.run import ModelT, Run
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.errors import Csa2GlmhaError, ExportError
from csa2glmha.core.files import ensure_writable, prepare_output_dir
from csa2glmha.data.batches import Inputs
from csa2glmha.export.metadata import onnx_metadata
from csa2glmha.export.onnx import ExportReport, export_onnx
from csa2glmha.export.targets import DEFAULT_TARGET, target_of
from csa2glmha.metrics.comparisons import Comparison
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.builder import Origin
from csa2glmha.networks.foreign import ForeignNetwork, Interface, users_own
from csa2glmha.networks.probe import probe
from csa2glmha.report.document import REPORT_FILES, write_report
from csa2glmha.report.html import HTML_FILE, write_html
from csa2glmha.report.record import build_report
from csa2glmha.report.schema import Report, Teacher
from csa2glmha.report.sections.summary import PICTURE_FILE, SPECTRA_FILE


@dataclass(frozen=True)
class Compression(Generic[ModelT]):
    """The result of :func:`csa2glmha.compress`.

    Attributes:
        student: the compressed network, in eval mode on the CPU; called as the teacher is.
        record: what was measured, as in report.json.
    """

    student: ModelT
    record: Report
    _options: ConvertOptions
    _example: Inputs
    _comparisons: Sequence[Comparison]
    _pictured: Pictured | None
    _interface: Interface | None = None

    @classmethod
    def of(cls, run: Run[Any], teacher: ModelT) -> Compression[ModelT]:
        """The result of a run whose stages are all done.

        Args:
            run: of the teacher, or of what makes a network for images of it.
            teacher: as it was given; the student is of its class.
        """
        frame = run.data.frame(run.options.input_size)
        record = build_report(measurements_of(run, _described(teacher), frame))
        example = run.examples[0].inputs
        student: Any = users_own(run.student) if run.teacher is not teacher else run.student
        face = run.student.interface if isinstance(run.student, ForeignNetwork) else None
        return cls(student, record, run.options, example, run.comparisons, run.pictured, face)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a student file, which :func:`csa2glmha.load` reads.

        The file of a network that is of no known family holds weights and layers: there ``load`` takes the
        network, too, as ``load(path, network=build)``.

        Raises:
            OutputError: the file exists, or cannot be written.
        """
        ensure_writable(Path(path), overwrite, by_command=False)
        save_student(Path(path), self.student, self._metadata(self.student))

    def export(
        self,
        path: str | Path,
        overwrite: bool = False,
        runtime: str = DEFAULT_TARGET.name,
        *,
        shape: Sequence[int] | None = None,
        opset: int | None = None,
        precision: str = "fp32",
    ) -> ExportReport:
        """Write an ONNX file that takes any height and width, and is compared with PyTorch at three sizes.

        Args:
            path: of the file.
            overwrite: replace an existing file.
            runtime: that the file is for, as the command's `--for` has it, such as "openvino".
            shape: (B, C, H, W) of the (first) input, the only one that the file is to take; None: any.
            opset: version of the ONNX operators; None: the runtime's.
            precision: "fp32" or "fp16".

        Raises:
            UsageError: the runtime, the opset or the precision is not known, or the network does not take
                the shape.
            FrozenError: without ``shape``, of code that makes plain numbers of height or width.
            ExportError: the network cannot be exported, or its file gives something else.
            OutputError: the file exists, or cannot be written.
        """
        target = target_of(runtime)
        ensure_writable(Path(path), overwrite, by_command=False)
        network = described_network(self.student, self._example, self._interface)
        metadata = self._metadata(network)
        described = onnx_metadata(
            Path(path).stem, network.architecture, network.hyperparameters, metadata, network.inputs
        )
        return export_onnx(
            network,
            Path(path),
            metadata=described,
            opset=opset,
            precision=precision,
            target=target,
            shape=shape,
            example=self._example,
            overwrite=overwrite,
        )

    def report(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write report.json, report.md, report.html and, of images, pictures of one of them.

        Args:
            folder: where to; it is made if need be.
            overwrite: replace an earlier report.

        Raises:
            OutputError: there is one already, or it cannot be written.
        """
        place, pictures = Path(folder), (PICTURE_FILE, SPECTRA_FILE)
        prepare_output_dir(place, (*REPORT_FILES, HTML_FILE, *pictures), overwrite, by_command=False)
        for name in pictures:  # of an earlier report
            (place / name).unlink(missing_ok=True)
        write_report(place, self.record)
        write_html(place, self.record, self._comparisons)
        if self._pictured is not None:
            self._pictured.write(place)

    def _metadata(self, student: nn.Module) -> dict[str, str]:
        extra = provenance(self._options) | {TEACHER_VALUES: self.record.teacher.sha256}
        return student_metadata(student, None, self._options.seed, extra)


def described_network(
    student: nn.Module, example: Inputs, interface: Interface | None = None
) -> RestorationModel:
    """The network with what an export must know of it: of any module, found by trying.

    Args:
        student: the network.
        example: inputs that it takes.
        interface: what it takes and makes, where that is known.

    Raises:
        ExportError: the first is no image, or it does not run on other ones.
    """
    if isinstance(student, RestorationModel):
        return student
    kind, shapes = type(student), tuple(tuple(each.shape) for each in example)
    if len(shapes[0]) != 4:
        raise ExportError(
            f"export: {kind.__name__} takes an input of {'x'.join(map(str, shapes[0]))}; only networks whose "
            "first input is an image (B, C, H, W) are exported"
        )
    name = f"{kind.__module__}:{kind.__qualname__}"
    try:
        face = interface or probe(student, name, shapes, Interface((), 0))
        return ForeignNetwork(student, face, Origin(name, {}, {}))
    except Csa2GlmhaError as error:
        raise ExportError(f"export: {str(error).removeprefix('--network ')}") from error


def _described(model: nn.Module) -> Teacher:
    """A teacher that came from no file: its weights' checksum takes the place of the file's."""
    return Teacher(
        file=f"{type(model).__name__} in memory",
        sha256=weights_sha256(model),
        architecture=model.architecture if isinstance(model, RestorationModel) else type(model).__name__,
        hyperparameters=model.hyperparameters if isinstance(model, RestorationModel) else {},
    )
