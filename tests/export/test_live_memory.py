"""What a runtime must hold at once to run a file: a student's is no more than the teacher's."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from csa2glmha.config.ranks import Ranks
from csa2glmha.data.batches import Inputs
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, replace_layers
from tests.subjects import SUBJECTS


def live_peak(path: Path, inputs: Inputs) -> int:
    """Bytes of the results that are alive together, at most, when nodes run in the file's order.

    A result lives from the node that makes it to the last one that reads it.
    """
    proto = onnx.load(path)
    made = [name for node in proto.graph.node for name in node.output if name]
    finished = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in finished)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {node.name: x.numpy() for node, x in zip(session.get_inputs(), inputs, strict=True)}
    sizes = {
        name: np.asarray(value).nbytes for name, value in zip(made, session.run(made, feeds), strict=True)
    }
    last = {name: index for index, node in enumerate(proto.graph.node) for name in node.input}
    alive: dict[str, int] = {}
    peak = 0
    for index, node in enumerate(proto.graph.node):
        alive |= {name: sizes[name] for name in node.output if name}
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > index or name in finished}
    return peak


def converted(model: RestorationModel, ranks: Ranks) -> RestorationModel:
    student = copy.deepcopy(model)
    replace_layers(student, plan_layers(attention_layers(student), ranks))
    return student.eval()


@pytest.mark.parametrize("family", SUBJECTS)
def test_a_student_holds_no_more_than_its_teacher(family: str, tmp_path: Path) -> None:
    subject = SUBJECTS[family]
    model = subject.build()
    inputs = subject.inputs(model, 32, 32, batch=1, seed=0)
    peaks = []
    for name, ranks in (("teacher", Ranks()), ("student", Ranks(k=subject.rank, v=subject.rank))):
        export_onnx(converted(model, ranks), tmp_path / f"{name}.onnx")
        peaks.append(live_peak(tmp_path / f"{name}.onnx", inputs))
    teacher, student = peaks
    assert 0 < student <= 1.001 * teacher  # maps are counted; the guide's few numbers do not matter


def test_no_second_copy_of_all_maps(tmp_path: Path) -> None:
    """ONNX Runtime's memory pattern is a block for all maps of a size, beside what the first run took."""
    path = tmp_path / "model.onnx"
    model = next(iter(SUBJECTS.values())).build()
    export_onnx(converted(model, Ranks()), path)
    assert not OnnxModel(path)._session.get_session_options().enable_mem_pattern
