"""What a user's machine gets: versions, what belongs into the wheel, and extras that exist."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import csa2glmha
from csa2glmha.core import versions

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "csa2glmha"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))


def test_every_file_that_is_no_code_goes_into_the_wheel(project: dict[str, Any]) -> None:
    patterns = {
        f"{package.replace('.', '/')}/{pattern}"
        for package, each in project["tool"]["setuptools"]["package-data"].items()
        for pattern in each
    }
    files = [
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md") and not path.name.startswith(".")
    ]
    assert len(files) >= 4
    left_out = [name for name in files if not any(fnmatch.fnmatch(name, each) for each in patterns)]
    assert left_out == []
    assert [each for each in patterns if not fnmatch.filter(files, each)] == [], "patterns of nothing"


def test_every_folder_of_code_is_a_package() -> None:
    """find_packages leaves out those that are not."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_version_has_one_place(project: dict[str, Any]) -> None:
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "csa2glmha.core.version.__version__"
    }


def test_extras_that_messages_name_exist(project: dict[str, Any]) -> None:
    named = {
        extra
        for path in PACKAGE.rglob("*.py")
        for extra in re.findall(r"csa2glmha\[(\w+)\]", path.read_text(encoding="utf-8"))
    }
    assert "tensorboard" in named
    assert named <= set(project["project"]["optional-dependencies"])


def test_version_names_what_results_depend_on() -> None:
    probe = (
        "import sys; from csa2glmha.cli import cli; cli.main(['--version'], standalone_mode=False); "
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "a package was imported to ask for its version"
    lines = done.stdout.splitlines()
    assert lines[0] == f"csa2glmha {csa2glmha.__version__}"
    assert platform.python_version() in lines[1]
    for name in ("torch", "onnx", "onnxruntime"):
        assert f"{name} {importlib.metadata.version(name)}" in lines


def test_a_build_of_another_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "1.20.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.metadata, "version", version)
    lines = versions.describe_versions().splitlines()
    assert lines[2:] == ["torch not installed", "onnx not installed", "onnxruntime 1.20.1 (onnxruntime-gpu)"]
