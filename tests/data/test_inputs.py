"""The kind of inputs that a network takes is chosen in one place, by what the network or its file says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import csa2glmha
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import CheckpointError
from csa2glmha.data.inputs.kind import NetworkFacts, facts_of
from csa2glmha.data.open import KINDS, input_kind
from csa2glmha.export.runtime import declared_inputs
from csa2glmha.families.registry import build


@pytest.mark.parametrize(
    ("declared", "channels", "bands", "expected"),
    [
        ("images", 3, 3, "images"),
        ("images", 6, 3, "images"),
        ("images", 31, 31, "images"),
        ("images", 3, 31, "rgb-to-spectra"),  # whatever network it is
        ("rgb-to-spectra", 3, 31, "rgb-to-spectra"),
        ("rgb-to-spectra", 3, 3, "images"),  # trained on images all the same
        ("cassi", 6, 6, "cassi"),  # six bands are no dual-pixel views
    ],
)
def test_a_network_names_its_kind_and_its_channels_confirm_it(
    declared: str, channels: int, bands: int, expected: str
) -> None:
    assert input_kind(NetworkFacts("it", declared, channels, bands)) is KINDS[expected]


@pytest.mark.parametrize(
    ("metadata", "count", "expected"),
    [
        ({"inputs": "cassi", "architecture": "new"}, 1, "cassi"),
        ({"architecture": "mst"}, 1, "cassi"),  # with a mask baked in, by an earlier version
        ({"architecture": "mst_plus_plus"}, 1, "rgb-to-spectra"),
        ({"architecture": "restormer"}, 1, "images"),
        ({"architecture": "of a later version"}, 2, "images"),
        ({}, 2, "cassi"),
        ({}, 1, "images"),
    ],
)
def test_onnx_files_of_before_keep_their_kind(metadata: Mapping[str, str], count: int, expected: str) -> None:
    assert declared_inputs(metadata, count) == expected


def test_a_kind_of_a_later_version_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="'tokens', which this version does not know"):
        input_kind(NetworkFacts("it", "tokens", 3, 3))


@pytest.mark.parametrize("name", ["restormer", "mst", "mst_plus_plus"])
def test_kinds_shape_inputs_as_networks_do(name: str) -> None:
    with torch.device("meta"):
        network = build(name, {})
    facts = facts_of(network)
    assert input_kind(facts).shapes(facts, 16, 32, 2) == network.input_shapes(16, 32, 2)


def test_what_a_student_says_of_its_inputs(tmp_path: Path) -> None:
    spectra, images = NetworkFacts("it", "rgb-to-spectra", 3, 31), NetworkFacts("it", "images", 3, 3)
    made = make_options(stretch=False)
    assert input_kind(spectra).provenance(spectra, made) == {"stretch": "no"}
    assert input_kind(images).provenance(images, make_options()) == {}


def test_nothing_but_the_kinds_asks_for_a_mask() -> None:
    package = Path(csa2glmha.__file__).parent
    asking = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r'"mst"|"mask" in .*input_names', path.read_text(encoding="utf-8"))
    }
    # Files that earlier versions made name their network alone.
    assert {path for path in asking if not path.startswith("families/")} <= {"data/inputs/kind.py"}
