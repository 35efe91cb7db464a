"""The model card of a conversion, read as the Hugging Face Hub reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from csa2glmha.config.affects import Affects, options_that_affect
from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.report.card import card_metadata, model_card, replaceable, write_card
from csa2glmha.report.command_line import _PATHS, _option, command_line
from csa2glmha.report.stored import parse_report
from tests.report.test_report_document import report

HOSTILE = "a: 'b' \"c\" #d\n---\nlicense: mit\n{%x%} `|*[\x00\x1b[31m\ud800 &x *y !z"


def example(**options: Any) -> dict[str, Any]:
    found = report()
    found["options"] = make_options(**options).model_dump(mode="json", exclude={"overwrite"})
    found["complexity"]["input_shapes_after"] = [[1, 3, 256, 256]]
    return found


def as_the_hub_reads_it(text: str) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card."""
    repocard = pytest.importorskip("huggingface_hub.repocard")
    card = repocard.ModelCard(text)
    return card.data.to_dict(), card.text


def test_metadata() -> None:
    found = example(data="photos/CBSD 68", rank=8)
    found["teacher"]["source"] = f"hf://some-lab/denoisers@{'0' * 39}1/colour.pth"
    found["data"]["degradation"] = "noise:25"
    data, text = as_the_hub_reads_it(model_card(parse_report(found), "denoise-rank8"))
    assert data["library_name"] == "csa2glmha" and data["pipeline_tag"] == "image-to-image"
    assert data["license"] == "other" and data["base_model"] == "some-lab/denoisers"
    assert {"arxiv:2410.00380", "onnx", found["teacher"]["architecture"]} <= set(data["tags"])
    (index,) = data["model-index"]
    (result,) = index["results"]
    assert index["name"] == "denoise-rank8" and result["dataset"]["name"] == "CBSD 68"
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values["PSNR to the ground truth"] == 31.23 and values["PSNR to the teacher's output"] == 55.0
    assert "| MACs | 154.9 G | 105.0 G | 0.678 |" in text and "| ONNX latency |" in text
    assert found["teacher"]["sha256"] in text and found["teacher"]["source"] in text


def test_without_measurements() -> None:
    found = report("data", "quality", "distillation", "onnx", "latency_ms")
    found["options"] = example()["options"]
    found["complexity"]["input_shapes_after"] = [[1, 1, 256, 256]]
    data, text = as_the_hub_reads_it(model_card(parse_report(found), "x"))
    assert "model-index" not in data and "metrics" not in data and "base_model" not in data
    assert "Latency" not in text and "RGB" not in text


def test_figures_that_are_no_numbers_stay_out_of_the_metadata() -> None:
    found = example()
    found["quality"]["student"]["teacher"] = {"psnr": "inf", "ssim": 1.0}
    found["quality"]["student"]["ground_truth"] = {"psnr": float("nan")}
    (result,) = card_metadata(parse_report(found), "x")["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["ssim"]


def test_names_change_neither_metadata_nor_text() -> None:
    found = example()
    found["options"] |= {"data": f"folder/{HOSTILE}", "mat_key": HOSTILE}
    found["teacher"]["file"] = HOSTILE
    found["data"]["degradation"] = HOSTILE
    text = model_card(parse_report(found), HOSTILE)
    assert not re.search("[\x00-\x09\x0b-\x1f\ud800-\udfff]", text)
    plain = model_card(parse_report(example()), "x")
    data, body = as_the_hub_reads_it(text)
    expected = yaml.safe_load(plain.split("---\n")[1])
    assert data["license"] == "other" and set(data) == set(expected) and data["tags"] == expected["tags"]
    assert data["model-index"][0]["name"].startswith("a: 'b' \"c\" #d --- license: mit {%x%}")
    headings = re.compile(r"^#+ .*", re.MULTILINE)
    assert headings.findall(body)[1:] == headings.findall(plain)[1:]
    assert body.count("```") == plain.count("```") and "\nlicense: mit" not in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "--rank 8 --seed 0"),
        ({"rank": 4, "distill_steps": 0, "seed": 3}, "--rank 4 --distill-steps 0 --seed 3"),
        ({"rank": 4, "distill": False, "latency": False}, "--rank 4 --no-distill --no-latency --seed 0"),
        ({"rank": "auto", "latency": 0.7}, "--rank auto --latency 0.7 --seed 0"),
        ({"baselines": True}, "--rank 8 --baselines --seed 0"),
        ({"activation_checkpointing": True, "workers": 2, "device": "cpu"}, "--rank 8 --seed 0"),
        ({"data": "/home/me/my photos"}, "--rank 8 --data 'my photos' --seed 0"),
        ({"distill_minutes": 2.0, "output": "o", "workers": 2}, "--rank 8 --distill-minutes 2.0 --seed 0"),
    ],
)  # fmt: skip
def test_the_command(options: dict[str, Any], expected: str) -> None:
    assert command_line(parse_report(example(**options))) == f"csa2glmha convert denoise.pth {expected}"


def test_the_command_is_one_that_the_command_line_takes() -> None:
    """Every option that it can name is one of `convert`."""
    from csa2glmha.cli import cli

    known = {flag for parameter in cli.commands["convert"].params for flag in parameter.opts}
    for name in options_that_affect(Affects.REPORT, ConvertOptions):
        default = ConvertOptions.model_fields[name].default
        value = not default if isinstance(default, bool) else "x"
        (flag, *_) = _option(name, value)
        assert flag in known, name


def test_of_paths_only_names_are_told() -> None:
    fields, told = ConvertOptions.model_fields, options_that_affect(Affects.REPORT, ConvertOptions)
    assert {name for name in told if "Path" in str(fields[name].annotation)} == _PATHS


def test_a_card_is_replaced_unless_somebody_edited_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "README.md"
    assert replaceable(card)
    write_card(tmp_path, parse_report(example()))
    first = card.read_text(encoding="utf-8")
    assert replaceable(card) and f"# {tmp_path.name}" in first
    write_card(tmp_path, parse_report(example(seed=5)))
    assert "--seed 5" in card.read_text(encoding="utf-8") and capsys.readouterr().err == ""
    for own in ("", "mine", first.replace("license: other", "license: mit"), first + "more\n", first[:-1]):
        card.write_text(own, encoding="utf-8")
        assert not replaceable(card)
        write_card(tmp_path, parse_report(example(seed=5)))
        assert card.read_text(encoding="utf-8") == own
        assert "is kept" in capsys.readouterr().err
    card.write_bytes(b"\xff\xfe")
    assert not replaceable(card)
