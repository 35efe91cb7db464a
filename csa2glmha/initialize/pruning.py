"""Feed-forward networks pruned as other tools do it, to compare with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from csa2glmha.data.batches import Inputs
from csa2glmha.feedforward.choose import refitted
from csa2glmha.feedforward.prune import activity, largest, magnitudes
from csa2glmha.initialize.feedforward import hidden_moments
from csa2glmha.initialize.overflow import naming
from csa2glmha.reading.feedforwards import feed_forwards

ModelT = TypeVar("ModelT", bound=nn.Module)

MAGNITUDE, WANDA = "magnitude", "wanda"


@torch.no_grad()
def pruned_student(
    teacher: ModelT, kind: str, refit: bool, widths: Mapping[str, int], batches: Sequence[Inputs]
) -> ModelT:
    """The teacher with fewer hidden channels in its feed-forward networks; its attention stays.

    Args:
        teacher: in eval mode; it is not changed.
        kind: MAGNITUDE: channels of the smallest weights go; WANDA: those of the smallest weights times
            activations.
        refit: the contraction of what is left comes as close as it can to the whole one, by least squares on
            the teacher's activations. Otherwise it keeps its columns.
        widths: hidden channels to keep of each.
        batches: calibration inputs, a few images each; MAGNITUDE without refit does not look at them.

    Returns:
        The student, in eval mode on the teacher's device.
    """
    student = copy.deepcopy(teacher).eval().requires_grad_(True)
    ours = {name: layer for name, layer in feed_forwards(student).items() if name in widths}
    theirs = {name: layer for name, layer in feed_forwards(teacher).items() if name in widths}
    needed = refit or kind == WANDA
    moments = hidden_moments(teacher, theirs, batches) if needed else {}
    for name, layer in ours.items():
        if needed and name not in moments:  # it did not run
            continue
        scores = magnitudes(layer) if kind == MAGNITUDE else activity(layer, moments[name])
        kept = largest(scores, widths[name])
        with naming(name):
            weight = refitted(moments[name], layer.weight, kept) if refit else None
        layer.keep(kept)
        if weight is not None:
            layer.set_weight(weight)
    return student
