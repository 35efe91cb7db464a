"""How transposed attention, MDTA, is read, and where the parts of the feed-forward network GDFN are."""

from __future__ import annotations

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.families.transposed.blocks import GDFN, MDTA
from csa2glmha.feedforward.form import FeedForwardReader
from csa2glmha.reading.reader import PlainReader

#: A gate and a value make one hidden channel.
GDFN_READER = FeedForwardReader(GDFN, ("project_in", "dwconv"), "project_out")


class MDTAReader(PlainReader):
    """MDTA: queries q, keys k, values v of one convolution pair; the replacement is GLMHA itself."""

    module_type = MDTA

    def read(self, module: nn.Module) -> ChannelAttention:
        """The layer in canonical form; its tensors are the module's, detached."""
        assert isinstance(module, MDTA)

        def third(index: int) -> Projection:
            def part(tensor: Tensor | None) -> Tensor | None:
                return None if tensor is None else tensor.detach().chunk(3)[index]

            pointwise, depthwise = part(module.qkv.weight), part(module.qkv_dwconv.weight)
            assert pointwise is not None and depthwise is not None
            return Projection(
                pointwise[:, :, 0, 0], part(module.qkv.bias), depthwise[:, 0], part(module.qkv_dwconv.bias)
            )

        output_bias = module.project_out.bias
        return ChannelAttention(
            heads=module.heads,
            queries=third(0),
            keys=third(1),
            values=third(2),
            temperature=module.temperature.detach().flatten(),
            output=module.project_out.weight.detach()[:, :, 0, 0],
            output_bias=None if output_bias is None else output_bias.detach(),
        )

    def build(self, module: nn.Module, config: GLMHAConfig) -> GLMHA:
        """An uninitialised replacement, called as the module is."""
        return GLMHA(config)
