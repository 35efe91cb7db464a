"""What choices save in time, measured on whole exported networks that take turns."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.attention.layers import attention_layers, replace_layers
from csa2glmha.attention.ranks import Ranks, plan_layers
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.runtime import Latency, compare_latency, ratio
from csa2glmha.models import RestorationModel
from csa2glmha.progress import manual_progress, progress
from csa2glmha.search.choices import Choice
from csa2glmha.search.costs import Costs, Finish, Key, unchanged

RUNS, WARM_UP = 7, 2
TEACHER, LOSSLESS, STUDENT = "teacher", "lossless", "student"


@dataclass(frozen=True)
class Times:
    """Milliseconds of ONNX Runtime.

    Attributes:
        teacher: of the teacher's plain export.
        lossless: of the student at full rank, as it is deployed.
        saved: of every choice, how much less than at full rank.
    """

    teacher: float
    lossless: float
    saved: dict[Key, list[float]]


def time_choices(
    teacher: RestorationModel,
    choices: Mapping[Key, Sequence[Choice]],
    costs: Costs,
    frame: tuple[int, int],
    finish: Finish = unchanged,
) -> Times:
    """Time networks that have the first choice of every layer's side, the second, and so on.

    What such a network saves is divided among its layers as the multiply-accumulates are that they save.
    """
    full = plan_layers(attention_layers(teacher), Ranks())
    networks: dict[str, dict[str, GLMHAConfig]] = {LOSSLESS: full}
    members: dict[str, list[tuple[Key, int]]] = {}
    for (name, side), each in choices.items():
        for index, choice in enumerate(each):
            if not choice.full:
                networks.setdefault(f"{side} {index}", dict(full))[name] = choice.config
                members.setdefault(f"{side} {index}", []).append(((name, side), index))
    measured = _time(teacher, networks, frame, finish)
    saved = {key: [0.0] * len(each) for key, each in choices.items()}
    for label, layers in members.items():
        gain = _difference(measured[LOSSLESS], measured[label])
        shares = [max(0, costs.saved[key][index][0]) for key, index in layers]
        for (key, index), share in zip(layers, shares, strict=True):
            saved[key][index] = gain * share / max(1, sum(shares))
    return Times(measured[TEACHER].median_ms, measured[LOSSLESS].median_ms, saved)


def time_student(
    teacher: RestorationModel,
    configs: Mapping[str, GLMHAConfig],
    frame: tuple[int, int],
    finish: Finish = unchanged,
) -> float:
    """A student's time over that of the teacher's plain export, both in turn."""
    measured = _time(teacher, {STUDENT: dict(configs)}, frame, finish)
    return 1 / ratio(measured[TEACHER], measured[STUDENT])


def _time(
    teacher: RestorationModel,
    networks: Mapping[str, dict[str, GLMHAConfig]],
    frame: tuple[int, int],
    finish: Finish,
) -> dict[str, Latency]:
    """Latencies of the teacher, exported plainly, and of students with these layers, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        files = {TEACHER: Path(folder) / "teacher.onnx"}
        export_onnx(teacher, files[TEACHER], plain=True)
        for label, configs in progress(networks.items(), what="exporting", unit="network"):
            files[label] = Path(folder) / f"{label}.onnx"
            export_onnx(finish(_network(teacher, configs)), files[label])
        with manual_progress(what="timing", unit="round", total=RUNS + WARM_UP) as bar:
            return compare_latency(
                files,
                *teacher.input_shapes(*frame),
                runs=RUNS,
                warmup=WARM_UP,
                on_round=lambda: _step(bar),
            )


def _step(bar: tqdm[Any]) -> None:
    bar.update()


def _difference(first: Latency, other: Latency) -> float:
    """How much faster the other is: the median over rounds, in which both saw the machine alike."""
    return statistics.median(a - b for a, b in zip(first.samples_ms, other.samples_ms, strict=True))


def _network(teacher: RestorationModel, configs: dict[str, GLMHAConfig]) -> RestorationModel:
    """A student whose weights are noise, which takes no less time than those that were learned."""
    student = copy.deepcopy(teacher)
    replace_layers(student, configs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in configs:
            for parameter in student.get_submodule(name).parameters():
                if not parameter.any():
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student.eval()
