"""ONNX files timed against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from csa2glmha.bench.noise import noise
from csa2glmha.bench.rounds import Latency, Patience, Ratio, time_in_turns
from csa2glmha.checkpoint.student import weight_bytes
from csa2glmha.core.files import scratch_folder
from csa2glmha.core.progress import manual_progress, say
from csa2glmha.data.batches import Inputs
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.networks import RestorationModel

#: What the teacher's plain export is called.
TEACHER = "teacher"
#: Where a few percent are near enough.
QUICK = Patience(tolerance=0.02, seconds=15.0)
#: Where a choice depends on the result.
THOROUGH = Patience(tolerance=0.01, seconds=90.0)


@dataclass(frozen=True)
class FileTimings:
    """Times by the files' names, in the order of the files.

    Attributes:
        latencies: of each.
        ratios: over the first one's; the first is 1.
        converged: all ratios are known as well as was asked for.
    """

    latencies: dict[str, Latency]
    ratios: dict[str, Ratio]
    converged: bool


def compare_files(
    files: Mapping[str, Path],
    *shapes: tuple[int, ...],
    patience: Patience = QUICK,
    threads: int | None = None,
) -> FileTimings:
    """Time ONNX files on the CPU, in turns, on the same seeded noise.

    Args:
        files: by name; all take inputs of the same shapes, some may need the first few only.
        shapes: of the inputs in call order, as ``RestorationModel.input_shapes`` gives them.
        patience: when to stop.
        threads: of ONNX Runtime within an operator; None: one for each core that may be used.

    Raises:
        CheckpointError: a file is missing, is not ONNX or cannot be run.
        DataError: a file does not take inputs of these shapes.
    """
    inputs = noise(shapes)
    models = [OnnxModel(path, threads) for path in files.values()]

    def run(model: OnnxModel) -> None:
        model(*inputs[: len(model.input_names)])

    with manual_progress(what="timing", unit="round", total=None) as bar:
        timings = time_in_turns([partial(run, model) for model in models], patience, bar.update)
    if not timings.converged:
        known = max(ratio.uncertainty for ratio in timings.ratios)
        say(f"ratios of times are known to {known:.1%} only; the machine may be busy with something else")
    return FileTimings(
        dict(zip(files, timings.latencies, strict=True)),
        dict(zip(files, timings.ratios, strict=True)),
        timings.converged,
    )


def compare_with_teacher(
    teacher: RestorationModel,
    files: Mapping[str, Path],
    frame: tuple[int, int],
    patience: Patience = QUICK,
    example: Inputs | None = None,
    beside: Path | None = None,
) -> FileTimings:
    """Time students' files against the plain export of their teacher, which comes first.

    Args:
        teacher: exported as it is in evaluation mode, for this frame alone.
        files: by name, other than :data:`TEACHER`.
        frame: height and width.
        patience: when to stop.
        example: inputs that the teacher's export is checked on, as in ``export_onnx``.
        beside: folder for the teacher's export where TMPDIR has no room.

    Raises:
        OutputError: there is no room for the teacher's export.
        ExportError: the teacher cannot be exported.
        CheckpointError, DataError: as :func:`compare_files`.
    """
    with scratch_folder(2 * weight_bytes(teacher), beside) as folder:
        say("exporting the teacher for comparison")
        plain = folder / "teacher.onnx"
        shapes = teacher.input_shapes(*frame)
        # Of the one size that is timed: the exporter takes a third of the time, and ONNX Runtime the same.
        export_onnx(teacher, plain, example=example, plain=True, shape=shapes[0])
        say("timing in ONNX Runtime, in turn")
        return compare_files({TEACHER: plain, **files}, *shapes, patience=patience)
