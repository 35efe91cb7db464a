"""How the parts of PromptIR are deployed."""

from __future__ import annotations

from torch import Tensor, nn

from csa2glmha.families.promptir.network import Prompt
from csa2glmha.families.transposed.lowering import LOWERING as BLOCKS


class DeployedPrompt(nn.Module):
    """As the original, the means and the mixture in float32."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__()
        _, self.length, self.channels, self.size, _ = prompt.prompt_param.shape
        self.images = nn.Parameter(prompt.prompt_param.detach()[0].flatten(1).clone())
        self.linear, self.resize, self.conv = prompt.linear_layer, prompt.resize, prompt.conv3x3

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear(x.float().mean((2, 3))).softmax(1)
        mixture = (weights @ self.images).view(-1, self.channels, self.size, self.size)
        return self.conv(self.resize(mixture, x))


LOWERING = {**BLOCKS, Prompt: DeployedPrompt}
