"""Reports in files: written in the present form, read in every form that there was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from csa2glmha.core.errors import OutputError
from csa2glmha.core.files import atomic_path
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import quoted
from csa2glmha.core.version import __version__
from csa2glmha.report.schema import SCHEMA, Report

JSON_FILE = "report.json"

Values = dict[str, Any]


def write_record(folder: Path, report: Report) -> None:
    """Write report.json into a folder.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_path(folder / JSON_FILE) as temporary:
        temporary.write_text(dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> Report:
    """The report.json of a folder, of this version or an earlier one.

    Raises:
        OutputError: it cannot be read, is no report, or is of a newer version.
    """
    path = folder / JSON_FILE
    try:
        return parse_report(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; convert again") from error
    except ValueError as error:
        raise OutputError(f"{path}: {error}") from error


def parse_report(value: object) -> Report:
    """The report that JSON values hold.

    Raises:
        ValueError: they hold none, or one of a newer version; the message says which.
    """
    if not isinstance(value, dict):
        raise ValueError(f"is damaged (a {type(value).__name__} in place of a report)")
    schema = value.get("schema", 0)
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 0:
        raise ValueError(f"is damaged (schema: {quoted(schema)})")
    if schema > SCHEMA:
        raise ValueError(
            f"is of schema {schema}, and csa2glmha {__version__} reads reports up to schema {SCHEMA}; "
            "use the version that wrote it, or a newer one"
        )
    try:
        for step in MIGRATIONS[schema:]:
            value = step(value)
        return Report.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"is damaged ({quoted(where)}: {first['msg']})") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"is damaged ({quoted(error)})") from error


def _from_unversioned(report: Values) -> Values:
    """Reports without a schema. Some of them say less than today's: what they lack is not known."""
    layers = [
        {"rank_pos": None, "embedded_error": [], "logit_error": None, "guide_explained": None} | layer
        for layer in report["layers"]
    ]
    report = report | {"schema": 1, "layers": layers}
    if "data" in report:
        report["data"] = {"channel": None, "degradation": None} | report["data"]
    if report.get("search") is not None:
        report["search"] = _search_with_all_fields(report["search"])
    return report


def _search_with_all_fields(search: Values) -> Values:
    """The first searches did not measure single layers, and did not predict curves."""
    missing: Values = {"gap": None, "optimality": ""}
    predicted = {"psnr_to_teacher": None} | search.get("predicted", {})
    choices = [
        {"predicted": None} | choice for choice in search.get("choices", []) if "psnr_to_teacher" in choice
    ]
    return missing | search | {"predicted": predicted, "choices": choices}


def _from_schema_1(report: Values) -> Values:
    """Names of fields that schema 2 changed."""
    layers = [_renamed(layer, {"embedded_error": "branch_error"}) for layer in report["layers"]]
    report = report | {"schema": 2, "layers": layers}
    report["seconds"] = _renamed(report["seconds"], {"judge": "evaluate"})
    if report.get("data") is not None:
        report["data"] = _renamed(report["data"], _DATA)
    if report.get("quality") is not None:
        report["quality"] = {name: _renamed(each, _QUALITY) for name, each in report["quality"].items()}
    if report.get("comparisons") is not None:
        images = [_with_ground_truth(image) for image in report["comparisons"]["images"]]
        report["comparisons"] = report["comparisons"] | {"images": images}
    return report


def _with_ground_truth(image: Values) -> Values:
    spectra = image.get("spectra")
    return image if spectra is None else image | {"spectra": [_renamed(each, _SPECTRUM) for each in spectra]}


def _renamed(values: Values, names: Mapping[str, str]) -> Values:
    return {names.get(key, key): value for key, value in values.items()}


#: Old name to new name: of the data, of the quality of one network, of the spectra at one pixel.
_DATA = {"judged_images": "evaluated_images", "judged_on": "evaluated_on"}
_QUALITY = {"truth": "ground_truth", "truth_bands": "ground_truth_bands"}
_SPECTRUM = {"truth": "ground_truth"}

#: Step n makes reports of schema n into reports of schema n + 1; schema 0 is that of reports that name none.
MIGRATIONS: tuple[Callable[[Values], Values], ...] = (_from_unversioned, _from_schema_1)
