"""Images and pairs as users met them in the field; what is right for each is said beside the cases."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from csa2glmha.commands.evaluate import evaluate_file
from csa2glmha.commands.run import run_files
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import UsageError
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import read_image


@pytest.fixture
def identity(cases: Path) -> Path:
    """A Restormer whose output is its input."""
    return cases / "checkpoints" / "identity.pth"


def test_tiff_with_alpha_has_its_colours_everywhere(cases: Path, identity: Path, tmp_path: Path) -> None:
    source = cases / "images" / "alpha_tiff" / "a.tif"
    wanted = [200, 100, 50]
    assert [round(float(plane.mean()) * 255) for plane in read_image(source, 3)] == wanted
    for number in range(2):
        shutil.copy(source, tmp_path / f"{number}.tif")
    image = ImageSet.find(tmp_path, 3).read(0)[1]
    assert [round(float(plane.mean()) * 255) for plane in image] == wanted
    (written,) = run_files(identity, [source], tmp_path / "out").written
    stored = tifffile.imread(written)
    assert stored.shape == (40, 56, 4) and (stored == [*wanted, 128]).all()


def test_what_a_folder_holds_beside_is_named(
    cases: Path, identity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cases / "images" / "mixed"
    found = ImageSet.find(folder, 3)
    assert found.names == ["a.png", "half.tif", "pages.tif"]
    note, pages = found.notes(folder)
    assert "2 files skipped" in note and "b.gif (GIF is not read)" in note
    assert "photo.HEIC (HEIC is not read)" in note
    assert "left out: pages.tif: 1 further page" in pages
    # Half floats are read, and are the picture that is beside them as integers.
    picture = np.asarray(Image.open(folder / "a.png"))
    half = found.read(1)[1].permute(1, 2, 0).numpy()
    assert np.abs(half * 255 - picture).max() < 0.1

    result = run_files(identity, [folder], tmp_path)
    assert {path.name for path in result.written} == {"a.png", "half.tif", "pages.tif"}
    assert {path.name for path, _ in result.skipped} == {"b.gif", "photo.HEIC"}
    said = capsys.readouterr().err
    assert "left out: 2 files (" in said and "photo.HEIC: HEIC is not read" in said
    assert "left out: 1 further page of " in said


def test_linked_folders_are_followed(cases: Path, identity: Path, tmp_path: Path) -> None:
    folder = cases / "images" / "linked"
    assert ImageSet.find(folder, 3).names == ["a.png", "link/c.png"]
    result = run_files(identity, [folder], tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in result.written} == {"a.png", "link/c.png"}


def test_colour_profile_is_kept(cases: Path, identity: Path, tmp_path: Path) -> None:
    source = cases / "images" / "profile" / "p.png"
    (written,) = run_files(identity, [source], tmp_path).written
    before, after = Image.open(source), Image.open(written)
    assert before.info["icc_profile"] and after.info["icc_profile"] == before.info["icc_profile"]
    assert np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize(("data", "targets"), [("same", "same"), ("gopro/train", "gopro/train")])
def test_one_folder_as_both_is_refused(cases: Path, identity: Path, data: str, targets: str) -> None:
    pairs = cases / "pairs"
    options = make_options(data=pairs / data, targets=pairs / targets)
    with pytest.raises(UsageError, match=r"is the same folder as --data.*--pair blur=sharp"):
        evaluate_file(identity, options, None, None)


@pytest.mark.parametrize("kind", ["suffix", "middle", "prefix", "case"])
def test_pairs_are_found_by_their_names(cases: Path, kind: str) -> None:
    folder = cases / "pairs" / kind
    found = ImageSet.find(folder / "input", 3, folder / "gt")
    digits = [
        [int("".join(filter(str.isdigit, path.stem.split("_SRGB")[0]))) for path in entry.paths]
        for entry in found._entries
    ]
    assert digits == [[number, number] for number in range(4)]
    assert not found.skipped and "4 pairs" in found.how


def test_gopro_in_its_own_folders(cases: Path) -> None:
    folder = cases / "pairs" / "gopro" / "train"
    found = ImageSet.find(folder, 3, folder, pair="blur=sharp")
    assert found.names == [f"SEQ{number % 2}/blur/{number:06d}.png" for number in (0, 2, 1, 3)]
    assert [entry.target for entry in found._entries] == [
        folder / name.replace("blur", "sharp") for name in found.names
    ]
    assert not found.skipped and "8 files do not fit it" in found.how


def test_psnr_of_rgb_and_of_y(shared: Path, identity: Path) -> None:
    folder = shared / "data" / "rain100l"
    options = make_options(data=folder / "input", targets=folder / "target")
    for channel, wanted in (("rgb", 20.497), ("y", 21.87)):
        found = evaluate_file(identity, options, None, None, channel)
        assert found["channel"] == channel
        assert found["ground_truth"]["mean"]["psnr"] == pytest.approx(wanted, abs=0.005)
