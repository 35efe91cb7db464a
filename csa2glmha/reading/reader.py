"""How a reader maps an attention module to the canonical form and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.core import positional_only


class Reader(Protocol):
    """Reads one kind of attention module.

    ``args`` are always those of the module's call, as :meth:`bind` gives them.
    """

    @property
    def module_type(self) -> type[nn.Module]:
        """The class of the modules it reads."""
        ...

    def read(self, module: nn.Module) -> ChannelAttention:
        """The layer in canonical form; its tensors are the module's, detached."""
        ...

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call, those given by keyword in their places.

        Raises:
            Csa2GlmhaError: the module is called with keywords that are not foreseen.
        """
        ...

    def attention_inputs(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The (B, C, H, W) input of the projections, and a second one where queries have their own."""
        ...

    def module_output(self, args: tuple[Any, ...], maps: Tensor) -> Any:
        """What the module returns, from the attention's output (B, out, H, W)."""
        ...

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """What V is multiplied by before the attention, (1 or B, heads * c, H, W); None: nothing."""
        ...

    def value_branch(self, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """From V (B, heads * c, H, W), without factors, to what is added to the output; None: nothing."""
        ...

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        """An uninitialised replacement that is called as the module is; it is a GuidedAttention itself.

        What lies beside the attention it takes over from the module, which is not used any more.
        """
        ...


class PlainReader:
    """What most readers share: the module has one input, and nothing lies beside the attention."""

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments as they are: there are no keywords."""
        return positional_only(args, kwargs)

    def attention_inputs(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The first argument, (B, C, H, W)."""
        return args[:1]

    def module_output(self, args: tuple[Any, ...], maps: Tensor) -> Any:
        """The attention's output as it is."""
        return maps

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """None: the attention sees V as it is."""
        return None

    def value_branch(self, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """None: nothing is made of V beside the attention."""
        return None
