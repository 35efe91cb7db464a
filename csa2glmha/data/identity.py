"""Which images a result rests on, so that it is never mixed with results on others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from csa2glmha.data.batches import Data, Example


def describe_images(data: Data, examples: Sequence[Example]) -> dict[str, Any]:
    """How many images there are, and which are held out, as JSON values.

    Args:
        data: opened.
        examples: the held-out images, as they are evaluated on.

    Returns:
        ``training_images``, ``held_out_images``, ``held_out_names`` and ``held_out_sha256``. The checksum is
        of what was read, not of what a degradation made of it: that may differ in the last bit elsewhere.
    """
    digest = hashlib.sha256()
    for example in examples:
        parts = [] if example.ground_truth is None else [example.ground_truth]
        if example.ground_truth is None or data.degradation is None:
            parts.append(example.inputs[0])
        for part in parts:
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.contiguous().numpy().tobytes())
    return {
        "training_images": data.training_images,
        "held_out_images": data.held_out_images,
        "held_out_names": [example.name for example in examples],
        "held_out_sha256": digest.hexdigest(),
    }
