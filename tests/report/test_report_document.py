from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csa2glmha.checkpoint.student import save_student, student_metadata
from csa2glmha.commands.inspect import describe, inspect_model
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import UsageError
from csa2glmha.data.batches import Example
from csa2glmha.data.degrade import Degradation, parse_degradation
from csa2glmha.data.images import MemoryImages, read_image
from csa2glmha.data.sources import image_example
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.metrics.evaluate import Evaluation, evaluate, restore
from csa2glmha.metrics.pictures import (
    colourful_pixels,
    comparison,
    plot_spectra,
    spectral_comparison,
)
from csa2glmha.reading.layers import attention_layers
from csa2glmha.report import document
from csa2glmha.report import headline as rows_of
from csa2glmha.report.document import render_table, write_report
from csa2glmha.report.html import html_page
from csa2glmha.report.markdown import markdown as markdown_of
from csa2glmha.report.schema import SCHEMA
from csa2glmha.report.stored import parse_report, read_record
from tests.conftest import MakeRestormer

REPORT: dict[str, Any] = {
    "schema": SCHEMA,
    "tool": "csa2glmha 0.1.0",
    "versions": {"python": "3.11.0", "torch": "2.6.0"},
    "device": "cpu",
    "threads": 1,
    "seed": 5,
    "teacher": {
        "file": "denoise.pth",
        "sha256": "ab" * 32,
        "architecture": "restormer",
        "hyperparameters": {"dim": 48},
    },
    "options": {"rank": 8, "rank_q": 16, "rank_k": None, "rank_v": None, "attention": "expanded"},
    "input_size": [256, 256],
    "complexity": {
        "before": {"params": 26_126_644, "macs": 154_900_000_000, "flops": 310_000_000_000},
        "after": {"params": 22_213_184, "macs": 105_000_000_000, "flops": 211_000_000_000},
    },
    "layers": [
        {
            "name": "latent.0.attn", "heads": 8, "head_channels": 48, "rank_q": 48, "rank_k": 8, "rank_v": 8,
            "rank_pos": None, "branch_error": [], "route": "logits from maps",
            "macs_before": 612_000_000, "macs_after": 200_000_000,
            "params_before": 602_000, "params_after": 190_000,
            "key_error": [0.01, 0.25, 0.1], "row_error": [], "value_error": [0.02],
            "logit_error": 0.1, "guide_explained": 0.4,
        },
        {
            "name": "refinement.0.attn", "heads": 1, "head_channels": 8, "rank_q": 8, "rank_k": 8,
            "rank_v": 8, "rank_pos": None, "branch_error": [], "route": "as it was",
            "macs_before": 1000, "macs_after": 900,
            "params_before": 100, "params_after": 100,
            "key_error": [], "row_error": [], "value_error": [], "logit_error": 0.0, "guide_explained": 0.0,
        },
    ],
    "seconds": {"initialise": 12.5, "distill": 360.0},
    "data": {
        "source": "photos", "training_images": 28, "held_out_images": 4, "evaluated_images": 4,
        "evaluated_on": "central 256 x 256 pixels of held-out images", "degradation": "noise:25",
        "channel": None,
        "notes": ["photos: 1 file skipped (1 empty): a.png (empty)"],
    },
    "quality": {
        "teacher": {"ground_truth": {"psnr": 31.25, "ssim": 0.9}},
        "initialisation": {
            "ground_truth": {"psnr": 31.1, "ssim": 0.895}, "teacher": {"psnr": 49.5, "ssim": 0.999},
        },
        "student": {
            "ground_truth": {"psnr": 31.23, "ssim": 0.8995}, "teacher": {"psnr": 55.0, "ssim": 0.9995},
        },
    },
    "distillation": {
        "steps": 240, "seconds": 360.0, "before": 49.0, "after": 54.0, "best_step": 210, "skipped": 0,
        "stopped": "",
        "stages": [
            {"stage": "layers", "steps": 70, "seconds": 108.0, "before": 49.0, "after": 51.5},
            {"stage": "end", "steps": 170, "seconds": 252.0, "before": 51.5, "after": 54.0},
        ],
        "curve": [
            {"stage": "start", "step": 0, "psnr": 49.0, "minutes": 0.02},
            {"stage": "layers", "step": 70, "psnr": 51.5, "loss": 2e-2, "minutes": 1.8},
            {"stage": "end", "step": 210, "psnr": 54.0, "loss": 1e-3, "minutes": 5.26},
            {"stage": "end", "step": 240, "psnr": 53.9, "loss": 1e-3, "minutes": 6.0},
        ],
    },
    "onnx": {
        "file": "model.onnx", "bytes": 89_000_000, "opset": 18, "simplified": True, "notes": ["a remark"],
        "parity": [{"shape": [1, 3, 96, 64], "max_abs": 2e-6, "relative": 3e-6}],
    },
    "latency_ms": {
        "teacher": {"median": 3000.0, "low": 2950.0, "high": 3100.0, "runs": 9},
        "student": {"median": 2000.0, "low": 1980.0, "high": 2050.0, "runs": 9},
    },
    "comparisons": {
        "difference_gain": 20,
        "images": [{"name": "a.png", "psnr_to_teacher": 55.0, "shown_height": 256, "shown_width": 256}],
    },
}  # fmt: skip


def report(*without: str) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in REPORT.items() if key not in without}


def headline_rows(values: dict[str, Any]) -> list[rows_of.Row]:
    return rows_of.headline_rows(parse_report(values))


def headline(values: dict[str, Any]) -> str:
    return document.headline(parse_report(values))


def markdown(values: dict[str, Any]) -> str:
    return markdown_of(parse_report(values))


OPTIONAL = ("data", "quality", "distillation", "onnx", "latency_ms")


# --- the table


def test_headline_rows() -> None:
    assert headline_rows(report()) == [
        ("parameters", "26.13 M", "22.21 M", "0.850"),
        ("MACs", "154.9 G", "105.0 G", "0.678"),
        ("FLOPs", "310.0 G", "211.0 G", "0.681"),
        ("ONNX latency", "3000 ms", "2000 ms", "0.667"),
        ("PSNR to teacher", "", "55.00 dB", "49.50 before distillation"),
        ("SSIM to teacher", "", "0.9995", "0.9990 before distillation"),
        ("PSNR to ground truth", "31.250 dB", "31.230 dB", "-0.020 dB"),
        ("SSIM to ground truth", "0.9000", "0.8995", "-0.0005"),
    ]


@pytest.mark.parametrize(
    ("channel", "label"), [("rgb", "PSNR (RGB)"), ("gray", "PSNR (gray)"), (None, "PSNR")]
)
def test_rows_say_what_psnr_is_of(channel: str | None, label: str) -> None:
    known = report()
    known["data"]["channel"] = channel
    rows = [row[0] for row in headline_rows(known)]
    assert f"{label} to teacher" in rows and f"{label} to ground truth" in rows
    assert f"| {label} to ground truth |" in markdown(known)
    for made in (markdown(known), html_page(parse_report(known))):
        assert f"{label} to the ground truth" in made and f"{label} to the teacher" in made


def test_rows_without_measurements_are_left_out() -> None:
    assert [row[0] for row in headline_rows(report(*OPTIONAL))] == ["parameters", "MACs", "FLOPs"]
    unknown = report()
    for evaluated in unknown["quality"].values():
        evaluated.pop("ground_truth", None)
    del unknown["quality"]["initialisation"]
    rows = headline_rows(unknown)[4:]
    assert rows == [("PSNR to teacher", "", "55.00 dB", ""), ("SSIM to teacher", "", "0.9995", "")]


def test_equal_outputs_have_infinite_psnr() -> None:
    exact = report()
    exact["quality"]["student"]["teacher"]["psnr"] = "inf"
    assert headline_rows(exact)[4][2] == "inf dB"


def test_headline_states_the_input_size_and_aligns() -> None:
    lines = headline(report()).splitlines()
    assert lines[0].startswith("denoise.pth at 256 x 256")
    assert lines[0].split()[-3:] == ["before", "after", "ratio"]
    assert set(lines[1]) == {"-", " "}
    assert len(lines) == 10
    column = lines[0].index("before") + len("before")
    assert lines[2][:column].endswith("26.13 M")
    assert lines[3][:column].endswith("154.9 G")


def test_render_table() -> None:
    table = render_table([("a", "1", "x"), ("long name", "22", "")], ("", "n", "what"))
    expected = ["            n  what", "---------  --  ----", "a           1     x", "long name  22"]
    assert table.splitlines() == expected


# --- Markdown


def test_markdown_tells_everything() -> None:
    text = markdown(report())
    assert text.startswith("# denoise.pth: channel attention to GLMHA\n")
    for part in (
        "restormer, rank 8 (q 16), expanded attention, input 256 x 256. Made by csa2glmha 0.1.0 on cpu.",
        "32 % fewer multiply-accumulates and 15 % fewer parameters, at a cost of 0.020 dB of PSNR.",
        "| MACs | 154.9 G | 105.0 G | 0.678 |",
        "![input, teacher, student, difference](comparison.png)",
        "- source: photos",
        "- degradation: noise:25\n- ground truth: known",
        "- calibration and distillation: 28 images\n- held out: 4 images",
        "- note: photos: 1 file skipped (1 empty): a.png (empty)",
        "240 steps in 6.0 minutes; PSNR to the teacher on held-out crops 49.00 -> 54.00 dB",
        "The weights of step 210 were kept.",
        "| layer by layer | 70 | 1.8 | 49.00 -> 51.50 | +2.50 |",
        "| end to end | 210 | 5.3 | 0.001 | 54.00 |",
        "| latent.0.attn | 8 x 48 | full | 8 | 8 |",
        "| latent.0.attn | logits from maps | 612.0 M | 200.0 M | -67 % | 602.00 k | 190.00 k | -68 % |",
        "| refinement.0.attn | as it was | 1.0 k | 900 | -10.0 % | 100 | 100 | 0.0 % | exact | exact |",
        "model.onnx: 89.0 MB, opset 18, simplified.",
        "| 1 x 3 x 96 x 64 | 2e-6 | 3e-6 |",
        "a remark",
        "| teacher | 3000 | 2950 to 3100 | 9 |",
        f"- SHA-256: {'ab' * 32}",
        "- made by: csa2glmha 0.1.0 on cpu, 1 threads\n- versions: python 3.11.0, torch 2.6.0\n- seed: 5",
        "- seconds: initialise 12.5, distill 360.0",
        '- hyper-parameters: {"dim": 48}',
    ):
        assert part in text, part
    assert "None" not in text


def test_markdown_tables_are_well_formed() -> None:
    rows = [line for line in markdown(report()).splitlines() if line.startswith("|")]
    assert len(rows) > 15
    previous = ""
    for row in rows:
        if set(row) <= set("|-:"):
            assert row.count("|") == previous.count("|")
        previous = row


def test_names_do_not_become_markdown() -> None:
    name = "a|b`c\n# d *e* <f> [g] h\\"
    shown = r"a\|b\`c # d \*e\* \<f> \[g\] h\\"
    named = report()
    named["teacher"]["file"] = named["data"]["source"] = named["layers"][0]["name"] = name
    named["data"]["notes"] = [f"{name}: 1 file skipped"]
    text = markdown(named)
    for line in (
        f"# {shown}: channel",
        f"- source: {shown}\n",
        f"- note: {shown}: 1 file",
        f"| {shown} | 8 x",
    ):
        assert line in text, line


@pytest.mark.parametrize("missing", [*((name,) for name in OPTIONAL), OPTIONAL], ids="+".join)
def test_markdown_without_what_was_not_measured(missing: tuple[str, ...]) -> None:
    text = markdown(report(*missing))
    titles = {"data": "## Data", "onnx": "model.onnx: 89.0 MB", "latency_ms": "### Time"}
    for name, title in titles.items():
        assert (title in text) is (name not in missing)
    if "distillation" in missing:
        assert "None: the student is the initialisation." in text


def test_markdown_without_ground_truth() -> None:
    unknown = report()
    unknown["data"]["degradation"] = None
    for evaluated in unknown["quality"].values():
        evaluated.pop("ground_truth", None)
    text = markdown(unknown)
    assert "- degradation: none, the images are inputs as they are\n- ground truth: none" in text
    assert "to ground truth" not in text


def spectral_report() -> dict[str, Any]:
    spectral = report()
    spectral["data"]["spectral"] = True
    spectral["complexity"]["after"]["constants"] = 11_900_000
    values = {"psnr": 40.0, "ssim": 0.99, "psnr_bands": 41.0, "sam": 1.25, "mrae": 0.04, "rmse": 0.01}
    bands = {"psnr": [40.0, 42.0], "ssim": [0.98, 1.0]}
    spectral["quality"] = {
        "teacher": {"ground_truth": values, "ground_truth_bands": bands},
        "student": {
            "ground_truth": values,
            "teacher": values,
            "ground_truth_bands": bands,
            "teacher_bands": bands,
        },
    }
    return spectral


def test_spectral_reports_have_their_metrics_and_pictures() -> None:
    rows = {row[0]: row[1:] for row in headline_rows(spectral_report())}
    assert rows["spectral angle to teacher"] == ("", "1.250 deg", "")
    assert rows["PSNR, mean of bands to ground truth"] == ("41.000 dB", "41.000 dB", "+0.000 dB")
    assert rows["MRAE to ground truth"] == ("0.0400", "0.0400", "+0.0000")
    assert rows["constants of the mask"] == ("", "11.90 M", "")
    text = markdown(spectral_report())
    assert "(comparison.png)" in text and "(spectra.png)" in text
    assert "| 2 | 42.00 | 1.0000 | 42.00 | 42.00 | 1.0000 | 1.0000 |" in text
    assert "spectra.png" not in markdown(report())
    assert "comparison.png" not in markdown(report("comparisons"))
    assert "### Bands" not in markdown(report())


# --- the files


def test_files_are_written(tmp_path: Path) -> None:
    write_report(tmp_path, parse_report(report()))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == parse_report(report()).to_json()
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == markdown(report())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_names_that_are_not_unicode_are_written(tmp_path: Path) -> None:
    named = report()
    # As Python names a file whose name cannot be decoded.
    named["data"]["notes"] = [b"photos: 1 file skipped: z|\xff.png".decode(errors="surrogateescape")]
    write_report(tmp_path, parse_report(named))
    assert read_record(tmp_path) == parse_report(named)
    assert "- note: photos: 1 file skipped: z\\|\ufffd.png\n" in (tmp_path / "report.md").read_text(
        encoding="utf-8"
    )


def test_infinities_and_nan_of_evaluated_models_as_json() -> None:
    evaluated = Evaluation({"psnr": math.inf, "ssim": math.nan}, {})
    assert evaluated.to_json() == {"ground_truth": {"psnr": "inf", "ssim": None}}
    json.dumps(evaluated.to_json(), allow_nan=False)


# --- evaluation


def gray(value: float, size: int = 16) -> Tensor:
    return torch.full((1, size, size), value)


def test_evaluate_by_hand() -> None:
    images = [
        Example("a", (gray(0.5).unsqueeze(0),), gray(0.5)),
        Example("b", (gray(0.5).unsqueeze(0),), gray(0.6)),
        Example("c", (gray(0.5).unsqueeze(0),), None),
    ]
    models = {"student": lambda x: x[0][0] + 0.01, "teacher": lambda x: x[0][0]}
    found = evaluate(models, images, "teacher")
    # Teacher: no error on a, 0.1 on b, c has no ground truth. Student: 0.01 and 0.09.
    assert found["teacher"].ground_truth["psnr"] == math.inf
    assert found["teacher"].teacher == {}
    by_hand = (-20 * math.log10(0.01) - 20 * math.log10(0.09)) / 2
    assert found["student"].ground_truth["psnr"] == pytest.approx(by_hand, abs=1e-3)
    assert found["student"].teacher["psnr"] == pytest.approx(40, abs=1e-3)


def test_evaluate_clips_outputs() -> None:
    images = [Example("a", (gray(0.5).unsqueeze(0),), gray(1.0))]
    found = evaluate({"m": lambda x: x[0][0] + 5, "reference": lambda x: x[0][0] + 7}, images, "reference")
    assert found["m"].ground_truth["psnr"] == found["m"].teacher["psnr"] == math.inf


def test_evaluate_without_ground_truth_or_reference() -> None:
    found = evaluate({"m": lambda x: x[0][0]}, [Example("a", (gray(0.5).unsqueeze(0),), None)])
    assert found["m"] == Evaluation({}, {})
    assert found["m"].to_json() == {}


def examples(
    items: list[tuple[str, Tensor]], degradation: Degradation | None, seed: int, size: int | None = None
) -> list[Example]:
    images = MemoryImages(items)
    return [image_example(images, index, degradation, seed, size) for index in range(len(items))]


def test_examples_do_not_depend_on_their_neighbours() -> None:
    items = [(str(i), torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(i))) for i in range(3)]
    noise = parse_degradation("noise:25")
    found = examples(items, noise, seed=1, size=16)
    again = examples(items[:2], noise, seed=1, size=16)
    other = examples(items, noise, seed=2, size=16)
    for index, image in enumerate(found):
        assert image.ground_truth is not None
        assert torch.equal(image.ground_truth, items[index][1][:, 2:18, 7:23])  # the centre
        assert image.inputs[0].shape == (1, 3, 16, 16)
        assert not torch.equal(image.inputs[0], other[index].inputs[0])
        if index < 2:
            assert torch.equal(image.inputs[0], again[index].inputs[0])
    whole = examples(items, None, seed=0)
    assert [tuple(image.inputs[0].shape) for image in whole] == [(1, 3, 20, 30)] * 3
    assert [image.ground_truth for image in whole] == [None] * 3


def test_dual_pixel_models_can_be_evaluated(make_restormer: MakeRestormer) -> None:
    """Of two equal views the clean one is what the model should give; of others that is unknown."""
    model = make_restormer(in_channels=6, dual_pixel=True)
    view = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    items = [("same", torch.cat((view, view))), ("other", torch.cat((view, view.flip(2))))]
    same, other = examples(items, parse_degradation("blur:1"), 0)
    assert same.ground_truth is not None
    assert torch.equal(same.ground_truth, view)
    assert other.ground_truth is None
    assert evaluate({"teacher": restore(model)}, [same, other])["teacher"].ground_truth["psnr"] > 0


# --- pictures


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (1, 1), (6, 3)])
@pytest.mark.parametrize("with_ground_truth", [False, True])
def test_comparison_shows_the_panels_side_by_side(inputs: int, outputs: int, with_ground_truth: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(inputs, 40, 150, generator=generator)
    teacher = torch.rand(outputs, 40, 150, generator=generator)
    ground_truth = torch.rand(outputs, 40, 150, generator=generator) if with_ground_truth else None
    student = teacher + 0.01
    picture = comparison(first, teacher, student, ground_truth, gain=20)
    count = 4 + with_ground_truth
    assert picture.shape[0] == 3
    assert picture.shape[2] == count * 150 + (count - 1) * ((picture.shape[2] - count * 150) // (count - 1))
    gap = (picture.shape[2] - count * 150) // (count - 1)
    panels = [picture[:, -40:, i * (150 + gap) : i * (150 + gap) + 150] for i in range(count)]
    assert torch.equal(panels[0], first[:3].expand(3, -1, -1) if inputs == 1 else first[:3])
    assert torch.equal(panels[1], teacher.expand(3, -1, -1))
    torch.testing.assert_close(panels[3], torch.full((3, 40, 150), 0.7))  # 0.5 + 20 x 0.01
    if ground_truth is not None:
        assert torch.equal(panels[4], ground_truth.expand(3, -1, -1))
    captions = picture[:, :-40]
    assert (captions < 0.5).any()  # something is written
    assert float(picture.min()) >= 0
    assert float(picture.max()) <= 1


def test_spectral_comparison_has_a_row_for_a_band() -> None:
    teacher = torch.rand(28, 30, 40, generator=torch.Generator().manual_seed(0))
    picture = spectral_comparison(teacher, teacher + 0.01, None, gain=20)
    assert picture.shape[2] == 3 * 40 + 2 * 6
    assert picture.shape[1] == 4 * 30 + 4 * 28 + 3 * 6
    differences = picture[:, :, 2 * (40 + 6) :]
    assert int((differences - 0.7).abs().lt(1e-5).all(2).all(0).sum()) == 4 * 30
    assert spectral_comparison(teacher[:2], teacher[:2], teacher[:2]).shape[1] == 2 * 30 + 2 * 28 + 6


def test_colourful_pixels_are_apart() -> None:
    cube = torch.zeros(3, 40, 60)
    cube[0, 10:15, 10:15] = 1.0  # uneven spectra at three places, the first ones close to each other
    cube[1, 10:15, 16:21] = 0.9
    cube[2, 30:35, 50:55] = 0.8
    found = colourful_pixels(cube, 2)
    assert found == [(12, 12), (32, 52)]
    assert len(set(colourful_pixels(torch.zeros(3, 4, 4), 3))) == 3


def test_spectra_are_plotted(tmp_path: Path) -> None:
    teacher = torch.rand(5, 24, 32, generator=torch.Generator().manual_seed(0))
    plot_spectra(tmp_path / "a.png", teacher, teacher, None)
    plot_spectra(tmp_path / "b.png", teacher, 0.5 * teacher, teacher)
    first, second = (read_image(tmp_path / name, 3) for name in ("a.png", "b.png"))
    assert first.shape == second.shape
    assert not torch.equal(first, second)


# --- inspection


def test_inspect_a_teacher(tmp_path: Path, tiny_restormer: Restormer) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({"params": tiny_restormer.state_dict()}, path)
    found = inspect_model(path, Ranks(k=4, v=4), 64)
    json.dumps(found, allow_nan=False)
    assert (found["kind"], found["architecture"]) == ("teacher", "restormer")
    assert found["params"] == sum(parameter.numel() for parameter in tiny_restormer.parameters())
    assert found["input_shapes"] == [[1, 3, 64, 64]]
    assert len(found["layers"]) == 8
    # The layers' savings are the model's.
    for what in ("params", "macs"):
        saved = sum(layer[what] - layer[f"{what}_estimate"] for layer in found["layers"])
        assert found[what] - found["estimate"][what] == saved > 0
    text = describe(found)
    assert "restormer (teacher)" in text
    assert "note: opened 'params'" in text
    assert "latent.0.attn" in text
    assert "q full, k 4, v 4" in text


def test_inspect_a_student(tmp_path: Path, tiny_restormer: Restormer) -> None:
    plan = plan_layers(attention_layers(tiny_restormer), Ranks())
    student, _ = initialise_student(tiny_restormer, plan, None)
    path = tmp_path / "student.safetensors"
    save_student(path, student, student_metadata(student, "ab" * 32, 3, {"ranks": "q full, k full, v full"}))
    found = inspect_model(path, Ranks(k=8, v=8), 32)
    json.dumps(found, allow_nan=False)
    assert found["kind"] == "student"
    assert found["student"]["seed"] == "3"
    assert len(found["layers"]) == 8
    assert "full/full/full" in describe(found)


def test_inspect_errors(tmp_path: Path, tiny_restormer: Restormer) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(tiny_restormer.state_dict(), path)
    with pytest.raises(UsageError, match=r"\(1, 3, 0, 0\) is not valid: give positive integers"):
        inspect_model(path, Ranks(k=4, v=4), 0)
    with pytest.raises(UsageError, match="rank 99 of k is above"):
        inspect_model(path, Ranks(k=99), 32)


# --- the device


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for name, reason in (
        ("gpu", "unknown; give auto, cpu"),
        ("", "unknown"),
        ("meta", "unknown"),
        ("cuda", "no CUDA GPU is visible"),
        ("cuda:1", "no CUDA GPU is visible"),
        ("mps", "no Apple GPU is visible"),
    ):
        with pytest.raises(UsageError, match=f"^--device {name}: {reason}"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="--device cuda:2: there are only 2"):
        resolve_device("cuda:2")


OTHER = {
    "name": "svd", "description": "truncated", "rank": 8, "macs": 105_000_000_000, "params": 22_213_184,
    "before": {"psnr_to_teacher": 30.25, "psnr_drop": -3.5}, "after": None,
}  # fmt: skip


def baseline_lines(values: dict[str, Any]) -> list[str]:
    lines = markdown(values).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("| method"))
    return [line for line in lines[first : first + 4] if not line.startswith("|---")]


def test_other_methods_stand_beside_the_student_as_far_as_both_came() -> None:
    """Without distillation all figures are before it, the student's too."""
    header, own, other = baseline_lines(report("distillation") | {"baselines": [OTHER]})
    assert "before distillation" in header and "after it" not in header
    assert "| 55.00 | -0.020 |" in own.replace("\u2212", "-") and "| 30.25 | -3.500 |" in other.replace(
        "\u2212", "-"
    )
    distilled = OTHER | {"after": {"psnr_to_teacher": 40.5, "psnr_drop": -0.75}}
    header, own, other = baseline_lines(report() | {"baselines": [distilled]})
    assert "after it" in header
    assert "| 49.50 | -0.150 | 55.00 | -0.020 |" in own.replace("\u2212", "-")
    assert "| 30.25 | -3.500 | 40.50 | -0.750 |" in other.replace("\u2212", "-")
