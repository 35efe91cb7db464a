"""What takes the place of a recorded module, called as that is: the layer, and how it is made again."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.reading.given_map import GivenMap
from csa2glmha.reading.left_out import LeftOut
from csa2glmha.reading.wired import MapOnlyGLMHA, RecordedGLMHA, RecordedPointwiseGLMHA, branch_of
from csa2glmha.reading.wiring import ON_MAPS, Wiring, WiringPart, in_words, signature_of


class Replacement(WiringPart):
    """What takes the place of a recorded module: all that is needed to make it but the GLMHA configuration.

    A student's file holds one for each layer, so that its network need not be recorded again.

    Attributes:
        kind: "attention", the whole of the module is made anew, or "map", only its attention map.
        plain: the module is called with one map alone, by position, as GLMHA itself is.
        from_moments: second moments of the input give the logits.
        signature: of the module, as :func:`~csa2glmha.reading.wiring.in_words` gives it.
        wiring: where the inputs of the attention are among the module's arguments.
        given: where the module uses a map that it is given; of the kind "map" alone.
        left_out: what it does not need then; likewise.
    """

    kind: Literal["attention", "map"] = "attention"
    plain: bool
    from_moments: bool
    signature: str
    wiring: Wiring
    given: GivenMap | None = None
    left_out: LeftOut | None = None

    @classmethod
    def of_map(cls, module: nn.Module, wiring: Wiring, given: GivenMap, left_out: LeftOut) -> Replacement:
        """That of a module of which the map alone is made anew."""
        signature = in_words(signature_of(module))
        return cls(
            kind="map",
            plain=False,
            from_moments=False,
            signature=signature,
            wiring=wiring,
            given=given,
            left_out=left_out,
        )

    @classmethod
    def of(
        cls, module: nn.Module, form: ChannelAttention, wiring: Wiring, alone: bool = False
    ) -> Replacement:
        """That of a module of this form; ``alone``: all its calls have one argument, given by position."""
        return cls(
            plain=alone and wiring == ON_MAPS and not form.from_moments,
            from_moments=form.from_moments,
            signature=in_words(signature_of(module)),
            wiring=wiring,
        )

    def to_json(self) -> dict[str, object]:
        """JSON values, for a student's file."""
        return self.model_dump(mode="json", exclude_defaults=True) | {"kind": self.kind}

    @property
    def value_branch(self) -> bool:
        """As of the canonical form: all of V is needed."""
        beside = self.wiring.branch is not None or self.wiring.factor is not None
        return beside or self.kind == "map"

    def check(self, module: nn.Module, config: GLMHAConfig) -> None:
        """Raise ValueError, in one line, unless this was made for such a module and configuration."""
        signature, wiring = signature_of(module), self.wiring
        now = in_words(signature)
        if now != self.signature:
            raise ValueError(f"its module was called with {self.signature} then, and is with {now} now")
        if any(place.position >= len(signature.parameters) for place in wiring.places):
            raise ValueError(f"wiring: {now} has no such argument")
        if (wiring.queries is None) != (config.query_channels is None) or (
            wiring.queries and self.from_moments
        ):
            raise ValueError("wiring: one with an input for queries and a layer without do not go together")
        if self.plain and (wiring != ON_MAPS or self.from_moments):
            raise ValueError("plain: this layer is not called with one map alone")
        self._check_map(module, config)
        width = config.heads * config.head_channels
        orders = [each.order for each in (wiring.factor, wiring.branch) if each is not None]
        if any(order and len(order) != width for order in orders):
            raise ValueError(f"order: not of the {width} channels that V has")
        if wiring.branch is not None:
            if wiring.branch.order and max(wiring.branch.order) >= width:
                raise ValueError(f"order: not of the {width} channels that V has")
            try:
                module.get_submodule(wiring.branch.module)
            except AttributeError:
                raise ValueError(f"branch: its module has no {wiring.branch.module!r}") from None

    def _check_map(self, module: nn.Module, config: GLMHAConfig) -> None:
        """Raise ValueError, in one line, unless what is said of a map alone fits."""
        of_map = self.kind == "map"
        if {self.given is not None, self.left_out is not None, config.map_only} != {of_map}:
            raise ValueError(f"kind: {self.kind!r} does not go with the other fields")
        if self.given is None or self.left_out is None:
            return
        if self.plain or self.from_moments or self.wiring.branch or self.wiring.factor:
            raise ValueError("kind: of a map alone the module makes the rest itself")
        self.given.check(config.heads, config.head_channels)
        self.left_out.check(module)

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        """An uninitialised layer that is called as the module is, with the module's own branch."""
        layer: GuidedAttention
        if self.given is not None and self.left_out is not None:
            rest = self.left_out.without(module)
            layer = MapOnlyGLMHA(config, self.wiring, signature_of(module), self.given, rest)
        elif self.plain:
            layer = GLMHA(config)  # which deployment knows
        else:
            kind = RecordedPointwiseGLMHA if self.from_moments else RecordedGLMHA
            layer = kind(config, self.wiring, signature_of(module), branch_of(self.wiring, module))
        vars(layer)["replacement"] = self
        return layer


def put_replacement(model: nn.Module, name: str, replacement: Replacement, config: GLMHAConfig) -> None:
    """Put an uninitialised layer, without memory for its weights, in the place of the module of that name.

    Raises:
        ValueError: there is no such module, or it is called otherwise.
    """
    try:
        module = model.get_submodule(name) if name else model
    except AttributeError:
        raise ValueError("the network has no module of this name") from None
    replacement.check(module, config)
    with torch.device("meta"):
        model.set_submodule(name, replacement.build(module, config))


def replacement_of(layer: nn.Module) -> Replacement | None:
    """How a layer of a student was made, where its teacher was recorded."""
    found: Replacement | None = vars(layer).get("replacement")
    return found
