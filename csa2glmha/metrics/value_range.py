"""Whether values of a network of the user's own seem to be taken for what they are not."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from csa2glmha.data.batches import Example
from csa2glmha.metrics.quality import psnr
from csa2glmha.networks import run
from csa2glmha.networks.foreign import ForeignNetwork
from csa2glmha.networks.ranges import RANGES

#: A network that restores anything comes closer than that, in dB; and another range by so much more.
_FAR, _BETTER = 15.0, 6.0


def range_hint(model: nn.Module, example: Example) -> str | None:
    """What to say of an output that is far from the image, which --range may be the reason of; None: nothing.

    Args:
        model: any network; only of one of the user's own the range is not known.
        example: an image. Where it has no ground truth, the output is compared with the image itself.
    """
    if not isinstance(model, ForeignNetwork):
        return None
    wanted = _wanted(example)
    face = model.interface
    found: dict[str, float] = {}
    try:
        for name in (face.value_range, *RANGES):
            model.interface = replace(face, value_range=name)
            with torch.no_grad():
                output = run(model, example.inputs)[0].cpu()
            if output.ndim != 3 or output.shape[0] != wanted.shape[0]:
                return None
            size = tuple(output.shape[-2:])
            fitted = nn.functional.interpolate(wanted[None], size, mode="nearest")[0]
            found[name] = psnr(output.clamp(0, 1), fitted)
            if len(found) == 1 and found[name] >= _FAR:
                return None
    except RuntimeError:  # some refuse values of another range
        pass
    finally:
        model.interface = face
    now = found.get(face.value_range, math.inf)
    best = max(found, key=lambda name: found[name], default=face.value_range)
    if not now < _FAR:
        return None
    told = f"its output for {example.name} is {now:.1f} dB from what it should be"
    if found[best] > now + _BETTER:
        return f"{told}; with --range {best} it would be {found[best]:.1f} dB"
    return f"{told}: check its weights, --range and --output-index"


def _wanted(example: Example) -> Tensor:
    """(C, H, W): the ground truth, or the image where there is none."""
    return example.inputs[0][0] if example.ground_truth is None else example.ground_truth
