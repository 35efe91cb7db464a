"""--network: the user's own network, in every command, and one clear line for what is wrong with it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import csa2glmha
from csa2glmha.data import read_image, write_image
from csa2glmha.networks import RestorationModel
from tests.commands.test_cli import QUICK, complaint, run
from tests.networks import builders

pytestmark = pytest.mark.usefixtures("quick_factors")

SHORT = ["--distill-steps", "2", "--crop", "32", "--batch", "2", *QUICK]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's: their code, weights as a training left them, clean images."""
    place = tmp_path_factory.mktemp("my work")
    shutil.copy(builders.FILE, place / "my archs.py")
    network = builders.build(seed=3)
    state = {f"generator.module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, place / "my weights.pth")
    torch.save(builders.build(seed=3, scale=2).state_dict(), place / "enlarging.pth")
    (place / "photos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        small = torch.rand(1, 3, 9, 11, generator=generator)
        image = nn.functional.interpolate(small, (66, 70), mode="bicubic").clamp(0, 1)[0]
        write_image(place / "photos" / f"photo {index}.png", image)
    return place


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


DATA = ["--data", "photos", "--degrade", "noise:25"]
OWN = ["--network", "my archs.py:build"]
#: PyTorch's exporter takes three times as long for open sizes, which `student` and its like are written for.
ONE_SIZE = ["--shape", "1x3x32x32"]


@pytest.fixture(scope="module")
def student(folder: Path) -> Path:
    """Converted in a process of its own, which finds the code by itself."""
    command = [sys.executable, "-m", "csa2glmha", "convert", "my weights.pth", *OWN, "--rank", "2", *DATA]
    done = subprocess.run(
        [*command, *SHORT, "-o", "out"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out" / "student.safetensors"


def test_inspect_reads_weights_and_tries_what_the_network_takes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("inspect", "my weights.pth", *OWN, "--rank", "2", "--json", capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    assert found["weights"] == "state_dict.generator"
    assert found["hyperparameters"] == {"network": "my archs.py:build", "size multiple": 4}
    assert [layer["name"] for layer in found["layers"]] == ["top.attn", "bottom.attn"]
    assert found["estimate"]["macs"] < found["macs"]
    own = sum(layer["macs"] for layer in found["layers"])
    assert found["attention_share"] == pytest.approx(own / found["macs"])
    assert found["forms"] == {"depthwise projections": 2} and found["refused"] == []


def test_inspect_says_what_is_refused_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["-", *OWN, "--network-arg", "largest=2", "--rank", "2"]
    code, out, err = run("inspect", *own, capsys=capsys)
    assert code == 0, err
    assert "of the MACs, 1 layers (1 with depthwise projections)" in out
    assert "refused: bottom.attn: top-k between the two products" in out
    assert "also sees all pixels, so that tiles differ: norm over all pixels in bottom.attn" in out


def test_inspect_says_what_lies_beside_an_attention(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["-", "--network", "my archs.py:gated"]
    code, out, err = run("inspect", *own, "--rank", "2", capsys=capsys)
    assert code == 0, err
    beside = "beside: a product with another map between the attention and its output projection"
    assert f"2 layers (1 with depthwise projections; 1 with depthwise projections, {beside})" in out
    found = {}
    for rank in ("2", "full"):
        code, out, err = run("inspect", *own, "--rank", rank, "--json", capsys=capsys)
        found[rank] = json.loads(out)["layers"][1]
    assert found["2"]["macs_estimate"] < found["2"]["macs"]
    assert found["2"]["route"].endswith("the rest as it was")
    assert found["full"]["macs_estimate"] == found["full"]["macs"]
    assert found["full"]["route"] == "as it is: it would be no cheaper"


def test_a_network_without_attention_is_not_converted(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(
        "convert", "-", "--network", "my archs.py:Filter", *DATA, *SHORT, "-o", "no", capsys=capsys, code=2
    )
    assert "Filter has no attention across channels, so there is nothing to convert" in line
    code, out, err = run("inspect", "-", "--network", "my archs.py:Filter", capsys=capsys)
    assert code == 0, err
    assert "note: my archs.Filter has no attention across channels" in out


@pytest.mark.parametrize("command", ["convert", "run"])
def test_what_goes_beside_the_image_is_asked_for(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["-", "--network", "my archs.py:Guided", "--example", "1x3x32x64", "--example", "1x1x16x32"]
    given = ["photos"] if command == "run" else [*DATA, "--rank", "2"]
    line = complaint(command, *own, *given, "-o", "no", capsys=capsys, code=2)
    assert "my archs.Guided takes guide beside the image: give --input guide=FOLDER" in line


def test_weights_without_code(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint("inspect", "my weights.pth", capsys=capsys, code=1)
    assert "contains 2 groups that look like channel attention (first: top.attn)" in line.replace(
        "generator.", ""
    )
    assert "give the network with --network" in line


def test_global_operators_are_told_where_there_are_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    own = [*OWN, "--network-arg", "largest=2", "--tile", "28", "--overlap", "8"]
    code, _, err = run("run", "-", "photos", "-o", "in tiles", *own, capsys=capsys)
    assert code == 0, err
    assert "norm over all pixels in bottom.attn and 1 more: of each tile, not of the image" in err


def test_tiles_of_a_network_without_attention(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "-", "photos", "-o", "filtered", "--network", "my archs.py:Filter", "--tile", "28"]
    line = complaint(*command, "--tile-mode", "global", capsys=capsys, code=2)
    assert "this network has no attention to share" in line
    assert run(*command, capsys=capsys)[0] == 0
    assert read_image(Path("filtered/photo 0.png"), 3).shape == (3, 66, 70)


@pytest.mark.parametrize(
    "name, arguments, told",
    [
        ("build", ["scale=2"], {"scale": 2, "size multiple": 4, "output scale": "2"}),
        ("build", ["last=tuple"], {"last": "tuple", "size multiple": 4}),
        ("Guided", [], {"size multiple": 4}),
        ("OneSize", [], {}),
    ],
)
def test_inspect_of_a_network_that_brings_its_weights(
    name: str, arguments: list[str], told: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {"Guided": ["1x3x32x64", "1x1x16x32"], "OneSize": ["1x3x32x48"]}.get(name, [])
    options = [f"--network-arg={each}" for each in arguments] + [f"--example={each}" for each in shapes]
    code, out, err = run(
        "inspect", "-", "--network", f"my archs.py:{name}", *options, "--json", capsys=capsys
    )
    assert code == 0, err
    assert json.loads(out)["hyperparameters"] == {"network": f"my archs.py:{name}", **told}


def test_a_student_is_used_with_its_code(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"model.onnx", "report.html", "comparison.png"} <= {each.name for each in student.parent.iterdir()}
    code, _, err = run("run", student, "photos", "-o", "restored", *OWN, capsys=capsys)
    assert code == 0, err
    code, _, err = run("run", student.parent / "model.onnx", "photos", "-o", "by onnx", capsys=capsys)
    assert code == 0, err
    for photo in Path("photos").iterdir():
        one, other = (read_image(Path(each, photo.name), 3) for each in ("restored", "by onnx"))
        assert one.shape == (3, 66, 70)  # no multiples of four
        assert float((one - other).abs().max()) <= 1 / 255 + 1e-6
    line = complaint("run", student, "photos", "-o", "without", capsys=capsys, code=1)
    assert "name the network with --network, which was my archs.py:build then" in line


def test_evaluate_and_distill(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher", "my weights.pth", *OWN, *DATA]
    code, _, err = run("distill", student, *teacher, *SHORT[:6], "-o", "more.safetensors", capsys=capsys)
    assert code == 0, err
    code, out, err = run("evaluate", "more.safetensors", *teacher, "--json", capsys=capsys)
    assert code == 0, err
    assert json.loads(out)["teacher"]["mean"]["psnr"] > 20


def test_export_and_bench(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("export", student, *OWN, *ONE_SIZE, "-o", "again.onnx", capsys=capsys)
    assert code == 0, err
    assert out.count("largest difference") == 1
    code, out, err = run(
        "bench",
        "my weights.pth",
        student,
        "again.onnx",
        *OWN,
        "--size",
        "32",
        "--seconds",
        "0",
        capsys=capsys,
    )
    assert code == 0, err
    assert "again.onnx" in out


def test_export_in_half_precision(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though no rewrites are known of such a network."""
    given = ["export", student, *OWN, "--precision", "fp16", "--io", "fp16", "-o", "half.onnx"]
    code, out, err = run(*given, *ONE_SIZE, capsys=capsys)
    assert code == 0, err
    assert "without rewrites" in out and out.count("largest difference") == 1
    graph = onnx.load("half.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    halves = [each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) > 5


def test_export_in_eight_bits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(builders.build(seed=3, dim=16).state_dict(), "wide.pth")
    given = ["export", "wide.pth", *OWN, "--network-arg", "dim=16", "--precision", "int8", *DATA]
    line = complaint(*given, *ONE_SIZE, "-o", "bytes.onnx", code=2, capsys=capsys)
    assert "--shape 1x3x32x32: int8 and --data need a file that takes any size; leave it out" in line
    assert not Path("bytes.onnx").exists()
    code, out, err = run(*given, "--calibration-crops", "4", "-o", "bytes.onnx", capsys=capsys)
    assert code == 0, err
    types = {each.data_type for each in onnx.load("bytes.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in types and "convolutions in int8" in out + err
    loss = re.search(r"([\d.]+) dB to", out)
    assert loss is not None and float(loss[1]) > 30


def test_python_loads_it_by_name_and_into_a_module(student: Path, folder: Path) -> None:
    image = torch.rand(1, 3, 32, 40)
    named = csa2glmha.load(student, network=f"{folder / 'my archs.py'}:build")
    assert isinstance(named, RestorationModel)
    given = csa2glmha.load(student, network=builders.build())
    with torch.no_grad():
        assert torch.equal(named(image), given(image))


def test_a_network_that_enlarges(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Super-resolution by 2: reduced images to learn from, pairs of different size to evaluate on, tiles."""
    own = [*OWN, "--network-arg", "scale=2"]
    line = complaint(
        "convert", "enlarging.pth", *own, "--rank", "2", *DATA, *SHORT, "-o", "no", capsys=capsys, code=2
    )
    assert "--degrade noise:25: the network makes images 2 times as large as their inputs; add down:2" in line
    data = ["--data", "photos", "--degrade", "down:2"]
    code, _, err = run(
        "convert", "enlarging.pth", *own, "--rank", "2", *data, *SHORT, "-o", "sr", capsys=capsys
    )
    assert code == 0, err
    (folder / "small").mkdir()
    for photo in Path("photos").iterdir():
        image = read_image(photo, 3)
        write_image(Path("small", photo.name), nn.functional.avg_pool2d(image, 2))
    for model, more in (("sr/student.safetensors", own), ("sr/model.onnx", [])):
        pairs = ["--data", "small", "--targets", "photos"]
        code, out, err = run("evaluate", model, *pairs, *more, "--json", capsys=capsys)
        assert code == 0, err
        assert json.loads(out)["images"] == 3
    for name, more in (("whole", []), ("tiles", ["--tile", "28", "--overlap", "8"])):
        code, _, err = run("run", "sr/student.safetensors", "small", "-o", name, *own, *more, capsys=capsys)
        assert code == 0, err
    for photo in Path("photos").iterdir():
        one, other = (read_image(Path(each, photo.name), 3) for each in ("whole", "tiles"))
        assert one.shape == (3, 66, 70)
        assert float((one - other).abs().max()) < 0.02


def test_changed_code_is_told(student: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = folder / "elsewhere" / "my archs.py"
    changed.parent.mkdir(exist_ok=True)
    changed.write_text(builders.FILE.read_text() + "\n# another line\n")
    code, _, err = run(
        "run", student, "photos", "-o", "by changed", "--network", f"{changed}:build", capsys=capsys
    )
    assert code == 0, err
    assert "since this student was made, the code has changed: my archs.py was SHA-256" in err


@pytest.mark.parametrize(
    "name, code, said",
    [
        ("failing_builder", 1, r"KeyError: 'no such variant' (my archs.py, line "),
        ("ending_builder", 1, "the code ends the program (SystemExit: usage: train.py [--opt FILE])"),
        (
            "Failing",
            1,
            "on an input of 1x3x128x192: ZeroDivisionError: there is no answer (my archs.py, line ",
        ),
        ("Features", 1, "neither images nor logits of classes"),
        (
            "Guided",
            1,
            "it takes image and guide: give the shape of each, such as --example 1x3x96x64 --example",
        ),
        ("no_network", 2, "returns a str, no nn.Module"),
        ("nothing", 2, "there is no 'nothing' in it; it has Attention, Block, Denoiser"),
        ("FILE", 2, "FILE is a PosixPath; name a class or a function that returns an nn.Module"),
        ("build --network-arg noise=0.1", 1, "changes from call to call"),
        ("build --network-arg width=3", 1, "TypeError: "),
        ("build --network-arg last=dict --output-index 2", 1, "the network makes 2 outputs"),
    ],
)
def test_what_is_wrong_with_the_code_is_told(
    name: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    builder, *options = name.split()
    line = complaint(
        "inspect", "-", "--network", f"my archs.py:{builder}", *options, capsys=capsys, code=code
    )
    assert said in line


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["--network", "no_such_package.archs:build"], 1, "there is no module 'no_such_package'"),
        (["--network", "nothing.py:build"], 2, "there is no file nothing.py"),
        (["--network", "archs.py"], 2, "give package.module:name or path/to/file.py:name"),
        (["--network", "broken.py:build"], 1, "SyntaxError: "),
        (
            ["--network", "missing.py:build"],
            1,
            "ModuleNotFoundError: No module named 'einsums' (missing.py, l",
        ),
        ([*OWN, "--network-arg", "dim"], 2, "--network-arg dim: give name=value"),
        ([*OWN, "--example", "3"], 2, "--example 3: give a shape such as 1x3x96x64"),
        (["--network-arg", "dim=3"], 2, "--network-arg: is about --network"),
        ([], 2, "-: stands for a network that brings its weights; name it with --network"),
    ],
)
def test_what_is_wrong_with_the_options_is_told(
    arguments: list[str], code: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("def build(:\n")
    (folder / "missing.py").write_text("import einsums\n")
    assert said in complaint("inspect", "-", *arguments, capsys=capsys, code=code)


def test_weights_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint("inspect", "enlarging.pth", *OWN, capsys=capsys, code=1)
    assert "have an unexpected shape, first last." in line
    assert "if it was trained with other arguments than the defaults, give them with --network-arg" in line
    line = complaint("inspect", "enlarging.pth", *OWN, "--network-arg", "scale=3", capsys=capsys, code=1)
    assert "the network was built with --network-arg scale=3: give what it was trained with" in line
    state = builders.build().state_dict()
    state["other.weight"] = state.pop("first.weight")
    torch.save(state, "renamed.pth")
    line = complaint("inspect", "renamed.pth", *OWN, capsys=capsys, code=1)
    assert "1 missing: first.weight; 1 unexpected: other.weight" in line


def test_python_own_modules_are_not_replaced_by_files_of_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is searched, but behind Python's library; and only while the network is built."""
    place = folder / "with names"
    place.mkdir(exist_ok=True)
    (place / "colorsys.py").write_text("raise RuntimeError('this is not of Python')\n")
    (place / "helpers.py").write_text("WIDTH = 8\n")
    (place / "archs.py").write_text(
        builders.FILE.read_text() + "\nimport colorsys\nfrom helpers import WIDTH\n"
    )
    before = list(sys.path)
    code, _, err = run("inspect", "-", "--network", f"{place / 'archs.py'}:build", capsys=capsys)
    assert code == 0, err
    assert sys.path == before


def test_a_known_family_needs_no_code(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "known.py").write_text("""from csa2glmha import load

def build(file):
    return load(file)
""")
    own = ["--network", "known.py:build", "--network-arg", f"file={checkpoint}"]
    code, out, err = run("inspect", checkpoint, *own, capsys=capsys)
    assert code == 0, err
    assert "holds a restormer, which needs no --network" in out
    code, out, err = run("inspect", "my weights.pth", *OWN, capsys=capsys)
    assert code == 0 and "needs no --network" not in out + err
