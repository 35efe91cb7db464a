"""How the cross attention of HVI-CIDNet, CAB, is read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.families.cidnet.network import CAB, IEL
from csa2glmha.feedforward.form import FeedForwardReader
from csa2glmha.reading.reader import PlainReader

IEL_READER = FeedForwardReader(IEL, ("project_in", "dwconv", "dwconv1", "dwconv2"), "project_out")


class CABReader(PlainReader):
    """CAB: keys and values of the first argument, queries of the second; the replacement is GLMHA itself."""

    module_type = CAB

    def attention_inputs(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """What keys and values are made of, and what queries are, (B, C, H, W) each."""
        x, query_input = args
        return x, query_input

    def read(self, module: nn.Module) -> ChannelAttention:
        """The layer in canonical form; its tensors are the module's, detached."""
        assert isinstance(module, CAB)
        keys, values = (
            Projection(pointwise[:, :, 0, 0], depthwise=depthwise[:, 0])
            for pointwise, depthwise in zip(
                module.kv.weight.detach().chunk(2), module.kv_dwconv.weight.detach().chunk(2), strict=True
            )
        )
        return ChannelAttention(
            heads=module.heads,
            queries=Projection(
                module.q.weight.detach()[:, :, 0, 0], depthwise=module.q_dwconv.weight.detach()[:, 0]
            ),
            keys=keys,
            values=values,
            temperature=module.temperature.detach().flatten(),
            output=module.project_out.weight.detach()[:, :, 0, 0],
            query_channels=module.q.in_channels,
        )

    def build(self, module: nn.Module, config: GLMHAConfig) -> GLMHA:
        """An uninitialised replacement, called as the module is."""
        return GLMHA(config)
