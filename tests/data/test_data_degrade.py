from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from skimage.filters import gaussian

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.degrade import motion_kernel, parse_degradation, reflect_pad


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(channels: int = 3, height: int = 40, width: int = 48) -> torch.Tensor:
    """A smooth colour picture with an edge, so that blur and JPEG have something to change."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = [0.5 + 0.4 * torch.sin(6 * x + 4 * y + k) for k in range(channels)]
    image = torch.stack(planes)
    image[:, height // 2 :, width // 2 :] *= 0.3
    return image


LOW_LIGHT = "gamma:1.5-2.2+dark:0.08-0.3+noise:0.5-3"
SPECS = [
    "none",
    "noise:25",
    "noise:10-50",
    "blur:1.5",
    "blur:0-3",
    "motion:15",
    "motion:3-9",
    "jpeg:40",
    "jpeg:10-90",
    "gamma:2",
    "gamma:0.5-2.2",
    "dark:0.1",
    "dark:0.08-0.3",
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", [*SPECS, "blur:1-2+noise:5", "motion:5+jpeg:30-50+noise:1", LOW_LIGHT])
def test_shape_and_determinism(spec: str, channels: int) -> None:
    degradation = parse_degradation(spec)
    clean = picture(channels)
    before = clean.clone()
    result = degradation(clean, generator(3))
    assert result.shape == clean.shape
    assert result.dtype == torch.float32
    assert torch.equal(clean, before)
    assert torch.equal(result, degradation(clean, generator(3)))
    assert torch.equal(result, pickle.loads(pickle.dumps(degradation))(clean, generator(3)))
    assert degradation.spec == spec


@pytest.mark.parametrize(
    "spec", ["noise:25", "noise:10-50", "blur:1-2", "motion:15", "jpeg:10-90", "gamma:1-2", LOW_LIGHT]
)
def test_another_seed_gives_another_result(spec: str) -> None:
    degradation = parse_degradation(spec)
    random = [degradation(picture(), generator(seed)) for seed in (0, 1)]
    assert not torch.equal(*random)


def test_none_is_a_copy() -> None:
    clean = picture()
    result = parse_degradation(" none ")(clean, generator())
    assert torch.equal(result, clean)
    assert result.data_ptr() != clean.data_ptr()


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_noise_has_its_sigma_and_is_not_clipped(level: int) -> None:
    clean = torch.full((3, 200, 200), level)
    noise = parse_degradation("noise:25")(clean, generator()) - clean
    # 120 000 samples: the standard error of the deviation is 0.2 %, of the mean 0.3 % of sigma.
    assert float(noise.std()) * 255 == pytest.approx(25, rel=0.01)
    assert float(noise.mean()) * 255 == pytest.approx(0, abs=0.3)
    assert float(noise.abs().max()) * 255 > 80


def test_low_light_is_a_power_then_an_exposure_then_noise() -> None:
    clean = torch.tensor([0.0, 0.25, 1.0]).expand(1, 400, 3)
    expected = torch.tensor([0.0, 0.25**2 * 0.2, 0.2]).expand(1, 400, 3)
    assert torch.allclose(parse_degradation("gamma:2+dark:0.2")(clean, generator()), expected)
    dark = torch.cat([parse_degradation(LOW_LIGHT)(clean, generator(seed)) for seed in range(200)])
    black, grey, white = dark.mean(1).unbind(1)
    sigma = dark[..., 0].std(1) * 255
    assert 0.4 < sigma.min() < 0.7 and 2.7 < sigma.max() < 3.3
    assert 0.078 < white.min() < 0.09 and 0.29 < white.max() < 0.302
    power = (grey / white).log() / math.log(0.25)
    assert 1.45 < power.min() < 1.55 and 2.1 < power.max() < 2.3
    assert black.abs().max() < 0.002


def test_a_power_of_what_noise_made_negative_is_zero() -> None:
    result = parse_degradation("noise:50+gamma:0.5")(torch.zeros(1, 20, 20), generator())
    assert result.isfinite().all() and (result == 0).any() and (result > 0).any()


def test_noise_range_is_uniform_per_image() -> None:
    degradation = parse_degradation("noise:10-50")
    source = generator()
    clean = torch.zeros(1, 60, 60)
    sigmas = torch.tensor([float(degradation(clean, source).std()) * 255 for _ in range(300)])
    assert 9 < sigmas.min() < 12
    assert 48 < sigmas.max() < 52.5
    assert float(sigmas.mean()) == pytest.approx(30, abs=2.5)
    assert float(sigmas.std()) == pytest.approx(40 / math.sqrt(12), abs=1.5)


@pytest.mark.parametrize("sigma", [0.4, 1.5, 3.0])
def test_blur_is_that_of_scikit_image(sigma: Any) -> None:
    clean = picture()
    expected = gaussian(clean.numpy(), sigma, mode="mirror", truncate=4, channel_axis=0)
    result = parse_degradation(f"blur:{sigma}")(clean, generator())
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("spec", ["blur:3", "motion:15"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_blur_of_an_image_smaller_than_its_kernel(spec: str, size: tuple[int, int]) -> None:
    constant = torch.full((3, *size), 0.7)
    assert torch.allclose(parse_degradation(spec)(constant, generator()), constant, atol=1e-6)


def test_blur_of_zero_and_motion_of_one_change_nothing() -> None:
    for spec in ("blur:0", "motion:1", "noise:0"):
        assert torch.equal(parse_degradation(spec)(picture(), generator()), picture())


def test_motion_kernel_along_an_axis() -> None:
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[2] = 0.2
    assert torch.allclose(motion_kernel(5, 0.0), expected, atol=1e-12)
    assert torch.allclose(motion_kernel(5, math.pi / 2), expected.T, atol=1e-12)
    # An even length is centred between pixels: 4 samples at -1.5 ... 1.5, each shared by two pixels.
    assert torch.allclose(motion_kernel(4, 0.0)[2], torch.tensor([1, 2, 2, 2, 1], dtype=torch.float64) / 8)


@pytest.mark.parametrize("length", [1, 2, 7, 15])
@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, 1.7, 3.1])
def test_motion_kernel_is_a_centred_line_of_that_length_and_angle(length: int, angle: Any) -> None:
    kernel = motion_kernel(length, angle)
    radius = kernel.shape[0] // 2
    assert kernel.sum() == pytest.approx(1)
    assert kernel.min() >= 0
    assert torch.allclose(kernel, kernel.flip(0, 1))
    y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1, dtype=torch.float64)] * 2, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = x * math.sin(angle) - y * math.cos(angle)
    # Samples one pixel apart have variance (n^2 - 1) / 12; sharing between pixels adds up to 1/4 each way.
    spread = (length**2 - 1) / 12
    assert spread - 1e-9 <= float((kernel * along**2).sum()) <= spread + 0.51
    assert float((kernel * across**2).sum()) <= 0.51


def test_motion_angles_go_all_round() -> None:
    dot = torch.zeros(1, 41, 41)
    dot[0, 20, 20] = 1
    degradation, source = parse_degradation("motion:21"), generator()
    offsets = torch.arange(-20.0, 21.0)
    directions = set()
    for _ in range(40):
        smear = degradation(dot, source)[0]
        assert smear.sum() == pytest.approx(1, abs=1e-5)
        wide = (smear * offsets**2).sum() > (smear * offsets[:, None] ** 2).sum()
        rising = (smear * offsets * offsets[:, None]).sum() > 0
        directions.add((bool(wide), bool(rising)))
    assert len(directions) == 4


def test_jpeg_gets_worse_with_lower_quality_and_keeps_colours() -> None:
    clean = picture()
    errors = [
        float((parse_degradation(f"jpeg:{quality}")(clean, generator()) - clean).square().mean().sqrt())
        for quality in (100, 70, 30, 5)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.01
    assert errors[3] > 0.02
    red = torch.zeros(3, 16, 16)
    red[0] = 1
    assert torch.allclose(parse_degradation("jpeg:95")(red, generator()), red, atol=0.03)


def test_jpeg_values_are_eight_bit_in_range() -> None:
    result = parse_degradation("noise:50+jpeg:80")(picture(1), generator())
    assert result.min() >= 0
    assert result.max() <= 1
    assert torch.allclose(result * 255, (result * 255).round(), atol=1e-4)


def test_jpeg_of_other_channel_counts() -> None:
    with pytest.raises(DataError, match="28 channels"):
        parse_degradation("jpeg:50")(torch.zeros(28, 8, 8), generator())


def test_steps_apply_from_left_to_right() -> None:
    clean = torch.full((1, 100, 100), 0.5)
    smooth = (parse_degradation("noise:25+blur:2")(clean, generator()) - clean).std()
    rough = (parse_degradation("blur:2+noise:25")(clean, generator()) - clean).std()
    # Gaussian blur divides white noise by 2 sqrt(pi) sigma = 7.1.
    assert float(rough / smooth) == pytest.approx(7.1, rel=0.1)


@pytest.mark.parametrize(
    "spec, reach", [("noise:50", 0), ("jpeg:9", 0), ("blur:1-2", 8), ("motion:15", 7), ("motion:4+blur:1", 6)]
)
def test_reach_bounds_what_a_pixel_depends_on(spec: str, reach: int) -> None:
    degradation = parse_degradation(spec)
    assert degradation.reach == reach
    if "jpeg" in spec:
        return
    size = 2 * reach + 5
    clean, changed = torch.zeros(1, size, size), torch.zeros(1, size, size)
    changed[0, 0] = 1
    difference = (degradation(clean, generator()) - degradation(changed, generator()))[0].abs().amax(1)
    assert difference[reach + 1 :].max() == 0


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "",
            "+",
            "none+noise:5",
            "noise",
            "noise:",
            "noise:x",
            "noise:nan",
            "noise:inf",
            "noise:-5",
            "noise:50-10",
        ),
        *("noise:256", "noise:5-", "noise:1e1", "noise:5:6", "noise:5+", "noise:٣", "fog:3", "rain:MEDIUM"),
        *(
            "jpeg:0",
            "jpeg:101",
            "jpeg:40.5",
            "jpeg:90-110",
            "blur:51",
            "blur:1-nan",
            "motion:0",
            "motion:2.5",
        ),
        *("gamma:0", "gamma:11", "dark:1.1", "dark:-1", "dark:0.3-0.1"),
        *("motion:256", "Noise:25", "noise=25", "noise:25 blur:1", "noise:5,blur:1"),
    ],
)
def test_bad_spec_is_quoted_and_the_valid_forms_listed(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_degradation(spec)
    message = str(caught.value)
    assert repr(spec) in message
    for form in (
        "none",
        "noise:SIGMA",
        "blur:SIGMA",
        "motion:LENGTH",
        "jpeg:QUALITY",
        "gamma:POWER",
        "dark:EXPOSURE",
    ):
        assert form in message
    assert "\n" not in message


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (6, 5)])
@pytest.mark.parametrize("amounts", [(0, 0, 0, 0), (1, 2, 0, 1), (9, 0, 13, 4)])
def test_reflect_pad_is_that_of_numpy(size: tuple[int, int], amounts: Any) -> None:
    image = torch.rand(2, *size, generator=generator())
    left, right, top, bottom = amounts
    expected = np.pad(image.numpy(), ((0, 0), (top, bottom), (left, right)), mode="reflect")
    np.testing.assert_array_equal(reflect_pad(image, left, right, top, bottom).numpy(), expected)
