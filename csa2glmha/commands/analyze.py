"""What `analyze` does: why low rank works for a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from csa2glmha.analysis.measure import analyse, measure
from csa2glmha.analysis.plots import plot_heads, plot_layers, save
from csa2glmha.checkpoint.student import load_model
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import atomic_path, prepare_output_dir
from csa2glmha.core.hub import display_name
from csa2glmha.core.locks import exclusive_folder
from csa2glmha.core.progress import say
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import one_line
from csa2glmha.data.open import open_data
from csa2glmha.reading.layers import attention_layers, convertible_layers
from csa2glmha.report.document import render_table
from csa2glmha.report.schema_search import Sensitivity
from csa2glmha.search.choices import all_choices
from csa2glmha.search.plan import CROPS, gather_all, measure_choices, sensitivity_cache
from csa2glmha.search.report import describe_sensitivity, sensitivity_report

JSON_FILE = "analysis.json"
PLOT_FILES = ("analysis.png", "analysis.svg", "analysis-heads.png", "analysis-heads.svg")
#: The table has the share of this many singular values,
VALUES_SHOWN = 4
#: and errors at the largest three of these ranks that are low for the model.
RANKS_SHOWN = (1, 2, 4, 8, 16)


def analyze_file(
    checkpoint: Path, options: ConvertOptions, output: Path | None = None, sensitivity: bool = False
) -> dict[str, Any]:
    """Analyse the attention of a teacher's checkpoint, and write JSON and plots.

    Args:
        checkpoint: of a teacher.
        options: of them those on data and calibration, device, seed and overwrite.
        output: folder for the files; None writes nothing.
        sensitivity: also measure what each layer's ranks cost in agreement with the teacher; measurements are
            kept in a file beside the output, and not made again.

    Returns:
        JSON values: file, sha256, architecture, data, seed, what
        :func:`csa2glmha.analysis.measure.analyse` finds, and the sensitivity.

    Raises:
        UsageError: a student, or a network whose family has no readers.
        Csa2GlmhaError: a file or folder cannot be used.
    """
    with nullcontext() if output is None else exclusive_folder(output):
        return _analyze_file(checkpoint, options, output, sensitivity)


def _analyze_file(
    checkpoint: Path, options: ConvertOptions, output: Path | None, sensitivity: bool
) -> dict[str, Any]:
    device = resolve_device(options.device)
    loaded = load_model(checkpoint, options.weights, options)
    if loaded.is_student:
        raise UsageError(f"{checkpoint}: is a student; give the teacher's checkpoint")
    teacher = loaded.model
    convertible_layers(teacher, checkpoint)  # refuses a network that has none, before any data is opened
    data = open_data(teacher, options)
    if output is not None:
        prepare_output_dir(output, [JSON_FILE, *PLOT_FILES], options.overwrite)
    for note in (*loaded.checkpoint.notes, *data.notes):
        say(note)
    torch.manual_seed(options.seed)
    inputs = data.calibration(options.calibration_size, options.calibration_crops, options.seed)
    teacher.to(device).requires_grad_(False)
    found: dict[str, Any] = {
        "file": display_name(checkpoint),
        "sha256": loaded.checkpoint.sha256,
        "weights": loaded.checkpoint.wrapper,
        "architecture": teacher.architecture,
        "data": {
            "source": data.source,
            "degradation": data.degradation,
            "stretched": data.stretched,
            "crop": list(inputs[0][0].shape[-2:]),
            "notes": list(data.notes),
        },
        "seed": options.seed,
    }
    layers = attention_layers(teacher)
    if not sensitivity:
        found |= measure(teacher, layers, inputs)
    else:
        choices, known = all_choices(layers, {}, ()), gather_all(teacher, inputs)
        found |= analyse(layers, known.statistics)
        cache = sensitivity_cache(output or Path(), loaded.checkpoint, options)
        measured = measure_choices(teacher, data, options, choices, known, cache)
        found["sensitivity"] = sensitivity_report(choices, measured, CROPS, data.outputs).to_json()
    if output is not None:
        _write(found, output)
    return found


def describe_analysis(found: dict[str, Any]) -> str:
    """The same for people."""
    layers = found["layers"]
    widest = max(layer["head_channels"] for layer in layers)
    ranks = [rank for rank in RANKS_SHOWN if rank < widest][-3:]
    header = (
        *("layer", "heads", "c", "temperature", "uniform", "pattern", "varies", f"first {VALUES_SHOWN}"),
        *(f"{part} {rank}" for part in "KV" for rank in ranks),
    )
    return "\n".join(
        [
            *_title(found),
            "",
            render_table([_row(layer, ranks) for layer in layers], header),
            "",
            "Figures are in %, means over the heads. Energy is a sum of squares.",
            "uniform, pattern, varies: energy of the attention maps that is 1/c everywhere, that is a static",
            "  pattern, and that differs between images",
            f"first {VALUES_SHOWN}: energy in the {VALUES_SHOWN} largest singular values of a map",
            "K, V: smallest relative error that keys and values of this rank can have, before any correction",
            *(
                ["", describe_sensitivity(Sensitivity.model_validate(found["sensitivity"]))]
                if "sensitivity" in found
                else []
            ),
        ]
    )


def _sensitivity(found: dict[str, Any] | None) -> list[str]:
    return [] if found is None else ["", describe_sensitivity(Sensitivity.model_validate(found))]


def _title(found: dict[str, Any]) -> list[str]:
    data = found["data"]
    height, width = data["crop"]
    degraded = f", {data['degradation']}" if data["degradation"] not in (None, "none") else ""
    count = len(found["layers"])
    return [
        f"{one_line(Path(found['file']).name)}: {found['architecture']}, {count} layers of channel attention",
        f"{found['images']} crops of {height} x {width} from {one_line(data['source'])}{degraded}",
    ]


def _row(layer: dict[str, Any], ranks: list[int]) -> tuple[str, ...]:
    c = layer["head_channels"]

    def mean(name: str) -> str:
        return f"{100 * sum(layer[name]) / layer['heads']:.1f}"

    def error(errors: list[float], rank: int) -> str:
        if not errors:  # the module makes them itself
            return ""
        return "full" if rank >= c else _three_digits(100 * errors[rank - 1])

    low, high = (f"{pick(layer['temperature']):.2f}" for pick in (min, max))
    first = sum(head[min(VALUES_SHOWN, c) - 1] for head in layer["cumulative"]) / layer["heads"]
    return (
        layer["name"],
        str(layer["heads"]),
        str(c),
        low if low == high else f"{low} to {high}",
        *(mean(f"{part}_share") for part in ("uniform", "pattern", "varying")),
        f"{100 * first:.1f}",
        *(error(layer[part], rank) for part in ("key_error", "value_error") for rank in ranks),
    )


def _three_digits(percent: float) -> str:
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}" if percent >= 0.995 else f"{percent:.2f}"


def _write(found: dict[str, Any], output: Path) -> None:
    with atomic_path(output / JSON_FILE) as temporary:
        temporary.write_text(dumps(found, indent=2) + "\n", encoding="utf-8")
    shown = found | {"title": "\n".join(_title(found))}
    for stem, plot in (("analysis", plot_layers), ("analysis-heads", plot_heads)):
        figure = plot(shown)
        for suffix in (".png", ".svg"):
            with atomic_path(output / f"{stem}{suffix}") as temporary:
                save(figure, temporary)
