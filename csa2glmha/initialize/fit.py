"""What the initialisation says about its own quality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class LayerFit:
    """How well one layer was initialised, all relative to the teacher.

    Attributes:
        key_error, query_error, value_error: relative error of each factorisation in its metric, per head;
            empty where the part is full. Where one projection stands for keys and queries, both have its
            error.
        branch_error: likewise, of the values that the branch beside the attention takes.
        logit_error: residual variance of the logits over their variance; of pointwise layers, which are then
            refined for their output, at the start of that.
        guide_explained: share of that residual which the guide explains on left-out images.
        clusters: (heads, c), the key that every column was assigned to; compact form only.
        analysis: what else was found in the statistics, as JSON values; None if nobody asked.
    """

    key_error: list[float] = field(default_factory=list)
    query_error: list[float] = field(default_factory=list)
    value_error: list[float] = field(default_factory=list)
    branch_error: list[float] = field(default_factory=list)
    logit_error: float = 0.0
    guide_explained: float = 0.0
    clusters: Tensor | None = None
    analysis: dict[str, Any] | None = None
