"""Images and arrays that nobody would store: each is read or refused in words, and nothing else happens.

How many inputs: as in test_fuzz.py.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st

from csa2glmha.data.arrays import find_array
from csa2glmha.data.images import read_image, read_stored
from csa2glmha.data.inputs.cubes import read_cube
from tests.fuzzing import INTEGERS, TEXT, accepts_or_refuses, confined, damaged, folder_with, inputs
from tests.fuzzing import hangs_are_told as hangs_are_told

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

#: Bytes of memory that an image may take here; headers may say that it takes more.
ROOM = 1 << 26


def reads_or_refuses(data: bytes, suffix: str, channels: int = 3) -> None:
    with folder_with(**{f"image_{suffix}": data}) as folder, confined(folder):
        path = folder / f"image.{suffix}"
        found = accepts_or_refuses(lambda: read_stored(path, channels, ROOM))
        plain = accepts_or_refuses(lambda: read_image(path, channels)) if found else None
    if found is not None:
        image, stored = found
        assert image.dtype == torch.float32 and image.ndim == 3 and len(image) == channels
        assert image.shape[1:] == stored.pixels.shape[:2] and image.min() >= 0 and image.max() <= 1
        assert stored.alpha is None or stored.alpha.shape == stored.pixels.shape[:2]
        assert plain is not None and torch.equal(plain, image)  # alpha is read beside it, and changes nothing


# --- images

_RANDOM = np.random.default_rng(0)


def pictures() -> dict[str, bytes]:
    """Small images of every format, by suffix and kind."""
    found = {}
    for kind, shape in {"gray": (9, 12), "colour": (9, 12, 3), "alpha": (9, 12, 4)}.items():
        for dtype in (np.uint8, np.uint16):
            pixels = _RANDOM.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
            for suffix in ("png", "tif", "jpg", "bmp", "webp", "ppm", "pgm"):
                if dtype == np.uint16 and suffix in ("jpg", "bmp", "webp"):
                    continue
                if suffix in ("ppm", "pgm") and kind != {"ppm": "colour", "pgm": "gray"}[suffix]:
                    continue
                found[f"{kind} {np.dtype(dtype).name}.{suffix}"] = cv2.imencode(f".{suffix}", pixels)[
                    1
                ].tobytes()
    for name, options in {
        "float": {"data": _RANDOM.random((9, 12, 3), np.float32)},
        "pages": {"data": _RANDOM.integers(0, 255, (3, 9, 12, 3), np.uint8), "photometric": "rgb"},
        "tiles": {
            "data": _RANDOM.integers(0, 255, (40, 40, 3), np.uint8),
            "tile": (16, 16),
            "photometric": "rgb",
        },
        "planes": {
            "data": _RANDOM.integers(0, 255, (3, 9, 12), np.uint8),
            "photometric": "rgb",
            "planarconfig": 2,
        },
        "packed": {
            "data": _RANDOM.integers(0, 255, (9, 12), np.uint8),
            "compression": "zlib",
            "predictor": True,
        },
        "large": {"data": _RANDOM.integers(0, 255, (9, 12), np.uint8), "bigtiff": True},
    }.items():
        file = io.BytesIO()
        tifffile.imwrite(file, **options)
        found[f"{name}.tif"] = file.getvalue()
    return found


PICTURES = pictures()


@inputs(600)
@given(
    st.sampled_from(list(PICTURES)).flatmap(
        lambda name: st.tuples(damaged(PICTURES[name], 128), st.just(name.split(".")[1]))
    ),
    st.sampled_from([1, 3]),
)
def test_damaged_images(image: tuple[bytes, str], channels: int) -> None:
    reads_or_refuses(*image, channels)


SIZES = st.one_of(
    st.integers(0, 20), st.sampled_from([255, 2**14, 2**15, 2**16 - 1, 2**20, 2**31 - 1, 2**32 - 1])
)
CONTENT = st.one_of(st.binary(max_size=200), st.integers(0, 3000).map(bytes))


def png(
    width: int, height: int, bits: int, colour: int, interlaced: int, content: bytes, packed: bool
) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(9)) if colour == 3 else b""
    parts = chunk(b"IHDR", header), palette, chunk(b"IDAT", zlib.compress(content) if packed else content)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


PNG = st.builds(
    png, SIZES, SIZES, st.sampled_from([0, 1, 2, 4, 8, 16, 32, 255]), st.integers(0, 7), st.integers(0, 2),
    CONTENT, st.booleans(),
)  # fmt: skip
JPEG = st.builds(
    lambda height, width, bits, parts, kind, content: (
        b"\xff\xd8\xff" + bytes([kind])
        + struct.pack(">HBHHB", 8 + 3 * parts, bits, height % 65536, width % 65536, parts)
        + b"\x01\x22\x00" * parts + b"\xff\xda" + content + b"\xff\xd9"
    ),
    SIZES, SIZES, st.sampled_from([8, 12, 16, 0]), st.integers(0, 5),
    st.sampled_from([0xC0, 0xC1, 0xC2, 0xC3, 0xC9]), CONTENT,
)  # fmt: skip
SIGNED = SIZES.map(lambda size: size % 2**32 - (size % 2**32 >= 2**31) * 2**32)
BMP = st.builds(
    lambda start, size, width, height, planes, bits, packing, content: (
        b"BM" + struct.pack("<IHHI", 54 + len(content), 0, 0, start % 2**32)
        + struct.pack("<IiiHHIIiiII", size, width, height, planes, bits, packing, 0, 0, 0, 0, 0) + content
    ),
    st.one_of(st.just(54), SIZES), st.sampled_from([40, 12, 56, 108, 124, 0]), SIGNED,
    st.one_of(SIGNED, SIGNED.map(lambda size: -size % 2**31)),
    st.sampled_from([1, 0, 7]), st.sampled_from([1, 4, 8, 16, 24, 32, 0, 64]), st.integers(0, 12), CONTENT,
)  # fmt: skip
PNM = st.builds(
    lambda kind, width, height, most, blank, content: (
        b"P" + kind + blank + b"%d %d" % (width, height) + blank + b"%d\n" % most + content
    ),
    st.sampled_from([b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"F"]), SIZES, SIZES,
    st.sampled_from([255, 65535, 0, 1, 254, 65536, 10**30]),
    st.sampled_from([b"\n", b" ", b"\n# x\n", b"", b"\0"]), CONTENT,
)  # fmt: skip
WEBP = st.builds(
    lambda kind, width, height, content, wrong: (
        b"RIFF" + struct.pack("<I", (len(content) + 22 + wrong) % 2**32) + b"WEBP" + kind
        + struct.pack("<I", len(content) + 10)
        + {
            b"VP8 ": b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width % 2**14, height % 2**14),
            b"VP8L": b"\x2f" + struct.pack("<I", width % 2**14 | (height % 2**14) << 14) + bytes(5),
            b"VP8X": b"\x10\0\0\0" + (width % 2**24).to_bytes(3, "little")
            + (height % 2**24).to_bytes(3, "little"),
        }[kind] + content
    ),
    st.sampled_from([b"VP8 ", b"VP8L", b"VP8X"]), SIZES, SIZES, CONTENT, st.sampled_from([0, 1, -10, 10**6]),
)  # fmt: skip


@st.composite
def tiff(draw: st.DrawFn) -> bytes:
    """The usual entries with any values, and others."""
    order, sign = draw(st.sampled_from([("<", b"II*\0"), (">", b"MM\0*")]))
    content = draw(CONTENT)
    usual = {
        256: draw(SIZES), 257: draw(SIZES), 258: draw(st.sampled_from([1, 8, 16, 32, 64, 0, 12])),
        259: draw(st.sampled_from([1, 1, 1, 5, 7, 8, 32773, 2, 34712])), 262: draw(st.integers(0, 8)), 273: 8,
        277: draw(st.sampled_from([1, 3, 4, 0, 5, 65535])), 278: draw(SIZES), 279: len(content),
        284: draw(st.integers(0, 3)), 339: draw(st.integers(0, 5)), 274: draw(st.integers(0, 9)),
    }  # fmt: skip
    for tag in draw(st.lists(st.sampled_from([*usual, 320, 322, 323, 338, 330, 34675, 1]), max_size=3)):
        usual[tag] = draw(SIZES)
    entries = b""
    for tag, value in sorted(usual.items()):
        if draw(st.integers(0, 19)):
            kind = draw(st.sampled_from([3, 4, 4, 4, 4, 16, 7, 0])) if draw(st.integers(0, 9)) == 0 else 4
            count = 1 if draw(st.integers(0, 9)) else draw(SIZES)
            entries += struct.pack(order + "HHII", tag, kind, count, value)
    where = 8 + len(content)
    following = draw(st.sampled_from([0, 0, 0, where, 8, 2**31]))
    directory = struct.pack(order + "H", len(entries) // 12) + entries + struct.pack(order + "I", following)
    return sign + struct.pack(order + "I", where) + content + directory


@inputs(600)
@given(
    st.one_of(*(st.tuples(data, st.just(suffix)) for data, suffix in (
        (PNG, "png"), (JPEG, "jpg"), (BMP, "bmp"), (PNM, "ppm"), (WEBP, "webp"), (tiff(), "tif"),
        (tiff(), "tif"),
    )))
)  # fmt: skip
def test_image_headers(image: tuple[bytes, str]) -> None:
    reads_or_refuses(*image)


# --- arrays


def in_file(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def hdf5(file: io.BytesIO) -> None:
    with h5py.File(file, "w", userblock_size=512) as made:
        made["cube"] = _RANDOM.random((4, 5, 6), np.float32)
        made.create_dataset("packed", data=np.ones((20, 20)), chunks=(5, 5), compression="gzip")
        made.create_group("group")["mask"] = np.ones((5, 6), np.uint8)
        made["cube"].attrs["MATLAB_class"] = np.bytes_("single")


def matlab(file: io.BytesIO, arrays: dict[str, Any], **options: Any) -> None:
    """Without the time that such a file begins with, so that it is the same one every time."""
    scipy.io.savemat(file, arrays, **options)
    file.getbuffer()[:116] = b"MATLAB 5.0 MAT-file".ljust(116)


CUBE, MASK = _RANDOM.random((4, 5, 6), np.float32), np.ones((5, 6), np.uint8)
ARRAYS = {
    "old.mat": in_file(lambda file: matlab(file, {"cube": CUBE, "mask": MASK})),
    "packed.mat": in_file(lambda file: matlab(file, {"cube": CUBE, "x": {"y": 1}}, do_compression=True)),
    "oldest.mat": in_file(lambda file: scipy.io.savemat(file, {"mask": MASK}, format="4")),
    "new.mat": in_file(hdf5),
    "cube.npy": in_file(lambda file: np.save(file, CUBE)),
    "objects.npy": in_file(lambda file: np.save(file, np.array([None, {}], object), allow_pickle=True)),
    "cubes.npz": in_file(lambda file: np.savez(file, cube=CUBE, mask=MASK)),
    "packed.npz": in_file(lambda file: np.savez_compressed(file, cube=CUBE)),
    "cube.tif": in_file(lambda file: tifffile.imwrite(file, CUBE, photometric="minisblack")),
}


def arrays_or_refused(data: bytes, suffix: str, ndim: int, key: str | None) -> None:
    with folder_with(**{f"array_{suffix}": data}) as folder, confined(folder):
        path = folder / f"array.{suffix}"
        stored = accepts_or_refuses(lambda: find_array(path, ndim, key))
        if stored is not None and np.prod([float(side) for side in stored.shape]) < ROOM:
            array = accepts_or_refuses(stored.read)
            assert array is None or array.shape == stored.shape
            accepts_or_refuses(lambda: read_cube(path, 4, key))


NAMES = st.one_of(st.none(), st.sampled_from(["cube", "mask", "packed", "x", "group", ""]))


@inputs(400)
@given(
    st.sampled_from(list(ARRAYS)).flatmap(
        lambda name: st.tuples(damaged(ARRAYS[name], 512), st.just(name.split(".")[1]))
    ),
    st.sampled_from([2, 3]),
    NAMES,
)
def test_damaged_arrays(array: tuple[bytes, str], ndim: int, key: str | None) -> None:
    arrays_or_refused(*array, ndim, key)


SHAPES = st.lists(st.one_of(st.integers(0, 6), INTEGERS), max_size=5).map(tuple)
DESCRIPTIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "descr": st.one_of(
                st.sampled_from(
                    ["<f4", ">f8", "|u1", "<u2", "|O", "<c8", "|S5", "<U9999999", "|V0", "<M8[s]"]
                ),
                TEXT,
                st.just([("a", "<f4"), ("b", "|O")]),
            ),
            "fortran_order": st.one_of(st.booleans(), st.integers()),
            "shape": st.one_of(SHAPES, TEXT),
        }
    ).map(repr),
    TEXT,
    st.integers(1, 5000).map(lambda depth: "(" * depth),
    st.sampled_from(["__import__('os').system('true')", "{'shape': 9**9**9}", "{}", "[]" * 9, "'" * 99]),
)


@inputs(300)
@given(
    DESCRIPTIONS,
    st.integers(0, 4),
    st.binary(max_size=64),
    st.sampled_from([2, 3]),
    st.sampled_from([0, 1, -1, 999]),
)
def test_npy_headers(description: str, version: int, content: bytes, ndim: int, wrong_by: int) -> None:
    text = description.encode("utf-8", "replace") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", max(len(text) + wrong_by, 0) % 65536)
    arrays_or_refused(b"\x93NUMPY" + bytes([version, 0]) + length + text + content, "npy", ndim, None)
