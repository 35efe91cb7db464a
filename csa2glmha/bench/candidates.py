"""Opening any model file so that it can be timed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from csa2glmha.bench.noise import noise
from csa2glmha.checkpoint import is_student
from csa2glmha.checkpoint.foreign import as_of_student
from csa2glmha.checkpoint.read import header_of
from csa2glmha.checkpoint.student import load_model
from csa2glmha.config.network import NetworkOptions
from csa2glmha.core.environment import thread_count
from csa2glmha.core.errors import UsageError
from csa2glmha.core.progress import say
from csa2glmha.core.text import first_line
from csa2glmha.data.open import input_kind
from csa2glmha.export.openvino import COMPILED_AT
from csa2glmha.export.runtime import CPU_PROVIDER, ONNX_RUNTIME, RUNTIMES, OnnxModel, provider_name

DEFAULT_SIZE = 256
#: Execution providers of ONNX Runtime that are also devices of PyTorch.
_PYTORCH_PROVIDERS = ("cpu", "cuda")
#: What runs checkpoints and students, and how people know it.
_PYTORCH = {"torch": "PyTorch", "torch-compile": "PyTorch, compiled"}
_COMPILED = "torch-compile"


@dataclass(frozen=True)
class Settings:
    """How to run models.

    Attributes:
        size: height and width; None: that of the models that take one size only, otherwise 256.
        threads: within an operator; None: one for each core that may be used.
        provider: of ONNX Runtime in lower case, such as "cpu" or "cuda"; PyTorch knows these two.
        weights: which to take of checkpoints that hold several; None: averaged ones.
        network: the user's own that files are of; not used for ONNX files.
        runtimes: that each ONNX file is run in, of :data:`~csa2glmha.export.runtime.RUNTIMES`, and "torch"
            and "torch-compile" for other files; none: ONNX Runtime, and PyTorch as it stands.
    """

    size: tuple[int, int] | None = None
    threads: int | None = None
    provider: str = "cpu"
    weights: str | None = None
    network: NetworkOptions | None = None
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TimedModel:
    """A model that can be timed.

    Attributes:
        path: its file.
        runtime: such as "ONNX Runtime" or "PyTorch".
        shapes: of its inputs.
        run: runs it once on fixed noise, to the end.
    """

    path: Path
    runtime: str
    shapes: tuple[tuple[int, ...], ...]
    run: Callable[[], None]
    runs_in: str = ONNX_RUNTIME


def as_of_students(paths: Sequence[Path], settings: Settings) -> Settings:
    """The settings in which a student's file says of --network what they leave open, for its teacher."""
    options = settings.network
    for path in paths:
        options = None if options is None else as_of_student(header_of(path), options)
    return replace(settings, network=options)


def open_candidates(paths: Sequence[Path], settings: Settings) -> list[TimedModel]:
    """Open files to compare.

    Raises:
        UsageError: a provider that is not there, or that PyTorch does not know; a runtime likewise, or none
            that runs a file.
        CheckpointError: a file cannot be run.
    """
    opened = [_open(path, settings, runtime) for path in paths for runtime in _runtimes_of(path, settings)]
    size = common_size([fixed for fixed, _ in opened], settings.size)
    return [make(*(fixed or size)) for fixed, make in opened]


def with_compiled(settings: Settings) -> Settings:
    """The settings in which PyTorch, where it is asked for by name, is compiled PyTorch too.

    Only where there is a compiler; without a name it is PyTorch as it stands, since compiling takes minutes.
    """
    asked = settings.runtimes
    if "torch" not in asked or _COMPILED in asked or not _finds_compiler():
        return settings
    return replace(settings, runtimes=(*asked, _COMPILED))


def _compile_error(candidate: TimedModel) -> Exception | None:
    """What the first run of a candidate that PyTorch is to compile raises."""
    try:
        if candidate.runs_in == _COMPILED:
            candidate.run()
    except Exception as error:  # whatever the compiler and its many stages raise
        return error
    return None


def check_compiled(candidates: Sequence[TimedModel]) -> None:
    """Run what is to be compiled once.

    Raises:
        UsageError: PyTorch does not compile it.
    """
    for candidate in candidates:
        error = _compile_error(candidate)
        if error is not None:
            raise UsageError(
                f"--runtime {_COMPILED}: PyTorch does not compile {candidate.path}: {first_line(error)}"
            ) from error


def warm(candidates: Sequence[TimedModel]) -> None:
    """Run what is compiled for a size when that comes again, so that no timed run has to wait for it."""
    for candidate in candidates:
        if candidate.runs_in in RUNTIMES and candidate.runs_in != ONNX_RUNTIME:
            for _ in range(COMPILED_AT):
                candidate.run()


def without_failed(candidates: Sequence[TimedModel]) -> list[TimedModel]:
    """The candidates but those that PyTorch cannot compile, each run once and named."""
    kept = []
    for candidate in candidates:
        error = _compile_error(candidate)
        if error is not None:
            say(f"{candidate.path}: PyTorch does not compile it, left out: {first_line(error)}")
            continue
        kept.append(candidate)
    return kept


def common_size(fixed: Sequence[tuple[int, int] | None], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width for models of any size: as wanted, or those of the first that has no choice."""
    if wanted is not None:
        return wanted
    return next((size for size in fixed if size is not None), (DEFAULT_SIZE, DEFAULT_SIZE))


_Opened = tuple[tuple[int, int] | None, Callable[[int, int], TimedModel]]


def _runtimes_of(path: Path, settings: Settings) -> list[str]:
    """What a file is to be run in.

    Raises:
        UsageError: nothing that was asked for runs it, or it is not known.
    """
    known = [*RUNTIMES, *_PYTORCH]
    for name in settings.runtimes:
        if name not in known:
            raise UsageError(f"--runtime {name}: unknown; give {', '.join(known)}")
    fit: Container[str] = RUNTIMES if path.suffix.lower() == ".onnx" else _PYTORCH
    asked = settings.runtimes or (ONNX_RUNTIME, "torch")
    found = [name for name in asked if name in fit]
    if not found:
        raise UsageError(f"--runtime {','.join(asked)}: none of them runs {path}")
    return found


def _open(path: Path, settings: Settings, runtime: str) -> _Opened:
    """The one size that the file takes, if it is so, and what makes a candidate for a height and width."""
    if runtime in RUNTIMES:
        return _open_onnx(path, settings, runtime)
    return _open_pytorch(path, settings, runtime)


def _open_onnx(path: Path, settings: Settings, runtime: str) -> _Opened:
    provider = provider_name(settings.provider, "--provider")
    if runtime != ONNX_RUNTIME and provider != CPU_PROVIDER:
        raise UsageError(
            f"--provider {settings.provider}: is ONNX Runtime's, {RUNTIMES[runtime]} runs on the CPU here; "
            "leave out one of the two"
        )
    model = OnnxModel(path, settings.threads, provider, runtime=runtime)

    def make(height: int, width: int) -> TimedModel:
        shapes = input_kind(model.facts).shapes(model.facts, height, width)
        inputs = noise(shapes)

        def run() -> None:
            model(*inputs)

        return TimedModel(path, RUNTIMES[runtime], shapes, run, runtime)

    return model.fixed_size, make


def _finds_compiler() -> bool:
    return any(shutil.which(name) is not None for name in (os.environ.get("CXX", "g++"), "clang++"))


def _compiled(model: nn.Module) -> Callable[..., Tensor]:
    """The model by torch.compile.

    Raises:
        UsageError: there is no compiler for its code.
    """
    if not _finds_compiler():
        raise UsageError("--runtime torch-compile: no C++ compiler is found; install g++, or leave it out")
    compiled: Callable[..., Tensor] = torch.compile(model)
    return compiled


def _open_pytorch(path: Path, settings: Settings, runtime: str) -> _Opened:
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
    called = _compiled(model) if runtime == "torch-compile" else model

    def make(height: int, width: int) -> TimedModel:
        shapes = model.input_shapes(height, width)
        inputs = noise(shapes)

        @torch.inference_mode()
        def run() -> None:
            # As for ONNX Runtime, the inputs come from the host and the output goes back there.
            called(*(each.to(device) for each in inputs)).cpu()

        return TimedModel(path, _PYTORCH[runtime], shapes, run, runtime)

    return model.fixed_size, make
