"""The runtimes that files are made for: how the network is spelled for each, and what is wrong with it.

Spellings were found by measuring. Faults are worked around for all versions of a runtime, so nothing here
asks for the one that is installed. What each version reads is in :mod:`csa2glmha.export.needs`, and
TensorRT's operators are in :mod:`csa2glmha.export.tensorrt`.
"""

from __future__ import annotations

from dataclasses import dataclass

from csa2glmha.core.errors import UsageError
from csa2glmha.export.graph import Spelling


@dataclass(frozen=True)
class Fault:
    """What is wrong with some versions of a runtime.

    Attributes:
        versions: in which it was seen.
        what: happens.
        remedy: what this package, or the user, does about it.
    """

    versions: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Target:
    """A runtime that a file can be made for.

    Attributes:
        name: as the command line has it.
        title: as people know it.
        opset: version of the ONNX operators, unless another one is asked for.
        spelling: of the network.
        package: the Python package that runs them; "" where it is not run here.
        how: to try the file where no package runs it.
        faults: what is known to be wrong.
    """

    name: str
    title: str
    opset: int
    spelling: Spelling
    package: str = ""
    how: str = ""
    faults: tuple[Fault, ...] = ()


_OPENVINO_FAULTS = (
    Fault("2026.4", "Abs of whole numbers at a fixed size is left out", "Max(a, -a) in its place"),
    Fault(
        "2026.4",
        "out of registers in sums between logits and softmax, nothing compiles",
        "corrections are summed first",
    ),
    Fault(
        "2024.6 and 2025.2",
        "bf16 with a constant of three axes behind the softmax does not compile",
        "constants have four",
    ),
    Fault(
        "2024.6 to 2026.4",
        "copies around all that wants a channel's pixels side by side, float32 slower than the plain network",
        "the network is written channels-last",
    ),
    Fault(
        "2024.6 to 2026.4",
        "open sizes take 1.4 times as long as fixed ones",
        "export --shape, or reshape the model when it is loaded",
    ),
)
_TENSORRT_FAULTS = (
    Fault("8.6", "start and end of Shape are not read", "Slice of all sizes"),
    Fault("8.6", "ReduceProd takes no whole numbers", "Mul of two sizes"),
    Fault("8.6", "operators end with opset 17", "Gelu is written with Erf"),
    Fault(
        "8.6 to 10",
        "--fp16 may take sums over pixels in half precision; 11 has it no more",
        "export --precision fp16 and trtexec --stronglyTyped: the file's own types",
    ),
)

TARGETS = {
    target.name: target
    for target in (
        Target("onnxruntime", "ONNX Runtime", 21, Spelling(), "onnxruntime"),
        Target(
            "openvino",
            "OpenVINO",
            17,
            Spelling(channels_last=True, blocks=False),
            "openvino",
            faults=_OPENVINO_FAULTS,
        ),
        Target(
            "tensorrt",
            "TensorRT",
            17,
            Spelling(blocks=False, parts_of_shapes=False),
            how="trtexec --onnx=FILE",
            faults=_TENSORRT_FAULTS,
        ),
        Target(
            "web",
            "ONNX Runtime web",
            20,
            Spelling(blocks=False),
            how="npm install onnxruntime-web",
        ),
    )
}
DEFAULT_TARGET = TARGETS["onnxruntime"]


def target_of(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"--for {name}: unknown; give {', '.join(TARGETS)}")
    return TARGETS[name]
