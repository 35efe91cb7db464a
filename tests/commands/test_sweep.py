"""Sweeps: several ranks of one checkpoint, done once each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from csa2glmha import cli, load
from csa2glmha.bench.compare import FileTimings
from csa2glmha.bench.rounds import Latency, Ratio
from csa2glmha.commands import convert as pipeline
from csa2glmha.commands import sweep as command
from csa2glmha.commands.sweep import describe_sweep
from csa2glmha.compression.workspace import Workspace
from csa2glmha.core.errors import UsageError
from csa2glmha.data.identity import describe_images
from csa2glmha.data.images import MemoryImages, write_image
from csa2glmha.data.sources import ImageData
from csa2glmha.reading.feedforwards import narrowed_widths
from csa2glmha.report.schema_search import AgainstTeacher, Baseline, ParetoPoint, Sweep
from csa2glmha.report.stored import read_record
from csa2glmha.sweep import plot
from csa2glmha.sweep.pareto import pareto_points
from csa2glmha.sweep.points import parse_points

pytestmark = pytest.mark.usefixtures("quick_factors")

QUICK = ["--calibration-crops", "4", "--calibration-size", "32", "--input-size", "32", "--crop", "32"]
QUICK += ["--distill-steps", "2", "--degrade", "noise:25"]


def by_size(
    teacher: nn.Module, files: dict[str, Path], frame: tuple[int, int], *_: object, **__: object
) -> FileTimings:
    """Times of a made-up machine, where they go with the sizes of files."""
    assert frame == (32, 32)
    taken = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    ratios = {name: Ratio(each / 2, 0.0, 1.0) for name, each in taken.items()}
    return FileTimings({name: Latency.of([each]) for name, each in taken.items()}, ratios, True)


def sweep(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(command, "compare_with_teacher", by_size)
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def swept(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "a sweep"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert sweep(monkeypatch, str(wide_checkpoint), "--ranks", "4,full", *QUICK, "-o", str(output)) == 0
    return output


def test_points_and_files(swept: Path) -> None:
    found = json.loads((swept / "sweep.json").read_text())
    teacher, low, full = found["points"]
    assert [point["label"] for point in found["points"]] == ["teacher", "4", "full"]
    assert low["macs"] < full["macs"] < teacher["macs"]
    assert full["psnr_to_teacher"] > 90 > low["psnr_to_teacher"]
    for point in (low, full):
        size = (swept / point["folder"] / "model.onnx").stat().st_size
        assert point["time_ratio"] == pytest.approx(size / 2e6)
    assert (swept / "rank-4" / "model.onnx").exists() and (swept / "rank-full" / "report.json").exists()
    assert (swept / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    plots = (swept / "pareto.svg").read_text()
    assert "<svg" in plots[:2000]
    # Matplotlib keeps what it draws as shapes in remarks.
    for label in ("PSNR to the teacher, dB", "change of the PSNR to the ground truth, dB", "time in ONNX"):
        assert f"<!-- {label}" in plots
    report = json.loads((swept / "rank-4" / "report.json").read_text())
    assert report["pareto"]["points"] == found["points"]
    assert "Quality against cost" in (swept / "rank-4" / "report.html").read_text()
    table = describe_sweep(Sweep.model_validate(found))
    assert "PSNR to teacher" in table and "full" in table


def test_done_points_are_not_done_again(
    wide_checkpoint: Path, swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (swept / "rank-4" / "student.safetensors").stat().st_mtime_ns
    arguments = [str(wide_checkpoint), "--ranks", "4,8", *QUICK, "--no-latency", "-o", str(swept)]
    assert sweep(monkeypatch, *arguments, "--json") == 0
    out, err = capsys.readouterr()
    assert "rank 4 (1 of 2): done already" in err and "rank 8 (2 of 2): done" not in err
    assert [point["label"] for point in json.loads(out)["points"]] == ["teacher", "4", "8"]
    assert (swept / "rank-4" / "student.safetensors").stat().st_mtime_ns == before


def test_every_rank_goes_with_every_width(
    wide_checkpoint: Path,
    swept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "a sweep"
    shutil.copytree(swept, output)
    arguments = [str(wide_checkpoint), "--ranks", "4", "--ffn", "full,0.5", *QUICK, "-o", str(output)]
    assert sweep(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    assert "rank 4 (1 of 2): done already" in err and "rank 4 ffn 0.5 (2 of 2)\n" in err
    assert "4 ffn 0.5" in out
    _, wide, narrow = json.loads((output / "sweep.json").read_text())["points"]
    assert (narrow["label"], narrow["ffn"], narrow["folder"]) == ("4 ffn 0.5", 0.5, "rank-4-ffn-0.5")
    assert "ffn" not in wide and narrow["macs"] < wide["macs"]
    assert narrowed_widths(load(output / "rank-4-ffn-0.5" / "student.safetensors"))
    # Repeated, it makes nothing again.
    assert sweep(monkeypatch, *arguments) == 0
    assert capsys.readouterr().err.count("done already") == 2


def test_a_line_of_the_plot_is_one_width() -> None:
    def point(label: str, kind: str, ffn: float | None) -> ParetoPoint:
        costs: dict[str, Any] = {"macs": 1, "macs_ratio": 0.5, "params": 1, "time_ratio": None}
        quality: dict[str, Any] = {"psnr_to_teacher": 40.0, "psnr_drop": 0.0}
        return ParetoPoint(label=label, kind=kind, ffn=ffn, **costs, **quality)

    widths = (None, 0.5, 0.75, 0.25, 0.9, 0.1)  # more than there are looks
    lines = plot._lines([point("4", "uniform", ffn) for ffn in widths])
    assert [line.points[0].ffn for line in lines] == [None, 0.9, 0.75, 0.5, 0.25, 0.1]
    assert len({(line.form, line.colour) for line in lines[:5]}) == 5
    assert lines[2].title == "one rank, --ffn 0.75"
    searched = plot._lines([point("auto:0.5", "auto", None), point("auto:0.7", "auto", 1.0)])
    assert [line.title for line in searched] == ["searched", "searched, ranks alone"]


def test_baselines_are_points_beside_theirs(swept: Path) -> None:
    report = read_record(swept / "rank-4")
    close = AgainstTeacher(psnr_to_teacher=40.0, psnr_drop=-0.2)
    closer = AgainstTeacher(psnr_to_teacher=44.0, psnr_drop=-0.1)
    costs: dict[str, Any] = {"description": "", "macs": report.complexity.before.macs // 2, "params": 7}
    made = (
        Baseline(name="svd", rank=4, before=close, after=closer, **costs),
        Baseline(name="wanda", ffn=0.25, before=close, after=None, **costs),  # not distilled
        Baseline(name="magnitude", before=None, after=None, **costs),  # out of its reach
    )
    points = parse_points("4", {"baselines": True})
    assert points[0].options.baselines
    _, own, svd, wanda = pareto_points(points, {"4": report.model_copy(update={"baselines": made})}, {})
    assert (own.kind, own.method) == ("uniform", None)
    assert (svd.label, svd.kind, svd.method, svd.psnr_to_teacher) == ("svd beside 4", "baseline", "svd", 44.0)
    assert svd.macs_ratio == pytest.approx(0.5, rel=1e-3)
    assert (wanda.ffn, wanda.psnr_to_teacher, wanda.psnr_drop) == (0.25, 40.0, -0.2)
    lines = {line.title: line for line in plot._lines([own, svd, wanda])}
    assert list(lines) == ["one rank", "svd", "wanda"]
    assert lines["svd"].points == [svd] and not lines["svd"].named


def test_points_of_other_options_are_kept(
    wide_checkpoint: Path, swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(wide_checkpoint), "--ranks", "4", *QUICK, "--seed", "7", "-o", str(swept)]
    assert sweep(monkeypatch, *arguments) == 1
    assert "made with other options (seed); pass --overwrite" in capsys.readouterr().err


# --- sweeps that were interrupted


def test_a_point_that_was_killed_before_its_report_is_made_again(
    wide_checkpoint: Path,
    swept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "a sweep"
    shutil.copytree(swept, output)
    killed = output / "rank-full"
    for name in ("report.json", "report.md", "report.html", "model.onnx"):
        (killed / name).unlink()
    (killed / "notes.txt").write_text("mine")
    kept = (output / "rank-4" / "student.safetensors").stat().st_mtime_ns
    arguments = [str(wide_checkpoint), "--ranks", "4,full", *QUICK, "--no-latency", "-o", str(output)]
    assert sweep(monkeypatch, *arguments) == 0
    assert "rank 4 (1 of 2): done already" in capsys.readouterr().err
    assert (killed / "model.onnx").exists() and (killed / "report.json").exists()
    assert (killed / "notes.txt").read_text() == "mine"
    assert (output / "rank-4" / "student.safetensors").stat().st_mtime_ns == kept


def test_a_point_without_its_onnx_file_is_made_again(
    wide_checkpoint: Path, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a sweep"
    shutil.copytree(swept / "rank-4", output / "rank-4")
    (output / "rank-4" / "model.onnx").unlink()
    begun = []

    def run(checkpoint: Path, options: Any, space: Workspace) -> Any:
        begun.append((space.folder.name, options.overwrite, options.resume))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "begin", run)
    assert sweep(monkeypatch, str(wide_checkpoint), "--ranks", "4", *QUICK, "-o", str(output)) == 130
    assert begun == [("rank-4", True, False)]


def test_an_interrupt_names_a_way_on_that_a_sweep_has(
    wide_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a sweep"

    def run(checkpoint: Path, options: Any, space: Workspace) -> Any:
        (space.folder / "state" / "step-00000001").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "begin", run)
    assert sweep(monkeypatch, str(wide_checkpoint), "--ranks", "4", *QUICK, "-o", str(output)) == 130
    said = capsys.readouterr().err
    assert ": repeat the command to continue" in said and "--resume" not in said
    # Its repetition resumes, unless it was told not to train.
    arguments = [str(wide_checkpoint), "--ranks", "4", *QUICK[:-4], "--no-distill", "-o", str(output)]
    assert sweep(monkeypatch, *arguments) == 1
    assert "state of an interrupted distillation" in capsys.readouterr().err


def test_a_student_of_other_options_is_kept_though_it_has_no_report(
    wide_checkpoint: Path,
    swept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    student = tmp_path / "out" / "rank-4" / "student.safetensors"
    student.parent.mkdir(parents=True)
    shutil.copy(swept / "rank-4" / student.name, student)
    arguments = [str(wide_checkpoint), "--ranks", "4", *QUICK, "--seed", "7", "-o", str(tmp_path / "out")]
    assert sweep(monkeypatch, *arguments) == 1
    assert "made with other options (seed); pass --overwrite" in capsys.readouterr().err
    assert student.read_bytes() == (swept / "rank-4" / student.name).read_bytes()


# --- images that are others than before


def test_points_on_other_images_are_not_mixed(
    wide_checkpoint: Path,
    swept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(swept / "rank-4", tmp_path / "rank-4")
    path = tmp_path / "rank-4" / "report.json"
    report = json.loads(path.read_text())
    assert len(report["data"]["held_out_names"]) == report["data"]["held_out_images"] == 1
    for changes, words in (
        ({"training_images": 40}, "40 for training and 1 held out, now there are 4 and 1"),
        ({"held_out_sha256": "0" * 64}, "as many, but others or changed ones are held out"),
    ):
        path.write_text(json.dumps(report | {"data": report["data"] | changes}))
        assert sweep(monkeypatch, str(wide_checkpoint), "--ranks", "4", *QUICK, "-o", str(tmp_path)) == 1
        said = capsys.readouterr().err
        assert f"was made with other images ({words}); pass --overwrite" in said and "Traceback" not in said


def test_images_are_told_apart() -> None:
    def described(name: str, level: float, clean: bool = True) -> dict[str, Any]:
        images = MemoryImages([(name, torch.full((3, 8, 8), level))])
        data = ImageData(images, images, None, "images", (), clean)
        return describe_images(data, data.examples(8, 0))

    first = described("a", 0.5)
    assert first["held_out_names"] == ["a"] and described("a", 0.5) == first
    assert described("a", 0.25)["held_out_sha256"] != first["held_out_sha256"]
    assert described("b", 0.5)["held_out_names"] != first["held_out_names"]


# --- points that cannot be made


@pytest.mark.parametrize(
    ("ranks", "code", "message"),
    [
        ("full,99", 2, "rank 99 of k is above"),
        ("full,auto:max-drop=0.1", 2, "needs the ground truth"),
        ("full,auto:0.01", 2, "cannot be reached"),
    ],
)
def test_all_points_are_checked_before_the_first_is_made(
    wide_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ranks: str,
    code: int,
    message: str,
) -> None:
    for number in range(2):
        write_image(tmp_path / f"{number}.png", torch.rand(3, 40, 40))
    output = tmp_path / "out"
    data = ["--data", str(tmp_path), "-o", str(output)]
    assert sweep(monkeypatch, str(wide_checkpoint), "--ranks", ranks, *QUICK[:-2], *data) == code
    said = capsys.readouterr().err
    assert message in said and "rank full (1 of 2)" not in said
    assert not output.exists()


def test_entries_of_the_list() -> None:
    options: dict[str, Any] = {"degrade": "noise:25"}
    points = parse_points("4, FULL,auto:0.75,auto:params=0.9,auto:max-drop=0.05", options)
    assert [point.kind for point in points] == ["uniform", "uniform", "auto", "auto", "auto"]
    assert [str(point.options.budget) for point in points[2:]] == [
        "--macs 0.75",
        "--params 0.9",
        "--max-drop 0.05",
    ]
    assert points[0].options.rank == 4 and points[0].options.degrade == "noise:25"
    assert len({point.folder for point in points}) == 5


def test_widths_in_the_list() -> None:
    points = parse_points("4,full,auto:0.75", {}, "full,.75, 0.5")
    assert [(point.label, point.options.ffn_share) for point in points] == [
        ("4", 1.0),
        ("4 ffn 0.75", 0.75),
        ("4 ffn 0.5", 0.5),
        ("full", 1.0),
        ("full ffn 0.75", 0.75),
        ("full ffn 0.5", 0.5),
        ("auto:0.75", 1.0),
    ]
    assert len({point.folder for point in points}) == 7
    # A search chooses widths as well, unless they are to be full.
    assert [parse_points("auto:0.75", {}, ffn)[0].options.ffn for ffn in (None, "full")] == [None, "full"]
    both = parse_points("auto:0.75,auto:0.75:ffn=full,auto:params=0.9:ffn=full", {})
    assert [(point.options.ffn, str(point.options.budget)) for point in both] == [
        (None, "--macs 0.75"),
        ("full", "--macs 0.75"),
        ("full", "--params 0.9"),
    ]
    assert len({point.folder for point in both}) == 3
    assert points[-1].options.ffn is None and points[0].options.ffn is None


@pytest.mark.parametrize(
    ("ranks", "ffn", "message"),
    [
        ("4", "", "no shares"),
        ("4", "0.5,.5", "0.5 is there twice"),
        ("4", "1,full", "full is there twice"),
        ("4", "0.5,wide", "ffn wide: give a share between 0 and 1"),
        ("4", "1.5", "ffn 1.5: give a share"),
        ("auto:0.75", "full,0.5", "for ranks that are given, and there is none"),
    ],
)
def test_widths_that_are_none(ranks: str, ffn: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_points(ranks, {}, ffn)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no ranks"),
        ("4,4", "twice"),
        ("4,eight", "not a rank"),
        ("auto", "takes a budget"),
        ("auto:much", "neither a share"),
        ("auto:max-drop=much", "^--ranks auto:max-drop=much: input should be a valid number"),
        ("auto:1.7", "^--ranks auto:1.7: above 1 it is an amount, and too small for one"),
        ("0", "at least 1"),
    ],
)
def test_entries_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_points(text, {})
