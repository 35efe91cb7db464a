"""analyze, sweep, --resume and --range with the user's own network, and what a student tells its teacher."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from csa2glmha import cli
from csa2glmha.data import read_image, write_image
from csa2glmha.data.crops import TrainingCrops
from tests.commands.test_cli import QUICK, complaint, run
from tests.conftest import smooth_images, without_export
from tests.networks import builders

pytestmark = pytest.mark.usefixtures("quick_factors")

OWN = ["--network", "archs.py:Signed", "--network-arg", "low=0", "--network-arg", "high=255"]
RANGE = ["--range", "0-255"]
DATA = ["--data", "photos", "--degrade", "noise:25"]
TRAINED = ["--distill-steps", "6", "--crop", "32", "--batch", "2", *QUICK]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's: their code, weights and images, and a student of a network for values from 0 to 255."""
    place = tmp_path_factory.mktemp("own work")
    shutil.copy(builders.FILE, place / "archs.py")
    network = builders.Signed(0, 255)
    network.body.last.weight.data *= 0.1  # it keeps the image, as trained ones do
    torch.save(network.state_dict(), place / "weights.pth")
    (place / "photos").mkdir()
    for index, image in enumerate(smooth_images(3, side=40)):
        write_image(place / "photos" / f"{index}.png", image)
    return place


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def code_of(*arguments: str) -> object:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code


def interrupted_and_resumed(command: list[str], folder: Path) -> None:
    """A conversion that Ctrl-C ends in the fourth step of its training, and that goes on."""
    whole = TrainingCrops.batch

    def interrupted(self: TrainingCrops, step: int, first: int, count: int) -> object:
        if step >= 3:
            raise KeyboardInterrupt
        return whole(self, step, first, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(TrainingCrops, "batch", interrupted)
            assert code_of(*command) == 130
        assert (folder / "out" / "state").is_dir()
        assert code_of(*command, "--resume") == 0


@pytest.fixture(scope="module")
def resumed(folder: Path) -> Path:
    """A student of such a conversion, without its ONNX file."""
    command = ["convert", "weights.pth", *OWN, *RANGE, "--rank", "2", *DATA, *TRAINED, "-o", "out"]
    with without_export():
        interrupted_and_resumed(command, folder)
    return folder / "out"


def test_an_interrupted_conversion_goes_on(resumed: Path) -> None:
    events = [json.loads(line)["event"] for line in (resumed / "distill.jsonl").read_text().splitlines()]
    assert "resume" in events and not (resumed / "state").exists()
    report = json.loads((resumed / "report.json").read_text())
    assert report["distillation"]["steps"] == 6
    assert report["quality"]["teacher"]["ground_truth"]["psnr"] > 15  # its values are of the right range


def test_a_teacher_is_as_its_student_was_made(resumed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments and range are in the student's file; they need not be given for its teacher again."""
    own = ["--network", "archs.py:Signed"]
    student = resumed / "student.safetensors"
    code, out, err = run(
        "evaluate", student, "--teacher", "weights.pth", *own, *DATA, "--json", capsys=capsys
    )
    assert code == 0, err
    assert json.loads(out)["teacher"]["mean"]["psnr"] > 20 and "--range" not in err
    more = [*TRAINED[:6], "-o", "more.safetensors"]
    code, out, err = run("distill", student, "--teacher", "weights.pth", *own, *DATA, *more, capsys=capsys)
    assert code == 0, err
    (agreement,) = re.findall(r"([0-9.-]+) dB", out)
    assert float(agreement) > 20


def test_another_range_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("evaluate", "weights.pth", *OWN, *DATA, capsys=capsys)
    assert code == 0
    assert "archs.Signed: its output for 0.png is " in err and "; with --range 0-255 it would be " in err


def test_analyze(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--calibration-crops", "2", "--calibration-size", "32"]
    code, out, err = run(
        "analyze", "weights.pth", *OWN, *RANGE, *DATA, *few, "--json", "-o", "analysis", capsys=capsys
    )
    assert code == 0, err
    assert len(json.loads(out)["layers"]) == 2 and any(Path("analysis").glob("*.png"))


def test_sweep(no_export: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "weights.pth", *OWN, *RANGE, *DATA, *QUICK, "--no-distill", "-o", "swept"]
    code, out, err = run(*command, "--ranks", "2,full", "--json", capsys=capsys)
    assert code == 0, err
    for folder in ("rank-2", "rank-full"):
        assert json.loads(Path("swept", folder, "report.json").read_text())["pareto"] is not None
    assert [point["label"] for point in json.loads(out)["points"]] == ["teacher", "2", "full"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["--network-arg", "hihg=1"],
            "--network-arg hihg: archs.py:Signed has no such argument; is high meant?",
        ),
        (["--network-arg", "low=0", "--network-arg", "low=1"], "--network-arg low: is given twice"),
    ],
)
def test_arguments_that_are_wrong(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint("inspect", "-", "--network", "archs.py:Signed", *arguments, capsys=capsys, code=2)
    assert said in line


def test_arguments_that_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint("inspect", "-", "--network", "archs.py:Block", capsys=capsys, code=2)
    assert "needs a value for dim, heads; give --network-arg dim=..., it takes dim, heads, largest" in line


def test_a_name_that_is_nearly_right(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint("inspect", "-", "--network", "archs.py:biuld", capsys=capsys, code=2)
    assert "there is no 'biuld' in it; is build meant?" in line


def test_a_conversion_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name it with --network" in complaint("convert", "-", *DATA, capsys=capsys, code=2)


def test_a_network_of_two_inputs(no_export: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The second, a map of half the image's size, is paired by name and cut with the image, in tiles too."""
    Path("guides").mkdir(exist_ok=True)
    for index, image in enumerate(smooth_images(3, seed=1, side=40)):
        write_image(Path("guides", f"{index}.png"), image[:1, :20, :20])
    own = ["--network", "archs.py:Guided"]
    shapes = ["--example", "1x3x32x64", "--example", "1x1x16x32"]
    command = ["convert", "-", *own, *shapes, "--rank", "2", *DATA, *TRAINED, "-o", "guided"]
    line = complaint(*command, capsys=capsys, code=2)
    assert "takes guide beside the image: give --input guide=FOLDER" in line
    more = ["--input", f"guide={Path.cwd() / 'guides'}"]
    code, _, err = run(*command, *more, capsys=capsys)
    assert code == 0, err
    student = "guided/student.safetensors"
    card = Path("guided", "README.md").read_text()
    assert 'csa2glmha.load("student.safetensors", network="archs.py:Guided")' in card
    use = (
        "csa2glmha run student.safetensors photos -o restored --network archs.py:Guided --input guide=FOLDER"
    )
    assert use in card and "--input guide=guides" in card and "`archs.py:Guided`, which is run" in card
    for name, tiles in (("whole", []), ("tiles", ["--tile", "28", "--overlap", "8"])):
        code, _, err = run("run", student, "photos", "-o", name, *own, *more, *tiles, capsys=capsys)
        assert code == 0, err
    for index in range(3):
        one, other = (read_image(Path(each, f"{index}.png"), 3) for each in ("whole", "tiles"))
        assert float((one - other).abs().max()) < 0.02
    code, out, err = run("evaluate", student, *own, *more, *DATA, "--teacher", "-", "--json", capsys=capsys)
    assert code == 0, err
    assert json.loads(out)["teacher"]["mean"]["psnr"] > 20
