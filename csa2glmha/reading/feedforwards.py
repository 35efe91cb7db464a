"""Finding the feed-forward networks of a model."""

from __future__ import annotations

from torch import nn

from csa2glmha.families.registry import feed_forward_readers_of
from csa2glmha.feedforward.form import FeedForward


def feed_forwards(model: nn.Module) -> dict[str, FeedForward]:
    """Every feed-forward network of ``model`` by qualified name, in order of definition.

    Those are found whose kind the model's family knows; of a module of no family, the kinds of all.
    """
    readers = feed_forward_readers_of(model)
    found: dict[str, FeedForward] = {}
    for name, module in model.named_modules():
        reader = next((each for each in readers if isinstance(module, each.module_type)), None)
        if reader is not None:
            found[name] = FeedForward(module, reader)
    return found
