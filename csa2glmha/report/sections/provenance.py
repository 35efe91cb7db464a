"""Where the figures come from: data, files, timing, versions."""

from __future__ import annotations

from collections.abc import Mapping

from csa2glmha.core.strict_json import dumps
from csa2glmha.export import needs, trial
from csa2glmha.report.blocks import Block, Facts, Fold, Group, Heading, Note, Table
from csa2glmha.report.schema import Report
from csa2glmha.report.schema_files import Onnx, RuntimeNeed, RuntimeTrial, Timing
from csa2glmha.report.sections.numbers import TIMES, short


def data_blocks(report: Report) -> list[Block]:
    """What was learnt from and evaluated on."""
    data = report.data
    if data is None:
        return []
    facts = [
        ("source", data.source),
        ("degradation", data.degradation or "none, the images are inputs as they are"),
        ("ground truth", "known" if report.knows_ground_truth else "none"),
        ("calibration and distillation", f"{data.training_images} images"),
        ("held out", f"{data.held_out_images} images"),
        ("evaluated on", f"{data.evaluated_images} images, {data.evaluated_on}"),
        *(("note", note) for note in data.notes),
    ]
    return [Facts(facts)]


def export_blocks(report: Report) -> list[Block]:
    """The ONNX file, its agreement with PyTorch, and its time."""
    missing = report.latency_missing
    return [
        *([] if report.onnx is None else [Group(_onnx(report.onnx, report.versions.get("onnxruntime")))]),
        *(Group(_onnx_for(name, each)) for name, each in (report.onnx_for or {}).items()),
        *(Note(f"No file for {name}: {reason}") for name, reason in (report.onnx_missing or {}).items()),
        *([Group(_latency(report.latency_ms))] if report.latency_ms else []),
        *([] if missing is None else [Note(f"Time was not measured: {missing}")]),
    ]


def _onnx(onnx: Onnx, version: str | None) -> list[Block]:
    where = f" in ONNX Runtime {version}" if version else ""
    rows = [
        (f" {TIMES} ".join(map(str, size.shape)), short(size.max_abs), short(size.relative))
        for size in onnx.parity
    ]
    table = Table(("input", "absolute", "relative to range"), rows, "Agreement of ONNX and PyTorch")
    sentence = f"{_file(onnx)} Largest difference to PyTorch{where}:"
    return [Note(sentence), table, *map(Note, onnx.notes)]


def _onnx_for(name: str, onnx: Onnx) -> list[Block]:
    """A file for a further runtime: what it is, and what that made of it."""
    worst = max((size.relative for size in onnx.parity if size.relative is not None), default=None)
    own = "" if worst is None else f" ONNX Runtime: largest difference {short(worst)} of the range."
    tried = [f"{_trial(each).describe()}." for each in onnx.tried or ()]
    return [
        Note(" ".join([_file(onnx) + own, *(line[0].upper() + line[1:] for line in tried)])),
        *map(Note, onnx.notes),
    ]


def _file(onnx: Onnx) -> str:
    """One sentence on a file."""
    made_for = f" for {onnx.runtime}" if onnx.runtime else ""
    parts = [f"{onnx.bytes / 1e6:.1f} MB", f"opset {onnx.opset}"]
    parts += [] if onnx.ir_version is None else [f"IR version {onnx.ir_version}"]
    simplified = "simplified" if onnx.simplified else "not simplified"
    if onnx.nodes is not None:
        before, after = onnx.nodes
        kept = "kept" if onnx.simplified else "no smaller, left as it was"
        simplified = f"{before} nodes, {after} after onnxsim ({kept})"
    needed = [_need(each).describe() for each in onnx.needs or ()]
    loads = f" Loads in {'; '.join(needed)}." if needed else ""
    return f"{onnx.file}{made_for}: {', '.join([*parts, simplified])}.{loads}"


def _need(part: RuntimeNeed) -> needs.Need:
    return needs.Need(part.runtime, part.version, part.note or "")


def _trial(part: RuntimeTrial) -> trial.Trial:
    return trial.Trial(part.runtime, part.version, part.sizes, part.relative, part.psnr, part.note or "")


def _latency(latency: Mapping[str, Timing]) -> list[Block]:
    rows = [
        (name, short(value.median), f"{short(value.low)} to {short(value.high)}", str(value.runs))
        for name, value in latency.items()
    ]
    note = "ONNX Runtime on the CPU, teacher and student run in turn; the teacher is its plain export."
    header = ("", "median, ms", "quartiles, ms", "runs")
    return [Heading("Time"), Note(note), Table(header, rows, "Time of teacher and student")]


def making_blocks(report: Report) -> list[Block]:
    """All that is needed to do it again."""
    teacher = report.teacher
    facts = [
        ("made by", f"{report.tool} on {report.device}, {report.threads} threads"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("seed", str(report.seed)),
        ("teacher", teacher.source or teacher.file),
        ("SHA-256", teacher.sha256),
        *(("teacher's file", note) for note in teacher.notes),
        ("seconds", ", ".join(f"{stage} {value}" for stage, value in report.seconds.items())),
        ("hyper-parameters", dumps(teacher.hyperparameters)),
    ]
    options = [
        (name.replace("_", " "), str(value)) for name, value in report.options.items() if value is not None
    ]
    return [Facts(facts), Fold("All options", [Facts(options)], too_long_for_text=True)]
