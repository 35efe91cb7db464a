"""How a reader maps an attention module to the canonical form and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.glmha import GLMHAConfig


class Reader(Protocol):
    """Reads one kind of attention module; ``args`` are always those of the module's call."""

    @property
    def module_type(self) -> type[nn.Module]:
        """The class of the modules it reads."""
        ...

    def read(self, module: nn.Module) -> ChannelAttention:
        """The layer in canonical form; its tensors are the module's, detached."""
        ...

    def attention_input(self, args: tuple[Any, ...]) -> Tensor:
        """The (B, C, H, W) input of the projections."""
        ...

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """What V is multiplied by before the attention, (1 or B, heads * c, H, W); None: nothing."""
        ...

    def value_branch(self, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """From V (B, heads * c, H, W), without factors, to what is added to the output; None: nothing."""
        ...

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        """An uninitialised replacement that is called as the module is.

        What lies beside the attention it takes over from the module, which is not used any more.
        """
        ...


class PlainReader:
    """What most readers share: the module has one input, and nothing lies beside the attention."""

    def attention_input(self, args: tuple[Any, ...]) -> Tensor:
        """The first argument."""
        x: Tensor = args[0]
        return x

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """None: the attention sees V as it is."""
        return None

    def value_branch(self, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """None: nothing is made of V beside the attention."""
        return None
