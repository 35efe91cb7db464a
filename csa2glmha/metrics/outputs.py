"""What networks make, images, spectra or logits of classes, and how two of these are compared.

All that depends on it is behind :class:`Outputs`: data say which theirs is, and whoever has two outputs alone
asks :func:`outputs_like`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from csa2glmha.metrics.logits import LogitMeter, cross_entropy, divergence
from csa2glmha.metrics.quality import SSIM_WINDOW, Quality, QualityMeter, out_of_range

Name = Literal["images", "spectra", "logits"]


@dataclass(frozen=True)
class Scale:
    """How agreement with the teacher is told.

    Attributes:
        metric: its name in records, "psnr" or "kl".
        label: for people.
        unit: with the space before it; "" where it has none.
        what: it is measured on, while a student is trained.
    """

    metric: Literal["psnr", "kl"]
    label: str
    unit: str
    what: str

    def number(self, value: float) -> str:
        """Two decimals of decibels, three digits of other figures."""
        return f"{value:.2f}" if self.unit else f"{value:.3g}"

    def show(self, value: float) -> str:
        """With the unit."""
        return self.number(value) + self.unit

    def change(self, before: float, after: float) -> str:
        """From one to the other, e.g. "41.20 -> 45.30 dB"."""
        return f"{self.number(before)} -> {self.show(after)}"


PSNR_SCALE = Scale("psnr", "PSNR to the teacher", " dB", "held-out crops")
KL_SCALE = Scale("kl", "KL divergence to the teacher", "", "held-out images")
#: By the names of their metrics in records.
SCALES: dict[str, Scale] = {scale.metric: scale for scale in (PSNR_SCALE, KL_SCALE)}


class Meter(Protocol):
    """Measures images one by one; see :class:`csa2glmha.metrics.quality.QualityMeter`."""

    @property
    def images(self) -> list[Quality]: ...
    def add(self, name: str, output: Tensor, reference: Tensor) -> Quality: ...
    def mean(self) -> dict[str, float]: ...
    def bands(self) -> dict[str, list[float]]: ...


class Outputs(Protocol):
    """One kind of outputs.

    Attributes:
        name: in records.
        scale: how agreement with the teacher is told.
        pictured: they can be looked at.
        smallest: side of an image that can be measured.
        samples: held-out inputs that decide which weights of a training are kept.
    """

    @property
    def name(self) -> Name: ...
    @property
    def scale(self) -> Scale: ...
    @property
    def pictured(self) -> bool: ...
    @property
    def smallest(self) -> int: ...
    @property
    def samples(self) -> int: ...

    def comparable(self, output: Tensor) -> Tensor:
        """An output as it is compared with others."""
        ...

    def out_of_range(self, output: Tensor) -> bool:
        """Whether it is far from what such outputs are."""
        ...

    def to_teacher(self) -> Meter:
        """A meter of outputs against the teacher's."""
        ...

    def to_ground_truth(self) -> Meter:
        """A meter of outputs against the ground truth."""
        ...

    def errors(self, output: Tensor, expected: Tensor) -> Tensor:
        """Of a batch, (B, ...), against the teacher's: (B,), zero where they are equal."""
        ...

    def truth_errors(self, output: Tensor, truth: Tensor) -> Tensor:
        """Of a batch against the ground truth, (B,)."""
        ...

    def figures(self, errors: Tensor) -> Tensor:
        """What of errors is averaged over images, on the scale; finite wherever an error is not NaN."""
        ...

    def probes(self, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Random vectors u of an output, (count, *output.shape) in float32.

        Of a small change d of one image's output, the mean of (u . d)^2 is its error.
        """
        ...

    def score(self, figure: float) -> float:
        """An average of figures in decibels: the more the better, equal gains are equal ratios of errors."""
        ...


@dataclass(frozen=True)
class ImageOutputs:
    """Images, or spectra, whose channels are bands."""

    spectral: bool = False
    pictured: bool = True
    smallest: int = SSIM_WINDOW
    samples: int = 8
    scale: Scale = PSNR_SCALE

    @property
    def name(self) -> Name:
        """As its class says."""
        return "spectra" if self.spectral else "images"

    def comparable(self, output: Tensor) -> Tensor:
        """Clipped to [0, 1]."""
        return output.clamp(0, 1)

    def out_of_range(self, output: Tensor) -> bool:
        """Of spectra alone: images are clipped wherever they go."""
        return self.spectral and out_of_range(output)

    def to_teacher(self) -> QualityMeter:
        """PSNR and the like."""
        return QualityMeter(self.spectral)

    def to_ground_truth(self) -> QualityMeter:
        """Likewise."""
        return QualityMeter(self.spectral)

    def errors(self, output: Tensor, expected: Tensor) -> Tensor:
        """Mean squares, in float64."""
        return (output - expected).square().flatten(1).mean(1).double()

    def truth_errors(self, output: Tensor, truth: Tensor) -> Tensor:
        """Mean squares, in float64."""
        return self.errors(output, truth)

    def figures(self, errors: Tensor) -> Tensor:
        """PSNR in dB, data range 1."""
        return -10 * errors.clamp(1e-20, 1e20).log10()

    def probes(self, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Normal ones."""
        return torch.randn((count, *output.shape), generator=generator) / math.sqrt(output[0].numel())

    def score(self, figure: float) -> float:
        """PSNR as it is."""
        return figure


@dataclass(frozen=True)
class LogitOutputs:
    """Logits (B, classes)."""

    name: Name = "logits"
    pictured: bool = False
    smallest: int = 1
    samples: int = 64
    scale: Scale = KL_SCALE

    def comparable(self, output: Tensor) -> Tensor:
        """As they are."""
        return output

    def out_of_range(self, output: Tensor) -> bool:
        """Logits have no range."""
        return False

    def to_teacher(self) -> LogitMeter:
        """Top-1 agreement and KL divergence."""
        return LogitMeter()

    def to_ground_truth(self) -> LogitMeter:
        """Top-1 accuracy and cross-entropy."""
        return LogitMeter(of_truth=True)

    def errors(self, output: Tensor, expected: Tensor) -> Tensor:
        """KL divergence in nats."""
        return divergence(output, expected)

    def truth_errors(self, output: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy in nats."""
        return cross_entropy(output, truth)

    def figures(self, errors: Tensor) -> Tensor:
        """The divergence as it is; one that overflows counts as a large one."""
        return errors.clamp(max=1e20)

    def probes(self, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Normal ones, whose covariance is half the Fisher information of the logits."""
        p = output.float().softmax(-1)
        normal = torch.randn((count, *output.shape), generator=generator) * p.sqrt()
        return math.sqrt(0.5) * (normal - p * normal.sum(-1, keepdim=True))

    def score(self, figure: float) -> float:
        """So much is a mean divergence below one."""
        return figure if math.isnan(figure) else -10 * math.log10(max(figure, 1e-20))


IMAGES, SPECTRA, LOGITS = ImageOutputs(), ImageOutputs(spectral=True), LogitOutputs()


def outputs_like(output: Tensor) -> ImageOutputs | LogitOutputs:
    """The kind of a batch of outputs: (B, classes) are logits."""
    return LOGITS if output.ndim == 2 else IMAGES


def figure_of(outputs: Outputs, error: float) -> float:
    """One error on the scale."""
    return float(outputs.figures(torch.tensor(error, dtype=torch.float64)))
