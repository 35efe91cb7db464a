"""What hyper-parameters of PromptIR may be, and how they are read from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from csa2glmha.families.hyperparameters import Side, Width
from csa2glmha.families.transposed.hyperparameters import TransposedHyperparameters, levels_from

_PROMPTS = (1, 2, 3)


class PromptIRHyperparameters(TransposedHyperparameters):
    """Of :class:`csa2glmha.families.promptir.network.PromptIR`."""

    prompt_length: Width
    prompt_channels: list[Width] = Field(min_length=3, max_length=3)
    prompt_sizes: list[Side] = Field(min_length=3, max_length=3)

    @property
    def blocks(self) -> int:
        return super().blocks + 2 * len(_PROMPTS)

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        for factor, channels in zip((2, 4, 8), self.prompt_channels, strict=True):
            width = factor * self.dim + channels
            if width % self.heads[2]:
                raise ValueError(f"heads: {self.heads[2]} do not divide {width} channels evenly")


def hyperparameters_from(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read PromptIR's hyper-parameters from the names and shapes of its parameters."""
    prompts = [state[f"prompt{level}.prompt_param"].shape for level in _PROMPTS]
    outputs = [state[f"noise_level{level}.ffn.project_out.weight"].shape for level in _PROMPTS]
    return levels_from(state, {width: hidden for width, hidden, *_ in outputs}) | {
        "prompt_length": prompts[0][1],
        "prompt_channels": [shape[2] for shape in prompts],
        "prompt_sizes": [shape[3] for shape in prompts],
    }
