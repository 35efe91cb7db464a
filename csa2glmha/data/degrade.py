"""Degradations that turn clean images into network inputs: noise, blur, motion blur, JPEG, low light.

A degradation is written as a short text such as ``noise:25`` or ``blur:1-2+jpeg:40``; see
:func:`parse_degradation`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.core.errors import DataError, UsageError

FORMS = (
    "none, noise:SIGMA (0 to 255, of 255), blur:SIGMA (0 to 50 pixels), "
    "motion:LENGTH (1 to 255 whole pixels), jpeg:QUALITY (1 to 100, whole), gamma:POWER (0.1 to 10), "
    "dark:EXPOSURE (0 to 1, of the light), down:TIMES (1 to 16, whole, no range); "
    "each value also as a range LOW-HIGH, several joined by +"
)

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_VALUE = re.compile(rf"{_NUMBER}(?:-{_NUMBER})?")


def reflect_pad(image: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Pad (..., H, W) by reflection about the border pixels, by any amount.

    Unlike ``torch.nn.functional.pad`` the padding may exceed the image: it then goes back and forth
    (as ``numpy.pad(mode="reflect")``), and a side of one pixel is repeated.
    """
    rows = _reflected(image.shape[-2], top, bottom)
    columns = _reflected(image.shape[-1], left, right)
    return image[..., rows, :][..., columns]


def _reflected(n: int, before: int, after: int) -> Tensor:
    if n == 1:
        return torch.zeros(before + 1 + after, dtype=torch.long)
    period = 2 * (n - 1)
    index = torch.arange(-before, n + after).remainder(period)
    return torch.where(index < n, index, period - index)


def _add_noise(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return image + sigma / 255 * torch.randn(image.shape, generator=generator)


def _blur(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    radius = _blur_reach(sigma)
    if radius == 0:
        return image
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).to(image.dtype)
    padded = reflect_pad(image, radius, radius, radius, radius).unsqueeze(1)
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).squeeze(1)


def _blur_reach(sigma: float) -> int:
    # Four standard deviations, rounded: what scipy and scikit-image use.
    return int(4 * sigma + 0.5)


def _motion_blur(image: Tensor, length: float, generator: torch.Generator) -> Tensor:
    angle = math.pi * float(torch.rand((), generator=generator, dtype=torch.float64))
    kernel = motion_kernel(int(length), angle).to(image.dtype)
    radius = kernel.shape[0] // 2
    padded = reflect_pad(image, radius, radius, radius, radius).unsqueeze(1)
    return F.conv2d(padded, kernel[None, None]).squeeze(1)


def _motion_reach(length: float) -> int:
    return math.ceil((length - 1) / 2)


def motion_kernel(length: int, angle: float) -> Tensor:
    """Kernel (k, k), k odd, of a linear motion over ``length`` pixels at ``angle`` radians.

    ``length`` samples one pixel apart lie on the line, centred; each is shared bilinearly between the
    four pixels around it. The weights are float64 and sum to one.
    """
    radius = _motion_reach(length)
    along = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=torch.float64)
    y, x = along * math.sin(angle) + radius, along * math.cos(angle) + radius
    for row, row_weight in _neighbours(y, 2 * radius):
        for column, column_weight in _neighbours(x, 2 * radius):
            kernel.index_put_((row, column), row_weight * column_weight / length, accumulate=True)
    return kernel


def _neighbours(position: Tensor, last: int) -> list[tuple[Tensor, Tensor]]:
    floor = position.floor().clamp(0, last)
    fraction = position - floor
    # A sample exactly on the last pixel has no weight beyond it: any valid index will do.
    return [(floor.long(), 1 - fraction), ((floor.long() + 1).clamp(max=last), fraction)]


def _jpeg(image: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    if image.shape[0] not in (1, 3):
        raise DataError(f"jpeg degradation takes gray or RGB images, got {image.shape[0]} channels")
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    # OpenCV wants B, G, R; flipping the channel axis of a gray image changes nothing.
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), options)
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)).reshape(pixels.shape)[..., ::-1]
    return torch.from_numpy(decoded.transpose(2, 0, 1).astype(np.float32) / 255)


def _gamma(image: Tensor, power: float, generator: torch.Generator) -> Tensor:
    # Negative values, which noise may have made, have no power.
    return image.clamp_min(0) ** power


def _darken(image: Tensor, exposure: float, generator: torch.Generator) -> Tensor:
    return image * exposure


def _reduce(image: Tensor, times: float, generator: torch.Generator) -> Tensor:
    """By bicubic interpolation that averages over what it leaves out; sides are cut to a multiple first."""
    image = cut_to_multiple(image, int(times))
    size = [side // int(times) for side in image.shape[-2:]]
    return F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]


def _reduction_reach(times: float) -> int:
    return 2 * int(times)


def cut_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Without the last rows and columns of (..., H, W) that are too many."""
    height, width = (side // multiple * multiple for side in image.shape[-2:])
    return image[..., :height, :width]


def _no_reach(value: float) -> int:
    return 0


@dataclass(frozen=True)
class _Kind:
    """One kind of degradation: its valid values, what it does, and how far it reaches in pixels."""

    low: float
    high: float
    whole: bool
    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    reach: Callable[[float], int] = _no_reach


#: The degradation that makes images smaller.
REDUCTION = "down"
_KINDS = {
    "noise": _Kind(0, 255, False, _add_noise),
    "blur": _Kind(0, 50, False, _blur, _blur_reach),
    "motion": _Kind(1, 255, True, _motion_blur, _motion_reach),
    "jpeg": _Kind(1, 100, True, _jpeg),
    "gamma": _Kind(0.1, 10, False, _gamma),
    "dark": _Kind(0, 1, False, _darken),
    "down": _Kind(1, 16, True, _reduce, _reduction_reach),
}


@dataclass(frozen=True)
class _Step:
    name: str
    low: float
    high: float

    def draw(self, generator: torch.Generator) -> float:
        if self.low == self.high:
            return self.low
        if _KINDS[self.name].whole:
            return int(torch.randint(int(self.low), int(self.high) + 1, (), generator=generator))
        return self.low + (self.high - self.low) * float(torch.rand((), generator=generator))


@dataclass(frozen=True)
class Degradation:
    """A sequence of degradations; make one with :func:`parse_degradation`."""

    spec: str
    steps: tuple[_Step, ...]

    @property
    def reach(self) -> int:
        """How many pixels away a clean pixel can matter at most, JPEG blocks aside; whole ``times``."""
        reach, times = 0, 1
        for step in self.steps:
            reach += times * _KINDS[step.name].reach(step.high)
            times *= int(step.high) if step.name == REDUCTION else 1
        return -(-reach // times) * times

    @property
    def times(self) -> int:
        """How many times larger clean images are than degraded ones."""
        return math.prod(int(step.high) for step in self.steps if step.name == REDUCTION)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Degrade one image (C, H, W) in [0, 1], float32; the result has the same shape, over ``times``.

        Noise is added without clipping, the convention of the denoising literature, so the result may
        leave [0, 1]. Every random choice comes from ``generator``. ``clean`` is not changed.

        Raises:
            DataError: ``jpeg`` on an image that is neither gray nor RGB.
        """
        image = clean.clone()
        for step in self.steps:
            image = _KINDS[step.name].apply(image, step.draw(generator), generator)
        return image


def parse_degradation(spec: str) -> Degradation:
    """Read a degradation from its text.

    * ``none``: the image as it is.
    * ``noise:25``: white Gaussian noise, standard deviation 25 / 255.
    * ``blur:1.5``: Gaussian blur, standard deviation 1.5 pixels.
    * ``motion:15``: linear motion over 15 pixels, at an angle drawn uniformly per image.
    * ``jpeg:40``: JPEG compression at quality 40 (values are clipped to [0, 1] and become 8 bit).
    * ``gamma:2.2``: every value to that power (negative ones count as 0).
    * ``dark:0.1``: an exposure that takes a tenth of the light, every value times 0.1.

    * ``down:4``: a quarter of the height and width (bicubic, with antialiasing), for networks that enlarge.

    Low light is ``gamma:1.5-2.2+dark:0.08-0.3+noise:0.5-3``.

    A range such as ``noise:10-50`` is drawn uniformly per image. Several are joined by ``+`` and applied
    from left to right: ``blur:1-2+noise:5``.

    Raises:
        UsageError: the text does not have this form, or a value is out of bounds.
    """
    text = spec.strip()
    if text == "none":
        return Degradation(text, ())
    return Degradation(text, tuple(_parse_step(part.strip(), spec) for part in text.split("+")))


def _parse_step(part: str, spec: str) -> _Step:
    name, _, value = part.partition(":")
    kind = _KINDS.get(name)
    if kind is None:
        raise _bad(spec, f"{name!r} is no known degradation")
    match = _VALUE.fullmatch(value)
    if match is None:
        raise _bad(spec, f"{value!r} is not a number or a range")
    if kind.whole and "." in value:
        raise _bad(spec, f"{name} takes whole numbers, not {value!r}")
    low = float(match[1])
    high = float(match[2] or match[1])
    if low > high:
        raise _bad(spec, f"the range {value!r} runs backwards")
    if name == REDUCTION and low != high:
        raise _bad(spec, "all images are reduced alike: give one number")
    if low < kind.low or high > kind.high:
        raise _bad(spec, f"{value!r} is out of bounds for {name}, {kind.low:g} to {kind.high:g}")
    return _Step(name, low, high)


def _bad(spec: str, why: str) -> UsageError:
    return UsageError(f"bad degradation {spec!r}: {why}; valid forms: {FORMS}")
