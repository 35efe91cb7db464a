"""The typed record: what report.json says is what was measured, and reports of earlier versions are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from csa2glmha.core.errors import OutputError
from csa2glmha.report.html import html_page
from csa2glmha.report.markdown import markdown
from csa2glmha.report.schema import SCHEMA, Report
from csa2glmha.report.stored import parse_report, read_record, write_record
from tests.pages import example_report

#: Written by version 0.1.0 before reports named a schema; some layers are left out.
UNVERSIONED = sorted((Path(__file__).parent / "reports").glob("*.json"))
#: The same of reports of schema 1.
SCHEMA_1 = Path(__file__).parent / "reports" / "schema1" / "mst.json"
REPORTS = [*UNVERSIONED, SCHEMA_1]
IDS = [f"{path.parent.name}-{path.stem}" for path in REPORTS]

#: Names in earlier reports, wherever they stand, and those of today.
RENAMED = {
    "truth": "ground_truth",
    "truth_bands": "ground_truth_bands",
    "judged_images": "evaluated_images",
    "judged_on": "evaluated_on",
    "judge": "evaluate",
    "embedded_error": "branch_error",
}


def stored(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def renamed(value: Any) -> Any:
    """JSON values with today's names in place of earlier ones."""
    if isinstance(value, list):
        return [renamed(each) for each in value]
    if isinstance(value, dict):
        return {RENAMED.get(key, key): renamed(each) for key, each in value.items()}
    return value


@pytest.mark.parametrize("path", REPORTS, ids=IDS)
def test_earlier_reports_keep_all_they_say(path: Path, tmp_path: Path) -> None:
    values = stored(path)
    assert values.get("schema") == (1 if path == SCHEMA_1 else None)
    report = parse_report(values)
    expected = renamed(values) | {"schema": SCHEMA}
    expected["complexity"]["by_values"] = False  # nothing was counted so then
    assert report.to_json() == expected
    write_record(tmp_path, report)
    assert read_record(tmp_path) == report


def test_a_report_of_schema_1_has_all_that_was_renamed() -> None:
    text = SCHEMA_1.read_text(encoding="utf-8")
    assert all(f'"{name}": ' in text for name in RENAMED)


@pytest.mark.parametrize("path", REPORTS, ids=IDS)
def test_earlier_reports_are_rendered(path: Path) -> None:
    values = stored(path)
    report = parse_report(values)
    for text in (markdown(report), html_page(report)):
        assert values["teacher"]["file"] in text and values["teacher"]["sha256"] in text
        assert "None" not in text


def test_the_first_reports_say_less() -> None:
    """What they lack is not known; single layers that were not measured in decibels are no choices."""
    values = stored(UNVERSIONED[-1])
    for layer in values["layers"]:
        del layer["rank_pos"], layer["embedded_error"]
    del values["data"]["channel"], values["data"]["held_out_names"], values["comparisons"]["webp_quality"]
    for choice in values["search"]["choices"][1:]:
        del choice["psnr_to_teacher"]
    del values["search"]["gap"], values["complexity"]["after"]["constants"]
    report = parse_report(values)
    assert report.search is not None and report.data is not None and report.comparisons is not None
    assert len(report.search.choices) == 1 and report.search.gap is None
    assert (report.data.channel, report.data.held_out_names) == (None, None)
    assert report.comparisons.webp_quality is None and report.complexity.after.constants == 0
    assert html_page(report) and markdown(report)


def test_the_schema_comes_first_in_the_file(tmp_path: Path) -> None:
    write_record(tmp_path, parse_report(example_report()))
    assert (tmp_path / "report.json").read_text().startswith(f'{{\n  "schema": {SCHEMA},\n  "tool"')


def test_infinite_and_unknown_figures() -> None:
    values = example_report()
    values["quality"]["student"]["teacher"] |= {"psnr": "inf", "ssim": None}
    values["layers"][0]["logit_error"] = math.nan
    report = parse_report(values)
    assert report.figure("student", "teacher", "psnr") == math.inf
    assert report.figure("student", "teacher", "ssim") is None
    assert report.layers[0].logit_error is None
    again = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert again["quality"]["student"]["teacher"] == {"psnr": "inf", "ssim": None}
    assert parse_report(again) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": SCHEMA + 1}, f"is of schema {SCHEMA + 1}, and csa2glmha .* reads reports up to schema"),
        ({"schema": "1"}, "is damaged .*schema"),
        ({"schema": True}, "is damaged .*schema"),
        ({"schema": SCHEMA, "more": 1}, "is damaged .*more"),
        ({"seed": "many"}, "is damaged .*seed"),
        ({"layers": 3}, "is damaged"),
        ({"complexity": {}}, "is damaged .*complexity"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(parse_report(example_report()).to_json() | change))
    with pytest.raises(OutputError, match=rf"report\.json: {message}"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{"])
def test_what_is_no_report(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(OutputError, match=r"report\.json: "):
        read_record(tmp_path)


def test_a_report_does_not_change() -> None:
    report = parse_report(example_report())
    with pytest.raises(ValidationError, match="frozen"):
        report.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="more"):
        Report.model_validate(report.to_json() | {"more": 1})
