from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.crops import ImageSource, calibration_crops
from csa2glmha.data.images import MemoryImages
from csa2glmha.data.sources import open_images, prepare_images
from csa2glmha.data.subset import MAX_HELD_OUT, Subset
from csa2glmha.data.views import DualViews


def folder_of(path: Path, count: int, first: int = 0, shape: tuple[int, ...] = (20, 24, 3)) -> Path:
    """PNG files 0.png, 1.png, ...; the gray level of all pixels is ``first`` plus the number."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = path / f"{number}.png"
        file.write_bytes(cv2.imencode(".png", np.full(shape, first + number, np.uint8))[1].tobytes())
    return path


def names(source: ImageSource) -> list[str]:
    return [source.read(index)[0] for index in range(len(source))]


def level(image: torch.Tensor) -> int:
    assert image.unique().numel() == 1
    return round(float(image.flatten()[0]) * 255)


# --- the split


@pytest.mark.parametrize(
    ("count", "held_out"), [(2, 1), (3, 1), (15, 1), (16, 2), (40, 5), (64, MAX_HELD_OUT), (90, MAX_HELD_OUT)]
)
def test_split_is_disjoint_and_complete(tmp_path: Path, count: int, held_out: int) -> None:
    data = prepare_images(folder_of(tmp_path, count), None, None, 3, seed=0)
    train, held = names(data.train), names(data.held_out)
    assert len(held) == len(data.held_out) == held_out
    assert set(train) | set(held) == {f"{number}.png" for number in range(count)}
    assert len(train) + len(held) == count


def test_split_is_deterministic_and_seeded(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 24)
    splits = [names(prepare_images(folder, None, None, 3, seed).held_out) for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert len({tuple(split) for split in splits}) > 1


def test_subset_reads_in_its_own_order() -> None:
    source = MemoryImages([(name, torch.zeros(1, 2, 2)) for name in "abcd"])
    assert names(Subset(source, (3, 1))) == ["d", "b"]


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_is_not_enough(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError) as caught:
        prepare_images(folder_of(tmp_path / "photos", count), None, None, 3, 0)
    assert "photos" in str(caught.value)
    assert "\n" not in str(caught.value)
    if count:
        assert "only 1 usable image; give at least 2" in str(caught.value)


# --- kinds of data


def test_clean_images_with_a_degradation(tmp_path: Path) -> None:
    data = prepare_images(folder_of(tmp_path, 4), None, "noise:25", 3, 0)
    assert data.degradation is not None
    assert (data.degradation, data.has_ground_truth) == ("noise:25", True)
    assert data.source == str(tmp_path)
    assert data.notes == ()
    inputs, ground_truth = calibration_crops(data.train, data.degrade, 16, 4, 0)
    assert ground_truth is not None
    assert 0.05 < float((inputs - ground_truth).std()) < 0.15


def test_pairs(tmp_path: Path) -> None:
    inputs, targets = folder_of(tmp_path / "in", 5), folder_of(tmp_path / "out", 5, first=100)
    data = prepare_images(inputs, targets, None, 3, 0)
    assert (data.degradation, data.has_ground_truth) == (None, True)
    for source in (data.train, data.held_out):
        for index in range(len(source)):
            name, image, target = source.read(index)
            assert target is not None
            assert (level(image), level(target)) == (int(name[0]), 100 + int(name[0]))


def test_inputs_alone(tmp_path: Path) -> None:
    data = prepare_images(folder_of(tmp_path, 4), None, None, 3, 0)
    assert (data.degradation, data.has_ground_truth) == (None, False)
    assert data.train.read(0)[2] is None


def test_gray_model_gets_gray_images(tmp_path: Path) -> None:
    assert prepare_images(folder_of(tmp_path, 3), None, None, 1, 0).train.read(0)[1].shape == (1, 20, 24)


def test_bad_degradation(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fog"):
        prepare_images(folder_of(tmp_path, 4), None, "fog:3", 3, 0)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.*does not exist"):
        prepare_images(tmp_path / "none", None, None, 3, 0)


def test_skipped_files_are_noted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 4)
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image by its name, and not worth a word")
    (note,) = prepare_images(folder, None, None, 3, 0).notes
    assert note.startswith(f"{folder}: 2 files skipped (")
    assert "broken.png (" in note
    assert "empty.jpg (" in note
    assert "notes.txt" not in note
    assert "..." not in note


def test_long_lists_of_skipped_files_are_cut(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 2)
    for number in range(5):
        (folder / f"broken{number}.png").write_bytes(b"x")
    (note,) = prepare_images(folder, None, None, 3, 0).notes
    assert "5 files skipped" in note
    assert "broken2.png" in note and "broken3.png" not in note
    assert note.endswith(", ...")


def test_unpaired_inputs_are_noted(tmp_path: Path) -> None:
    inputs, targets = folder_of(tmp_path / "in", 4), folder_of(tmp_path / "out", 3)
    data = prepare_images(inputs, targets, None, 3, 0)
    assert len(data.train) + len(data.held_out) == 3
    assert "3.png (no target of that name)" in data.notes[0]


# --- photographs that come along


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_bundled_photographs_with_remarks(channels: int) -> None:
    data = prepare_images(None, None, "noise:25", channels, 0)
    assert len(data.train) >= 3 and len(data.held_out) >= 1
    assert data.train.read(0)[1].shape[0] == channels
    assert "bundled with scikit-image" in data.source
    assert len(data.notes) == 1
    assert "no --data" in data.notes[0]


def test_without_degradation_the_bundled_photographs_are_taken_as_they_are() -> None:
    data = prepare_images(None, None, None, 3, 0)
    assert len(data.notes) == 2
    assert "--degrade" in data.notes[1]
    inputs, _ = calibration_crops(data.train, data.degrade, 16, 3, 0)
    again, _ = calibration_crops(data.train, None, 16, 3, 0)
    assert torch.equal(inputs, again)


# --- dual-pixel views


@pytest.mark.parametrize(("left", "right"), [("inputL", "inputR"), ("left", "right"), ("l_view", "r_view")])
def test_dual_views_are_stacked(tmp_path: Path, left: str, right: str) -> None:
    folder_of(tmp_path / left, 4)
    folder_of(tmp_path / right, 4, first=50)
    targets = folder_of(tmp_path / "target", 4, first=100)
    data = prepare_images(tmp_path, targets, None, 6, 0)
    assert data.has_ground_truth
    for index in range(len(data.train)):
        name, image, target = data.train.read(index)
        assert image.shape == (6, 20, 24)
        assert target is not None and target.shape == (3, 20, 24)
        number = int(name[0])
        assert [level(part) for part in (image[:3], image[3:], target)] == [number, 50 + number, 100 + number]
    batch = data.training(16, 0).batch(0, 0, 2)
    assert batch.inputs[0].shape == (2, 6, 16, 16)
    assert batch.ground_truth is not None and batch.ground_truth.shape == (2, 3, 16, 16)


def test_dual_views_without_targets(tmp_path: Path) -> None:
    folder_of(tmp_path / "left", 3)
    folder_of(tmp_path / "right", 3)
    data = prepare_images(tmp_path, None, None, 6, 0)
    assert not data.has_ground_truth
    assert data.train.read(0)[2] is None


def test_dual_views_with_gaps_are_noted_and_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path / "left", 5)
    folder_of(tmp_path / "right", 4)
    targets = folder_of(tmp_path / "target", 3)
    data = prepare_images(tmp_path, targets, None, 6, 0)
    assert sorted(names(data.train) + names(data.held_out)) == ["0.png", "1.png", "2.png"]
    assert any("4.png" in note for note in data.notes)
    assert any("3.png" in note for note in data.notes)


def test_dual_views_need_two_folders(tmp_path: Path) -> None:
    folder_of(tmp_path / "left", 3)
    with pytest.raises(
        DataError, match=r"needs two views .* inputL/ and inputR/, left/ and right/"
    ) as caught:
        open_images(tmp_path, 6)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_right_view_is_the_left_one() -> None:
    views = DualViews(MemoryImages([("a", torch.rand(3, 4, 4))]), {})
    _, image, target = views.read(0)
    assert torch.equal(image[:3], image[3:])
    assert target is None
