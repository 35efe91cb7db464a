"""Images for classifiers: their size, their parts, their true classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from csa2glmha.config.options import make_options
from csa2glmha.core.errors import UsageError
from csa2glmha.data.batches import seeded
from csa2glmha.data.images import write_image
from csa2glmha.data.inputs.classes import image_size
from csa2glmha.data.inputs.kind import NetworkFacts
from csa2glmha.data.labels import labels_of
from csa2glmha.data.open import KINDS, input_kind
from csa2glmha.data.whole_images import centred, random_view
from csa2glmha.metrics.outputs import LOGITS
from csa2glmha.networks.foreign import CLASSES
from csa2glmha.networks.ranges import RANGES

NETWORK = NetworkFacts("tiny", CLASSES, 3, 2)


def gradient(height: int, width: int) -> Tensor:
    """Dark on the left, bright on the right."""
    return torch.linspace(0, 1, width).expand(3, height, width).clone()


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (9, 11), (100, 100)])
def test_the_middle_of_an_image_of_any_size(shape: tuple[int, int]) -> None:
    view = centred(gradient(*shape), (32, 24))
    assert view.shape == (3, 32, 24)
    assert float(view.min()) >= 0 and float(view.max()) <= 1
    # It is the middle: as much is left out on both sides.
    assert float(view[..., 0].mean() + view[..., -1].mean()) == pytest.approx(1, abs=0.05)
    assert float(view[..., 0].mean()) > 0.5 / shape[1]


def test_random_parts_are_reproducible_and_differ() -> None:
    image = torch.rand(3, 50, 70, generator=seeded("image"))
    views = [random_view(image, (16, 20), seeded("view", number)) for number in range(40)]
    assert all(view.shape == (3, 16, 20) for view in views)
    assert torch.equal(views[3], random_view(image, (16, 20), seeded("view", 3)))
    assert len({float(view.sum()) for view in views}) == 40


def folder_of(place: Path, names: list[str]) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(place / name, torch.rand(3, 12, 14))
    return place


def test_classes_are_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = ["dog/a.png", "ant/deep/b.png"]
    labels, notes = labels_of(folder_of(tmp_path, names), names, 2)
    assert labels is not None and labels.folders == ("ant", "dog") and "sorted by name" in notes[0]
    assert labels.one_hot("dog/a.png").tolist() == [0, 1]
    assert labels.one_hot("ant/deep/b.png").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "classes", "said"),
    [
        (["a.png", "b.png"], 2, None),
        (["one/a.png", "two/b.png"], 3, "2 folders are not the 3 classes of the network"),
        (["one/a.png", "two/b.png", "c.png"], 2, "c.png is in no folder of a class"),
    ],
)
def test_other_folders_tell_no_classes(
    names: list[str], classes: int, said: str | None, tmp_path: Path
) -> None:
    labels, notes = labels_of(folder_of(tmp_path, names), names, classes)
    assert labels is None
    assert (said in notes[0]) if said else not notes


def test_the_size_of_images() -> None:
    told = NetworkFacts("tiny", CLASSES, 3, 2, metadata={"image_size": "48x64"})
    fixed = NetworkFacts("tiny", CLASSES, 3, 2, size=(32, 48))
    own = {"network": "a:b"}
    assert image_size(NETWORK, make_options()) == (224, 224)
    assert image_size(NETWORK, make_options(example=("1x3x96x80",), **own)) == (96, 80)
    assert image_size(told, make_options(example=("1x3x96x80",), **own)) == (48, 64)
    assert image_size(told, make_options(input_size=128)) == (128, 128)
    assert image_size(fixed, make_options()) == (32, 48)
    with pytest.raises(UsageError, match="takes images of 32x48 pixels only, not of 128x128"):
        image_size(fixed, make_options(input_size=128))


def test_data_of_a_classifier(tmp_path: Path) -> None:
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)]
    options = make_options(data=folder_of(tmp_path, names), input_size=16, crop=32, degrade="noise:10")
    kind = input_kind(NETWORK)
    assert kind is KINDS[CLASSES]
    data = kind.open_data(NETWORK, options)
    assert data.outputs is LOGITS and data.frame(256) == (16, 16) and data.degradation == "noise:10"
    assert (data.training_images, data.held_out_images) == (9, 1)
    assert any("--crop 32: not used" in note for note in data.notes)
    batch = data.training(None, 0).batch(0, 0, 3)
    assert batch.inputs[0].shape == (3, 3, 16, 16)
    assert batch.ground_truth is not None and batch.ground_truth.sum(1).tolist() == [1, 1, 1]
    (example,) = data.examples(256, 0)
    assert example.inputs[0].shape == (1, 3, 16, 16) and example.ground_truth is not None
    assert [len(each[0]) for each in data.calibration(128, 5, 0)] == [2, 2, 1]
    assert len(data.calibration(128, 5, 0, held_out=True)) == 1
    assert torch.equal(data.calibration(128, 4, 7)[1][0], data.calibration(128, 4, 7)[1][0])


def test_imagenet_values_are_those_of_its_mean_and_deviation() -> None:
    image = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    values = RANGES["imagenet"]
    assert float(values.enter(image).abs().max()) < 1e-6
    assert torch.allclose(
        values.enter(image + torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)), torch.ones(1)
    )
    assert torch.allclose(values.leave(values.enter(image)), image)
    other = torch.rand(1, 5)
    assert values.enter(other) is other and RANGES["0-255"].enter(other) is other
