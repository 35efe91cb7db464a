from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
import torch

from csa2glmha.core.errors import DataError, OutputError
from csa2glmha.data import image_set as module
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import MemoryImages, bundled_images, read_image, write_image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def encode(path: Path, array: np.ndarray) -> Path:
    """Write an H, W(, 3 RGB or 4 RGBA) array with OpenCV directly, not with the code under test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    path.write_bytes(cv2.imencode(path.suffix.lower(), array)[1].tobytes())
    return path


def chw(array: np.ndarray, white: float) -> np.ndarray:
    return (array.transpose(2, 0, 1) / white).astype(np.float32)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".PNG", ".TIFF"])
def test_eight_bit_rgb_in_order(tmp_path: Path, suffix: str) -> None:
    image = read_image(encode(tmp_path / f"a{suffix}", RGB), 3)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), chw(RGB, 255), atol=1e-7)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
def test_sixteen_bit(tmp_path: Path, suffix: str) -> None:
    wide = RGB.astype(np.uint16) * 257 - (RGB > 0)
    np.testing.assert_allclose(
        read_image(encode(tmp_path / f"a{suffix}", wide), 3).numpy(), chw(wide, 65535), atol=1e-7
    )


def test_float_tif(tmp_path: Path) -> None:
    values = RGB.astype(np.float32) / 300
    np.testing.assert_array_equal(read_image(encode(tmp_path / "a.tif", values), 3).numpy(), chw(values, 1))


@pytest.mark.parametrize("bad", [-0.1, 255.0, np.nan, np.inf])
def test_float_tif_off_scale_is_refused(tmp_path: Path, bad: Any) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = bad
    path = encode(tmp_path / "a.tif", values)
    with pytest.raises(DataError, match=r"not scaled to \[0, 1\]"):
        read_image(path, 1)


def test_gray_is_repeated(tmp_path: Path) -> None:
    image = read_image(encode(tmp_path / "a.png", RGB[..., 0]), 3)
    for channel in image:
        np.testing.assert_allclose(channel.numpy(), RGB[..., 0] / 255, atol=1e-7)


def test_colour_to_luma(tmp_path: Path) -> None:
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    image = read_image(encode(tmp_path / "a.png", primaries), 1)
    np.testing.assert_allclose(image.numpy(), [[[0.299, 0.587, 0.114, 1.0]]], atol=1e-6)
    assert image.max() <= 1


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((5, 7, 1), 3, np.uint8)
    path = encode(tmp_path / "a.png", np.concatenate([RGB, alpha], 2))
    np.testing.assert_allclose(read_image(path, 3).numpy(), chw(RGB, 255), atol=1e-7)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    left_half_white = np.zeros((16, 32), np.uint8)
    left_half_white[:, :16] = 255
    path = encode(tmp_path / "a.jpg", left_half_white)
    # A TIFF header with one entry, Orientation (0x0112, SHORT, count 1) = 6: turn 90 degrees clockwise.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    data = path.read_bytes()
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes(data[:2] + segment + data[2:])
    image = read_image(path, 1)
    assert image.shape == (1, 32, 16)
    assert image[0, :14].min() > 0.9
    assert image[0, 18:].max() < 0.1


def test_name_with_spaces_and_other_letters(tmp_path: Path) -> None:
    path = encode(tmp_path / "Fotos von früher" / "図 1.png", RGB)
    assert read_image(path, 3).shape == (3, 5, 7)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"just some text", "not an image"),
        (b"P5 2 1 15\n\x05\x0f", "largest value 15"),
    ],
)
def test_unreadable_file_is_one_clear_line(
    tmp_path: Path, data: Any, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(path, 3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_file(tmp_path: Path, suffix: str, keep: Any, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    path = encode(tmp_path / f"a{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_image(path, 3)
    assert capfd.readouterr().err == ""


def test_signed_samples_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.tif", np.zeros((4, 4), np.int16))
    with pytest.raises(DataError, match="int16"):
        read_image(path, 1)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png.*No such file"):
        read_image(tmp_path / "gone.png", 3)


@pytest.mark.parametrize("channels, match", [(6, "dual-pixel"), (28, "28"), (2, "2 are asked")])
def test_channels_that_image_files_do_not_hold(tmp_path: Path, channels: int, match: str) -> None:
    encode(tmp_path / "a.png", RGB)
    for call in (read_image, ImageSet.find):
        with pytest.raises(DataError, match=match):
            call(tmp_path, channels)
    with pytest.raises(DataError, match=match):
        bundled_images(channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name, bits", [("a.png", 8), ("a.png", 16), ("a.tif", 16), ("a.bmp", 8), ("é.PNG", 8)]
)
def test_written_image_reads_back(tmp_path: Path, name: str, bits: int, channels: int) -> None:
    levels = torch.randint(0, 2**bits, (channels, 6, 9), generator=torch.Generator().manual_seed(0))
    image = (levels / (2**bits - 1)).float()
    write_image(tmp_path / name, image, bits)
    assert torch.allclose(read_image(tmp_path / name, channels), image, atol=0.1 / 2**bits, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_portable_maps_hold_one_kind(tmp_path: Path) -> None:
    for name, channels in (("a.pgm", 1), ("a.ppm", 3)):
        image = (torch.arange(channels * 6) / 20).view(channels, 2, 3)
        write_image(tmp_path / name, image, 16)
        assert torch.allclose(read_image(tmp_path / name, channels), image, atol=1e-5)
        with pytest.raises(OutputError, match=rf"C = {channels};"):
            write_image(tmp_path / name, torch.zeros(4 - channels, 2, 3))


def test_written_values_are_clipped_and_rounded(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.tensor([[[-0.5, 1.5, 0.4 / 255, 0.6 / 255]]]))
    pixels = cv2.imdecode(np.fromfile(tmp_path / "a.png", np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.tolist() == [[0, 255, 0, 1]]


@pytest.mark.parametrize(
    "name, image, bits, match",
    [
        ("a.jpg", torch.zeros(3, 4, 4), 16, "16 bits"),
        ("a.gif", torch.zeros(3, 4, 4), 8, "gif"),
        ("a", torch.zeros(3, 4, 4), 8, "suffix"),
        ("a.png", torch.zeros(6, 4, 4), 8, "6, 4, 4"),
        ("a.pgm", torch.zeros(3, 4, 4), 8, "pgm"),
        ("a.png", torch.full((1, 4, 4), torch.nan), 8, "not finite"),
        ("a.webp", torch.zeros(1, 1, 20000), 8, "20000x1"),
        ("taken/a.png", torch.zeros(1, 1, 1), 8, "cannot write"),
    ],
)
def test_image_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, name: str, image: Any, bits: int, match: str
) -> None:
    (tmp_path / "taken").write_bytes(b"a file where a folder would have to be")
    with pytest.raises(OutputError, match=match):
        write_image(tmp_path / name, image, bits)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_failed_write_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.png", RGB)
    before = path.read_bytes()

    def full(*args: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        write_image(path, torch.zeros(1, 4, 4))
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["a.png"]


def test_find_is_recursive_sorted_and_case_insensitive(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.JPG", "a.Tif", "sub/deep er/ä.webp"):
        encode(tmp_path / name, RGB)
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "folder.png").mkdir()
    found = ImageSet.find(tmp_path, 3)
    assert [found.read(i)[0] for i in range(len(found))] == [
        "a.Tif",
        "b.png",
        "sub/a.JPG",
        "sub/deep er/ä.webp",
    ]
    assert found.skipped == []
    assert found.describe_skipped() == "no files skipped"


def test_bad_files_are_skipped_and_counted(tmp_path: Path) -> None:
    encode(tmp_path / "good.png", RGB)
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    cut = encode(tmp_path / "cut.png", RGB)
    cut.write_bytes(cut.read_bytes()[:40])
    found = ImageSet.find(tmp_path, 3)
    assert len(found) == 1
    assert {path.name for path, _ in found.skipped} == {"text.jpg", "text.png", "empty.png", "cut.png"}
    summary = found.describe_skipped()
    assert summary.startswith("4 files skipped (2 not an image, ")
    assert "1 empty" in summary
    assert "1 truncated or damaged" in summary


def test_folder_without_readable_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    (tmp_path / "b.png").touch()
    with pytest.raises(
        DataError, match=r"no readable image.*2 files skipped.*1 not an image.*1 empty.*give a folder"
    ):
        ImageSet.find(tmp_path, 3)


def test_folder_missing_or_a_file_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*does not exist"):
        ImageSet.find(tmp_path / "nowhere", 3)
    with pytest.raises(DataError, match=r"a\.png.*is a file"):
        ImageSet.find(encode(tmp_path / "a.png", RGB), 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no readable image.*no files skipped"):
        ImageSet.find(tmp_path / "empty", 3)


def test_pairs_go_by_name_and_subfolder(tmp_path: Path) -> None:
    inputs, targets = tmp_path / "in", tmp_path / "out"
    for i, name in enumerate(("x/1", "y/1")):
        encode(inputs / f"{name}.png", np.full((4, 6), i, np.uint8))
        encode(targets / f"{name}.tif", np.full((4, 6), 100 + i, np.uint8))
    encode(inputs / "alone.png", RGB)
    encode(inputs / "small.png", RGB)
    encode(targets / "small.png", RGB[:4])
    encode(inputs / "two.png", RGB)
    encode(targets / "two.png", RGB)
    encode(targets / "two.bmp", RGB)
    encode(inputs / "broken.png", RGB)
    (targets / "broken.png").write_text("hello")
    found = ImageSet.find(inputs, 1, targets)
    assert len(found) == 2
    for i, name in enumerate(("x/1.png", "y/1.png")):
        read_name, image, target = found.read(i)
        assert read_name == name
        assert torch.allclose(image, torch.full((1, 4, 6), i / 255))
        assert torch.allclose(target, torch.full((1, 4, 6), (100 + i) / 255))
    reasons = {path.relative_to(tmp_path).as_posix(): reason for path, reason in found.skipped}
    assert reasons == {
        "in/alone.png": "no target of that name",
        "in/two.png": "several targets of that name",
        "in/small.png": "not of its target's size: 7x5 against 7x4",
        "out/broken.png": "not an image",
    }


def test_no_pair_at_all(tmp_path: Path) -> None:
    encode(tmp_path / "in/a.png", RGB)
    encode(tmp_path / "out/b.png", RGB)
    with pytest.raises(
        DataError, match=r"with a target in .*out.*for 'a.png' a target 'a' was looked for.*'b.png'.*--pair"
    ):
        ImageSet.find(tmp_path / "in", 3, tmp_path / "out")
    with pytest.raises(DataError, match="nowhere"):
        ImageSet.find(tmp_path / "in", 3, tmp_path / "nowhere")


def test_cache_keeps_to_its_budget_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        encode(tmp_path / f"{i}.png", np.roll(RGB, i, 1))
    budget = 2 * RGB.nbytes
    found = ImageSet.find(tmp_path, 3, cache_bytes=budget)
    uncached = ImageSet.find(tmp_path, 3, cache_bytes=0)
    decoded: list[str] = []
    decode = module.decode

    def counted(path: Path) -> Any:
        decoded.append(path.name)
        return decode(path)

    monkeypatch.setattr(module, "decode", counted)
    read = [found.read(i)[1] for i in range(4)]
    # 8-bit files take a byte a sample, so exactly two of four fit.
    assert decoded == ["2.png", "3.png"]
    for i, image in enumerate(read):
        assert torch.equal(image, uncached.read(i)[1])
    read[0].zero_()
    assert not torch.equal(found.read(0)[1], read[0])


def test_file_that_vanishes_after_find(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.png", RGB)
    found = ImageSet.find(tmp_path, 3, cache_bytes=0)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        found.read(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_bundled_images(channels: int) -> None:
    bundled = bundled_images(channels)
    assert {"astronaut", "chelsea", "coffee", "rocket"} <= {name for name, _ in bundled}
    for name, image in bundled:
        assert image.shape[0] == channels, name
        assert min(image.shape[1:]) >= 256, name
        assert image.std() > 0.05, name
    if channels == 3:
        # The astronaut's suit is orange: red and blue in the right order.
        red, _, blue = dict(bundled)["astronaut"][:, 300:500, 100:250].mean((1, 2))
        assert red > 1.5 * blue


def test_memory_images() -> None:
    image = torch.rand(3, 4, 4)
    source = MemoryImages([("a", image)])
    assert len(source) == 1
    assert source.read(0)[0] == "a"
    assert source.read(0)[1] is image
    assert source.read(0)[2] is None


def shared(name: str) -> Path:
    root = os.environ.get("CSA2GLMHA_SHARED")
    if not root:
        pytest.skip("CSA2GLMHA_SHARED is not set: it names the folder of real images")
    return Path(root, "data", name)


def test_real_jpegs_read_as_scikit_image_does() -> None:
    from skimage.io import imread

    path = sorted(shared("bsds_train").glob("*.jpg"))[0]
    # Decoders may differ by rounding in the inverse DCT.
    difference = read_image(path, 3).numpy() - chw(imread(path), 255)
    assert np.abs(difference).mean() < 0.5 / 255
    assert np.abs(difference).max() < 6 / 255


def test_real_pairs() -> None:
    folder = shared("rain100l")
    found = ImageSet.find(folder / "input", 3, folder / "target")
    assert len(found) == 3
    for i in range(3):
        _, image, target = found.read(i)
        assert not torch.equal(image, target)
        assert torch.corrcoef(torch.stack([image.flatten(), target.flatten()]))[0, 1] > 0.5
