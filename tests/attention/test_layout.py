from __future__ import annotations

from typing import get_args

import pytest
import torch

from csa2glmha.attention.layout import Layout, from_maps, to_maps
from csa2glmha.core.errors import Csa2GlmhaError


@pytest.mark.parametrize("layout", get_args(Layout))
def test_there_and_back(layout: Layout) -> None:
    maps = torch.randn(2, 5, 3, 4)
    there = from_maps(maps, layout)
    shapes = {
        "maps": (2, 5, 3, 4),
        "channels last": (2, 3, 4, 5),
        "tokens": (2, 12, 5),
        "channel rows": (2, 5, 12),
    }
    assert there.shape == shapes[layout]
    assert torch.equal(to_maps(there, layout, (3, 4)), maps)


def test_tokens_are_rows_of_pixels() -> None:
    tokens = torch.randn(2, 12, 5)
    assert torch.equal(to_maps(tokens, "tokens", (3, 4))[:, :, 1, 2], tokens[:, 6])
    column = to_maps(tokens, "tokens")
    assert column.shape == (2, 5, 12, 1)
    assert torch.equal(from_maps(column, "tokens"), tokens)


def test_other_numbers_of_tokens_are_refused() -> None:
    with pytest.raises(Csa2GlmhaError, match=r"^an attention module is called with 12 pixels for 3 x 5; "):
        to_maps(torch.randn(2, 12, 5), "tokens", (3, 5))
