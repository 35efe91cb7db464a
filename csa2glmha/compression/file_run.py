"""A conversion of a file under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from csa2glmha.bench.compare import FileTimings
from csa2glmha.checkpoint.student import LoadedModel
from csa2glmha.compression.run import Run
from csa2glmha.compression.workspace import Workspace
from csa2glmha.export.onnx import ExportReport
from csa2glmha.networks import RestorationModel
from csa2glmha.report.schema import Report
from csa2glmha.search.baselines import BaselineJob


@dataclass(kw_only=True)
class FileRun(Run[RestorationModel]):
    """A conversion of a file.

    Attributes:
        loaded: the teacher and its file.
        workspace: where the results go.
        identity: what a state to resume from must share.
        metadata: of the student's file.
        methods: the comparison with other methods, and what it found.
        export, latency, latency_missing, record: what the stages made.
        exports, exports_missing: the files for further runtimes, and why there is none, by runtime.
    """

    loaded: LoadedModel
    workspace: Workspace
    identity: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    methods: BaselineJob | None = None
    baselines: list[dict[str, Any]] | None = None
    export: ExportReport | None = None
    exports: dict[str, ExportReport] = field(default_factory=dict)
    exports_missing: dict[str, str] = field(default_factory=dict)
    latency: FileTimings | None = None
    latency_missing: str | None = None
    record: Report = field(init=False)

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width that figures hold for."""
        return self.data.frame(self.options.input_size)
