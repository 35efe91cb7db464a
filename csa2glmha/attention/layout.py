"""How networks lay out feature maps, and the way from there to (B, C, H, W) and back."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from csa2glmha.core.errors import Csa2GlmhaError

#: (B, C, H, W); (B, H, W, C); (B, N, C) and (B, C, N) with N = H * W pixels row by row.
Layout = Literal["maps", "channels last", "tokens", "channel rows"]


def to_maps(x: Tensor, layout: Layout, size: tuple[int, int] | None = None) -> Tensor:
    """Features as maps (B, C, H, W).

    Args:
        x: in that layout.
        size: H and W, where the layout does not say. Without it the maps are (B, C, N, 1), which is right for
            all that looks at pixels one by one, or at all of them in any order.

    Raises:
        Csa2GlmhaError: there are not H * W pixels.

    >>> import torch
    >>> to_maps(torch.zeros(2, 12, 5), "tokens", (3, 4)).shape
    torch.Size([2, 5, 3, 4])
    """
    if layout == "maps":
        return x
    if layout == "channels last":
        return x.permute(0, 3, 1, 2)
    rows = x.transpose(1, 2) if layout == "tokens" else x
    if size is None:
        return rows.unsqueeze(-1)
    height, width = size
    if height * width != rows.shape[2]:
        raise Csa2GlmhaError(
            f"an attention module is called with {rows.shape[2]} pixels for {height} x {width}; "
            "please report this"
        )
    return rows.reshape(*rows.shape[:2], height, width)


def from_maps(maps: Tensor, layout: Layout) -> Tensor:
    """Maps (B, C, H, W) in that layout: the inverse of :func:`to_maps`."""
    if layout == "maps":
        return maps
    if layout == "channels last":
        return maps.permute(0, 2, 3, 1)
    rows = maps.flatten(2)
    return rows.transpose(1, 2) if layout == "tokens" else rows
