"""Which inputs and targets belong together, and that nothing is paired by guesswork."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch

from csa2glmha.checkpoint import read_checkpoint
from csa2glmha.config.options import make_options
from csa2glmha.config.pattern import parse_pattern
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.folders import digest_of, list_files
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import MemoryImages, write_image
from csa2glmha.data.pairing import pair_names
from csa2glmha.data.sources import ImageData
from csa2glmha.distill.job import identity_of
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.search.plan import sensitivity_cache


def numbered(pattern: str, *numbers: int) -> list[str]:
    return [pattern.format(number) for number in numbers]


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        ("{}.png", "{}.tif"),
        ("{}_input.png", "{}_gt.png"),
        ("rain-{}.png", "norain-{}.png"),
        ("{:04d}x4.png", "{:04d}.png"),
        ("{}_NOISY_SRGB_010.PNG", "{}_GT_SRGB_010.PNG"),
        ("SEQ{}/blur/0001.png", "SEQ{}/sharp/0001.png"),
        ("input/{}.png", "gt/{}.png"),
        ("{}.png", "gt/{}.png"),
        ("IMG_{}.JPG", "img_{}.png"),
        ("IMG_{}_in.JPG", "img_{}_GT.png"),
        (unicodedata.normalize("NFC", "für_{}.png"), unicodedata.normalize("NFD", "für_{}.png")),
    ],
)
def test_names_that_differ_in_one_constant_part(inputs: str, targets: str) -> None:
    # The targets in another order: it must not be places that are paired.
    found = pair_names(numbered(inputs, 1, 2, 11, 21), numbered(targets, 21, 2, 11, 1))
    assert found.pairs == [(0, 3), (1, 1), (2, 2), (3, 0)]
    assert not found.unpaired and not found.problem
    assert bool(found.how) == (inputs[:-4] != targets[:-4])


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (["a.png"], ["b.png"]),  # nothing in common
        (["1.png", "2.png", "3.png"], ["11.png", "12.png", "13.png"]),  # other numbers, not an affix
        (["1_in.png", "2_in.png"], ["1_gt.png", "2_gt.png", "3_gt.png"]),  # not one to one
        (["1_in.png", "2_in.png"], ["1_gt.png", "2_ref.png"]),  # not constant
        (["cat.png", "dog.png"], ["x.png", "y.png"]),
        (["a-1.png", "A-1.png"], ["b-1.png", "c-1.png"]),  # equal but for case
    ],
)
def test_nothing_is_guessed(inputs: list[str], targets: list[str]) -> None:
    found = pair_names(inputs, targets)
    assert not found.pairs
    assert repr(inputs[0]) in found.problem and repr(targets[0]) in found.problem
    assert "--pair '{}_input={}_gt'" in found.problem


def test_equal_names_come_before_similar_ones() -> None:
    found = pair_names(["a.png", "A.png", "b.png", "c.png"], ["A.png", "a.png", "B.png"])
    assert found.pairs == [(0, 1), (1, 0), (2, 2)]
    assert found.unpaired == [(3, "no target of that name")]


@pytest.mark.parametrize(
    ("pattern", "inputs", "targets", "pairs"),
    [
        ("{}_input={}_gt", ["1_input.png", "1_other.png"], ["1_gt.png", "1.png"], [(0, 0)]),
        ("{}_input.png={}_gt.png", ["s/1_input.png"], ["t/1_gt.png", "s/1_gt.png"], [(0, 1)]),
        ("{}_*={}", ["0001_0.8_0.2.jpg", "0001_0.9_0.1.jpg"], ["0001.png"], [(0, 0), (1, 0)]),
        ("blur=sharp", ["s/blur/1.png", "s/blur_gamma/1.png"], ["s/blur/1.png", "s/sharp/1.png"], [(0, 1)]),
        ("in/{}=out/gt_{}", ["in/1.png"], ["out/gt_1.png"], [(0, 0)]),
        ("IMG{}=gt{}", ["img1.png"], ["GT1.png"], [(0, 0)]),
    ],
)
def test_patterns(pattern: str, inputs: list[str], targets: list[str], pairs: list[tuple[int, int]]) -> None:
    found = pair_names(inputs, targets, pattern)
    assert found.pairs == pairs and not found.unpaired
    assert f"--pair {pattern}" in found.how


def test_a_pattern_without_or_with_several_targets() -> None:
    found = pair_names(["1_a.png", "2_a.png", "3_a.png"], ["1_b.png", "1_b.bmp", "2_b.png"], "{}_a={}_b")
    assert found.pairs == [(1, 2)]
    assert found.unpaired == [(0, "several targets fit --pair"), (2, "no target fits --pair")]
    assert "no input fits" in pair_names(["1.png"], ["1.png"], "{}_a={}_b").problem


@pytest.mark.parametrize("pattern", ["", "=", "{}", "{}_a", "a={}", "{}={}={}", "{}{}={}{}", "a*=b"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(UsageError, match="--pair"):
        parse_pattern(pattern)
    with pytest.raises(UsageError, match="--pair"):
        make_options(data="a", targets="b", pair=pattern)


def test_a_pattern_needs_targets() -> None:
    with pytest.raises(UsageError, match=r"--pair.*--targets"):
        make_options(data="a", pair="blur=sharp")


def test_results_are_kept_for_one_way_to_pair(tmp_path: Path, tiny_restormer: Restormer) -> None:
    checkpoint = tmp_path / "m.pth"
    torch.save(tiny_restormer.state_dict(), checkpoint)
    images = MemoryImages([("a", torch.rand(3, 8, 8))])
    data = ImageData(images, images, None, "here", (), True)
    kept = []
    for pair in ("blur=sharp", "blur_gamma=sharp"):
        options = make_options(data=tmp_path, targets=tmp_path, pair=pair)
        cache = sensitivity_cache(tmp_path / "out", read_checkpoint(checkpoint), options)
        kept.append((identity_of(options, data, {}), cache.identity))
    assert all(one != other for one, other in zip(*kept, strict=True))


# --- folders


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, torch.rand(3, 8, 8))
    return folder


def test_targets_inside_the_inputs(tmp_path: Path) -> None:
    images(tmp_path, "input/1.png", "input/2.png", "gt/1.png", "gt/2.png")
    for data, targets in ((tmp_path, tmp_path / "gt"), (tmp_path / "input", tmp_path)):
        found = ImageSet.find(data, 3, targets)
        assert [(entry.input, entry.target) for entry in found._entries] == [
            (tmp_path / "input" / name, tmp_path / "gt" / name) for name in ("1.png", "2.png")
        ]
        assert not found.skipped


@pytest.mark.parametrize("link", ["folder", "file", "hard"])
def test_a_file_is_not_its_own_target(tmp_path: Path, link: str) -> None:
    data, targets = images(tmp_path / "data", "1.png", "2.png"), tmp_path / "targets"
    if link == "folder":
        targets.symlink_to(data)
    else:
        images(targets, "1.png")
        if link == "file":
            (targets / "2.png").symlink_to(data / "2.png")
        else:
            (targets / "2.png").hardlink_to(data / "2.png")
    with pytest.raises(UsageError, match=r"--targets.*is the same (folder|file)"):
        ImageSet.find(data, 3, targets)


def test_copies_are_told(tmp_path: Path) -> None:
    data, targets = images(tmp_path / "data", "1.png", "2.png"), images(tmp_path / "targets", "1.png")
    (targets / "2.png").write_bytes((data / "2.png").read_bytes())
    (note,) = ImageSet.find(data, 3, targets).notes(data)
    assert "1 of 2 inputs are equal to their targets" in note


def test_formats_that_are_not_read_among_the_targets(tmp_path: Path) -> None:
    data, targets = images(tmp_path / "data", "1.png", "2.png"), images(tmp_path / "targets", "1.png")
    (targets / "2.heic").write_bytes(b"")
    (note,) = ImageSet.find(data, 3, targets).notes(data)
    assert "2.heic (HEIC is not read)" in note and "2.png (no target of that name)" in note


def test_no_pair_names_what_was_looked_for(tmp_path: Path) -> None:
    data, targets = images(tmp_path / "data", "1.png"), images(tmp_path / "targets", "x.png")
    with pytest.raises(DataError, match=r"for '1\.png' a target '1' was looked for.*'x\.png'.*--pair"):
        ImageSet.find(data, 3, targets)


def test_links_are_followed_once_and_loops_are_not(tmp_path: Path) -> None:
    root = images(tmp_path / "root", "z/1.png", "a.png")
    images(tmp_path / "far", "2.png", "deep/3.png")
    (root / "around").symlink_to(tmp_path)
    (root / "again").symlink_to(root / "z")
    (root / "b").symlink_to(tmp_path / "far")
    (root / "c").symlink_to(tmp_path / "far" / "deep")
    (root / "z" / "up").symlink_to(root)
    (tmp_path / "far" / "back").symlink_to(tmp_path / "root")
    names = [name for name, _ in list_files(root, (".png",), "folder", "images")]
    assert names == ["a.png", "b/2.png", "b/deep/3.png", "z/1.png"]
    # What is kept for a folder is not taken for another's because what changed lies behind a link.
    before = digest_of(root)
    images(tmp_path / "far", "4.png")
    assert digest_of(root) != before
