"""Image and spectral quality metrics, and their average over a set of images.

All metrics take an output and its reference of the same shape, (C, H, W) or (B, C, H, W), and compute in
float64. A batch gives the mean over its images, each image weighing the same. Values are compared as they
are: clamp or round first where a benchmark does. An output that is not finite gives a result that is not
finite; :mod:`csa2glmha.core.strict_json` says what they are in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from csa2glmha.core.errors import DataError, UsageError

#: What the metrics of images are of, by their number of channels.
CHANNEL_NAMES = {1: "gray", 3: "rgb"}
_LUMA_WEIGHTS = (65.481, 128.553, 24.966)
SSIM_WINDOW = 7
"""Side of the SSIM window in pixels, scikit-image's default."""


#: An output belongs into [0, 1]. MST-S left these limits in 1e-4 of its values on a real measurement; on one
#: four times too bright in 0.45 %, on one fourteen times too bright in 60 %.
LIMITS, OUTSIDE_SHARE = (-0.25, 1.25), 0.002
RANGE_HINT = "check that the units of the inputs are those the network was trained on"


def out_of_range(output: Tensor) -> bool:
    """Whether more of an output lies far beyond [0, 1] than overshooting at edges explains."""
    low, high = LIMITS
    return bool(((output < low) | (output > high)).float().mean() > OUTSIDE_SHARE)


def psnr(output: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / MSE); infinite for equal images.

    The MSE is taken over all channels and pixels of an image.

    Raises:
        DataError: the tensors do not have the same valid shape, or are not floating-point.
        UsageError: ``data_range`` is not positive.
    """
    _check_range(data_range)
    return _mean_over_images(lambda a, b: _psnr(a, b, data_range), output, reference)


def ssim(output: Tensor, reference: Tensor, data_range: float = 1.0) -> float:
    """Structural similarity as scikit-image's ``structural_similarity`` computes it, 1 for equal images.

    A uniform 7 x 7 window, the mean over channels. Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality
    assessment: from error visibility to structural similarity", IEEE TIP 2004.

    Raises:
        DataError: as for :func:`psnr`, or the images are smaller than the window. A smaller window would
            give figures that cannot be compared with others.
        UsageError: ``data_range`` is not positive.
    """
    return float(np.mean(per_band_ssim(output, reference, data_range)))


def per_band_psnr(output: Tensor, reference: Tensor, data_range: float = 1.0) -> list[float]:
    """PSNR in dB of every channel on its own, C values.

    Their mean is what papers on snapshot compressive imaging give as PSNR; it is not :func:`psnr`, which
    takes the logarithm of the mean error.

    Raises:
        DataError, UsageError: as for :func:`psnr`.
    """
    _check_range(data_range)
    return _mean_over_images_per_band(lambda a, b: _psnr(a, b, data_range), output, reference)


def per_band_ssim(output: Tensor, reference: Tensor, data_range: float = 1.0) -> list[float]:
    """SSIM of every channel on its own, C values.

    Raises:
        DataError, UsageError: as for :func:`ssim`.
    """
    _check_range(data_range)
    return _mean_over_images_per_band(lambda a, b: _ssim(a, b, data_range), output, reference)


def luma(image: Tensor) -> Tensor:
    """Y of YCbCr (..., 1, H, W) of an RGB image (..., 3, H, W) in [0, 1], in double precision.

    ITU-R BT.601 in studio swing, 16 to 235 of 255, as MATLAB's ``rgb2ycbcr`` has it, which the figures in
    papers on deraining are made with; their rounding to 8 bits is left out.

    Raises:
        DataError: the image does not have three channels.
    """
    if image.ndim < 3 or image.shape[-3] != 3:
        raise DataError(f"an image of shape {_shape(image)} has no luma: give three channels, R, G and B")
    weights = torch.tensor(_LUMA_WEIGHTS, dtype=torch.float64, device=image.device)
    return (torch.einsum("c,...chw->...hw", weights, image.double()).unsqueeze(-3) + 16) / 255


def sam(output: Tensor, reference: Tensor) -> float:
    """Spectral angle between output and reference spectra in **degrees**, the mean over pixels.

    0 for spectra that differ by a positive factor. Two black spectra are equal (0 degrees); a black one
    against any other counts as orthogonal (90 degrees). Source: Kruse et al., "The spectral image processing
    system (SIPS)", Remote Sensing of Environment 1993.

    Raises:
        DataError: as for :func:`psnr`.
    """
    return _mean_over_images(_sam, output, reference)


def mrae(output: Tensor, reference: Tensor) -> float:
    """Mean relative absolute error, the mean of ``|output - reference| / |reference|``.

    Elements whose reference is exactly zero have no relative error and are left out; NaN if all are.
    Source: Arad et al., "NTIRE 2022 Spectral Recovery Challenge", CVPRW 2022.

    Raises:
        DataError: as for :func:`psnr`.
    """
    return _mean_over_images(_mrae, output, reference)


def rmse(output: Tensor, reference: Tensor) -> float:
    """Root of the mean squared error over all channels and pixels of an image, in the data's own units.

    Raises:
        DataError: as for :func:`psnr`.
    """
    return _mean_over_images(lambda a, b: math.sqrt(_mse(a, b)), output, reference)


@dataclass(frozen=True)
class Quality:
    """The metrics of one image by name; ``bands`` has those with a value for every band, of spectra."""

    name: str
    values: dict[str, float]
    bands: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class QualityMeter:
    """Measures images one by one and averages over them, each image weighing the same.

    The metrics are ``psnr`` (dB) and ``ssim``, and for spectral images also ``psnr_bands`` (dB, the mean of
    :func:`per_band_psnr`), ``sam`` (degrees), ``mrae`` and ``rmse``.

    Attributes:
        spectral: whether the channels are spectral bands.
        data_range: the distance between black and white.
        of_luma: PSNR and SSIM are of :func:`luma`, not of the channels.
        images: what was measured so far, in order.
    """

    spectral: bool = False
    data_range: float = 1.0
    images: list[Quality] = field(default_factory=list)
    of_luma: bool = False

    def add(self, name: str, output: Tensor, reference: Tensor) -> Quality:
        """Measure one image, (C, H, W) or (1, C, H, W), and keep the result under this name.

        Raises:
            DataError: the tensors hold more than one image or are unfit for the metrics; the message names
                the image.
            UsageError: ``data_range`` is not positive.
        """
        if output.ndim == 4 and len(output) != 1:
            raise DataError(
                f"{name}: a batch of shape {_shape(output)} is not one image; add its images singly"
            )
        try:
            if self.of_luma:
                output, reference = luma(output), luma(reference)
            quality = Quality(name, *self._measure(output, reference))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        self.images.append(quality)
        return quality

    def mean(self) -> dict[str, float]:
        """Return the mean of every metric over the images.

        Raises:
            DataError: no image was added.
        """
        if not self.images:
            raise DataError("there are no images to average quality over: evaluate at least one")
        metrics = self.images[0].values
        return {metric: _mean([image.values[metric] for image in self.images]) for metric in metrics}

    def bands(self) -> dict[str, list[float]]:
        """Return ``psnr`` (dB) and ``ssim`` of every band, means over the images; empty if not spectral."""
        if not self.images:
            return {}
        listed = {metric: [image.bands[metric] for image in self.images] for metric in self.images[0].bands}
        return {
            metric: [_mean(list(band)) for band in zip(*values, strict=True)]
            for metric, values in listed.items()
        }

    def _measure(self, output: Tensor, reference: Tensor) -> tuple[dict[str, float], dict[str, list[float]]]:
        bands = {"ssim": per_band_ssim(output, reference, self.data_range)}
        values = {
            "psnr": psnr(output, reference, self.data_range),
            "ssim": _mean(bands["ssim"]),
        }
        if not self.spectral:
            return values, {}
        bands["psnr"] = per_band_psnr(output, reference, self.data_range)
        values["psnr_bands"] = _mean(bands["psnr"])
        values["sam"] = sam(output, reference)
        values["mrae"] = mrae(output, reference)
        values["rmse"] = rmse(output, reference)
        return values, bands


_Metric = Callable[[Tensor, Tensor], float]


def _mse(output: Tensor, reference: Tensor) -> float:
    return float((output - reference).square().mean())


def _psnr(output: Tensor, reference: Tensor, data_range: float) -> float:
    mse = _mse(output, reference)
    return math.inf if mse == 0 else 20 * math.log10(data_range) - 10 * math.log10(mse)


def _ssim(output: Tensor, reference: Tensor, data_range: float) -> float:
    """SSIM of one band, (H, W)."""
    if min(output.shape) < SSIM_WINDOW:
        raise DataError(
            f"images of {output.shape[0]} x {output.shape[1]} pixels are too small for SSIM: "
            f"give at least {SSIM_WINDOW} x {SSIM_WINDOW}"
        )
    a, b = output.numpy(), reference.numpy()
    return float(structural_similarity(a, b, win_size=SSIM_WINDOW, data_range=data_range))


def _sam(output: Tensor, reference: Tensor) -> float:
    tiny = torch.finfo(output.dtype).tiny
    u = torch.nn.functional.normalize(output, dim=0, eps=tiny)
    v = torch.nn.functional.normalize(reference, dim=0, eps=tiny)
    # The arc cosine of u.v loses half of the digits at small angles, this form (Kahan's) none.
    angle = 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=0), torch.linalg.vector_norm(u + v, dim=0))
    return float(angle.mean().rad2deg())


def _mrae(output: Tensor, reference: Tensor) -> float:
    valid = reference != 0
    return float(((output - reference)[valid] / reference[valid]).abs().mean())


def _mean_over_images(metric: _Metric, output: Tensor, reference: Tensor) -> float:
    pairs = zip(*_images(output, reference), strict=True)
    return _mean([metric(a, b) for a, b in pairs])


def _mean_over_images_per_band(metric: _Metric, output: Tensor, reference: Tensor) -> list[float]:
    outputs, references = _images(output, reference)
    bands = range(outputs.shape[1])
    return [
        _mean([metric(a[band], b[band]) for a, b in zip(outputs, references, strict=True)]) for band in bands
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _images(output: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Check a pair and return it as two float64 batches, (B, C, H, W), on the CPU."""
    if output.shape != reference.shape:
        raise DataError(
            f"output of shape {_shape(output)} and reference of shape {_shape(reference)} differ: "
            "give images of the same size"
        )
    if output.ndim not in (3, 4) or output.numel() == 0:
        raise DataError(f"shape {_shape(output)} is not an image: give (C, H, W) or (B, C, H, W), not empty")
    for tensor in (output, reference):
        if not tensor.is_floating_point():
            raise DataError(
                f"images of type {tensor.dtype} have no data range: convert them to floating point"
            )
    batch = (-1, *output.shape[-3:])
    return (
        output.detach().to("cpu", torch.float64).reshape(batch),
        reference.detach().to("cpu", torch.float64).reshape(batch),
    )


def _check_range(data_range: float) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise UsageError(
            f"data range {data_range!r} is not valid: give a positive number, such as 1.0 or 255"
        )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
