"""Opening any model file so that it can be run: a checkpoint, a student or an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from csa2glmha.checkpoint.student import load_model
from csa2glmha.config.network import NetworkOptions
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import UsageError
from csa2glmha.core.progress import say
from csa2glmha.data.inputs.kind import InputKind, NetworkFacts, facts_of
from csa2glmha.data.open import input_kind
from csa2glmha.export.runtime import CPU_PROVIDER, ONNX_RUNTIME, RUNTIMES, OnnxModel, provider_name
from csa2glmha.inference.fitted import FittedOnnx
from csa2glmha.metrics.evaluate import Restore, restore
from csa2glmha.networks import RestorationModel


@dataclass(frozen=True)
class OpenModel:
    """A model file that can be run.

    Attributes:
        run: the model.
        facts: what its kind of inputs must know.
        network: the PyTorch network; None for an ONNX file.
        foreign: an ONNX file that another program made.
        runtime: what runs an ONNX file, one of :data:`~csa2glmha.export.runtime.RUNTIMES`.
    """

    run: Restore
    facts: NetworkFacts
    network: RestorationModel | None = None
    foreign: bool = False
    runtime: str = ONNX_RUNTIME

    @property
    def channels(self) -> int:
        """Of its (first) input."""
        return self.facts.channels

    @property
    def bands(self) -> int:
        """Channels of its output, or classes."""
        return self.facts.bands

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, if it holds for one size only."""
        return self.facts.size

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        return self.facts.metadata

    @property
    def kind(self) -> InputKind:
        """The kind of its inputs."""
        return input_kind(self.facts)


def _open_onnx(path: Path, device: str) -> OnnxModel:
    if device in RUNTIMES:
        return OnnxModel(path, runtime=device)
    return OnnxModel(path, provider=CPU_PROVIDER if device == "auto" else provider_name(device, "--device"))


def open_model(
    path: Path, device: str, weights: str | None = None, network: NetworkOptions | None = None
) -> OpenModel:
    """Open a checkpoint, student or ONNX file.

    Args:
        path: the file.
        device: as for :func:`~csa2glmha.core.device.resolve_device`. Of an ONNX file a provider of
            ONNX Runtime, such as "cpu" or "cuda"; "auto" is the CPU, where its memory can be foretold. Or one
            of :data:`~csa2glmha.export.runtime.RUNTIMES`.
        weights: which to take of a checkpoint that holds several; None: averaged ones.
        network: the user's own that the file is of; not used for ONNX files.

    Raises:
        UsageError: a device that is not known or not there, or weights that are not.
        CheckpointError: the file cannot be used.
    """
    if path.suffix.lower() == ".onnx":
        if weights is not None:
            raise UsageError(f"--weights {weights}: {path} is an ONNX file and has one set; leave it out")
        runtime = _open_onnx(path, device)
        fitted = FittedOnnx(runtime)
        where = device if device in RUNTIMES else ONNX_RUNTIME
        return OpenModel(
            lambda inputs: fitted(inputs)[0], runtime.facts, foreign=runtime.foreign, runtime=where
        )
    if device in RUNTIMES:
        raise UsageError(f"--runtime {device}: runs ONNX files; {path} is none, export it first")
    loaded = load_model(path, weights, network)
    for note in loaded.checkpoint.notes:
        say(note)
    model = loaded.model.to(resolve_device(device))
    return OpenModel(restore(model), facts_of(model, loaded.checkpoint.metadata), model)
