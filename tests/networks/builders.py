"""Networks as users have them, and functions that build them: given to --network by the tests, as a file.

Nothing in here is for users of the package.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Across channels, as published code has it; of the logits only the largest few, if that is asked for."""

    def __init__(self, dim: int, heads: int, largest: int = 0) -> None:
        super().__init__()
        self.heads, self.largest = heads, largest
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.spread = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.spread(self.to_qkv(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(x.shape[0], self.heads, -1, x.shape[2] * x.shape[3]) for part in parts)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        if self.largest:
            least = logits.topk(self.largest, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        return self.out((logits.softmax(dim=-1) @ v).reshape(x.shape))


class Block(nn.Module):
    """Attention and a convolution, each around a shortcut."""

    def __init__(self, dim: int, heads: int, largest: int = 0) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, largest)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + F.gelu(self.conv(x))


class Denoiser(nn.Module):
    """A network of one level below the first; sides must be multiples of 4, and are not padded.

    Args:
        dim: width.
        heads: of the attention, on both levels.
        scale: height and width of the output over those of the input.
        last: what it returns: "tensor", or a "tuple" or "dict" of a half-sized output and the whole one.
        noise: of this standard deviation is added to the output.
        largest: of the logits on the lower level only so many count; 0: all.
    """

    def __init__(
        self,
        dim: int = 8,
        heads: int = 2,
        scale: int = 1,
        last: str = "tensor",
        noise: float = 0,
        largest: int = 0,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, dim, 3, padding=1)
        self.top = Block(dim, heads)
        self.down = nn.Conv2d(dim, dim, 4, stride=4)
        self.bottom = Block(dim, heads, largest)
        self.up = nn.Conv2d(dim, 16 * dim, 1)
        self.last = nn.Conv2d(dim, 3 * scale * scale, 3, padding=1)
        self.scale, self.returns, self.noise = scale, last, noise

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor] | dict[str, Tensor]:
        x = self.top(self.first(image))
        below = self.bottom(self.down(x))
        x = x + F.pixel_shuffle(self.up(below), 4)
        whole = F.pixel_shuffle(self.last(x), self.scale)
        whole = whole + F.interpolate(image, scale_factor=self.scale, mode="nearest")
        if self.noise:
            whole = whole + self.noise * torch.randn_like(whole)
        half = F.avg_pool2d(whole, 2)
        if self.returns == "tuple":
            return half, whole
        return OrderedDict(half=half, whole=whole) if self.returns == "dict" else whole


def build(seed: int = 0, **arguments: object) -> nn.Module:
    """One with weights that are the same every time, and attention that is not flat."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Denoiser(**arguments)
        for name, parameter in network.named_parameters():
            if name.endswith("temperature"):
                parameter.data.fill_(3)
    return network


class GatedAttention(Attention):
    """With a gate on the attended values, before the output projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gate = nn.Conv2d(dim, dim, 1)
        self.temperature.data.fill_(3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.spread(self.to_qkv(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(x.shape[0], self.heads, -1, x.shape[2] * x.shape[3]) for part in parts)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.out((logits.softmax(dim=-1) @ v).reshape(x.shape) * self.gate(x).sigmoid())


def gated(seed: int = 0) -> nn.Module:
    """The same network with such an attention on the lower level."""
    network = build(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.bottom.attn = GatedAttention(8, 2)
    return network


class Signed(nn.Module):
    """The same for values from ``low`` to ``high``, refused outside of these."""

    def __init__(self, low: float = -1, high: float = 1) -> None:
        super().__init__()
        self.body = build()
        self.low, self.high = low, high

    def forward(self, image: Tensor) -> Tensor:
        x = (image - self.low) / (self.high - self.low)
        return self.body(x) * (self.high - self.low) + self.low


class Guided(nn.Module):
    """Of two inputs: an image, and a map of half its size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build()

    def forward(self, image: Tensor, guide: Tensor) -> Tensor:
        return self.body(image * F.interpolate(guide, scale_factor=2, mode="nearest"))


class Weighed(nn.Module):
    """Of two inputs: an image, and two numbers for it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build()

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        first, second = numbers[:, :, None, None, None].unbind(1)
        return image * first + self.body(image) * second


class Single(nn.Module):
    """Takes one image at a time: it fails on more, or mixes them."""

    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        self.body, self.mixes = build(), mixes

    def forward(self, image: Tensor) -> Tensor:
        assert self.mixes or len(image) == 1
        return self.body(image) + 0.1 * image.mean((0, 2, 3), keepdim=True)


class OneSize(nn.Module):
    """With an embedding of positions, so that images must have 32 x 48 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build()
        self.positions = nn.Parameter(torch.zeros(1, 3, 32, 48))

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image + self.positions)


class Routed(nn.Module):
    """Of two experts it runs the one that its input asks for, so it does not run on shapes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build()
        self.experts = nn.ModuleList(nn.Conv2d(3, 3, side, padding=side // 2) for side in (1, 3))

    def forward(self, image: Tensor) -> Tensor:
        expert = self.experts[int(image.mean() > 0.45)]
        return image + 0.1 * expert(self.body(image))


class TokenAttention(nn.Module):
    """Across channels, on tokens (B, L, C), as classifiers have it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), 3.0))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.proj((logits.softmax(dim=-1) @ v).permute(0, 3, 1, 2).reshape(batch, length, dim))


class TokenBlock(nn.Module):
    """Attention and two layers, each around a shortcut."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = TokenAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Classifier(nn.Module):
    """Classes of images whose sides are multiples of 4.

    Args:
        classes: how many.
        side: of the images, where positions are learned, so that they must have it; 0: they may have any.
        auxiliary: return features, too, before the logits.
    """

    def __init__(self, classes: int = 4, side: int = 0, auxiliary: bool = False, dim: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, dim, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, (side // 4) ** 2, dim)) if side else None
        self.blocks = nn.ModuleList(TokenBlock(dim, 2) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        self.auxiliary = auxiliary

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.first(image).flatten(2).transpose(1, 2)
        x = x if self.positions is None else x + self.positions
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x).mean(dim=1))
        return (x, logits) if self.auxiliary else logits


def classifier(seed: int = 0, sharp: float = 12.0, **arguments: object) -> nn.Module:
    """One with weights that are the same every time, and classes that images differ in."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier(**arguments)
        network.head.weight.data *= sharp
    return network


class Features(nn.Module):
    """Makes neither images nor classes, but tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, image: Tensor) -> Tensor:
        return self.first(image).flatten(2)


class Filter(nn.Module):
    """Has no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.first(image)


class Failing(nn.Module):
    """Fails at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3)

    def forward(self, image: Tensor) -> Tensor:
        raise ZeroDivisionError("there is no answer")


def failing_builder() -> nn.Module:
    """Fails before there is a network."""
    raise KeyError("no such variant")


def ending_builder() -> nn.Module:
    """Ends the program, as code does that parses a command line."""
    raise SystemExit("usage: train.py [--opt FILE]")


def no_network() -> str:
    """Returns something else."""
    return "a network"


FILE = Path(__file__)
