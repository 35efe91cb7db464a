"""The stages of a conversion that write and time ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from csa2glmha.bench.compare import FileTimings, compare_with_teacher
from csa2glmha.compression.file_run import FileRun
from csa2glmha.compression.run import Always
from csa2glmha.compression.workspace import FILES_FOR
from csa2glmha.core.errors import ExportError
from csa2glmha.core.progress import say
from csa2glmha.export.metadata import onnx_metadata
from csa2glmha.export.onnx import ExportReport, export_onnx
from csa2glmha.export.targets import target_of
from csa2glmha.networks.foreign import ForeignNetwork


@dataclass(frozen=True)
class Export(Always[FileRun]):
    """Write the ONNX file with ``exporter``."""

    exporter: Callable[..., ExportReport] = export_onnx
    name = "export"

    def __call__(self, run: FileRun) -> None:
        """Sets ``export``."""
        student, space = run.student, run.workspace
        arguments = _described(run)
        try:
            run.export = space.write(lambda: self.exporter(student, space.onnx, **arguments))
        except ExportError as error:
            if isinstance(student, ForeignNetwork):  # any code may stand in it, also what no exporter takes
                run.latency_missing = f"not exported: {error}"
                run.exports_missing = dict.fromkeys(_further(run), str(error))
                say(f"{run.latency_missing}; the student itself is complete")
                return
            raise ExportError(f"{error}; the student itself is kept in {space.student}") from error


def _further(run: FileRun) -> list[str]:
    """The runtimes, beside ONNX Runtime, that files are asked for."""
    return [name for name in run.options.runtimes if name in FILES_FOR]


def _described(run: FileRun) -> dict[str, Any]:
    """What all exports of the student are given: metadata, and inputs to compare outputs on."""
    student = run.student
    name = run.workspace.folder.name
    metadata = onnx_metadata(
        name, student.architecture, student.hyperparameters, run.metadata, student.inputs
    )
    return {"metadata": metadata, "example": run.examples[0].inputs}


@dataclass(frozen=True)
class ExportFor(Always[FileRun]):
    """Write an ONNX file for every further runtime that is asked for, with ``exporter``."""

    exporter: Callable[..., ExportReport] = export_onnx
    name = "runtimes"

    def planned(self, run: FileRun) -> bool:
        """Where there are any."""
        return bool(_further(run))

    def wanted(self, run: FileRun) -> bool:
        """And where the student can be exported at all."""
        return self.planned(run) and run.export is not None

    def __call__(self, run: FileRun) -> None:
        """Sets ``exports`` and ``exports_missing``: a file that is refused does not take the others along."""
        arguments = _described(run)
        for name in _further(run):
            say(f"ONNX file for {target_of(name).title}")
            write = partial(
                self.exporter, run.student, run.workspace.onnx_for(name), target=target_of(name), **arguments
            )
            try:
                run.exports[name] = run.workspace.write(write)
            except ExportError as error:
                run.exports_missing[name] = str(error)
                say(f"no file for {target_of(name).title}: {error}")


@dataclass(frozen=True)
class TimeFiles(Always[FileRun]):
    """Time the student's ONNX file against the teacher's with ``compare``."""

    compare: Callable[..., FileTimings] = compare_with_teacher
    name = "latency"

    def planned(self, run: FileRun) -> bool:
        """Where it is asked for."""
        return run.options.timing

    def wanted(self, run: FileRun) -> bool:
        """And where there is a file."""
        return self.planned(run) and run.latency_missing is None

    def __call__(self, run: FileRun) -> None:
        """Sets ``latency``, or ``latency_missing``."""
        files, example = {"student": run.workspace.onnx}, run.examples[0].inputs
        try:
            run.latency = self.compare(
                run.teacher, files, run.frame, example=example, beside=run.workspace.folder
            )
        except Exception as error:  # a report without this figure is better than none
            run.latency_missing = str(error) or type(error).__name__
            say(f"not timed: {run.latency_missing}; the report goes without the latency")
