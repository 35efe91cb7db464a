"""Networks that are close to supported ones and are none: named, so that an error can say what a file is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_BLOCK = "encoder_layers.0.0.blocks.0.0.to_q.weight"
_MASK_BRANCH = "encoder_layers.0.0.blocks.0.0.mm.depth_conv.weight"


def describe_variant(state: Mapping[str, Tensor]) -> str | None:
    """What network a state dict is of; None if it is none of those known here."""
    fusion = state.get("fution.weight", state.get("fusion.weight"))
    if "body.0." + _BLOCK in state and "conv_in.weight" in state and fusion is not None:
        before = f" of {fusion.shape[1]} to {fusion.shape[0]} channels" if fusion.ndim == 4 else ""
        return (
            f"MST++ for CASSI measurements (with a fusion{before} in front; mst_plus_plus is of RGB images)"
        )
    if _BLOCK in state and "mapping.weight" in state:
        if "embedding_1.weight" in state and "embedding_2.weight" in state:
            return (
                "MST for RGB images, of NTIRE 2022 (two embeddings make features and mask; mst is of CASSI)"
            )
        if fusion is not None and _MASK_BRANCH not in state:
            return (
                "MST for real CASSI measurements (no mask branch, and a fusion in front; mst has the branch)"
            )
    return None
