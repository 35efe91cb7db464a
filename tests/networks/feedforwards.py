"""Feed-forward networks as research code writes them: those that can be narrowed, and those that cannot."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks import Block
from tests.networks.forms import MapAttention, depthwise

HIDDEN = 24


class Gated(nn.Module):
    """GDFN: a gate and a value of one pair of convolutions."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * HIDDEN, 1, bias=bias)
        self.dwconv = depthwise(2 * HIDDEN, bias=bias)
        self.project_out = nn.Conv2d(HIDDEN, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class InterleavedGate(Gated):
    """Gates and values take turns, and the value has a factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scale = nn.Parameter(torch.ones(HIDDEN, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.dwconv(self.project_in(x))
        return self.project_out(maps[:, ::2].sigmoid() * (maps[:, 1::2] * self.scale))


class SeparateGate(nn.Module):
    """Gate and value come from linear layers of their own, on channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(channels, HIDDEN), nn.Linear(channels, HIDDEN, bias=False)
        self.back = nn.Linear(HIDDEN, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return self.back(F.silu(self.gate(x)) * self.value(x)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers on tokens (B, L, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, HIDDEN), nn.Linear(HIDDEN, channels)
        self.drop = nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(tokens)))))


class SpreadMlp(nn.Module):
    """The same with a depthwise convolution in between, for which tokens become maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, HIDDEN), nn.Linear(HIDDEN, channels)
        self.near = depthwise(HIDDEN, 5, bias=True)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        hidden = F.gelu(self.fc1(tokens))
        maps = hidden.transpose(1, 2).reshape(hidden.shape[0], -1, *size)
        return self.fc2(F.relu(self.near(maps)).flatten(2).transpose(1, 2))


class OnTokens(nn.Module):
    """A block on maps around a layer on tokens."""

    def __init__(self, layer: nn.Module, sized: bool = False) -> None:
        super().__init__()
        self.norm, self.mlp, self.sized = nn.LayerNorm(layer.fc1.in_features), layer, sized

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        size = (tuple(x.shape[2:]),) if self.sized else ()
        tokens = tokens + self.mlp(self.norm(tokens), *size)
        return tokens.transpose(1, 2).reshape(x.shape)


class SpectralFeedForward(nn.Module):
    """MST's: convolution, GELU, depthwise convolution, GELU, convolution, for channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, HIDDEN, 1, bias=False),
            nn.GELU(),
            depthwise(HIDDEN),
            nn.GELU(),
            nn.Conv2d(HIDDEN, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PreNorm(nn.Module):
    """A layer norm before something."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(channels), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Spectral(nn.Module):
    """The same around a shortcut, all of it with channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ffn = PreNorm(channels, SpectralFeedForward(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return (x + self.ffn(x)).permute(0, 3, 1, 2)


class Normed(nn.Module):
    """Batch norms and a PReLU with a slope for each channel; the module adds its shortcut itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, HIDDEN, 1, bias=False),
            nn.BatchNorm2d(HIDDEN),
            nn.PReLU(HIDDEN),
            depthwise(HIDDEN),
            nn.BatchNorm2d(HIDDEN, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(HIDDEN, channels, 1),
        )
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.body(x)


class Beside(nn.Module):
    """Two of them in the code of one module: a gate of halves without an activation, and a GLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide1, self.back1 = nn.Conv2d(channels, 2 * HIDDEN, 1), nn.Conv2d(HIDDEN, channels, 1)
        self.wide2, self.back2 = nn.Conv2d(channels, 2 * HIDDEN, 1), nn.Conv2d(HIDDEN, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.wide1(x).chunk(2, 1)
        x = x + self.back1(first * second)
        return x + self.back2(F.glu(self.wide2(x), 1))


class Twice(nn.Module):
    """One feed-forward network runs twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ffn = Gated(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ffn(x)
        return x + self.ffn(x.flip(-1))


class SqueezedGate(Gated):
    """Channels are weighted by what is made of the means of all of them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        narrow, wide = nn.Conv2d(HIDDEN, 4, 1), nn.Conv2d(4, HIDDEN, 1)
        self.squeeze = nn.Sequential(narrow, nn.ReLU(), wide, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        hidden = F.gelu(gate) * value
        return self.project_out(hidden * self.squeeze(hidden.mean((2, 3), keepdim=True)))


class NormedMlp(Mlp):
    """A layer norm of the hidden channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(tokens))))


class Stored(Gated):
    """Splits by a width that it has stored."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.hidden = HIDDEN

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).split(self.hidden, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Rolled(Gated):
    """Each value has the gate of another channel, a third of a stored width further on."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate.roll(HIDDEN // 3, 1)) * value)


class Neighbours(Gated):
    """Each hidden channel is the product of two that others are made of, too."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.dwconv(self.project_in(x))[:, :HIDDEN]
        return self.project_out(maps * maps.roll(1, 1))


class Fused(Gated):
    """Its expansion makes another map, too."""

    def forward(self, x: Tensor) -> Tensor:
        wide = self.project_in(x)
        return self.project_out(F.gelu(wide[:, :HIDDEN])) + wide[:, -x.shape[1] :]


class WeightNormed(Gated):
    """The weight of its expansion is made of a direction and a length."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.project_in = nn.utils.parametrizations.weight_norm(self.project_in)


class SharedWeights(nn.Module):
    """Two feed-forward networks with one expansion for both, of which one does more with it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Mlp(channels), NormedMlp(channels)
        self.second.fc1 = self.first.fc1

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.first(tokens)
        return (tokens + self.second(tokens)).transpose(1, 2).reshape(x.shape)


class TiedWeights(nn.Module):
    """The contraction's weight is used once more, as a bias is made of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ffn = Gated(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.ffn.project_out.weight.mean() + self.ffn(x)


class Leaking(Gated):
    """Its hidden channels are also looked at as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        hidden = F.gelu(gate) * value
        return self.project_out(hidden) * hidden.mean(1, keepdim=True).sigmoid()


class Spatial(Gated):
    """A 3 x 3 convolution across the hidden channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.dwconv = nn.Conv2d(2 * HIDDEN, 2 * HIDDEN, 3, padding=1)


class Attended(nn.Module):
    """Channel attention, then a feed-forward network, each around a shortcut."""

    def __init__(self, channels: int, ffn: Block) -> None:
        super().__init__()
        self.attn, self.ffn = MapAttention(channels), ffn(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class Denoiser(nn.Module):
    """The image and a correction: a gated feed-forward network, one on tokens, and one with a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        ffns: tuple[Block, ...] = (
            Gated,
            lambda c: OnTokens(SpreadMlp(c), sized=True),
            lambda c: OnTokens(NormedMlp(c)),
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
            self.blocks = nn.ModuleList(Attended(8, ffn) for ffn in ffns)
        self.last.weight.data *= 0.1  # it keeps the image, as trained ones do

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        for block in self.blocks:
            x = block(x)
        return image + self.last(x)


FILE = Path(__file__)
