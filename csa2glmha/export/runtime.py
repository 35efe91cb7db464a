"""Running ONNX files as a drop-in for the PyTorch network."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import Tensor

from csa2glmha.core.environment import thread_count
from csa2glmha.core.errors import CheckpointError, DataError, UsageError
from csa2glmha.core.files import reachable
from csa2glmha.core.text import first_line
from csa2glmha.data.inputs.kind import CASSI, IMAGES, NetworkFacts
from csa2glmha.export.further import taken
from csa2glmha.export.openvino import OpenVinoSession
from csa2glmha.families.registry import inputs_of
from csa2glmha.networks.foreign import CLASSES
from csa2glmha.networks.model import LARGEST_SCALE

# ONNX Runtime also logs what it raises; the exception is enough.
_LOG_FATAL_ONLY = 4

#: How long threads wait for each other in a busy loop before they sleep. Without an end a run beside busy
#: programs takes twice as long; without any of it one on an idle machine takes a third longer (a Restormer at
#: 64 x 64 on two cores). With 20 microseconds neither is so. Older versions of ONNX Runtime do not know the
#: first two and wait without an end.
_WAITING = {
    "session.intra_op.spin_duration_us": "20",
    "session.inter_op.spin_duration_us": "20",
    # Threads that wait for the next run would slow down whatever runs in between.
    "session.force_spinning_stop": "1",
}

#: How long a signal may go unheard during a run.
_HEARING_SECONDS = 0.2

CPU_PROVIDER = "CPUExecutionProvider"
ONNX_RUNTIME = "onnxruntime"
#: OpenVINO's hint on the precision; None: what it takes by itself.
_HINTS = {"openvino": None, "openvino-f32": "f32"}
#: What runs ONNX files here, and how people know it.
RUNTIMES = {ONNX_RUNTIME: "ONNX Runtime", "openvino": "OpenVINO", "openvino-f32": "OpenVINO f32"}

_FLOATS = {
    "tensor(float16)": torch.float16,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
}


def declared_inputs(metadata: Mapping[str, str], count: int) -> str:
    """The kind of inputs that an ONNX file names; of one that names none, what its family or inputs tell.

    Files that earlier versions made name their family alone.
    """
    if "inputs" in metadata:
        return metadata["inputs"]
    if "architecture" in metadata:
        return inputs_of(metadata["architecture"]) or IMAGES
    return CASSI if count > 1 else IMAGES


def declared_scale(metadata: Mapping[str, str]) -> Fraction:
    """Height and width of the output over those of the input, as a file of ours says it; otherwise 1."""
    try:
        found = Fraction(metadata.get("scale", "1"))
    except (ValueError, ZeroDivisionError):
        return Fraction(1)
    return found if 0 < found <= LARGEST_SCALE else Fraction(1)


class OnnxModel:
    """An ONNX file called like the network it came from, with inputs and output in float32 on the host.

    Args:
        path: the file.
        threads: of ONNX Runtime within an operator; None: one for each core that may be used.
        provider: ONNX Runtime's name of what runs the operators.
        profile: what the name of a file begins with that the time of every operator is written to; see
            :meth:`end_profile`.
        runtime: one of :data:`RUNTIMES`; provider and profile are for ONNX Runtime alone.

    Raises:
        UsageError: the provider cannot be used here.
        CheckpointError: the file is missing, is not ONNX, cannot be run, or is no network from images of
            a fixed number of channels to such images, or to logits (batch, classes).
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        provider: str = CPU_PROVIDER,
        profile: Path | None = None,
        runtime: str = ONNX_RUNTIME,
    ) -> None:
        self.path = path
        self._session: ort.InferenceSession | OpenVinoSession = (
            _open_session(path, threads, provider, profile)
            if runtime == ONNX_RUNTIME
            else OpenVinoSession(path, threads, _HINTS[runtime])
        )
        self._runner = concurrent.futures.ThreadPoolExecutor(1, "onnx")
        _check_ends(path, self._session)
        self._inputs = {node.name: node.shape for node in self._session.get_inputs()}
        # Further outputs are not asked for.
        self._outputs = [self._session.get_outputs()[0].name]
        self._dtype = _FLOATS[self._session.get_inputs()[0].type]

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
            output = self._run(arrays)[0]
        # ONNX Runtime's exceptions have no base class of their own.
        except Exception as error:
            shapes = ", ".join(str(array.shape) for array in arrays.values())
            raise DataError(
                f"{str(self.path)!r} fails on input of shape {shapes}: {first_line(error)}"
            ) from error
        return torch.from_numpy(output).float().to(inputs[0].device)

    def _run(self, arrays: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The outputs. Ctrl-C ends a run at once, and one that never ends at all.

        Python acts on a signal in its main thread, between two steps of its own, and a run is one step. So
        the main thread waits for another one that runs.
        """
        options = ort.RunOptions()
        if threading.current_thread() is not threading.main_thread():
            return list(self._session.run(self._outputs, arrays, options))
        running = self._runner.submit(self._session.run, self._outputs, arrays, options)
        try:
            while True:
                with contextlib.suppress(concurrent.futures.TimeoutError):
                    # On Windows a wait without a limit hears of no signal.
                    return list(running.result(timeout=_HEARING_SECONDS))
        except KeyboardInterrupt:
            options.terminate = True
            concurrent.futures.wait([running])
            raise

    def end_profile(self) -> Path:
        """The file with the times of all runs until now, as JSON; later runs are not added to it."""
        assert not isinstance(self._session, OpenVinoSession)
        return Path(self._session.end_profiling())

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata written into the file at export."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def facts(self) -> NetworkFacts:
        """What its kind of inputs must know."""
        metadata, count = self.metadata, len(self.input_names)
        names, shapes = taken(metadata, count)
        return NetworkFacts(
            metadata.get("architecture") or "this model",
            CLASSES if self.classifies else declared_inputs(metadata, count),
            self.in_channels,
            self.out_channels,
            count,
            size=self.fixed_size,
            metadata=metadata,
            scale=declared_scale(metadata),
            arguments=names,
            shapes=shapes,
        )

    @property
    def classifies(self) -> bool:
        """Whether it makes logits (B, classes)."""
        return len(self._session.get_outputs()[0].shape) == 2

    @property
    def foreign(self) -> bool:
        """Whether another program made the file: it says less of itself, and may ask for certain sides."""
        return "generator" not in self.metadata

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
        """Channels of the output, or classes."""
        return int(self._session.get_outputs()[0].shape[1])

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width, if the file takes one size only; a square, if it leaves one of the two open."""
        height, width = self._session.get_inputs()[0].shape[2:]
        if isinstance(height, int):
            return height, width if isinstance(width, int) else height
        return (width, width) if isinstance(width, int) else None

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
    available: list[str] = ort.get_available_providers()
    known = {each.removesuffix("ExecutionProvider").lower(): each for each in available}
    if name.lower() not in known:
        raise UsageError(f"{option} {name}: this ONNX Runtime has {', '.join(sorted(known))}")
    return known[name.lower()]


def _open_session(
    path: Path, threads: int | None, provider: str, profile: Path | None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.log_severity_level = _LOG_FATAL_ONLY
    # Sizes are open: with a pattern the second run of a size takes a block for all its maps, beside what the
    # first run took. Without it a denoiser at 256 x 256 takes 211 MB, not 300, its student 215, not 361, and
    # both run as fast or faster.
    options.enable_mem_pattern = False
    for name, value in _WAITING.items():
        options.add_session_config_entry(name, value)
    options.intra_op_num_threads = threads or thread_count()
    try:
        with reachable(path) as found:
            session = ort.InferenceSession(
                str(found), options, providers=list(dict.fromkeys([provider, CPU_PROVIDER]))
            )
    # ONNX Runtime's exceptions have no base class of their own.
    except Exception as error:
        reason = "no such file" if not path.exists() else first_line(error)
        raise CheckpointError(
            f"{str(path)!r} cannot be run as an ONNX model: {reason}; check the path or export it again"
        ) from error
    # It falls back to the CPU, with a line in its log only, where a library of the provider is missing.
    if provider not in session.get_providers():
        raise UsageError(
            f"{provider} cannot be used here; check that its libraries are installed, or use cpu"
        )
    return session


def _check_ends(path: Path, session: ort.InferenceSession | OpenVinoSession) -> None:
    """Raise CheckpointError for a network that does not make images, or logits of classes, of images."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if not inputs or not outputs:
        raise CheckpointError(f"{str(path)!r} is no image model: it has no {'output' if inputs else 'input'}")
    classes = len(outputs[0].shape) == 2
    for node in (*inputs, outputs[0]):
        if node.type not in _FLOATS:
            raise CheckpointError(
                f"{str(path)!r} is no image model of ours: {node.name!r} is a {node.type}, not one of "
                "floating-point numbers"
            )
        if node in inputs[1:] and len(node.shape) != 4:
            continue  # what else a network takes, with an image
        if classes and node is outputs[0] and isinstance(node.shape[1], int):
            continue
        if len(node.shape) != 4 or not isinstance(node.shape[1], int):
            raise CheckpointError(
                f"{str(path)!r} is no image model of ours: {node.name!r} has shape {node.shape}, "
                "not (batch, channels, height, width) with a fixed number of channels"
            )
    if len({node.type for node in inputs}) > 1:
        raise CheckpointError(f"{str(path)!r} is no image model of ours: its inputs are of different types")
