"""Opening any model file so that it can be run: a checkpoint, a student or an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from csa2glmha.checkpoint.student import load_model
from csa2glmha.config.network import NetworkOptions
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import UsageError
from csa2glmha.core.progress import say
from csa2glmha.data.inputs.kind import IMAGES, InputKind, NetworkFacts, facts_of
from csa2glmha.data.open import input_kind
from csa2glmha.export.runtime import CPU_PROVIDER, RUNTIMES, OnnxModel, provider_name
from csa2glmha.inference.fitted import FittedOnnx
from csa2glmha.metrics.evaluate import Restore, restore
from csa2glmha.networks import RestorationModel


@dataclass(frozen=True)
class OpenModel:
    """A model file that can be run.

    Attributes:
        run: the model.
        architecture: its name; "" if an ONNX file does not say.
        channels, bands: of its (first) input and its output.
        size: height and width, if it holds for one size only.
        network: the PyTorch network; None for an ONNX file.
        metadata: what the file says of itself.
        foreign: an ONNX file that another program made.
        inputs: the kind of its inputs, by name.
        count: of its inputs.
        scale: height and width of its output over those of its input.
    """

    run: Restore
    architecture: str
    channels: int
    bands: int
    size: tuple[int, int] | None
    network: RestorationModel | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    foreign: bool = False
    inputs: str = IMAGES
    count: int = 1
    scale: Fraction = Fraction(1)

    @property
    def facts(self) -> NetworkFacts:
        """What its kind of inputs must know; the inputs of a network in PyTorch are counted there."""
        if self.network is not None:
            return facts_of(self.network, self.metadata)
        name = self.architecture or "this model"
        return NetworkFacts(
            name,
            self.inputs,
            self.channels,
            self.bands,
            self.count,
            size=self.size,
            metadata=self.metadata,
            scale=self.scale,
        )

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
        return OpenModel(
            lambda inputs: fitted(inputs)[0],
            runtime.metadata.get("architecture", ""),
            runtime.in_channels,
            runtime.out_channels,
            runtime.fixed_size,
            metadata=runtime.metadata,
            foreign=runtime.foreign,
            inputs=runtime.facts.inputs,
            count=runtime.facts.count,
            scale=runtime.facts.scale,
        )
    if device in RUNTIMES:
        raise UsageError(f"--runtime {device}: runs ONNX files; {path} is none, export it first")
    loaded = load_model(path, weights, network)
    for note in loaded.checkpoint.notes:
        say(note)
    model = loaded.model.to(resolve_device(device))
    return OpenModel(
        restore(model),
        model.architecture,
        model.in_channels,
        model.out_channels,
        model.fixed_size,
        model,
        loaded.checkpoint.metadata,
        inputs=model.inputs,
        count=len(model.input_names),
    )
