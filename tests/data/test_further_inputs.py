"""Inputs beside the image: a folder, a file or a number, cut and turned as the image is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from csa2glmha.config.options import WorkOptions, make_options
from csa2glmha.core.errors import Csa2GlmhaError, DataError, UsageError
from csa2glmha.data import write_image
from csa2glmha.data.batches import Data
from csa2glmha.data.inputs.kind import NetworkFacts
from csa2glmha.data.open import input_kind

IMAGE, MAP, VECTOR = (1, 3, 32, 48), (1, 1, 32, 48), (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, for each a map that is its red channel, the same at half the size, and two numbers."""
    place = tmp_path_factory.mktemp("more inputs")
    for name in ("images", "maps", "halves", "numbers"):
        (place / name).mkdir()
    for index in range(4):
        image = torch.rand(3, 40, 52, generator=torch.Generator().manual_seed(index)).mul(255).round() / 255
        write_image(place / "images" / f"{index}.png", image)
        write_image(place / "maps" / f"{index}.png", image[:1])
        np.save(place / "halves" / f"{index}.npy", np.full((20, 26), index, np.float32))
        np.save(place / "numbers" / f"{index}.npy", image[:2, 0, 0].numpy())
    return place


def facts(*further: tuple[int, ...]) -> NetworkFacts:
    names = ("image", "first", "second")[: 1 + len(further)]
    return NetworkFacts("it", "images", 3, 3, len(names), arguments=names, shapes=(IMAGE, *further))


def options(folder: Path, **more: object) -> WorkOptions:
    return make_options(data=folder / "images", **more)


def opened(folder: Path, network: NetworkFacts, **more: object) -> Data:
    return input_kind(network).open_data(network, options(folder, **more))


@pytest.mark.parametrize("degrade", ["none", None])
def test_maps_are_cut_and_turned_with_the_image(folder: Path, degrade: str | None) -> None:
    more = {"inputs": {"first": folder / "maps"}, "degrade": degrade}
    data = opened(folder, facts(MAP), **more)
    batches = [data.training(16, seed=1).batch(0, first, 4).inputs for first in (0, 4)]
    for image, beside in (*batches, *data.calibration(16, 4, 0), data.examples(16, 0)[0].inputs):
        assert beside.shape[1] == 1 and torch.equal(beside, image[:, :1])


def test_the_degradation_is_of_the_image_alone(folder: Path) -> None:
    data = opened(folder, facts(MAP), inputs={"first": folder / "maps"}, degrade="noise:25")
    batch = data.training(16, seed=1).batch(0, 0, 4)
    assert batch.ground_truth is not None and batch.ground_truth.shape == (4, 3, 16, 16)
    assert torch.equal(batch.inputs[1], batch.ground_truth[:, :1])
    assert 0.05 < float((batch.inputs[0] - batch.ground_truth).std()) < 0.15


def test_a_reduced_map_and_numbers(folder: Path) -> None:
    network = facts((1, 1, 16, 24), VECTOR)
    given = {"first": folder / "halves", "second": folder / "numbers"}
    data = opened(folder, network, inputs=given, degrade="none")
    _, half, numbers = data.training(16, seed=2).batch(0, 0, 4).inputs
    assert half.shape == (4, 1, 8, 8) and numbers.shape == (4, 2)
    for index, each in zip(half[:, 0, 0, 0].tolist(), numbers, strict=True):
        assert torch.equal(each, torch.from_numpy(np.load(folder / "numbers" / f"{index:.0f}.npy")))


def test_one_value_for_all_and_images_of_a_run(folder: Path) -> None:
    network = facts(MAP, VECTOR)
    given = {"first": 0.25, "second": folder / "numbers" / "1.npy"}
    files = input_kind(network).open_files(network, options(folder, inputs=given), ".npy")
    source = files.reader([])((folder / "images" / "3.png",), 10**9)
    assert [tuple(each.shape) for each in source.inputs] == [(1, 3, 40, 52), (1, 1, 40, 52), (1, 2)]
    assert bool((source.inputs[1] == 0.25).all())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "it takes first beside the image: give --input first=FOLDER"),
        ({"frist": 1}, "--input frist: it has no such input beside the image; it takes first"),
        ({"first": "nowhere"}, "nowhere"),
        ({"first": "nan"}, "--input first=nan: give a finite number"),
        ({"first": "numbers"}, "holds (2), and first for 0.png is to be 1x40x52"),
        ({"first": "empty"}, "--input first: there is no file for"),
    ],
)
def test_what_is_wrong_is_told(given: dict[str, object], said: str, folder: Path) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    paths = {
        name: value if isinstance(value, int) or value == "nan" else folder / value
        for name, value in given.items()
    }
    with pytest.raises(Csa2GlmhaError) as error:
        opened(folder, facts(MAP), inputs=paths, degrade="none")
    assert said in str(error.value).replace("1.png", "0.png").replace("2.png", "0.png").replace(
        "3.png", "0.png"
    )


FLOATS = torch.rand(2, 40, 52, generator=torch.Generator().manual_seed(9)).numpy()


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    if path.suffix == ".mat":
        scipy.io.savemat(path, arrays)
    else:
        np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "arrays", "given", "shape"),
    [
        ("one.npz", {"depth": FLOATS}, "", (1, 2, 32, 48)),
        ("last.npz", {"depth": FLOATS.transpose(1, 2, 0)}, "", (1, 2, 32, 48)),
        ("shaped.npz", {"name": np.ones(3), "depth": FLOATS[None]}, "", (1, 2, 32, 48)),
        ("two.npz", {"near": FLOATS, "far": FLOATS + 1}, ":near", (1, 2, 32, 48)),
        ("last.mat", {"depth": FLOATS.transpose(1, 2, 0)}, "", (1, 2, 32, 48)),
        ("two.mat", {"near": FLOATS[0], "far": FLOATS[1]}, ":near", MAP),
        ("row.mat", {"row": np.array([3.0, 4.0]), "map": FLOATS[0]}, "", VECTOR),
        ("number.mat", {"level": np.array([[0.5]])}, "", (1, 1)),
    ],
)
def test_arrays_of_files_of_several(
    name: str, arrays: dict[str, np.ndarray], given: str, shape: tuple[int, ...], tmp_path: Path, folder: Path
) -> None:
    """The one that fits is taken, whatever it is called; MATLAB has channels last and rows of numbers."""
    write_arrays(tmp_path / name, **arrays)
    network = facts(shape)
    more = {"first": f"{tmp_path / name}{given}"}
    files = input_kind(network).open_files(network, options(folder, inputs=more), ".npy")
    _, found = files.reader([])((folder / "images" / "3.png",), 10**9).inputs
    wanted = {4: FLOATS[: shape[1]], 2: np.array([3.0, 4.0] if shape[1] == 2 else [0.5])}[len(shape)]
    assert torch.equal(found[0], torch.from_numpy(wanted.astype(np.float32)))


@pytest.mark.parametrize(
    ("arrays", "given", "said"),
    [
        ({"near": FLOATS, "far": FLOATS}, "", "near (2x40x52), far (2x40x52), of which several fit"),
        ({"near": FLOATS, "far": FLOATS}, ":depth", "has no array depth, but near (2x40x52)"),
        ({"near": FLOATS[:, 1:]}, "", "holds near (2x39x52), and first for"),
        ({"near": FLOATS * np.inf}, "", "holds values that are not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_told(
    arrays: dict[str, np.ndarray], given: str, said: str, tmp_path: Path, folder: Path
) -> None:
    write_arrays(tmp_path / "maps.npz", **arrays)
    network = facts((1, 2, 32, 48))
    more = {"first": f"{tmp_path / 'maps.npz'}{given}"}
    files = input_kind(network).open_files(network, options(folder, inputs=more), ".npy")
    with pytest.raises(DataError) as error:
        files.reader([])((folder / "images" / "3.png",), 10**9)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["first", "first=", "=1", "a b=1"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give NAME=FOLDER, NAME=FILE or NAME=NUMBER"):
        make_options(inputs=(text,))


def test_a_network_of_one_input_takes_no_other(folder: Path) -> None:
    network = NetworkFacts("it", "images", 3, 3)
    with pytest.raises(UsageError, match="--input mask: it has no such input beside the image"):
        opened(folder, network, inputs={"mask": 1}, degrade="none")
