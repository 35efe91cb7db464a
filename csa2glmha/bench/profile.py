"""Where an ONNX file spends its time, module by module, by ONNX Runtime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csa2glmha.bench.noise import noise
from csa2glmha.export.runtime import OnnxModel

_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class ModuleProfile:
    """Times by module, where nodes are named "module/operator" as our exports name them.

    What ONNX Runtime adds (changes of the maps' layout) belongs to the module that ran before it.

    Attributes:
        runs: of each run, milliseconds by module.
        nodes: names of the modules' nodes, in the order they run in.
    """

    runs: tuple[Mapping[str, float], ...]
    nodes: Mapping[str, tuple[str, ...]]


def profile_modules(
    path: Path, *shapes: tuple[int, ...], runs: int, warmup: int = 1, threads: int | None = None
) -> ModuleProfile:
    """Run an ONNX file on the CPU, on seeded noise, and read its profile.

    Args:
        path: the file.
        shapes: of the inputs in call order; it may need the first few only.
        runs: that count, at least one.
        warmup: runs before those.
        threads: of ONNX Runtime within an operator; None: one for each core that may be used.

    Raises:
        CheckpointError: the file is missing, is not ONNX or cannot be run.
        DataError: it does not take inputs of these shapes.
    """
    inputs = noise(shapes)
    with tempfile.TemporaryDirectory() as folder:
        model = OnnxModel(path, threads, profile=Path(folder) / "profile")
        for _ in range(warmup + runs):
            model(*inputs[: len(model.input_names)])
        events = json.loads(model.end_profile().read_text(encoding="utf-8"))
    return read_profile(events, warmup)


def read_profile(events: Iterable[Mapping[str, Any]], warmup: int) -> ModuleProfile:
    """The times in ONNX Runtime's profile, without those of the first runs."""
    seen: Counter[tuple[str, str]] = Counter()
    runs: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    nodes: defaultdict[str, list[str]] = defaultdict(list)
    module = ""
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_KERNEL):
            continue
        name = event["name"].removesuffix(_KERNEL)
        # Nodes run once in every run; the ones that were added may share a name.
        key = (name, event["args"].get("node_index", ""))
        run = seen[key]
        seen[key] += 1
        if "/" in name:
            module = name.partition("/")[0]
            if run == 0:
                nodes[module].append(name)
        runs[run][module] += event["dur"] / 1000
    return ModuleProfile(
        tuple(dict(runs[run]) for run in sorted(runs) if run >= warmup),
        {module: tuple(names) for module, names in nodes.items()},
    )
