"""Opening any model file so that it can be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from csa2glmha.bench.noise import noise
from csa2glmha.checkpoint import is_student
from csa2glmha.checkpoint.foreign import as_of_student
from csa2glmha.checkpoint.read import header_of
from csa2glmha.checkpoint.student import load_model
from csa2glmha.config.network import NetworkOptions
from csa2glmha.core.environment import thread_count
from csa2glmha.core.errors import UsageError
from csa2glmha.core.progress import say
from csa2glmha.data.open import input_kind
from csa2glmha.export.runtime import OnnxModel, provider_name

DEFAULT_SIZE = 256
#: Execution providers of ONNX Runtime that are also devices of PyTorch.
_PYTORCH_PROVIDERS = ("cpu", "cuda")


@dataclass(frozen=True)
class Settings:
    """How to run models.

    Attributes:
        size: height and width; None: that of the models that take one size only, otherwise 256.
        threads: within an operator; None: one for each core that may be used.
        provider: of ONNX Runtime in lower case, such as "cpu" or "cuda"; PyTorch knows these two.
        weights: which to take of checkpoints that hold several; None: averaged ones.
        network: the user's own that files are of; not used for ONNX files.
    """

    size: tuple[int, int] | None = None
    threads: int | None = None
    provider: str = "cpu"
    weights: str | None = None
    network: NetworkOptions | None = None


@dataclass(frozen=True)
class Candidate:
    """A model that can be timed.

    Attributes:
        path: its file.
        runtime: "ONNX Runtime" or "PyTorch".
        shapes: of its inputs.
        run: runs it once on fixed noise, to the end.
    """

    path: Path
    runtime: str
    shapes: tuple[tuple[int, ...], ...]
    run: Callable[[], None]


def as_of_students(paths: Sequence[Path], settings: Settings) -> Settings:
    """The settings in which a student's file says of --network what they leave open, for its teacher."""
    options = settings.network
    for path in paths:
        options = None if options is None else as_of_student(header_of(path), options)
    return replace(settings, network=options)


def open_candidates(paths: Sequence[Path], settings: Settings) -> list[Candidate]:
    """Open files to compare.

    Raises:
        UsageError: a provider that is not there, or that PyTorch does not know.
        CheckpointError: a file cannot be run.
    """
    opened = [_open(path, settings) for path in paths]
    size = common_size([fixed for fixed, _ in opened], settings.size)
    return [make(*(fixed or size)) for fixed, make in opened]


def common_size(fixed: Sequence[tuple[int, int] | None], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width for models of any size: as wanted, or those of the first that has no choice."""
    if wanted is not None:
        return wanted
    return next((size for size in fixed if size is not None), (DEFAULT_SIZE, DEFAULT_SIZE))


_Opened = tuple[tuple[int, int] | None, Callable[[int, int], Candidate]]


def _open(path: Path, settings: Settings) -> _Opened:
    """The one size that the file takes, if it is so, and what makes a candidate for a height and width."""
    return _open_onnx(path, settings) if path.suffix.lower() == ".onnx" else _open_pytorch(path, settings)


def _open_onnx(path: Path, settings: Settings) -> _Opened:
    model = OnnxModel(path, settings.threads, provider_name(settings.provider, "--provider"))

    def make(height: int, width: int) -> Candidate:
        shapes = input_kind(model.facts).shapes(model.facts, height, width)
        inputs = noise(shapes)

        def run() -> None:
            model(*inputs)

        return Candidate(path, "ONNX Runtime", shapes, run)

    return model.fixed_size, make


def _open_pytorch(path: Path, settings: Settings) -> _Opened:
    if settings.provider not in _PYTORCH_PROVIDERS:
        raise UsageError(
            f"--provider {settings.provider}: {path} runs in PyTorch, which takes "
            f"{' or '.join(_PYTORCH_PROVIDERS)}; export it first"
        )
    if settings.provider == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"--provider cuda: {path} runs in PyTorch, to which no CUDA GPU is visible here; give "
            "--provider cpu, or export it first"
        )
    device = torch.device(settings.provider)
    loaded = load_model(path, None if is_student(path) else settings.weights, settings.network)
    for note in loaded.checkpoint.notes:
        say(note)
    model = loaded.model.to(device)
    torch.set_num_threads(settings.threads or thread_count())

    def make(height: int, width: int) -> Candidate:
        shapes = model.input_shapes(height, width)
        inputs = noise(shapes)

        @torch.inference_mode()
        def run() -> None:
            # As for ONNX Runtime, the inputs come from the host and the output goes back there.
            model(*(each.to(device) for each in inputs)).cpu()

        return Candidate(path, "PyTorch", shapes, run)

    return model.fixed_size, make
