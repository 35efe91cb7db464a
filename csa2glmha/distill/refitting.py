"""The anchored refit of a student, kept where it helps on images that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from csa2glmha.core.progress import say
from csa2glmha.data.batches import Inputs
from csa2glmha.distill.held_out import HeldOut, agreement
from csa2glmha.initialize.outputs import outputs_of
from csa2glmha.initialize.refit import Refitted, refit


def refit_where_better(
    teacher: nn.Module, student: nn.Module, batches: Sequence[Inputs], held_out: HeldOut
) -> Refitted:
    """Refit all output projections of a student in place, unless that makes it worse.

    Args:
        teacher, student: in eval mode.
        batches: calibration inputs.
        held_out: of other images, with the teacher's outputs.
    """
    layers = outputs_of(student, teacher)
    kept = {name: layer.weight.clone() for name, layer in layers.items()}
    before = agreement(student, held_out)
    fits = refit(teacher, student, layers, batches)
    after = agreement(student, held_out)
    outputs = held_out.outputs
    scale = outputs.scale
    better = outputs.score(after) > outputs.score(before)
    change = f"{scale.label} on {scale.what} {scale.change(before, after)}"
    if better or not fits:
        say(f"refitted {len(fits)} of {len(layers)} output projections: {change}")
    else:
        for name, weight in kept.items():
            layers[name].set_weight(weight)
        say(f"{change}: the refit is left out")
    return Refitted(better, scale.metric, before, after, fits)
