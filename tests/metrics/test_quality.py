from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.metrics import quality
from csa2glmha.metrics.quality import QualityMeter


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(2, 3, 17, 23, generator=generator)
    # The second image is far worse, so that a mean over the batch differs from a mean over images.
    noise = torch.randn(2, 3, 17, 23, generator=generator) * torch.tensor([0.01, 0.3]).view(2, 1, 1, 1)
    return reference + noise, reference


def test_psnr_by_hand() -> None:
    # An error of 0.1 everywhere: MSE 0.01, 20 dB. With a range of 10, 20 dB more.
    reference = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    assert quality.psnr(reference + 0.1, reference) == pytest.approx(20)
    assert quality.psnr(reference + 0.1, reference, data_range=10) == pytest.approx(40)
    assert quality.psnr(reference[0] - 0.1, reference[0]) == pytest.approx(20)


def test_psnr_of_equal_and_of_infinite_images() -> None:
    image = torch.rand(3, 8, 8)
    assert quality.psnr(image, image) == math.inf
    assert quality.psnr(image / 0, image) == -math.inf
    assert math.isnan(quality.psnr(image * math.nan, image))


def test_psnr_and_ssim_agree_with_scikit_image_on_every_image(pair: Any) -> None:
    outputs, references = pair
    for output, reference in zip(outputs, references, strict=True):
        a, b = output.double().numpy(), reference.double().numpy()
        assert quality.psnr(output, reference) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1))
        expected = structural_similarity(a, b, channel_axis=0, data_range=1)
        assert quality.ssim(output, reference) == pytest.approx(expected)


def test_luma_is_that_of_matlab() -> None:
    # rgb2ycbcr gives these for the primaries, white and black, in 255ths.
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]]).T[..., None].double()
    wanted = [81.481, 144.553, 40.966, 235, 16]
    assert (quality.luma(colours)[0, :, 0] * 255).tolist() == pytest.approx(wanted)
    with pytest.raises(DataError, match="three channels"):
        quality.luma(torch.zeros(1, 8, 8))


def test_psnr_and_ssim_of_luma(pair: Any) -> None:
    output, reference = pair[0][0], pair[1][0]
    measured = QualityMeter(of_luma=True).add("a", output, reference).values
    a, b = quality.luma(output), quality.luma(reference)
    assert measured["psnr"] == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1))
    assert measured["ssim"] == pytest.approx(structural_similarity(a[0].numpy(), b[0].numpy(), data_range=1))


@pytest.mark.parametrize("metric", [quality.psnr, quality.ssim, quality.sam, quality.mrae, quality.rmse])
def test_a_batch_gives_the_mean_over_its_images(pair: Any, metric: str) -> None:
    outputs, references = pair
    first, second = (metric(a, b) for a, b in zip(outputs, references, strict=True))
    assert metric(outputs, references) == pytest.approx((first + second) / 2)
    assert first != pytest.approx(second)


def test_data_range_scales_out(pair: Any) -> None:
    output, reference = pair
    assert quality.psnr(output * 255, reference * 255, 255) == pytest.approx(quality.psnr(output, reference))
    assert quality.ssim(output * 255, reference * 255, 255) == pytest.approx(quality.ssim(output, reference))


def test_bands_are_measured_on_their_own(pair: Any) -> None:
    output, reference = pair[0][0], pair[1][0]
    for metric, per_band in (
        (quality.psnr, quality.per_band_psnr),
        (quality.ssim, quality.per_band_ssim),
    ):
        bands = per_band(output, reference)
        assert bands == pytest.approx([metric(output[c : c + 1], reference[c : c + 1]) for c in range(3)])


def test_band_values_of_a_batch_are_means_over_its_images(pair: Any) -> None:
    outputs, references = pair
    first, second = (quality.per_band_psnr(a, b) for a, b in zip(outputs, references, strict=True))
    expected = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert quality.per_band_psnr(outputs, references) == pytest.approx(expected)


def test_sam_by_hand_in_degrees() -> None:
    # Pixels, left to right: 90 degrees, 45 degrees, a positive factor (0), opposite (180).
    output = torch.tensor([[1.0, 1.0, 2.0, -1.0], [0.0, 1.0, 4.0, 0.0]]).view(2, 1, 4)
    reference = torch.tensor([[0.0, 1.0, 1.0, 1.0], [3.0, 0.0, 2.0, 0.0]]).view(2, 1, 4)
    expected = [90, 45, 0, 180]
    angles = [quality.sam(output[..., i : i + 1], reference[..., i : i + 1]) for i in range(4)]
    assert angles == pytest.approx(expected, abs=1e-6)
    assert quality.sam(output, reference) == pytest.approx(sum(expected) / 4)


def test_sam_is_exact_at_small_angles() -> None:
    angle = 1e-7
    output = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64).view(2, 1, 1)
    reference = torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1)
    assert quality.sam(output, reference) == pytest.approx(math.degrees(angle), rel=1e-6)


def test_sam_of_black_spectra() -> None:
    black, other = torch.zeros(4, 2, 2), torch.rand(4, 2, 2) + 0.1
    assert quality.sam(black, black) == 0
    assert quality.sam(black, other) == pytest.approx(90)
    assert quality.sam(other, black) == pytest.approx(90)


def test_mrae_and_rmse_by_hand() -> None:
    reference = torch.tensor([1.0, 2.0, -4.0, 0.0], dtype=torch.float64).view(1, 1, 4)
    output = torch.tensor([2.0, 2.5, -3.0, 3.0], dtype=torch.float64).view(1, 1, 4)
    # Relative errors 1, 1/4, 1/4; the last has none. Squared errors 1, 1/4, 1, 9.
    assert quality.mrae(output, reference) == pytest.approx(0.5)
    assert quality.rmse(output, reference) == pytest.approx(math.sqrt(11.25 / 4))
    assert math.isnan(quality.mrae(output, torch.zeros_like(reference)))


def test_half_precision_inputs_are_measured_in_full_precision() -> None:
    reference = torch.zeros(1, 8, 8, dtype=torch.float16)
    # 1e-3 squared is below half's normal range.
    assert quality.psnr(reference + 1e-3, reference) == pytest.approx(60, abs=0.01)


def test_double_precision_inputs_are_not_rounded() -> None:
    reference = torch.ones(1, 8, 8, dtype=torch.float64)
    assert quality.psnr(reference + 1e-9, reference) == pytest.approx(180, abs=0.01)


@pytest.mark.parametrize("metric", [quality.psnr, quality.ssim, quality.sam, quality.mrae, quality.rmse])
def test_unfit_tensors_are_refused(metric: str) -> None:
    with pytest.raises(DataError, match=r"\(3, 8, 8\) and reference of shape \(3, 8, 9\)"):
        metric(torch.rand(3, 8, 8), torch.rand(3, 8, 9))
    with pytest.raises(DataError, match=r"\(8, 8\) is not an image"):
        metric(torch.rand(8, 8), torch.rand(8, 8))
    with pytest.raises(DataError, match="not empty"):
        metric(torch.rand(0, 3, 8, 8), torch.rand(0, 3, 8, 8))
    with pytest.raises(DataError, match="uint8"):
        metric(torch.rand(3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8))


def test_images_below_the_ssim_window_are_refused() -> None:
    assert quality.ssim(torch.ones(3, 7, 7), torch.ones(3, 7, 7)) == 1
    with pytest.raises(DataError, match="6 x 9 pixels are too small"):
        quality.ssim(torch.rand(3, 6, 9), torch.rand(3, 6, 9))


@pytest.mark.parametrize("data_range", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("metric", [quality.psnr, quality.ssim])
def test_bad_data_range_is_refused(metric: str, data_range: Any) -> None:
    with pytest.raises(UsageError, match=str(data_range)):
        metric(torch.rand(3, 8, 8), torch.rand(3, 8, 8), data_range)


def test_meter_averages_over_images(pair: Any) -> None:
    outputs, references = pair
    meter = QualityMeter()
    meter.add("a", outputs[0], references[0])
    meter.add("b", outputs[1:], references[1:])
    assert [image.name for image in meter.images] == ["a", "b"]
    assert meter.images[1].values["psnr"] == quality.psnr(outputs[1], references[1])
    assert meter.mean() == pytest.approx(
        {"psnr": quality.psnr(outputs, references), "ssim": quality.ssim(outputs, references)}
    )


def test_meter_measures_spectra_on_its_data_range(pair: Any) -> None:
    output, reference = (image[:1] * 255 for image in pair)
    values = QualityMeter(spectral=True, data_range=255).add("scene", output, reference).values
    assert values == pytest.approx(
        {
            "psnr": quality.psnr(output, reference, 255),
            "ssim": quality.ssim(output, reference, 255),
            "psnr_bands": np.mean(quality.per_band_psnr(output, reference, 255)),
            "sam": quality.sam(output, reference),
            "mrae": quality.mrae(output, reference),
            "rmse": quality.rmse(output, reference),
        }
    )


def test_meter_names_the_image_it_cannot_measure() -> None:
    meter = QualityMeter()
    with pytest.raises(DataError, match=r"tiny\.png: .*4 x 4"):
        meter.add("tiny.png", torch.rand(3, 4, 4), torch.rand(3, 4, 4))
    with pytest.raises(DataError, match=r"two\.png: a batch"):
        meter.add("two.png", torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8))
    assert meter.images == []
    with pytest.raises(DataError, match="no images"):
        meter.mean()
