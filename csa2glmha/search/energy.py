"""Ranks of every layer from a share of energy that they are to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from csa2glmha.analysis.measure import predicted_errors
from csa2glmha.analysis.spectra import rank_for_energy
from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.config.ranks import Ranks
from csa2glmha.initialize.student import Statistics
from csa2glmha.reading.layers import AttentionLayer
from csa2glmha.search.choices import CHANNELS_MULTIPLE


def ranks_for_shares(
    layers: Mapping[str, AttentionLayer],
    statistics: Statistics,
    ranks: Ranks,
    shares: tuple[float | None, float | None],
) -> dict[str, Ranks]:
    """The smallest ranks of every layer that keep a share of the energy of its keys and of its values.

    Energy is that of the whitened filter banks, see :func:`csa2glmha.analysis.measure.predicted_errors`.
    Widths that run no faster than the next multiple of channels are rounded up to that.

    Args:
        layers: by name.
        statistics: of all of them.
        ranks: what is given as such.
        shares: of keys and of values; None where a rank is given.
    """
    found = {}
    for name, layer in layers.items():
        keys, values = predicted_errors(statistics[name])
        k, v = (
            given if share is None or errors is None else _rank(errors, share, layer.form)
            for given, share, errors in zip((ranks.k, ranks.v), shares, (keys, values), strict=True)
        )
        found[name] = replace(ranks, k=k, v=v)
    return found


def _rank(errors: Tensor, share: float, form: ChannelAttention) -> int | None:
    """None: full."""
    c = form.head_channels
    rank = rank_for_energy(errors.square().mean(0).sqrt().tolist(), share)
    if form.heads * c % CHANNELS_MULTIPLE == 0:
        while form.heads * rank % CHANNELS_MULTIPLE:
            rank += 1
    return None if rank >= c else rank
