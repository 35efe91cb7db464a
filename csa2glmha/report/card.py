"""The model card: README.md of a conversion's folder, with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import hashlib
import math
import shlex
from pathlib import Path
from typing import Any

import yaml

from csa2glmha.core.files import atomic_path
from csa2glmha.core.hub import repository_of
from csa2glmha.core.lines import markdown_text
from csa2glmha.core.progress import say
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import one_line
from csa2glmha.report.command_line import command_line
from csa2glmha.report.headline import headline_rows, rank_text
from csa2glmha.report.markdown import markdown_table
from csa2glmha.report.metrics import channel_of, metrics_of
from csa2glmha.report.schema import Against, DataUsed, Report
from csa2glmha.report.sections.summary import PICTURE_FILE

CARD_FILE = "README.md"
#: What a card says before its owner put a licence in.
LICENSE = {"license": "other", "license_name": "license-of-the-original-weights"}
_PAPER = "2410.00380"
_SEAL = "<!-- written by csa2glmha, sha256 {} -->\n"


def write_card(output: Path, report: Report) -> None:
    """Write the card into a folder; one that somebody wrote or edited is kept.

    Raises:
        OutputError: it cannot be written.
    """
    path = output / CARD_FILE
    if not replaceable(path):
        say(
            f"{path}: was written or edited by hand and is kept, so its figures may be of an earlier "
            "conversion; delete it and convert again for a new one"
        )
        return
    with atomic_path(path) as temporary:
        temporary.write_text(model_card(report, output.resolve().name), encoding="utf-8")


def replaceable(path: Path) -> bool:
    """There is no such card, or it is as this tool wrote it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    body, _, last = text[:-1].rpartition("\n")
    return last + "\n" == _SEAL.format(_digest(body + "\n"))


def model_card(report: Report, name: str) -> str:
    """The card.

    Args:
        report: what was measured.
        name: of the model.
    """
    metadata = yaml.safe_dump(
        card_metadata(report, name), sort_keys=False, allow_unicode=True, width=4096, default_flow_style=False
    )
    body = "\n".join(
        [
            f"# {markdown_text(name)}",
            "",
            *_summary(report),
            "",
            *markdown_table(headline_rows(report), ("", "before", "after", "ratio")),
            "",
            *_notes(report),
            "",
            *_picture(report),
            *_usage(report),
            "",
            *_making(report),
            "",
            *_licence(report),
            "",
        ]
    )
    text = f"---\n{metadata}---\n\n{body}"
    return text + _SEAL.format(_digest(text))


def card_metadata(report: Report, name: str) -> dict[str, Any]:
    """What stands between the dashes; see https://huggingface.co/docs/hub/model-cards."""
    teacher = report.teacher
    metadata: dict[str, Any] = {
        **LICENSE,
        "library_name": "csa2glmha",
        "pipeline_tag": _pipeline(report),
        "tags": [
            "csa2glmha",
            teacher.architecture,
            "model-compression",
            "low-rank-attention",
            "onnx",
            f"arxiv:{_PAPER}",
        ],
    }
    if teacher.source is not None:
        metadata["base_model"] = repository_of(teacher.source)
    metrics = _metrics(report)
    if metrics:
        metadata["metrics"] = sorted({metric["type"] for metric in metrics})
        metadata["model-index"] = [
            {
                "name": one_line(name),
                "results": [
                    {
                        "task": {"type": _pipeline(report), "name": _task(report)},
                        "dataset": {"type": "custom", "name": _data_name(report)},
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return metadata


def _metrics(report: Report) -> list[dict[str, str | float]]:
    """The student's figures that are finite numbers."""
    comparisons: tuple[tuple[Against, str], ...] = (("ground_truth", ""), ("teacher", "'s output"))
    return [
        {"type": metric.name, "value": round(value, 5), "name": metric.title(against, "the ") + words}
        for against, words in comparisons
        for metric in metrics_of(channel_of(report))
        if (value := report.figure("student", against, metric.name)) is not None and math.isfinite(value)
    ]


def _pipeline(report: Report) -> str:
    return "image-classification" if report.classifies else "image-to-image"


def _data_name(report: Report) -> str:
    folder = report.options.get("data")
    return "photographs of scikit-image" if folder is None else one_line(Path(str(folder)).name)


def _task(report: Report) -> str:
    if report.classifies:
        return "image classification"
    degradation = None if report.data is None else report.data.degradation
    return "image restoration" if not degradation else f"image restoration, {one_line(degradation)}"


def _summary(report: Report) -> list[str]:
    teacher = report.teacher
    original = markdown_text(teacher.source or teacher.file)
    return [
        f"A compressed {teacher.architecture}. Its channel attention is guided and low-rank (GLMHA, "
        f"[arXiv {_PAPER}](https://arxiv.org/abs/{_PAPER})), "
        f"rank {markdown_text(rank_text(report.options))}. "
        f"It was made from {original}, its teacher, by {report.tool}.",
    ]


def _notes(report: Report) -> list[str]:
    height, width = report.input_size
    data = report.data
    evaluated = "" if data is None else _evaluated(report, data)
    latency = " Latency: ONNX Runtime on the CPU of one machine." if report.latency_ms else ""
    return [
        f"At {height} x {width}. MACs count one multiply-add of convolutions and matrix products as one."
        f"{evaluated}{latency} All figures are in [report.md](report.md) and report.json."
    ]


def _evaluated(report: Report, data: DataUsed) -> str:
    count = data.evaluated_images
    degradation = data.degradation or "none, the images are inputs as they are"
    return (
        f" Quality: means over {count} held-out image{'' if count == 1 else 's'} of "
        f"{markdown_text(_data_name(report))}, {data.evaluated_on}; "
        f"degradation: {markdown_text(degradation)}."
    )


def _picture(report: Report) -> list[str]:
    if report.comparisons is None:
        return []
    return [f"![input, teacher, student and their difference]({PICTURE_FILE})", ""]


def _usage(report: Report) -> list[str]:
    shapes = [tuple(shape) for shape in report.complexity.input_shapes_after]
    builder = _builder(report)
    own = "" if builder is None else f", network={dumps(builder)}"
    return [
        "## Use",
        "",
        *_code(builder),
        f"Shapes are B, C, H, W. Values are in [0, 1]{', images are RGB' if shapes[0][1] == 3 else ''}.",
        "",
        "```python",
        "import csa2glmha, torch",
        "",
        f"shapes = {shapes}",
        f'model = csa2glmha.load("student.safetensors"{own})  # or "hf://OWNER/NAME/student.safetensors"',
        "with torch.no_grad():",
        "    output = model(*[torch.rand(shape) for shape in shapes])",
        "```",
        "",
        "With ONNX Runtime alone:",
        "",
        "```python",
        "import numpy, onnxruntime",
        "",
        f"shapes = {shapes}",
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        "names = [each.name for each in session.get_inputs()]",
        "inputs = {name: numpy.zeros(shape, numpy.float32) for name, shape in zip(names, shapes)}",
        "(output,) = session.run(None, inputs)",
        "```",
        "",
        _whole_folders(report),
    ]


def _builder(report: Report) -> str | None:
    """What built a network of no known family, without the path to its file."""
    builder = report.options.get("network")
    return None if builder is None else Path(str(builder)).name


def _code(builder: str | None) -> list[str]:
    """What is needed beside the files of a network of no known family."""
    if builder is None:
        return []
    return [
        f"student.safetensors needs the network's own code, `{builder}`, which is run; model.onnx does not.",
        "",
    ]


def _whole_folders(report: Report) -> str:
    further = report.options.get("inputs")
    names = [str(each).partition("=")[0] for each in further] if isinstance(further, list) else []
    words = [word for name in names for word in ("--input", f"{name}=FOLDER")]
    if report.classifies:
        what, command = "Classes of whole folders of images", ["model.onnx", "photos", "-o", "classes"]
    else:
        builder = _builder(report)
        own = [] if builder is None else ["--network", shlex.quote(builder)]
        command = ["student.safetensors", "photos", "-o", "restored", *own]
        what = "Whole folders of images, of any size"
    return f"{what}: `{' '.join(['csa2glmha', 'run', *command, *words])}`."


def _making(report: Report) -> list[str]:
    teacher = report.teacher
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return [
        "## How it was made",
        "",
        "```bash",
        command_line(report),
        "```",
        "",
        f"- teacher: {markdown_text(teacher.source or teacher.file)}, SHA-256 `{teacher.sha256}`",
        f"- seed {report.seed}; {markdown_text(report.tool)}; {markdown_text(versions)}",
    ]


def _licence(report: Report) -> list[str]:
    return [
        "## Licence",
        "",
        "The weights derive from those of the teacher, whose licence applies. Before you publish this page, "
        "put that licence in at its top, in place of `other`.",
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
