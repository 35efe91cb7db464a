"""`compress`: a network and batches that a program holds in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from csa2glmha.compression.arguments import (
    begin,
    data_from,
    one_by_one,
    options_from,
    read_unknown,
    teacher_from,
)
from csa2glmha.compression.on_images import on_images
from csa2glmha.compression.result import Compression
from csa2glmha.compression.run import ModelT, Plan, carry_out
from csa2glmha.compression.stages import MAKING, Compare, Count, Distil, Evaluate
from csa2glmha.core.device import resolve_device
from csa2glmha.core.progress import quiet, telling
from csa2glmha.distill import DistillSettings
from csa2glmha.reading.layers import attention_layers

_STAGES = (*MAKING, Distil(), Evaluate(), Count(), Compare())


def compress(
    model: ModelT,
    calibration: Iterable[Any] | str | Path,
    *,
    rank: int | float | str = 8,
    distill: bool | int | DistillSettings | None = None,
    held_out: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Compression[ModelT]:
    """Compress the channel attention of a network in memory.

    Args:
        model: with channel attention anywhere in it, on any device; it is not changed.
        calibration: batches of its inputs, each a tensor (B, ...) or a tuple of tensors, without ground
            truth. Or a folder of images, with ``degrade``, ``targets`` and the like; then the network takes
            images, with values in [0, 1] unless ``value_range`` says otherwise.
        rank: per head of keys and values; a share of each layer's energy to keep, such as 0.99; "full"; or
            "auto", which searches for a rank of every layer and takes one budget, such as ``macs=0.8``.
        distill: True trains for ``distill_minutes``; or the steps; or all settings. None: no training.
        held_out: batches to evaluate on. None: every eighth sample of ``calibration``.
        seed: of everything random.
        progress: tell on standard error what goes on.
        **options: further fields of :class:`csa2glmha.config.options.ConvertOptions`, e.g. ``rank_q=16``,
            ``ffn=0.75`` (hidden channels of the feed-forward networks to keep), ``calibration_crops=64``
            (samples for the statistics), ``batch=4``, ``device="cuda"``.

    Returns:
        The student and the record of what was measured.

    Raises:
        UsageError, DataError: the network has no such attention, or options or batches do not fit it.

    >>> import torch, csa2glmha
    >>> from csa2glmha.families.restormer.network import Restormer
    >>> model = Restormer(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 2, 4))
    >>> batches = [torch.rand(2, 3, 16, 16) for _ in range(2)]
    >>> result = csa2glmha.compress(model, batches, rank=4, progress=False)
    >>> result.student(batches[0]).shape
    torch.Size([2, 3, 16, 16])
    >>> result.record.complexity.after.macs < result.record.complexity.before.macs
    True
    """
    with quiet(not progress), telling(progress):
        settings = options_from(rank, distill, seed, options)
        device = resolve_device(settings.device)
        own = teacher_from(model, device)
        teacher: nn.Module = own
        if isinstance(calibration, str | Path):
            teacher = on_images(own.cpu(), settings).to(device)
        data = data_from(teacher, calibration, held_out, settings)
        read_unknown(teacher, data, settings)
        settings, distill = one_by_one(teacher, data, settings, distill)
        plan = Plan.of(teacher, attention_layers(teacher), settings)
        run = begin(teacher, data, plan, settings, distill if isinstance(distill, DistillSettings) else None)
        carry_out(run, _STAGES)
        return Compression.of(run, own)
