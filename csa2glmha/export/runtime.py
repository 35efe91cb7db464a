"""Running ONNX files: as a drop-in for the PyTorch network, and against the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from csa2glmha.errors import CheckpointError, DataError, UsageError

# ONNX Runtime also logs what it raises; the exception is enough.
_LOG_FATAL_ONLY = 4

CPU_PROVIDER = "CPUExecutionProvider"


class OnnxModel:
    """An ONNX file called like the network it came from, with inputs and output in float32 on the host.

    Args:
        path: the file.
        threads: of ONNX Runtime within an operator; None leaves the choice to it.
        provider: ONNX Runtime's name of what runs the operators.

    Raises:
        UsageError: the provider cannot be used here.
        CheckpointError: the file is missing, is not ONNX, cannot be run, or is no network from images of
            a fixed number of channels to such images.
    """

    def __init__(self, path: Path, threads: int | None = None, provider: str = CPU_PROVIDER) -> None:
        self.path = path
        self._session = _open_session(path, threads, provider)
        for node in (*self._session.get_inputs(), *self._session.get_outputs()):
            if len(node.shape) != 4 or not isinstance(node.shape[1], int):
                raise CheckpointError(
                    f"{str(path)!r} is no image model of ours: {node.name!r} has shape {node.shape}, "
                    "not (batch, channels, height, width) with a fixed number of channels"
                )
        self._inputs = {node.name: node.shape for node in self._session.get_inputs()}
        half = self._session.get_inputs()[0].type == "tensor(float16)"
        self._dtype = torch.float16 if half else torch.float32

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the file on its inputs, (B, C, H, W) each; the result is on the first one's device.

        Raises:
            DataError: the inputs do not fit the file.
        """
        if len(inputs) != len(self._inputs):
            raise DataError(f"{str(self.path)!r} takes {len(self._inputs)} inputs, not {len(inputs)}")
        arrays = {
            name: value.detach().to("cpu", self._dtype).numpy()
            for name, value in zip(self._inputs, inputs, strict=True)
        }
        for name, array in arrays.items():
            self._check_shape(name, array.shape)
        try:
            output = self._session.run(None, arrays)[0]
        # ONNX Runtime's exceptions have no base class of their own.
        except Exception as error:
            shapes = ", ".join(str(array.shape) for array in arrays.values())
            raise DataError(
                f"{str(self.path)!r} fails on input of shape {shapes}: {str(error).splitlines()[0]}"
            ) from error
        return torch.from_numpy(output).float().to(inputs[0].device)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata written into the file at export."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs in call order."""
        return tuple(self._inputs)

    @property
    def in_channels(self) -> int:
        """Channels of the (first) input."""
        return int(self._session.get_inputs()[0].shape[1])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self._session.get_outputs()[0].shape[1])

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width, if the file takes one size only."""
        height, width = self._session.get_inputs()[0].shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        expected = self._inputs[name]
        fits = len(shape) == len(expected) and all(
            size == wanted for size, wanted in zip(shape, expected, strict=True) if isinstance(wanted, int)
        )
        if not fits:
            raise DataError(
                f"{str(self.path)!r} takes {name!r} of shape ({', '.join(map(str, expected))}), not {shape}"
            )


def provider_name(name: str, option: str) -> str:
    """ONNX Runtime's name of what runs operators, from a short one such as "cpu" or "cuda".

    Args:
        name: without "ExecutionProvider", in any case.
        option: where the user gave it, for the message.

    Raises:
        UsageError: this build of ONNX Runtime does not have it.
    """
    known = {each.removesuffix("ExecutionProvider").lower(): each for each in ort.get_available_providers()}
    if name.lower() not in known:
        raise UsageError(f"{option} {name}: this ONNX Runtime has {', '.join(sorted(known))}")
    return known[name.lower()]


@dataclass(frozen=True)
class Latency:
    """Times of repeated runs, in milliseconds.

    Attributes:
        median_ms: the median.
        low_ms, high_ms: the lower and the upper quartile.
        runs: number of timed runs.
        samples_ms: the time of each run, in order.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    samples_ms: tuple[float, ...]

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Latency:
        """The summary of at least one time."""
        low, median, high = np.percentile(samples_ms, (25, 50, 75))
        return cls(float(median), float(low), float(high), len(samples_ms), tuple(samples_ms))


def compare_latency(
    models: Mapping[str, Path],
    *shapes: tuple[int, ...],
    threads: int | None = None,
    runs: int = 10,
    warmup: int = 2,
    on_round: Callable[[], None] | None = None,
) -> dict[str, Latency]:
    """Time ONNX files against each other on the CPU, on the same seeded noise.

    Runs alternate (A B A B ...), so that a machine that slows down for a while slows all files alike;
    compare them with :func:`ratio`.

    Args:
        models: files by name; all take inputs of the same shapes, some may need the first few only.
        shapes: of the inputs in call order, as ``RestorationModel.input_shapes`` gives them.
        threads: of ONNX Runtime within an operator; None leaves the choice to it.
        runs: timed rounds, one run of every file each.
        warmup: rounds before those, not timed.
        on_round: called after every round, ``warmup + runs`` times.

    Raises:
        UsageError: ``runs`` is below 1 or ``warmup`` below 0.
        CheckpointError: a file is missing, is not ONNX or cannot be run.
        DataError: a file does not take inputs of these shapes.
    """
    if runs < 1 or warmup < 0:
        raise UsageError(f"latency needs runs >= 1 and warmup >= 0, got runs {runs} and warmup {warmup}")
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(shape, generator=generator) for shape in shapes]
    loaded = {name: OnnxModel(path, threads) for name, path in models.items()}
    given = {name: inputs[: len(model.input_names)] for name, model in loaded.items()}
    samples: dict[str, list[float]] = {name: [] for name in models}
    for index in range(warmup + runs):
        for name, model in loaded.items():
            start = time.perf_counter()
            model(*given[name])
            elapsed = time.perf_counter() - start
            if index >= warmup:
                samples[name].append(1000 * elapsed)
        if on_round is not None:
            on_round()
    return {name: Latency.of(times) for name, times in samples.items()}


def ratio(first: Latency, other: Latency) -> float:
    """How many times faster ``other`` is than ``first``: the median over rounds of their times' ratio.

    Both must come from one call of :func:`compare_latency`: the two runs of a round share the machine's
    mood, which a ratio of two medians would not cancel.
    """
    pairs = zip(first.samples_ms, other.samples_ms, strict=True)
    return statistics.median(a / b for a, b in pairs)


def _open_session(path: Path, threads: int | None, provider: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    # Threads that wait for the next run in a busy loop would slow down whatever runs in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(
            str(path), options, providers=list(dict.fromkeys([provider, CPU_PROVIDER]))
        )
    # ONNX Runtime's exceptions have no base class of their own.
    except Exception as error:
        reason = "no such file" if not path.exists() else str(error).splitlines()[0]
        raise CheckpointError(
            f"{str(path)!r} cannot be run as an ONNX model: {reason}; check the path or export it again"
        ) from error
    # It falls back to the CPU, with a line in its log only, where a library of the provider is missing.
    if provider not in session.get_providers():
        raise UsageError(
            f"{provider} cannot be used here; check that its libraries are installed, or use cpu"
        )
    return session
