"""What image files hold is read as stored, written back, or refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from csa2glmha.commands.run import run_files
from csa2glmha.core.errors import DataError
from csa2glmha.data.decode import decode
from csa2glmha.data.encode import encode
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import read_image, write_image
from csa2glmha.data.stored import StoredImage, UnreadableError, turned
from csa2glmha.inference.memory import used_bytes
from csa2glmha.inference.plan import TileOptions
from tests.inference.test_restore import Picky

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 28, 4), np.uint8)
RGB, ALPHA = PICTURE[..., :3], PICTURE[..., 3]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def tiff(path: Path, array: np.ndarray, **how: Any) -> Path:
    tifffile.imwrite(path, array, **({"photometric": "rgb"} | how))
    return path


def by_pillow(path: Path, image: Image.Image, **how: Any) -> Path:
    image.save(path, **how)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


# --- TIFF as it is stored


@pytest.mark.parametrize("compression", [None, "zlib", "raw", "tiff_lzw"])
def test_tiff_colours_are_not_multiplied_by_alpha(tmp_path: Path, compression: str | None) -> None:
    path = by_pillow(tmp_path / "a.tif", Image.fromarray(PICTURE, "RGBA"), compression=compression)
    stored = decode(path, with_alpha=True)
    assert np.array_equal(stored.pixels, RGB) and np.array_equal(stored.alpha, ALPHA)


@pytest.mark.parametrize(
    "how",
    [
        {"byteorder": ">"},
        {},
        {"planarconfig": "separate"},
        {"tile": (16, 16)},
        {"compression": "zlib", "predictor": True},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_layouts(tmp_path: Path, how: dict[str, Any], dtype: type) -> None:
    array: Any = PICTURE.astype(dtype) * (257 if dtype == np.uint16 else 1)
    if how.get("planarconfig"):
        array = np.moveaxis(array, -1, 0)
    path = tiff(tmp_path / "a.tif", array, extrasamples=["unassalpha"], **how)
    stored = decode(path, with_alpha=True)
    white = 257 if dtype == np.uint16 else 1
    assert stored.bits == 8 * np.dtype(dtype).itemsize
    assert np.array_equal(stored.pixels, RGB.astype(dtype) * white)
    assert np.array_equal(stored.alpha, ALPHA.astype(dtype) * white)


def test_tiff_compressed_as_only_opencv_reads_it(tmp_path: Path) -> None:
    wide = PICTURE.astype(np.uint16) * 257
    for array in (wide, wide[..., :3], RGB):
        order = [2, 1, 0, 3][: array.shape[-1]]
        # OpenCV writes LZW, which tifffile does not read by itself.
        (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", array[..., order])[1].tobytes())
        stored = decode(tmp_path / "a.tif", with_alpha=True)
        assert np.array_equal(stored.pixels, array[..., :3])
        assert (stored.alpha is not None) == (array.shape[-1] == 4)


def test_associated_alpha_is_taken_out_of_the_colours(tmp_path: Path) -> None:
    alpha = np.maximum(ALPHA, 64)
    colours = (RGB.astype(float) * alpha[..., None] / 255).round().astype(np.uint8)
    path = tiff(tmp_path / "a.tif", np.dstack([colours, alpha]), extrasamples=["assocalpha"])
    stored = decode(path, with_alpha=True)
    # Rounding to 8 bits after the product loses up to half a level times 255 / 64.
    assert np.abs(stored.pixels.astype(int) - RGB).max() <= 2
    assert np.array_equal(stored.alpha, alpha)


@pytest.mark.parametrize("further", ["loop", "cut off"])
def test_pages_that_lead_nowhere_are_refused_at_once(tmp_path: Path, further: str) -> None:
    path = tiff(tmp_path / "a.tif", PICTURE[..., :3], byteorder="<", metadata=None)
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (tags,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + tags * 12, first if further == "loop" else len(data) - 1)
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="damaged"):
        decode(path)


def test_gray_palette_and_white_is_zero_in_tiffs(tmp_path: Path) -> None:
    gray = RGB[..., 0]
    path = tiff(tmp_path / "a.tif", 255 - gray, photometric="miniswhite")
    assert np.array_equal(decode(path).pixels, gray)
    path = tiff(tmp_path / "b.tif", PICTURE[..., :2], photometric="minisblack", extrasamples=["unassalpha"])
    assert np.array_equal(decode(path).pixels, gray)
    palette = Image.fromarray(RGB).quantize(16)
    path = by_pillow(tmp_path / "c.tif", palette)
    assert np.array_equal(decode(path).pixels, np.asarray(palette.convert("RGB")))
    path = by_pillow(tmp_path / "d.tif", Image.fromarray(gray > 99))
    assert np.array_equal(decode(path).pixels, (gray > 99) * 255)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_tiffs(tmp_path: Path, dtype: type) -> None:
    values: Any = (RGB / 255).astype(dtype)
    assert np.array_equal(decode(tiff(tmp_path / "a.tif", values)).pixels, values.astype(np.float32))
    with pytest.raises(UnreadableError, match=r"not scaled to \[0, 1\]: float values"):
        decode(tiff(tmp_path / "b.tif", (RGB * 1.0).astype(dtype)))


@pytest.mark.parametrize("mode, suffix", [("CMYK", ".tif"), ("CMYK", ".jpg"), ("LAB", ".tif")])
def test_colours_that_are_not_rgb_are_refused(tmp_path: Path, mode: str, suffix: str) -> None:
    path = by_pillow(tmp_path / f"a{suffix}", Image.fromarray(RGB).convert(mode))
    with pytest.raises(UnreadableError, match="convert it to RGB first"):
        decode(path)


def test_orientation_where_tifffile_cannot_decompress(tmp_path: Path) -> None:
    for image, suffix in ((Image.fromarray(PICTURE), "rgba"), (Image.fromarray(RGB), "rgb")):
        for orientation in (3, 6):
            path = tmp_path / f"{suffix}{orientation}.tif"
            by_pillow(path, image, compression="tiff_lzw", tiffinfo={274: orientation})
            stored = decode(path, with_alpha=True)
            assert np.array_equal(stored.pixels, turned(RGB, orientation)), path.name
            if suffix == "rgba":
                assert np.array_equal(stored.alpha, turned(ALPHA, orientation))


def test_colours_of_tiffs_as_scanners_write_them(tmp_path: Path) -> None:
    smooth = Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (1, 24, 3)))
    path = by_pillow(tmp_path / "a.tif", smooth.convert("YCbCr"))
    assert np.abs(decode(path).pixels.astype(int) - np.asarray(smooth)).max() <= 1


def test_cubes_and_rare_compressions_in_tiffs_are_refused_by_their_reason(tmp_path: Path) -> None:
    cube = np.zeros((8, 8, 31), np.uint8)
    path = tiff(tmp_path / "a.tif", cube, photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnreadableError, match="31 channels"):
        decode(path)
    path = tiff(tmp_path / "b.tif", RGB.astype(np.uint16))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(50000)
    with pytest.raises(UnreadableError, match="uint16 samples compressed by ZSTD, which are not read"):
        decode(path)


def test_a_png_with_much_text(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3 * 2**20, zip=True)
    path = by_pillow(tmp_path / "a.png", Image.fromarray(RGB), pnginfo=info)
    assert np.array_equal(decode(path).pixels, RGB)
    with pytest.raises(UnreadableError, match="too large for the memory: 28x20"):
        decode(path, 8_000)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(PICTURE, "RGBA")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turned(PICTURE, orientation), wanted)
    png = by_pillow(tmp_path / "a.png", Image.fromarray(PICTURE, "RGBA"), exif=exif)
    webp = by_pillow(
        tmp_path / "a.webp", Image.fromarray(PICTURE, "RGBA"), exif=exif, lossless=True, exact=True
    )
    extra = [(274, "H", 1, orientation, True)]
    tif = tiff(tmp_path / "a.tif", PICTURE, extrasamples=["unassalpha"], extratags=extra)
    for path in (png, webp, tif):
        stored = decode(path, with_alpha=True)
        assert np.array_equal(np.dstack([stored.pixels, stored.alpha]), wanted), path.suffix


def test_what_follows_the_first_image_is_told(tmp_path: Path) -> None:
    tiff(tmp_path / "pages.tif", np.stack([RGB, RGB, RGB]))
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(RGB, photometric="rgb", subifds=0)
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
    frames = [Image.fromarray(255 - RGB)]
    by_pillow(tmp_path / "frames.png", Image.fromarray(RGB), save_all=True, append_images=frames)
    found = ImageSet.find(tmp_path, 3)
    further = {path.name: what for path, what in found.further}
    assert further == {"pages.tif": "2 further pages", "frames.png": "1 further frame"}
    assert found.notes(tmp_path) == (
        f"{tmp_path}: left out: frames.png: 1 further frame, pages.tif: 2 further pages",
    )


# --- checked by the header


@pytest.mark.parametrize("kind", ["png", "tif", "bmp", "ppm"])
def test_an_image_bomb_is_skipped_by_name(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    bomb = tmp_path / "in" / f"bomb.{kind}"
    if kind == "png":
        bomb.write_bytes(png_header(60_000, 60_000))
    elif kind == "tif":
        tiff(bomb, np.zeros((4, 4, 3), np.uint8))
        with tifffile.TiffFile(bomb, mode="r+b") as file:
            for tag in ("ImageWidth", "ImageLength"):
                file.pages.first.tags[tag].overwrite(60_000)
    elif kind == "bmp":
        small = bytearray(cv2.imencode(".bmp", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
        small[18:26] = struct.pack("<ii", 60_000, 60_000)
        bomb.write_bytes(small)
    else:
        bomb.write_bytes(b"P6 60000 60000 255\n" + bytes(100))
    write_image(tmp_path / "in" / "well.png", torch.rand(3, 8, 8))
    found = ImageSet.find(tmp_path / "in", 3)
    assert found.names == ["well.png"]
    ((path, reason),) = found.skipped
    assert path == bomb and reason.startswith("too large: 60000x60000 pixels, at most 1073741824")
    with pytest.raises(DataError, match=rf"bomb\.{kind}.*60000x60000"):
        read_image(bomb, 3)
    assert capfd.readouterr().err == ""


def test_memory_is_looked_at_before_an_image_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(20_000, 20_000))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    # 3 bytes as stored and 12 as float32; an alpha channel is reckoned with.
    with pytest.raises(UnreadableError, match=r"20000x20000 pixels take 6\.40 GB, there are 6\.00"):
        decode(path, 6 * 10**9)


def test_run_looks_at_the_memory_first_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_restormer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(make_restormer().state_dict(), tmp_path / "model.pth")
    (tmp_path / "in").mkdir()
    bomb = tmp_path / "in" / "bomb.png"
    bomb.write_bytes(png_header(20_000, 20_000))
    write_image(tmp_path / "in" / "well.png", torch.rand(3, 8, 8))
    tiles = TileOptions(memory=used_bytes(torch.device("cpu")) + 10**9)
    result = run_files(
        tmp_path / "model.pth", [tmp_path / "in"], tmp_path / "out", tiles=tiles, make_restorer=Picky
    )
    assert [path.name for path in result.written] == ["well.png"]
    ((path, reason),) = result.skipped
    assert path == bomb and "20000x20000 pixels take 6.40 GB" in reason and "give more --memory" in reason
    assert reason in capsys.readouterr().err


def test_a_png_that_says_more_than_it_can_hold_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claims.png"
    path.write_bytes(png_header(8_000, 8_000))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnreadableError, match="truncated or damaged"):
        decode(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    write_image(tmp_path / "a.png", torch.rand(3, 8, 8))
    assert ImageSet.find(tmp_path, 3).skipped == [(tmp_path / "pipe.png", "not a regular file")]


def test_other_formats_under_a_wrong_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UnreadableError, match="HEIC, which is not read"):
        decode(tmp_path / "a.png")


def encoded(kind: str, array: np.ndarray, **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **how)
    return buffer.getvalue()


SEEDS = [
    *(encoded(kind, PICTURE) for kind in ("PNG", "WEBP", "TIFF")),
    *(encoded(kind, RGB) for kind in ("JPEG", "BMP", "PPM")),
    *(encoded("TIFF", RGB, compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")),
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=6),
    kept=st.integers(4, 3000),
)
def test_damaged_headers_end_in_a_reason(
    tmp_path_factory: pytest.TempPathFactory, seed: bytes, changes: list[tuple[int, bytes]], kept: int
) -> None:
    data = bytearray(seed)
    for at, change in changes:
        data[at : at + len(change)] = change
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(data[:kept])
    try:
        stored = decode(path, 10**8, with_alpha=True)
    except UnreadableError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert stored.pixels.dtype in (np.uint8, np.uint16, np.float32)
        assert stored.alpha is None or stored.alpha.shape == stored.pixels.shape[:2]


# --- written with alpha and profile


@pytest.mark.parametrize("suffix, bits", [(".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".webp", 8)])
@pytest.mark.parametrize("with_profile", [False, True])
def test_alpha_and_profile_are_written(tmp_path: Path, suffix: str, bits: int, with_profile: bool) -> None:
    white = 257 if bits == 16 else 1
    pixels, alpha = (array.astype(f"uint{bits}") * white for array in (RGB, ALPHA))
    image = torch.from_numpy(pixels / (2**bits - 1)).permute(2, 0, 1).float()
    profile = PROFILE if with_profile else None
    write_image(tmp_path / f"a{suffix}", image, bits, alpha, profile)
    stored = decode(tmp_path / f"a{suffix}", with_alpha=True)
    assert np.array_equal(stored.pixels, pixels) and np.array_equal(stored.alpha, alpha)
    assert stored.profile == profile


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_profiles_change_no_pixel(suffix: str) -> None:
    image = torch.from_numpy(RGB / 255).permute(2, 0, 1)
    plain, marked = (encode(image, suffix, 8, None, profile) for profile in (None, 70_000 * b"x"))
    assert plain is not None and marked is not None
    before, after = (np.asarray(Image.open(io.BytesIO(data))) for data in (plain, marked))
    assert np.array_equal(before, after)
    # JPEG holds it in two parts.
    assert Image.open(io.BytesIO(marked)).info["icc_profile"] == 70_000 * b"x"


@pytest.mark.parametrize(
    "name, how, losses",
    [
        ("a.png", {"icc_profile": PROFILE}, []),
        ("a.jpg", {"icc_profile": PROFILE}, []),
        ("gray.png", {"icc_profile": PROFILE[:16] + b"GRAY" + PROFILE[20:]}, ["the colour profile"]),
        ("wrong.jpg", {"format": "PNG", "icc_profile": PROFILE}, ["the alpha channel"]),
        ("a.bmp", {"format": "PNG", "icc_profile": PROFILE}, ["the alpha channel", "the colour profile"]),
        ("key.png", {"transparency": (1, 2, 3)}, ["the transparency of one colour"]),
    ],
)
def test_run_keeps_or_tells(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_restormer: Any,
    name: str,
    how: Any,
    losses: list[str],
) -> None:
    torch.save(make_restormer().state_dict(), tmp_path / "model.pth")
    with_alpha = not name.endswith((".jpg", "key.png")) or "format" in how
    by_pillow(tmp_path / name, Image.fromarray(PICTURE if with_alpha else RGB), **how)
    (written,) = run_files(
        tmp_path / "model.pth", [tmp_path / name], tmp_path / "out", make_restorer=Picky
    ).written
    said = capsys.readouterr().err
    assert [word for word in ("alpha", "profile", "transparency") if word in said] == [
        word for word in ("alpha", "profile", "transparency") if any(word in loss for loss in losses)
    ]
    stored: StoredImage = decode(written, with_alpha=True)
    kept = "icc_profile" in how and not any("profile" in loss for loss in losses)
    assert stored.profile == (how["icc_profile"] if kept else None)
    if with_alpha and not any("alpha" in loss for loss in losses):
        assert np.array_equal(stored.alpha, ALPHA)


def test_png_keeps_what_says_how_its_colours_are_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_restormer: Any
) -> None:
    torch.save(make_restormer().state_dict(), tmp_path / "model.pth")
    plain = encoded("PNG", RGB)
    chunks = b""
    for kind, content in ((b"cICP", b"\x09\x10\0\1"), (b"gAMA", (45455).to_bytes(4, "big"))):
        chunks += (
            len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        )
    (tmp_path / "a.png").write_bytes(plain[:33] + chunks + plain[33:])
    (written,) = run_files(
        tmp_path / "model.pth", [tmp_path / "a.png"], tmp_path / "out", make_restorer=Picky
    ).written
    assert written.read_bytes()[33 : 33 + len(chunks)] == chunks
    assert np.array_equal(decode(written).pixels, RGB)


# --- files that change


@pytest.mark.parametrize("change", ["deleted", "changed"])
def test_a_file_that_changes_while_it_is_in_use(tmp_path: Path, change: str) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.png", torch.rand(3, 8, 8))
    found = ImageSet.find(tmp_path, 3, cache_bytes=0)
    if change == "deleted":
        (tmp_path / "b.png").unlink()
    else:
        write_image(tmp_path / "b.png", torch.rand(3, 8, 8))
    found.read(0)
    with pytest.raises(DataError, match=rf"b\.png.*{'no longer' if change == 'deleted' else 'was changed'}"):
        found.read(1)
