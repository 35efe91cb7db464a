from __future__ import annotations

import pytest
import torch

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.batches import seeded
from csa2glmha.data.crops import TrainingCrops, augment, calibration_crops, random_crop
from csa2glmha.data.degrade import parse_degradation
from csa2glmha.data.images import MemoryImages


class Pairs:
    """Pairs whose input is twice the target, so that a misplaced crop or turn shows."""

    def __init__(self, count: int, height: int = 20, width: int = 30) -> None:
        source = generator()
        self.targets = [torch.rand(3, height, width, generator=source) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> tuple[str, torch.Tensor, torch.Tensor | None]:
        return str(index), 2 * self.targets[index], self.targets[index]


class Counting(MemoryImages):
    """Image i is constant i / 100; every read is recorded."""

    def __init__(self, count: int) -> None:
        super().__init__([(str(i), torch.full((1, 20, 20), i / 100)) for i in range(count)])
        self.reads: list[int] = []

    def read(self, index: int) -> tuple[str, torch.Tensor, torch.Tensor | None]:
        self.reads.append(index)
        return super().read(index)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width, dtype=torch.float32).view(1, height, width)


NONE = parse_degradation("none")


def test_random_crop_is_a_window_of_both_and_reaches_every_place() -> None:
    image, source = numbered(6, 7), generator()
    corners = set()
    for _ in range(400):
        crop, target = random_crop(image, 2 * image, 4, source)
        top, left = divmod(int(crop[0, 0, 0]), 7)
        assert torch.equal(crop, image[:, top : top + 4, left : left + 4])
        assert torch.equal(target, 2 * crop)
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(4)}


def test_random_crop_without_target() -> None:
    crop, target = random_crop(numbered(6, 7), None, 6, generator())
    assert crop.shape == (1, 6, 6)
    assert target is None


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (9, 4)])
def test_small_image_is_reflected_up_to_the_crop(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=generator())
    crop, target = random_crop(image, image + 1, 16, generator())
    assert crop.shape == (3, 16, 16)
    assert torch.equal(target, crop + 1)
    assert set(crop.unique().tolist()) <= set(image.unique().tolist())
    if size == (3, 2):
        assert torch.equal(crop[:, :3, :2], image)
        assert crop[0, :6, 0].tolist() == image[0, [0, 1, 2, 1, 0, 1], 0].tolist()


def test_augment_gives_all_eight_symmetries_to_both() -> None:
    image, source = numbered(3, 3), generator()
    seen = set()
    for _ in range(200):
        turned, target = augment(image, 2 * image, source)
        assert torch.equal(target, 2 * turned)
        seen.add(tuple(turned.flatten().tolist()))
    assert len(seen) == 8
    # The centre stays, and the corners stay corners next to the same neighbours.
    for square in seen:
        assert square[4] == 4
        assert {square[0], square[8]} in ({0, 8}, {2, 6})
    assert augment(image, None, source)[1] is None


def test_calibration_crops_spread_evenly() -> None:
    images = Counting(5)
    degraded, clean = calibration_crops(images, NONE, 8, 12, seed=1)
    assert degraded.shape == (12, 1, 8, 8)
    assert torch.equal(degraded, clean)
    counts = [images.reads.count(i) for i in range(5)]
    assert sorted(counts) == [2, 2, 2, 3, 3]
    assert degraded.amin((1, 2, 3)).tolist() == pytest.approx([i / 100 for i in images.reads])
    assert torch.equal(degraded.amin((1, 2, 3)), degraded.amax((1, 2, 3)))


def test_few_calibration_crops_do_not_all_come_from_the_first_images() -> None:
    firsts = set()
    for seed in range(20):
        images = Counting(10)
        calibration_crops(images, None, 4, 3, seed)
        assert len(set(images.reads)) == 3
        firsts.update(images.reads)
    assert firsts == set(range(10))


@pytest.mark.parametrize("spec", ["none", "noise:25", "blur:1-2+noise:5", "motion:9", "jpeg:40"])
def test_calibration_crops_are_determined_by_the_seed(spec: str) -> None:
    source = MemoryImages([(str(i), image) for i, image in enumerate(Pairs(3).targets)])
    degradation = parse_degradation(spec)
    first, again, other = (calibration_crops(source, degradation, 12, 6, seed) for seed in (7, 7, 8))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_three_kinds_of_data() -> None:
    pairs = Pairs(3)
    degraded, target = calibration_crops(pairs, None, 8, 5, seed=0)
    assert torch.equal(degraded, 2 * target)
    alone, nothing = calibration_crops(Counting(3), None, 8, 5, seed=0)
    assert alone.shape == (5, 1, 8, 8)
    assert nothing is None
    clean_images = MemoryImages([("a", pairs.targets[0])])
    degraded, clean = calibration_crops(clean_images, parse_degradation("noise:25"), 8, 400, seed=0)
    assert float((degraded - clean).std()) * 255 == pytest.approx(25, rel=0.02)
    with pytest.raises(UsageError, match=r"noise:25.*target"):
        calibration_crops(pairs, parse_degradation("noise:25"), 8, 5, seed=0)


@pytest.mark.parametrize("spec", ["blur:2", "blur:1+blur:1.5"])
def test_crop_of_the_blurred_image_not_blur_of_the_crop(spec: str) -> None:
    image = torch.rand(3, 40, 50, generator=generator())
    degradation = parse_degradation(spec)
    whole = degradation(image, generator())
    degraded, clean = calibration_crops(MemoryImages([("a", image)]), degradation, 16, 20, seed=0)
    for crop, clean_crop in zip(degraded, clean, strict=True):
        windows = image.unfold(1, 16, 1).unfold(2, 16, 1)
        top, left = (windows - clean_crop[:, None, None]).abs().amax((0, 3, 4)).eq(0).nonzero()[0].tolist()
        assert torch.allclose(crop, whole[:, top : top + 16, left : left + 16], atol=2e-6)


def test_images_smaller_than_the_crop_are_degraded_too() -> None:
    tiny = MemoryImages([("a", torch.rand(3, 1, 1)), ("b", torch.rand(3, 5, 90))])
    degraded, clean = calibration_crops(tiny, parse_degradation("blur:3+noise:10"), 32, 4, seed=0)
    assert degraded.shape == clean.shape == (4, 3, 32, 32)
    assert not torch.equal(degraded, clean)


@pytest.mark.parametrize("size, count", [(0, 4), (8, 0), (-1, 4)])
def test_bad_sizes(size: tuple[int, int], count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} crops of {size}"):
        calibration_crops(Counting(2), None, size, count, seed=0)
    if size < 1:
        with pytest.raises(UsageError):
            TrainingCrops(Counting(2), None, size, seed=0)


def test_no_images() -> None:
    with pytest.raises(DataError, match="no image"):
        calibration_crops(MemoryImages([]), None, 8, 1, seed=0)
    with pytest.raises(DataError, match="no image"):
        TrainingCrops(MemoryImages([]), None, 8, seed=0)


def test_training_uses_every_image_once_per_pass_in_changing_order() -> None:
    images = Counting(6)
    crops = TrainingCrops(images, NONE, 8, seed=0)
    for step in range(6):
        (inputs,) = crops.batch(step, 4 * step, 4).inputs
        assert inputs.shape == (4, 1, 8, 8)
    passes = [images.reads[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(one) == list(range(6)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_training_kinds_of_data_and_augmentation() -> None:
    for step in range(10):
        batch = TrainingCrops(Pairs(3), None, 8, seed=0).batch(step, 2 * step, 2)
        assert torch.equal(batch.inputs[0], 2 * batch.ground_truth)
    assert TrainingCrops(Counting(3), None, 8, seed=0).batch(0, 0, 2).ground_truth is None
    square = MemoryImages([("a", numbered(4, 4))])
    (inputs,) = TrainingCrops(square, NONE, 4, seed=0).batch(0, 0, 64).inputs
    assert len({tuple(one.flatten().tolist()) for one in inputs}) == 8


def test_clean_images_are_no_ground_truth_of_spectra() -> None:
    clean = MemoryImages([("a", torch.rand(3, 9, 9))])
    assert TrainingCrops(clean, NONE, 4, 0).batch(0, 0, 1).ground_truth is not None
    assert TrainingCrops(clean, NONE, 4, 0, clean_is_ground_truth=False).batch(0, 0, 1).ground_truth is None
    batch = TrainingCrops(Pairs(2), None, 4, 0, clean_is_ground_truth=False).batch(0, 0, 1)
    assert torch.equal(batch.inputs[0], 2 * batch.ground_truth)


def test_training_depends_on_seed_and_numbers_only() -> None:
    """However the samples are divided between processes, and wherever training begins."""
    degradation = parse_degradation("blur:1-2+noise:5-20")
    images = MemoryImages([(str(i), image) for i, image in enumerate(Pairs(5).targets)])
    crops = TrainingCrops(images, degradation, 8, seed=1)
    whole = crops.batch(3, 12, 4)
    parts = [TrainingCrops(images, degradation, 8, seed=1).batch(3, first, 2) for first in (14, 12)]
    assert torch.equal(whole.inputs[0], torch.cat([parts[1].inputs[0], parts[0].inputs[0]]))
    assert torch.equal(whole.ground_truth, torch.cat([parts[1].ground_truth, parts[0].ground_truth]))
    other = TrainingCrops(images, degradation, 8, seed=2).batch(3, 12, 4)
    assert not torch.equal(whole.inputs[0], other.inputs[0])


def test_seeds_beyond_32_bits_differ() -> None:
    first = [torch.rand(1, generator=seeded("crop", seed, 0)).item() for seed in (0, 2**32, 2**33)]
    assert len(set(first)) == 3
