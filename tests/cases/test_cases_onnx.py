"""ONNX files that are not ours: padded, cut into tiles of their size, or refused by name."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from csa2glmha.commands.evaluate import evaluate_file, open_model
from csa2glmha.commands.run import run_files
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import CheckpointError, Csa2GlmhaError, DataError
from csa2glmha.data.images import read_image
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.inference.fitted import FittedOnnx
from csa2glmha.inference.plan import TileOptions


def save(
    path: Path, nodes: list[onnx.NodeProto], size: tuple[int | str, int | str], *constants: onnx.TensorProto
) -> Path:
    """An ONNX file from "x" to "y", both (1, 3, height, width)."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, *size]) for name in "xy"]
    if "scaled" in path.name:
        ends[1] = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, "h2", "w2"])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def needs_multiple(path: Path, multiple: int) -> Path:
    """Halves the brightness; by way of blocks of pixels, so that it takes multiples only."""
    half = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "half")
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["small"], blocksize=multiple),
        helper.make_node("DepthToSpace", ["small"], ["large"], blocksize=multiple),
        helper.make_node("Mul", ["large", "half"], ["y"]),
    ]
    return save(path, nodes, ("h", "w"), half)


def halves(path: Path, size: tuple[int | str, int | str]) -> Path:
    half = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "half")
    return save(path, [helper.make_node("Mul", ["x", "half"], ["y"])], size, half)


def picture(path: Path, height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 128, (height, width, 3), dtype=np.uint8) * 2
    cv2.imwrite(str(path), pixels)
    return read_image(path, 3)


@pytest.mark.parametrize("multiple", [2, 8, 64])
def test_the_multiple_that_a_file_needs_is_found(tmp_path: Path, multiple: int) -> None:
    model = open_model(needs_multiple(tmp_path / "m.onnx", multiple), "cpu")
    for height, width in ((64, 128), (51, 61), (5, 3), (67, 64)):
        image = torch.rand(1, 3, height, width)
        assert torch.equal(model.run((image,)), image[0] * 0.5)


@pytest.mark.parametrize("size", [(32, 48), (40, 40), ("h", 40), (40, "w")])
def test_a_file_of_one_size_is_run_in_tiles_of_it(tmp_path: Path, size: tuple[int | str, int | str]) -> None:
    model = open_model(halves(tmp_path / "m.onnx", size), "cpu")
    for height, width in ((32, 48), (100, 131), (5, 7), (1, 1), (200, 9)):
        image = torch.rand(1, 3, height, width)
        assert torch.equal(model.run((image,)), image[0] * 0.5)


@pytest.mark.parametrize("tile", [None, 32, 512])
def test_run_takes_tiles_of_its_own_size_whatever_is_asked_for(
    tmp_path: Path, tile: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = halves(tmp_path / "m.onnx", (40, 40))
    image = picture(tmp_path / "a.png", 51, 61)
    run_files(
        file, [tmp_path / "a.png"], tmp_path / "out", tiles=TileOptions(size=tile), options=make_options()
    )
    assert torch.allclose(read_image(tmp_path / "out" / "a.png", 3), image / 2, atol=1e-6)
    word = f"--tile {tile}: not used, this file takes tiles of 40x40 pixels only"
    assert (word in capsys.readouterr().err) == (tile is not None)


def test_an_output_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    file = save(
        tmp_path / "scaled.onnx", [helper.make_node("Resize", ["x", "", "scales"], ["y"])], ("h", "w"), scales
    )
    with pytest.raises(DataError, match=r"scaled.onnx' makes 20x16 pixels of 10x8"):
        FittedOnnx(OnnxModel(file))((torch.rand(1, 3, 8, 10),))


def test_values_that_are_not_finite_are_refused_where_they_would_be_counted(tmp_path: Path) -> None:
    zero = onnx.numpy_helper.from_array(np.array(0, np.float32), "zero")
    file = save(tmp_path / "nan.onnx", [helper.make_node("Div", ["x", "zero"], ["y"])], ("h", "w"), zero)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        picture(tmp_path / "photos" / name, 32, 32)
    with pytest.raises(Csa2GlmhaError, match="not finite"):
        evaluate_file(file, make_options(data=tmp_path / "photos", degrade="noise:25"), None, None)


def test_a_file_that_fails_at_every_size_says_why_once(tmp_path: Path) -> None:
    shape = onnx.numpy_helper.from_array(np.array([1, 3, 7, 11]), "shape")
    file = save(tmp_path / "m.onnx", [helper.make_node("Reshape", ["x", "shape"], ["y"])], ("h", "w"), shape)
    with pytest.raises(DataError, match=r"fails on input of shape \(1, 3, 20, 20\)"):
        open_model(file, "cpu").run((torch.rand(1, 3, 20, 20),))


def test_a_file_from_the_field(cases: Path, tmp_path: Path) -> None:
    """The image is padded by reflection to multiples of 8, by hand here."""
    image = picture(tmp_path / "odd.png", 51, 61)
    run_files(cases / "foreign.onnx", [tmp_path / "odd.png"], tmp_path / "out", options=make_options())
    session = onnxruntime.InferenceSession(str(cases / "foreign.onnx"))
    padded = torch.nn.functional.pad(image[None], (0, 3, 0, 5), mode="reflect")
    expected = session.run(None, {session.get_inputs()[0].name: padded.numpy()})[0][0, :, :51, :61]
    written = read_image(tmp_path / "out" / "odd.png", 3)
    assert written.shape == (3, 51, 61)
    assert np.abs(written.numpy() - expected.clip(0, 1)).max() < 0.51 / 255 + 1e-5


def test_values_that_are_not_finite_are_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = onnx.numpy_helper.from_array(np.array(0, np.float32), "zero")
    file = save(tmp_path / "nan.onnx", [helper.make_node("Div", ["x", "zero"], ["y"])], ("h", "w"), zero)
    model, shapes = OnnxModel(file), []
    run = OnnxModel.__call__

    def counted(self: OnnxModel, *inputs: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(inputs[0].shape))
        return run(self, *inputs)

    monkeypatch.setattr(OnnxModel, "__call__", counted)
    with pytest.raises(DataError, match="not finite of an input of 61x51"):
        FittedOnnx(model)((torch.rand(1, 3, 51, 61),))
    assert shapes == [(1, 3, 51, 61)]


def ends(path: Path, kind: int, inputs: int = 1, further: bool = False) -> Path:
    """Input to output as it is; without an input a constant; with a mean as a further output."""
    shape = [1, 3, "h", "w"]
    taken = [helper.make_tensor_value_info("x", kind, shape)][:inputs]
    made = [helper.make_tensor_value_info("y", kind, shape)]
    constants = [helper.make_tensor("k", kind, [1, 3, 1, 1], [1, 1, 1])] if not inputs else []
    nodes = [helper.make_node("Identity", ["x" if inputs else "k"], ["y"])]
    if further:
        nodes.append(helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0))
        made.append(helper.make_tensor_value_info("mean", kind, []))
    graph = helper.make_graph(nodes, "g", taken, made, constants)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


@pytest.mark.parametrize(("kind", "further"), [(TensorProto.DOUBLE, False), (TensorProto.FLOAT, True)])
def test_double_precision_and_further_outputs_are_taken(tmp_path: Path, kind: int, further: bool) -> None:
    image = torch.rand(1, 3, 8, 10)
    model = open_model(ends(tmp_path / "m.onnx", kind, further=further), "cpu")
    assert torch.equal(model.run((image,)), image[0])


@pytest.mark.parametrize(
    ("kind", "inputs", "reason"),
    [
        (TensorProto.FLOAT, 0, "has no input"),
        (TensorProto.UINT8, 1, r"'x' is a tensor\(uint8\), not one of floating-point numbers"),
    ],
)
def test_what_is_no_image_model_is_refused_when_it_is_opened(
    tmp_path: Path, kind: int, inputs: int, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        OnnxModel(ends(tmp_path / "m.onnx", kind, inputs))


def endless(path: Path) -> Path:
    """A loop of more turns than anybody waits for."""
    turns = onnx.numpy_helper.from_array(np.array(2**62), "turns")
    on = onnx.numpy_helper.from_array(np.array(True), "on")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v", "w")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "still")]
    index = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [index, flags[0], values[0]],
        [flags[1], values[1]],
    )
    return save(
        path, [helper.make_node("Loop", ["turns", "on", "x"], ["y"], body=body)], ("h", "w"), turns, on
    )


def test_an_interrupt_ends_a_run_that_would_not_end(tmp_path: Path) -> None:
    model = OnnxModel(endless(tmp_path / "endless.onnx"))
    interrupt = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        model(torch.rand(1, 3, 8, 8))
    interrupt.join()
