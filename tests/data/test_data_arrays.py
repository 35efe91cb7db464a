"""Array files that are hostile, odd or ambiguous: checked by what they declare; no way to other files."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch

from csa2glmha.core.errors import DataError
from csa2glmha.data import arrays
from csa2glmha.data.arrays import find_array, read_array
from csa2glmha.data.inputs.cubes import read_cube
from csa2glmha.data.inputs.scenes import folder_kind
from csa2glmha.data.inputs.spectral import CubeSet

CUBE = np.random.default_rng(0).random((5, 7, 4))


def refused(call: Callable[..., object], *args: object) -> str:
    with pytest.raises(DataError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def external_link(file: h5py.File, secret: Path) -> None:
    file["cube"] = h5py.ExternalLink(str(secret), "cube")


def soft_link_through_an_external_one(file: h5py.File, secret: Path) -> None:
    file["group"] = h5py.ExternalLink(str(secret), "/")
    file["cube"] = h5py.SoftLink("/group/cube")


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("cube", CUBE.shape, "f8", external=[(str(secret), 0, CUBE.nbytes)])


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(CUBE.shape, "f8")
    layout[...] = h5py.VirtualSource(str(secret), "cube", CUBE.shape)
    file.create_virtual_dataset("cube", layout)


@pytest.mark.parametrize(
    "hide", [external_link, soft_link_through_an_external_one, external_storage, virtual]
)
def test_no_file_makes_another_one_be_read(tmp_path: Path, hide: Callable[..., None]) -> None:
    secret, path = tmp_path / "secret.h5", tmp_path / "scene.mat"
    with h5py.File(secret, "w") as file:
        file["cube"] = CUBE
    with h5py.File(path, "w") as file:
        hide(file, secret)
    for key in (None, "cube"):
        message = refused(read_array, path, 3, key)
        assert repr(str(path)) in message and "not followed" in message
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / path.name)
    assert "not followed" in refused(CubeSet.find, tmp_path / "folder", 4)


def test_tiff_metadata_name_no_other_file(tmp_path: Path) -> None:
    ome = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="float" SizeX="7" SizeY="5" '
        'SizeZ="1" SizeC="2" SizeT="1"><TiffData FirstC="0" IFD="0" PlaneCount="1"/>'
        '<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="other.tif">urn:uuid:1</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    planes = CUBE[..., :2].astype(np.float32)
    tifffile.imwrite(tmp_path / "other.tif", planes[..., 1])
    tifffile.imwrite(tmp_path / "a.tif", planes[..., 0], description=ome, metadata=None)
    assert np.array_equal(read_array(tmp_path / "a.tif", 2), planes[..., 0])


@pytest.mark.parametrize("bigtiff", [True, False])
def test_chains_of_directories_that_lead_nowhere(tmp_path: Path, bigtiff: bool) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, CUBE.transpose(2, 0, 1), photometric="minisblack", bigtiff=bigtiff, metadata=None)
    assert np.allclose(read_cube(path, 4).numpy(), CUBE.transpose(2, 0, 1))
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[-1].offset
        tags = len(file.pages[-1].tags)
    form, place = ("<u8", last + 8 + tags * 20) if bigtiff else ("<u4", last + 2 + tags * 12)
    data = path.read_bytes()
    for target in (first, last, len(data) - 1):  # loops, and an end that is cut off
        wrong = data[:place] + np.array([target], form).tobytes() + data[place + np.dtype(form).itemsize :]
        path.write_bytes(wrong)
        assert "loop" in refused(read_cube, path, 4) or target == len(data) - 1
    path.write_bytes(data[:first] + b"\xff\xff" + data[first + 2 :])
    assert "65535 tags" in refused(read_cube, path, 4)


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("cube", (10**6, 10**6, 4), "f8", chunks=(64, 64, 4))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6, 4)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("cube.npy", header.getvalue())
    for name in ("a.mat", "a.npz"):
        message = refused(read_cube, tmp_path / name, 4)
        assert "1000000x1000000x4" in message and "bytes; give an intact file" in message
    (tmp_path / "a.npy").write_bytes(header.getvalue())
    assert "a.npy" in refused(read_cube, tmp_path / "a.npy", 4)

    scipy.io.savemat(tmp_path / "b.mat", {"cube": CUBE})
    np.save(tmp_path / "b.npy", CUBE)
    tifffile.imwrite(tmp_path / "b.tif", CUBE, photometric="minisblack")
    needed = CUBE.size * (8 + 4)
    for name in ("b.mat", "b.npy", "b.tif"):
        monkeypatch.setattr(arrays, "free_memory", lambda: needed)
        assert read_cube(tmp_path / name, 4).shape == (4, 5, 7)
        monkeypatch.setattr(arrays, "free_memory", lambda: needed - 1)
        assert "GB are free" in refused(read_cube, tmp_path / name, 4)


def test_kinds_of_folders_are_told_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", cube=CUBE)
    monkeypatch.setattr(arrays, "free_memory", lambda: 0)
    assert folder_kind(tmp_path, None) == "cubes"


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_objects_are_not_unpickled(tmp_path: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    array = np.empty((4, 2, 2), object)
    array[...] = Bomb()
    if name == "a.npy":
        np.save(tmp_path / name, array, allow_pickle=True)
    else:
        np.savez(tmp_path / name, cube=array)
    assert name in refused(read_cube, tmp_path / name, 4)
    assert not (tmp_path / "ran").exists()


def test_order_of_axes_in_hdf5(tmp_path: Path) -> None:
    """MATLAB's order only where something says MATLAB; bands in front may be either, which is said."""
    values = CUBE.astype(np.float32)  # height x width x bands
    for name, stored, matlab in (
        ("rows.mat", values, False),
        ("bands.mat", values.transpose(2, 0, 1), False),
        ("matlab.mat", values.T, True),
    ):
        (tmp_path / name[:-4]).mkdir()
        with h5py.File(tmp_path / name[:-4] / name, "w") as file:
            file["cube"] = stored
            if matlab:
                file["cube"].attrs["MATLAB_class"] = np.bytes_("single")
        found = CubeSet.find(tmp_path / name[:-4], 4)
        assert torch.equal(found.read(0)[1], torch.from_numpy(values.transpose(2, 0, 1))), name
        assert found.notes == () or ("MATLAB_class" in found.notes[0] and name == "bands.mat")
        assert bool(found.notes) == (name == "bands.mat")
    assert find_array(tmp_path / "matlab" / "matlab.mat", 3).shape == (5, 7, 4)


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_types_in_matlab_files_do_not_end_the_process(tmp_path: Path, compressed: bool) -> None:
    """SciPy reads out of its tables where a file names types that are none."""
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"first": np.ones((2, 2)), "note": "text", "cube": CUBE})
    data = bytearray(path.read_bytes())
    name = data.index(b"cube")
    assert data[name + 4 : name + 8] == b"\x09\0\0\0"
    complex_flag, kind, size, side = name - 27, name + 4, name + 8, name - 12
    for place, value in (
        (complex_flag, 0x08),
        (kind, 0xC8),
        (kind, 0x0E),
        (size, 0),
        (side, 99),
        (name - 4, 7),
    ):
        damaged = bytearray(data)
        damaged[place] = value
        path.write_bytes(packed(bytes(damaged)) if compressed else damaged)
        assert "a.mat" in refused(read_cube, path, 4), (place - name, value)
    path.write_bytes(packed(bytes(data)) if compressed else data)
    assert np.allclose(read_cube(path, 4).numpy(), CUBE.transpose(2, 0, 1))


def packed(data: bytes) -> bytes:
    """The variables of a MATLAB file, compressed one by one."""
    out, at = data[:128], 128
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        small = zlib.compress(data[at : at + 8 + size])
        out += np.array([15, len(small)], "<u4").tobytes() + small
        at += 8 + size
    return out


def test_matlab_text_is_no_array(tmp_path: Path) -> None:
    """MATLAB 7.3 stores text as numbers, which would stand beside a mask as a second 2-D array."""
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["plane"] = CUBE[..., 0].T
        file["plane"].attrs["MATLAB_class"] = np.bytes_("double")
        file["note"] = np.array([[97], [98]], np.uint16)
        file["note"].attrs["MATLAB_class"] = np.bytes_("char")
    assert np.array_equal(read_array(tmp_path / "a.mat", 2), CUBE[..., 0])


def test_matlab_stores_whole_doubles_as_integers(tmp_path: Path) -> None:
    """Their type is double all the same: zeros and ones are no 1/255, and counts are counts."""
    values = (CUBE > 0.5).astype(np.float64)
    scipy.io.savemat(tmp_path / "a.mat", {"cube": values})
    data = (tmp_path / "a.mat").read_bytes()
    # The same variable as MATLAB writes it: class double (6), values as unsigned bytes (2).
    start = data.index(np.asfortranarray(values).tobytes("F")) - 8
    small = values.astype(np.uint8).tobytes("F")
    element = np.array([2, len(small)], "<u4").tobytes() + small + bytes(-len(small) % 8)
    whole = np.array([14, start - 136 + len(element)], "<u4").tobytes()
    (tmp_path / "a.mat").write_bytes(data[:128] + whole + data[136:start] + element)
    assert scipy.io.loadmat(tmp_path / "a.mat")["cube"].dtype == np.uint8
    assert np.array_equal(read_cube(tmp_path / "a.mat", 4).numpy(), values.transpose(2, 0, 1))


# --- units of cubes


def cubes_of(folder: Path, *arrays_of: np.ndarray) -> Path:
    folder.mkdir()
    for index, array in enumerate(arrays_of):
        np.save(folder / f"{index}.npy", array)
    return folder


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_counts_in_floats_are_scaled_by_what_all_files_need(tmp_path: Path, bits: int) -> None:
    white = 2**bits - 1
    bright, dark = (CUBE * white).round(), (CUBE * white / 100).round()
    bright[0, 0, 0] = white
    black = np.zeros_like(CUBE)
    black[0, 0, 0] = 1
    found = CubeSet.find(cubes_of(tmp_path / "a", dark, bright, black), 4)
    for index, stored in enumerate((dark, bright, black)):
        expected = (stored / white).transpose(2, 0, 1)
        assert np.allclose(found.read(index)[1].numpy(), expected, atol=1e-7)
    assert found.notes == (
        f"0.npy and 2 more: whole numbers up to {white}, taken as counts of {bits} bits and divided by "
        f"{white}",
    )
    uncached = CubeSet.find(tmp_path / "a", 4, cache_bytes=0)
    assert all(torch.equal(found.read(i)[1], uncached.read(i)[1]) for i in range(3))


def test_fractions_stay_as_they_are(tmp_path: Path) -> None:
    ones = (CUBE > 0.5).astype(float)
    found = CubeSet.find(cubes_of(tmp_path / "a", CUBE + 1e-4, ones), 4)
    assert np.allclose(found.read(0)[1].numpy(), (CUBE + 1e-4).transpose(2, 0, 1), atol=1e-7)
    assert np.array_equal(found.read(1)[1].numpy(), ones.transpose(2, 0, 1)) and found.notes == ()
    bright = CubeSet.find(cubes_of(tmp_path / "b", 3 * CUBE), 4)
    assert np.allclose(bright.read(0)[1].numpy(), 3 * CUBE.transpose(2, 0, 1))
    assert "beyond 1 for white; taken as stored" in bright.notes[0]


def test_units_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    for index, (array, words) in enumerate(
        [
            (CUBE * 4095, "neither fractions"),
            (CUBE * 100, "neither fractions"),
            ((CUBE * 1e6).round(), "16 bits"),
            (CUBE * 4 - 2, "light is not negative"),
            (CUBE - 1, "light is not negative"),
            (np.full_like(CUBE, 0.5), "no scene is there"),
        ]
    ):
        found = refused(CubeSet.find, cubes_of(tmp_path / str(index), array), 4)
        assert words in found
    mixed = cubes_of(tmp_path / "mixed", CUBE, (CUBE * 255).round())
    assert "counts up to 25" in refused(CubeSet.find, mixed, 4)


def test_integers_of_fewer_bits_than_their_type_are_said(tmp_path: Path) -> None:
    stored = (CUBE * 4095).astype(np.uint16)
    found = CubeSet.find(cubes_of(tmp_path / "a", stored), 4)
    assert np.allclose(found.read(0)[1].numpy(), stored.transpose(2, 0, 1) / 65535)
    assert "counts of 12 bits" in found.notes[0]
    full = CubeSet.find(cubes_of(tmp_path / "b", (CUBE * 65535).astype(np.uint16)), 4)
    assert full.notes == ()
