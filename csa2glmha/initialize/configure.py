"""From the ranks that are asked for to the configuration of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.config import KERNEL_SIZES, GLMHAConfig
from csa2glmha.attention.pointwise import full_values_are_cheaper, gram_is_cheaper
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import UsageError
from csa2glmha.feedforward.form import FeedForward, kept_channels
from csa2glmha.reading.layers import AttentionLayer

#: Rank per head of the static logit bias. Measured on a denoising Restormer (c = 24 to 48): rank 8 is as
#: good as the dense matrix, which in a full-size Restormer would cost as much as the keys it replaces.
BIAS_RANK = 8
#: Hidden units and logit modes of the calibration network.
GUIDE_WIDTH = 4
#: The same where there are no queries and keys, and modes make the whole attention. They touch no map.
MODES_BIAS_RANK, MODES_GUIDE_WIDTH = 16, 8

ATTENTION_FORMS = ("expanded", "compact")


def plan_layers(
    layers: dict[str, AttentionLayer], ranks: Ranks, attention: str = "expanded"
) -> dict[str, GLMHAConfig]:
    """The configuration of every layer, at the same ranks for all.

    A layer whose heads have no more channels than a rank asks for keeps that part full. One of which only the
    map would be made anew, and that at no gain, is left out.

    Raises:
        UsageError: no layer at all, a rank above the channels per head of every layer, a compact form
            whose keys and values differ in rank or that has a single key, or what these layers do not have.
    """
    if not layers:
        raise UsageError(
            "no channel attention in this model that can be converted; csa2glmha inspect shows what it is"
        )
    widest = max(layer.form.head_channels for layer in layers.values())
    for name, rank in (("q", ranks.q), ("k", ranks.k), ("v", ranks.v), ("pos", ranks.pos)):
        if rank is not None and rank > widest:
            raise UsageError(
                f"rank {rank} of {name} is above the {widest} channels per head that this model has; "
                f"give 1 to {widest}, or full"
            )
    if attention not in ATTENTION_FORMS:
        raise UsageError(f"--attention {attention}: unknown; give {' or '.join(ATTENTION_FORMS)}")
    forms = [layer.form for layer in layers.values()]
    if attention == "compact":
        _check_compact(ranks, forms)
    if ranks.k == 0 and ranks.q is not None:
        raise UsageError(f"rank 0 of keys leaves out queries too; leave out --rank-q {ranks.q}")
    if ranks.pos is not None and not any(form.value_branch for form in forms):
        raise UsageError(
            f"--rank-pos {ranks.pos}: no branch beside the attention, such as a positional embedding, takes "
            "this model's values; leave it out"
        )
    if ranks.pos is not None and not any(form.from_moments for form in forms):
        raise UsageError(
            f"--rank-pos {ranks.pos}: this model's layers need all of their values; leave it out"
        )
    planned = {name: layer_config(layer.form, ranks, attention) for name, layer in layers.items()}
    return worthwhile(layers, planned)


def worthwhile(
    layers: Mapping[str, AttentionLayer], configs: Mapping[str, GLMHAConfig]
) -> dict[str, GLMHAConfig]:
    """The configurations without those of layers that stay as they are, since they would get no cheaper."""
    return {name: config for name, config in configs.items() if _pays(layers[name].form, config)}


def _pays(form: ChannelAttention, config: GLMHAConfig) -> bool:
    """Whether a layer of this configuration costs less than the module's own way to its map.

    Where all of a layer is made anew, what is asked for is made.
    """
    if not form.map_only:
        return True
    c, heads, q, k = form.head_channels, form.heads, config.rank_q, config.rank_k
    channels = (config.query_channels or form.channels, form.channels)
    own = sum(
        part.pointwise.numel() + (0 if part.depthwise is None else part.depthwise.numel())
        for part in (form.queries, form.keys)
    )
    area = 0 if config.kernel_size == 1 else config.kernel_size**2
    made = sum(heads * rank * (each + area) for each, rank in zip(channels, (q, k), strict=True))
    products = q * k + sum(rank**2 for rank in (q, k) if rank < c)
    return made + heads * products < own + heads * c**2


def _check_compact(ranks: Ranks, forms: Sequence[ChannelAttention]) -> None:
    """Raise UsageError where layers of these forms have no compact form at these ranks."""
    if ranks.k != ranks.v:
        raise UsageError(
            f"compact attention has one value per key: ranks of k and v must be equal, not {ranks}"
        )
    if ranks.k is not None and ranks.k < 2:
        raise UsageError("compact attention over one key is no attention; give a rank of 2 or more")
    if any(form.activation == "relu" for form in forms):
        raise UsageError(
            "--attention compact: this model's layers have a ReLU in the place of the softmax and have no "
            "compact form; give expanded"
        )
    if any(form.value_branch for form in forms):
        raise UsageError(
            "--attention compact: this model's layers need all of their values, for a branch beside the "
            "attention or to be multiplied by a map, and have no compact form; give expanded"
        )


def layer_config(form: ChannelAttention, ranks: Ranks, attention: str = "expanded") -> GLMHAConfig:
    """The configuration of one layer at these ranks.

    Raises:
        UsageError: the layer has no low-rank form.
    """
    problem = inexpressible(form)
    if problem is not None:
        raise UsageError(problem)
    if form.from_moments:
        return _pointwise_config(form, ranks)
    c = form.head_channels
    rank_q, rank_k, rank_v = (c if rank is None else min(rank, c) for rank in (ranks.q, ranks.k, ranks.v))
    exact_logits = rank_q == c and rank_k == c
    modes = rank_k == 0
    return GLMHAConfig(
        channels=form.channels,
        out_channels=form.output.shape[0],
        heads=form.heads,
        head_channels=c,
        rank_q=0 if modes else rank_q,
        rank_k=rank_k,
        rank_v=c if form.value_branch else rank_v,
        # At c keys the compact form is the expanded one.
        attention="expanded" if rank_k == c else attention,
        kernel_size=form.values.kernel_size,
        dilation=form.values.dilation,
        bias=form.biased,
        query_channels=form.query_channels,
        activation=form.activation,
        output_bias=form.output_bias is not None,
        bias_rank=0
        if exact_logits
        else min(MODES_BIAS_RANK if modes else BIAS_RANK, c if attention == "expanded" else rank_k),
        guide_width=0 if exact_logits else MODES_GUIDE_WIDTH if modes else GUIDE_WIDTH,
        logits="modes" if modes else "maps",
    )


def inexpressible(form: ChannelAttention) -> str | None:
    """In one line, what this form has that no GLMHA layer can compute; None: nothing."""
    parts = {"queries": form.queries, "keys": form.keys, "values": form.values}
    sizes = ", ".join(f"{k} x {k}" for k in KERNEL_SIZES)
    for name, part in parts.items():
        k = part.kernel_size
        if k not in KERNEL_SIZES:
            return f"the depthwise kernels of its {name} are {k} x {k}: only {sizes} are supported"
    return None


def _pointwise_config(form: ChannelAttention, ranks: Ranks) -> GLMHAConfig:
    """The cheapest way to compute the layer that has no less than these ranks.

    Queries and keys share one projection, whose rank is the larger that is asked for; a query rank that is
    not given asks for nothing.
    """
    channels, heads, c = form.channels, form.heads, form.head_channels
    joint = None if ranks.k is None else max(ranks.k, ranks.q or 0)
    modes = ranks.k == 0
    exact_logits = not modes and (joint is None or joint >= c or gram_is_cheaper(channels, heads, joint))
    rank_z = 0 if modes else c if exact_logits or joint is None else joint

    def worthwhile(rank: int | None) -> int | None:
        return None if rank is None or full_values_are_cheaper(channels, heads, rank) else rank

    return GLMHAConfig(
        channels=channels,
        out_channels=form.output.shape[0],
        heads=heads,
        head_channels=c,
        rank_q=rank_z,
        rank_k=rank_z,
        rank_v=worthwhile(ranks.v) or c,
        kernel_size=1,
        output_bias=form.output_bias is not None,
        bias_rank=0 if exact_logits else min(MODES_BIAS_RANK if modes else BIAS_RANK, c),
        guide_width=0 if exact_logits else MODES_GUIDE_WIDTH if modes else GUIDE_WIDTH,
        logits="modes" if modes else "gram" if exact_logits else "subspace",
        rank_pos=worthwhile(ranks.pos),
        activation=form.activation,
    )


def plan_widths(layers: Mapping[str, FeedForward], share: float) -> dict[str, int]:
    """Hidden channels of every feed-forward network that is to have fewer.

    Args:
        layers: of the teacher.
        share: of their hidden channels to keep.

    Raises:
        UsageError: a share is to go, and there is nothing that it could go of.
    """
    if share < 1 and not layers:
        raise UsageError(
            f"--ffn {share:g}: no feed-forward network in this model that can be narrowed; leave it out"
        )
    widths = {name: kept_channels(layer.hidden, share) for name, layer in layers.items()}
    return {name: width for name, width in widths.items() if width < layers[name].hidden}
