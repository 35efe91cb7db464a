"""How an ONNX file is asked for, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from csa2glmha.core.strict_json import dumps
from csa2glmha.export.further import TAKES, takes
from csa2glmha.export.graph import Spelling
from csa2glmha.export.targets import DEFAULT_TARGET, Target
from csa2glmha.export.tensorrt import PROFILE, profile_of
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import ForeignNetwork

#: The newest that ONNX Runtime implements since 1.18; newer files give warnings or errors in 1.20, which is
#: two years old.
DEFAULT_OPSET = DEFAULT_TARGET.opset


@dataclass(frozen=True)
class Form:
    """How a network's deployment form is written.

    Attributes:
        opset: version of the ONNX operators.
        precision: "fp32" or "fp16".
        half_io: inputs and output are float16.
        spelling: what suits the runtime.
    """

    opset: int = DEFAULT_OPSET
    precision: str = "fp32"
    half_io: bool = False
    spelling: Spelling = DEFAULT_TARGET.spelling


@dataclass(frozen=True)
class Asked:
    """How a file is asked for; see :func:`~csa2glmha.export.onnx.export_onnx`."""

    form: Form
    metadata: Mapping[str, str]
    opset: int | None
    plain: bool
    target: Target
    shape: Sequence[int] | None
    tolerance: float
    example: Sequence[Tensor] | None

    def describe(self, network: RestorationModel) -> dict[str, str]:
        """The file's metadata, but for whether the network was rewritten."""
        target = self.target
        described = {**self.metadata, "precision": self.form.precision, "runtime": target.title}
        if network.scale != 1:
            described["scale"] = str(network.scale)
        if isinstance(network, ForeignNetwork) and len(network.input_names) > 1:
            described[TAKES] = dumps(takes(network))
        if target.name == "tensorrt" and self.shape is None:
            described[PROFILE] = profile_of(network)
        return described
