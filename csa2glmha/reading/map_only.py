"""Layers of which the attention map alone is made anew, where something lies beside the attention.

A gate on the attended values, a convolution of V that is mixed in before the output projection, values that
are multiplied by what a submodule makes: the module goes on with all of that as it is. Its own code runs, and
the product of map and values takes the map of a GLMHA layer, whose queries and keys are in low rank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from csa2glmha.reading.check import TOLERANCE, CanonicalLayer, difference, tensors_of
from csa2glmha.reading.linear import Unreadable
from csa2glmha.reading.recorded import RecordedReader
from csa2glmha.reading.recording import Call
from csa2glmha.reading.wiring import called, signature_of


class MapOnlyReader(RecordedReader):
    """Reads a module of which the map alone is made anew.

    Args: as of :class:`~csa2glmha.reading.recorded.RecordedReader`; the replacement is one of a map.
    """

    def with_map(self, forward: Callable[..., Any], args: tuple[Any, ...], attention: Tensor) -> Any:
        """What the module returns with this map (B, heads, c, c).

        Args:
            forward: of the module.
            args: as :meth:`bind` gives them.
        """
        positional, named = called(self._signature, args)
        assert self.replacement.given is not None
        return self.replacement.given.run(lambda: forward(*positional, **named), attention)

    def rest(self, module: nn.Module) -> nn.Module:
        """A copy of the module, in eval mode, without what it does not need where the map is given."""
        assert self.replacement.left_out is not None
        return self.replacement.left_out.without(copy.deepcopy(module)).eval()


class CanonicalMap(CanonicalLayer):
    """A layer with the map of its canonical form, and without what makes queries and keys."""

    def __init__(self, module: nn.Module, reader: MapOnlyReader) -> None:
        super().__init__(module, reader)
        self._with_map = reader.with_map
        self._rest = (reader.rest(module),)

    def result(self, args: tuple[Any, ...]) -> Any:
        """What the module returns."""
        return self._with_map(self._rest[0], args, self._form.attention(self.logits(args)))

    @torch.no_grad()
    def check_batch(self, call: Call) -> None:
        """Make sure that the map of each of several images is used for that one: a recording is of one image.

        A module that does not take several is left alone.

        Raises:
            Unreadable: it is not.
        """
        args = tuple(tree_map(_twice, list(tensors_of(call))))
        module = copy.deepcopy(self._module[0]).eval()
        positional, named = called(signature_of(module), args)
        try:
            expected = module(*positional, **named)
        except Exception:  # the module's own
            return
        args = tuple(tree_map(_twice, list(tensors_of(call))))
        if not difference(self.result(args), expected) <= TOLERANCE:
            raise Unreadable("it mixes the attention maps of several images")


def _twice(leaf: Any) -> Any:
    """Two images that differ, of one."""
    if not isinstance(leaf, Tensor) or leaf.ndim < 3 or leaf.shape[0] != 1:
        return leaf
    return torch.cat((leaf, leaf.roll(1, -2)))
