"""What is set before PyTorch and ONNX Runtime are loaded, how many CPUs there are, and whose code runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from csa2glmha.core import child, environment
from csa2glmha.core.child import ChildError, run_module
from csa2glmha.families.registry import build
from tests.conftest import TINY_RESTORMER

WITHOUT = {
    name: value
    for name, value in os.environ.items()
    if name not in (*environment.PRIVACY, *environment.WAITING, "KMP_LIBRARY", "CI")
}

HOME = str(Path(environment.__file__).parents[2])


def groups(folder: Path, **files: str) -> tuple[str, str]:
    """Control groups as files: their root, and the one that says which are this process's."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name.replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder), str(folder / "membership")


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"membership": "0::/\n", "cpu_max": "150000 100000\n"}, 2),
        ({"membership": "0::/\n", "cpu_max": "50000 100000\n"}, 1),
        ({"membership": "0::/\n", "cpu_max": "max 100000\n"}, sys.maxsize),
        # The group around this one grants less than this one.
        ({"membership": "0::/a/b\n", "a__cpu_max": "300000 100000", "a__b__cpu_max": "400000 100000"}, 3),
        # Inside a container the path is that of the machine, which is not there.
        ({"membership": "0::/docker/0123\n", "cpu_max": "200000 50000"}, 4),
        (
            {
                "membership": "4:cpu,cpuacct:/d\n",
                "cpu__d__cpu_cfs_quota_us": "250000",
                "cpu__d__cpu_cfs_period_us": "100000",
            },
            3,
        ),
        (
            {"membership": "4:cpu:/\n", "cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"},
            sys.maxsize,
        ),
        ({"membership": "7:memory:/\n", "memory__cpu_max": "100000 100000"}, sys.maxsize),
        ({"membership": "0::/../..\n", "cpu_max": "nonsense"}, sys.maxsize),
        ({}, sys.maxsize),
    ],
)
def test_quotas_of_containers(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    assert environment._quota(*groups(tmp_path, **files)) == cpus


def test_threads_follow_the_user_then_affinity_quota_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 6)
    monkeypatch.setattr(environment, "_allowed", lambda: 12)
    monkeypatch.setattr(environment, "_quota", lambda: sys.maxsize)
    assert (environment.cpu_count(), environment.thread_count()) == (12, 6)
    monkeypatch.setattr(environment, "_quota", lambda: 3)
    assert (environment.cpu_count(), environment.thread_count()) == (3, 3)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    assert environment.thread_count() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert environment.thread_count() == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert environment.thread_count() == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity to set")
def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert environment.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("given", "loaded", "expected"),
    [
        ({}, False, environment.WAITING | {"OMP_NUM_THREADS": "2"}),
        ({"OMP_WAIT_POLICY": "active"}, False, {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2"}),
        (
            {"GOMP_SPINCOUNT": "9", "OMP_NUM_THREADS": "7"},
            False,
            {"GOMP_SPINCOUNT": "9", "OMP_NUM_THREADS": "7"},
        ),
        ({}, True, {}),
    ],
)
def test_what_the_user_has_set_stays(
    given: dict[str, str], loaded: bool, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "KMP_LIBRARY", "OMP_NUM_THREADS")
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(environment, "_allowed", lambda: 8)
    monkeypatch.setattr(environment, "_quota", lambda: 2)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    environment.prepare()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_no_quota_leaves_the_number_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(environment, "_quota", lambda: sys.maxsize)
    monkeypatch.setattr(sys, "modules", {})
    environment.prepare()
    assert "OMP_NUM_THREADS" not in os.environ


# --- Whose code runs --------------------------------------------------------------------------------


def test_the_working_directory_leaves_the_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    here, library = str(tmp_path), os.path.dirname(os.__file__)  # noqa: PTH120
    monkeypatch.setattr(sys, "path", ["", here, "/other", library, here, HOME])
    # Behind Python's library is what was installed, as a project of the user's that is at work on.
    assert environment.import_path() == ["/other", library, here, HOME]
    monkeypatch.setattr(sys, "path", [here, library])
    assert environment.import_path() == [library, HOME]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", here]))
    assert environment.import_path() == [here, library, HOME]


def test_only_the_command_line_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(argv: list[str], *original: str) -> bool:
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", ["python", *original])
        return environment._is_command_line()

    assert ours(["-m", "run"], "-u", "-m", "csa2glmha", "run")
    assert ours(["/usr/bin/csa2glmha", "run"]) and ours([r"csa2glmha-script.py"])
    assert not ours(["-m"], "-m", "mine")
    assert not ours(["train.py", "-m", "csa2glmha"], "train.py", "-m", "csa2glmha")
    assert not ours([""]) and not ours([])


HOUR = 3600.0  # in seconds, which no child takes on the busiest machine


def test_children_say_why_they_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "works.py").write_text("import sys; print('out', *sys.argv[1:])")
    (tmp_path / "fails.py").write_text("raise ValueError('two\\nlines')")
    (tmp_path / "crashes.py").write_text("import os; os.abort()")
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_module("works", ["a b"], HOUR) == "out a b\n"
    for name, reason in (
        ("fails", r"^lines \(exit code 1\)$"),
        ("crashes", "signal 6"),
        ("missing", "No module named"),
    ):
        with pytest.raises(ChildError, match=reason):
            run_module(name, [], HOUR)
    with pytest.raises(ChildError, match="longer than 1 seconds"):
        run_module("sleeps", [], 1)
    monkeypatch.setattr(child.sys, "executable", str(tmp_path / "none"))
    with pytest.raises(ChildError, match="no process could be started"):
        run_module("works", [], HOUR)


#: Files of these names lie in the folder that the commands are started in.
TRAPS = ("json", "onnx", "psutil", "onnxsim", "torch", "typing", "runpy", "sitecustomize", "matplotlibrc")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    folder = tmp_path / "trapped"
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(
            f"import sys; open({str(tmp_path / 'marker')!r}, 'a').write({name!r} + str(sys.argv))"
        )
    torch.manual_seed(0)
    torch.save({"params": build("restormer", TINY_RESTORMER).state_dict()}, folder / "teacher.pth")
    return folder


#: A command that makes a child process for each of its tasks, and one that reads most kinds of files.
COMMANDS = """import sys
from csa2glmha.cli import cli
for words in (
    "export teacher.pth --plain --shape 1x3x16x16 -o plain.onnx",
    "bench plain.onnx --size 16 --seconds 0 --json",
    "convert teacher.pth --rank 2 --calibration-crops 2 --calibration-size 16 --input-size 16 "
    "--distill-steps 1 --batch 1 --crop 16 --degrade noise:25 --no-latency -o out",
):
    cli.main(words.split(), standalone_mode=False)
"""


def test_nothing_in_the_working_directory_runs_and_nothing_is_sent(trapped: Path, tmp_path: Path) -> None:
    """Neither a command, the libraries that it loads, nor its children open a socket to anywhere else."""
    program, log = tmp_path / "csa2glmha", tmp_path / "calls"
    program.write_text(COMMANDS)
    watch = [*STRACE, "-qq", "-e", "trace=network", "-o", str(log)] if strace_works() else []
    done = subprocess.run(
        [*watch, sys.executable, str(program)],
        cwd=trapped,
        env=WITHOUT | {"PYTHONPATH": HOME, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "marker").exists(), (tmp_path / "marker").read_text()
    assert "unsimplified" not in done.stdout and "plain.onnx" in done.stdout
    assert '"memory": {' in done.stdout and "memory_error" not in done.stdout
    if not watch:
        pytest.skip("no strace here, or none that may watch: whether connections are opened was not seen")
    assert not [line for line in log.read_text().splitlines() if "AF_INET" in line or "sin_port" in line]


#: It stops processes at the calls that it shows, and not at all others.
STRACE = ("strace", "-f", "--seccomp-bpf")


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run([*STRACE, "true"], capture_output=True, check=False).returncode == 0


def test_python_m_leaves_the_folder_before_it_imports(trapped: Path) -> None:
    for name in ("runpy", "typing"):  # what Python imports to find the module is out of our hands
        (trapped / f"{name}.py").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "csa2glmha", "inspect", "teacher.pth", "--json"],
        cwd=trapped,
        env=os.environ | {"PYTHONPATH": HOME},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "restormer"
    assert not (trapped.parent / "marker").exists(), (trapped.parent / "marker").read_text()


# --- Nothing is sent --------------------------------------------------------------------------------


def test_onnx_runtime_keeps_nothing_to_send(tmp_path: Path) -> None:
    """Its telemetry begins with a number for the machine and a queue, in files below the home."""
    script = "import csa2glmha, onnxruntime; onnxruntime.SessionOptions(); onnxruntime.get_device()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=WITHOUT | {"HOME": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
