"""Where the figures come from: data, files, timing, versions."""

from __future__ import annotations

from typing import Any

from csa2glmha.core.strict_json import dumps
from csa2glmha.report.html.markup import Markup, details, table, tag
from csa2glmha.report.html.numbers import TIMES, short


def data_section(report: dict[str, Any]) -> Markup | None:
    """What was learnt from and judged on."""
    data = report.get("data")
    if not data:
        return None
    known = "truth" in report.get("quality", {}).get("teacher", {})
    facts = [
        ("source", data["source"]),
        ("degradation", data["degradation"] or "none, the images are inputs as they are"),
        ("ground truth", "known" if known else "none"),
        ("calibration and distillation", f"{data['training_images']} images"),
        ("held out", f"{data['held_out_images']} images"),
        ("judged on", f"{data['judged_images']} images, {data['judged_on']}"),
        *(("note", note) for note in data["notes"]),
    ]
    return _facts(facts)


def export_section(report: dict[str, Any]) -> Markup | None:
    """The ONNX file, its agreement with PyTorch, and its time."""
    onnx, latency, missing = (report.get(name) for name in ("onnx", "latency_ms", "latency_missing"))
    if not onnx and not latency:
        return None
    return tag(
        "div",
        _onnx(onnx) if onnx else None,
        _latency(latency) if latency else None,
        tag("p", f"Time was not measured: {missing}", class_="note") if missing else None,
    )


def _onnx(onnx: dict[str, Any]) -> Markup:
    sentence = (
        f"{onnx['file']}: {onnx['bytes'] / 1e6:.1f} MB, opset {onnx['opset']}, "
        f"{'simplified' if onnx['simplified'] else 'not simplified'}. Largest difference to PyTorch:"
    )
    rows = [
        (f" {TIMES} ".join(map(str, size["shape"])), short(size["max_abs"]), short(size["relative"]))
        for size in onnx["parity"]
    ]
    return tag(
        "div",
        tag("p", sentence, class_="note"),
        table(rows, ("input", "absolute", "relative to range"), "Agreement of ONNX and PyTorch"),
        [tag("p", note, class_="note") for note in onnx["notes"]],
    )


def _latency(latency: dict[str, Any]) -> Markup:
    rows = [
        (name, short(value["median"]), f"{short(value['low'])} to {short(value['high'])}", str(value["runs"]))
        for name, value in latency.items()
    ]
    return tag(
        "div",
        tag("h3", "Time"),
        tag(
            "p",
            "ONNX Runtime on the CPU, teacher and student run in turn; the teacher is its plain export.",
            class_="note",
        ),
        table(rows, ("", "median, ms", "quartiles, ms", "runs"), "Time of teacher and student"),
    )


def making_section(report: dict[str, Any]) -> Markup:
    """All that is needed to do it again."""
    teacher = report["teacher"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    facts = [
        ("made by", f"{report['tool']} on {report['device']}, {report['threads']} threads"),
        ("versions", versions),
        ("seed", str(report["seed"])),
        ("teacher", teacher.get("source", teacher["file"])),
        ("SHA-256", teacher["sha256"]),
        *(("teacher's file", note) for note in teacher.get("notes", [])),
        ("seconds", ", ".join(f"{stage} {value}" for stage, value in report["seconds"].items())),
        ("hyper-parameters", dumps(teacher["hyperparameters"])),
    ]
    options = [
        (name.replace("_", " "), str(value)) for name, value in report["options"].items() if value is not None
    ]
    return tag("div", _facts(facts), details("All options", _facts(options)))


def _facts(facts: list[tuple[str, str]]) -> Markup:
    return tag(
        "dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="facts-list"
    )
