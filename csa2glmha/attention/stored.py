"""Configurations of GLMHA layers from files, checked against the layers that they are to replace."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.core import Activation
from csa2glmha.core.problems import first_problem

_Count = Annotated[int, Field(ge=1, le=2**20)]
_Rank = Annotated[int, Field(ge=0, le=2**20)]


class _Fields(BaseModel):
    """The fields of GLMHAConfig, each within what makes sense alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    channels: _Count
    out_channels: _Rank
    heads: _Count
    head_channels: _Count
    rank_q: _Rank
    rank_k: _Rank
    rank_v: _Count
    attention: Literal["expanded", "compact"] = "expanded"
    kernel_size: Literal[1, 3, 5, 7] = 3
    bias: bool = False
    output_bias: bool = False
    bias_rank: _Rank = 0
    guide_width: Annotated[int, Field(ge=0, le=2**12)] = 0
    logits: Literal["maps", "gram", "subspace", "modes"] = "maps"
    rank_pos: _Count | None = None
    dilation: Annotated[int, Field(ge=1, le=2**10)] = 1
    query_channels: _Count | None = None
    activation: Activation = "softmax"


class Kind(Protocol):
    """What decides which fields go together; a canonical form says it, too."""

    @property
    def from_moments(self) -> bool:
        """Second moments of the input give the logits."""
        ...

    @property
    def value_branch(self) -> bool:
        """All of V is needed."""
        ...


def read_config(value: Any, form: ChannelAttention | Kind) -> GLMHAConfig:
    """The configuration of the layer that replaces one of this form.

    Args:
        value: as :meth:`GLMHAConfig.to_json` gives it.
        form: of the layer to be replaced; of one that is not read, its kind: then widths are not compared.

    Raises:
        ValueError: in one line, what is wrong with it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} in place of its fields")
    try:
        config = GLMHAConfig(**_Fields(**value).model_dump())
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    except TypeError:
        raise ValueError("names of fields that are no text") from None
    misfit = _misfit(config, form) if isinstance(form, ChannelAttention) else None
    problem = misfit or _too_high(config) or _contradiction(config, form)
    if problem is not None:
        raise ValueError(problem)
    return config


def _misfit(config: GLMHAConfig, form: ChannelAttention) -> str | None:
    """What the layer to be replaced has otherwise."""
    layer = {
        "channels": form.channels,
        "out_channels": form.output.shape[0],
        "heads": form.heads,
        "head_channels": form.head_channels,
        "query_channels": form.query_channels,
        "activation": form.activation,
    }
    for name, expected in layer.items():
        if getattr(config, name) != expected:
            return f"{name}: {getattr(config, name)}, the network's layer has {expected}"
    return None


def _too_high(config: GLMHAConfig) -> str | None:
    """A rank that a head has no channels for."""
    c = config.head_channels
    for name in ("rank_q", "rank_k", "rank_v", "rank_pos", "bias_rank"):
        rank = getattr(config, name)
        if rank is not None and rank > c:
            return f"{name}: {rank} is above the {c} channels of a head"
    return None


def _contradiction(config: GLMHAConfig, form: Kind) -> str | None:
    """Two fields that exclude each other."""
    q, k, c = config.rank_q, config.rank_k, config.head_channels
    fits = {
        "maps": q > 0 and k > 0 and not form.from_moments,
        "gram": q == k == c and form.from_moments,
        "subspace": 0 < q == k and form.from_moments,
        "modes": q == k == 0,
    }
    if not fits[config.logits]:
        return f"logits: {config.logits!r} does not go with queries of rank {q} and keys of rank {k} here"
    compact = not form.value_branch and config.activation == "softmax" and k == config.rank_v and k > 1
    if config.compact and not compact:
        return (
            f"attention: 'compact' does not go with keys of rank {k} and values of rank {config.rank_v} here"
        )
    if config.rank_pos is not None and not form.from_moments:
        return "rank_pos: no branch beside the attention takes the values of this layer"
    if config.rank_v < c and form.value_branch and not form.from_moments:
        return f"rank_v: {config.rank_v}, this layer needs all {c} values of a head"
    if form.from_moments and (config.kernel_size != 1 or config.bias):
        return "kernel_size, bias: this layer has neither depthwise convolutions nor biases"
    return None
