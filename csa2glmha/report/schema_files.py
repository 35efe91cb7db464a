"""What report.json holds of ONNX files and their times, as types."""

from __future__ import annotations

from csa2glmha.report.part import Figure, Part


class Parity(Part):
    """Largest difference between ONNX Runtime and PyTorch at one input size."""

    shape: tuple[int, ...]
    max_abs: Figure
    relative: Figure


class RuntimeTrial(Part):
    """What a runtime made of a file; as :class:`csa2glmha.export.trial.Trial`."""

    runtime: str
    version: str | None = None
    sizes: str | None = None
    relative: Figure = None
    psnr: Figure = None
    note: str | None = None


class RuntimeNeed(Part):
    """The first version of a runtime that loads a file; as :class:`csa2glmha.export.needs.Need`."""

    runtime: str
    version: str | None = None
    note: str | None = None


class Onnx(Part):
    """An exported file; earlier reports do not say all of it.

    Attributes:
        runtime: that it is for.
        ir_version: of the file's own format.
        nodes: in the exporter's graph, and in onnxsim's.
        simplified: the file holds onnxsim's.
        tried: in the runtime that it is for; parity is of ONNX Runtime.
    """

    file: str
    runtime: str | None = None
    bytes: int
    opset: int
    ir_version: int | None = None
    nodes: tuple[int, int] | None = None
    simplified: bool
    notes: tuple[str, ...] = ()
    needs: tuple[RuntimeNeed, ...] | None = None
    parity: tuple[Parity, ...]
    tried: tuple[RuntimeTrial, ...] | None = None


class Timing(Part):
    """Milliseconds of one file: median and quartiles; the ratio is to the teacher's within a round."""

    median: float
    low: float
    high: float
    runs: int
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
