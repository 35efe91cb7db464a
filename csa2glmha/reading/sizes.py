"""What a student has in the place of its teacher's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.networks.skipped import skip, skipped_layers
from csa2glmha.reading.feedforwards import narrow_to, narrowed_widths
from csa2glmha.reading.layers import glmha_layers, replace_layers


@dataclass(frozen=True)
class Sizes:
    """Ranks, widths and depth of a student. Layers that are not named stay as they are.

    Attributes:
        configs: of attention layers.
        widths: hidden channels that feed-forward networks keep.
        skipped: layers that the student goes without.
    """

    configs: Mapping[str, GLMHAConfig] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, student: nn.Module) -> Sizes:
        """Those that a student has."""
        configs = {name: layer.config for name, layer in glmha_layers(student).items()}
        return cls(configs, narrowed_widths(student), tuple(skipped_layers(student)))

    @property
    def exact(self) -> bool:
        """Nothing is approximated."""
        return not self.widths and not self.skipped and all(each.full for each in self.configs.values())

    def put_in(self, model: nn.Module) -> None:
        """Give a teacher these layers, in place and without their weights.

        Raises:
            KeyError, ValueError: a name is not one of this network's layers.
        """
        replace_layers(model, dict(self.configs))
        narrow_to(model, self.widths)
        skip(model, self.skipped)
