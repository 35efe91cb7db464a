"""What tensors take in memory, against what a file stores of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.checkpoint.kinds import checkpoint_error
from csa2glmha.core.text import quoted

#: A tensor in a file may repeat what is stored once. Copies may take this many times what is stored.
_MOST_REPEATED, _REPEATED_SLACK = 8, 1 << 26


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an array of numbers in memory."""
    unlike = tensor.is_quantized or tensor.is_nested or tensor.is_meta
    return not unlike and tensor.layout is torch.strided


def check_amount(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are large only because they repeat a few stored values, before they are copied."""
    stored = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors.values()
        if is_plain(tensor)
    }
    needed = sum(4 * tensor.numel() for tensor in tensors.values() if not tensor.is_nested)
    if needed > _MOST_REPEATED * sum(stored.values()) + _REPEATED_SLACK:
        largest = max(tensors, key=lambda name: tensors[name].numel())
        raise checkpoint_error(
            path,
            f"its tensors would take {needed / 1e9:.1f} GB but only {sum(stored.values()) / 1e9:.3f} GB are "
            f"stored; the largest is {quoted(largest)} of shape {tuple(tensors[largest].shape)}",
            "no network has such weights, get the checkpoint from its makers",
        )
