"""The files that GitHub reads say what is true of the project, in the form that GitHub takes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
# Without quotes YAML reads the key "on" as a boolean.
WORKFLOW: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"))


def test_the_workflow_runs_what_a_contributor_runs() -> None:
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r"Python :: (3\.\d+)", project)
    lowest = re.search(r'requires-python = ">=(3\.\d+)"', project)
    assert lowest is not None and lowest[1] == named[0]
    assert matrix["python"] == [named[0], named[-1]]
    commands = [step.get("run") for step in WORKFLOW["jobs"]["test"]["steps"]]
    assert ".ci/run" in commands and os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_workflow_may_only_read_and_pins_its_actions() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    used = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
    assert len(used) >= 4 and all(re.fullmatch(r"actions/[a-z-]+@v\d+", each) for each in used)
    caches = [step["with"] for step in WORKFLOW["jobs"]["test"]["steps"] if "cache" in step.get("with", {})]
    files = caches[0]["cache-dependency-path"].split()
    assert files and all((ROOT / name).is_file() for name in files)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_forms(path: Path) -> None:
    """https://docs.github.com/communities/using-templates-to-encourage-useful-issues-and-pull-requests."""
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels", "title"}
    fields = [each for each in form["body"] if each["type"] != "markdown"]
    assert all(each["type"] in ("input", "textarea") and each["attributes"]["label"] for each in fields)
    ids = [each["id"] for each in fields]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[A-Za-z0-9_-]+", each) for each in ids)
    labels = [each["attributes"]["label"] for each in fields]
    assert len(set(labels)) == len(labels)
    assert any(each.get("validations", {}).get("required") for each in fields)


def test_the_bug_form_asks_for_the_versions() -> None:
    text = (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
    assert "csa2glmha --version" in text and 'begins with "csa2glmha:"' in text


def test_changelog_knows_this_version() -> None:
    import csa2glmha

    titles = re.findall(r"^## (.+)$", (GITHUB / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles[0] == "Unreleased" and titles[1] == csa2glmha.__version__
