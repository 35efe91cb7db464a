"""What `bench` does: time and memory of models, side by side."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from csa2glmha.bench.candidates import (
    Settings,
    TimedModel,
    as_of_students,
    check_compiled,
    open_candidates,
    warm,
    with_compiled,
    without_failed,
)
from csa2glmha.bench.memory import measure_apart
from csa2glmha.bench.rounds import Patience, time_in_turns
from csa2glmha.core.environment import cpu_count, thread_count
from csa2glmha.core.hub import display_name
from csa2glmha.core.progress import manual_progress, progress, say
from csa2glmha.export.openvino import openvino_version
from csa2glmha.report.document import render_table


def run_bench(paths: Sequence[Path], settings: Settings, patience: Patience) -> dict[str, Any]:
    """Time models against the first of them, and measure the memory of each, as JSON values.

    Args:
        paths: ONNX files, checkpoints and students.
        settings: how to run them.
        patience: when to stop.

    Raises:
        Csa2GlmhaError: a file cannot be run.
    """
    settings = as_of_students(paths, settings)
    # Compiled PyTorch that was not asked for by its own name may fail.
    implied = with_compiled(settings)
    candidates = open_candidates(paths, implied)
    if implied == settings:
        check_compiled(candidates)
    else:
        candidates = without_failed(candidates)
    sizes = {candidate.shapes[0][-2:] for candidate in candidates}
    if len(sizes) > 1:
        say("these models take inputs of different sizes: the ratios compare different work")
    memory = [
        measure_apart(candidate.path, replace(settings, size=_size(candidate), runtimes=(candidate.runs_in,)))
        for candidate in progress(candidates, what="memory", unit="model")
    ]
    warm(candidates)
    with manual_progress(what="timing", unit="round", total=None) as bar:
        timings = time_in_turns([candidate.run for candidate in candidates], patience, bar.update)
    return {
        "provider": settings.provider,
        "threads": settings.threads or thread_count(),
        "cores": cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        | _others(candidates),
        "rounds": timings.latencies[0].runs,
        "tolerance": patience.tolerance,
        "converged": timings.converged,
        "models": [
            {
                "file": display_name(candidate.path),
                "runtime": candidate.runtime,
                "input_shapes": [list(shape) for shape in candidate.shapes],
                "ms": {"median": latency.median_ms, "low": latency.low_ms, "high": latency.high_ms},
                "ratio": asdict(ratio),
                "memory": None if isinstance(used, str) else asdict(used),
                **({"memory_error": used} if isinstance(used, str) else {}),
            }
            for candidate, latency, ratio, used in zip(
                candidates, timings.latencies, timings.ratios, memory, strict=True
            )
        ],
    }


def describe_bench(found: dict[str, Any]) -> str:
    """The same for people."""
    rows = []
    for model in found["models"]:
        ms, ratio, memory = model["ms"], model["ratio"], model["memory"]
        half = (ratio["high"] - ratio["low"]) / 2
        rows.append(
            (
                model["file"],
                model["runtime"],
                "x".join(map(str, model["input_shapes"][0])),
                f"{ms['median']:.1f} ms",
                f"{ms['low']:.1f} - {ms['high']:.1f}",
                f"{ratio['median']:.3f} ± {half:.3f}",
                "not known" if memory is None else f"{memory['model'] / 1e6:.0f} MB",
            )
        )
    header = ("model", "runtime", "input", "median", "quartiles", "of the first's time", "peak memory")
    notes = [
        f"{model['file']}: memory could not be measured: {model['memory_error']}"
        for model in found["models"]
        if "memory_error" in model
    ]
    note = (
        f"{found['rounds']} rounds in random order, {found['provider']}, {found['threads']} threads; "
        "memory without Python and libraries"
    )
    if not found["converged"]:
        note += f"\nout of time: a ratio is not known to {found['tolerance']:.1%} yet; give more --seconds"
    return "\n".join((render_table(rows, header), note, *notes))


def _others(candidates: Sequence[TimedModel]) -> dict[str, str]:
    """Versions of the runtimes that not every installation has."""
    version = openvino_version() if any("openvino" in each.runs_in for each in candidates) else None
    return {} if version is None else {"openvino": version}


def _size(candidate: TimedModel) -> tuple[int, int]:
    height, width = candidate.shapes[0][-2:]
    return height, width
