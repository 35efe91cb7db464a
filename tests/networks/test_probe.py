"""What a network takes and makes, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from csa2glmha.core.errors import NetworkError
from csa2glmha.networks.foreign import Interface
from csa2glmha.networks.probe import probe


class Behind(nn.Module):
    """A convolution, and something that is made of its output."""

    def __init__(self, made: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.made = nn.Conv2d(3, 3, 1), made

    def forward(self, x: Tensor) -> object:
        return self.made(self.layer(x))


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda y: y[..., :0, :0], "is no enlarged or reduced image"),
        (lambda y: y / 0 * 0, "its output is not finite"),
        (lambda y: {"width": 3}, "makes no tensor, but a dict without one"),
        (lambda y: [], "makes no tensor, but a list without one"),
    ],
    ids=["no pixels", "not a number", "a dict", "an empty list"],
)
def test_outputs_that_are_no_images_are_told(made: Callable[[Tensor], object], match: str) -> None:
    with pytest.raises(NetworkError, match=match):
        probe(Behind(made), "archs.py:build", (), Interface((), 0))


def test_an_image_is_one() -> None:
    assert probe(Behind(lambda y: y), "archs.py:build", (), Interface((), 0)).out_channels == 3
