"""Which architectures are known, and how a state dict is recognised.

To add one: write its module with a :class:`RestorationModel` and a function that reads the
hyper-parameters from a state dict, and add one line to :data:`ARCHITECTURES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csa2glmha.core.errors import CheckpointError
from csa2glmha.core.text import quoted, shown
from csa2glmha.families.hyperparameters import check_hyperparameters
from csa2glmha.families.restormer import network as restormer
from csa2glmha.families.spectral import mst, mst_plus_plus
from csa2glmha.families.variants import describe_variant
from csa2glmha.networks import RestorationModel


@dataclass(frozen=True)
class Architecture:
    """One supported network.

    Attributes:
        model: its class; called with the hyper-parameters as keywords.
        hyperparameters_from: reads them from a state dict that has every key of ``signature``.
        signature: keys that together occur in this architecture alone.
    """

    model: Callable[..., RestorationModel]
    hyperparameters_from: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    signature: tuple[str, ...]


ARCHITECTURES: dict[str, Architecture] = {
    "restormer": Architecture(
        restormer.Restormer,
        restormer.hyperparameters_from,
        (
            "patch_embed.proj.weight",
            "encoder_level1.0.attn.temperature",
            "encoder_level1.0.attn.qkv_dwconv.weight",
            "encoder_level2.0.ffn.project_out.weight",
            "encoder_level3.0.ffn.project_out.weight",
            "latent.0.attn.temperature",
            "output.weight",
        ),
    ),
    "mst": Architecture(
        mst.MST,
        mst.hyperparameters_from,
        (
            "embedding.weight",
            "encoder_layers.0.0.blocks.0.0.to_q.weight",
            "encoder_layers.0.0.blocks.0.0.mm.depth_conv.weight",
            "encoder_layers.0.2.weight",
            "bottleneck.blocks.0.0.rescale",
            "mapping.weight",
        ),
    ),
    "mst_plus_plus": Architecture(
        mst_plus_plus.MSTPlusPlus,
        mst_plus_plus.hyperparameters_from,
        (
            "conv_in.weight",
            "body.0.embedding.weight",
            "body.0.encoder_layers.0.0.blocks.0.0.to_q.weight",
            "body.0.bottleneck.blocks.0.0.rescale",
            "body.0.mapping.weight",
            "conv_out.weight",
        ),
    ),
}


def recognise(state: Mapping[str, Tensor], source: str) -> str:
    """Name the architecture a state dict belongs to.

    Args:
        state: parameter names and tensors, wrappers and prefixes removed.
        source: what to call the file in an error.

    Raises:
        CheckpointError: it is none of the known ones; names the closest and the first keys that differ.
    """
    variant = describe_variant(state)
    if variant is not None:
        raise CheckpointError(
            f"{shown(source)}: is {variant}, which is not supported. Supported: {', '.join(ARCHITECTURES)}"
        )
    for name, architecture in ARCHITECTURES.items():
        if all(key in state for key in architecture.signature):
            return name
    score = {name: _share_of(architecture, state) for name, architecture in ARCHITECTURES.items()}
    closest = max(score, key=lambda name: score[name])
    signature = ARCHITECTURES[closest].signature
    missing = [key for key in signature if key not in state]
    if score[closest] > 0:
        hint = f"closest is {closest}, but it has no {_quote(missing)}"
    else:
        hint = f"it has no key of theirs ({closest}, for one, would have {_quote(missing)})"
    raise CheckpointError(
        f"{shown(source)}: not a supported architecture: {hint}; "
        f"its first keys are {_quote(list(state))}. Supported: {', '.join(ARCHITECTURES)}"
    )


def likeness(state: Mapping[str, Tensor]) -> float:
    """How much of what the most similar architecture is known by is in a state dict, 0 to 1."""
    return max(_share_of(architecture, state) for architecture in ARCHITECTURES.values())


def _share_of(architecture: Architecture, state: Mapping[str, Tensor]) -> float:
    signature = architecture.signature
    return sum(key in state for key in signature) / len(signature)


def build(name: str, hyperparameters: Mapping[str, Any]) -> RestorationModel:
    """Build an architecture with fresh weights, in eval mode."""
    return ARCHITECTURES[name].model(**hyperparameters).eval()


def build_from_state(state: Mapping[str, Tensor], source: str) -> RestorationModel:
    """Recognise a state dict, build its network and load the weights.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: unknown architecture, or keys or shapes that do not fit.
    """
    name = recognise(state, source)
    try:
        hyperparameters = check_hyperparameters(
            name, ARCHITECTURES[name].hyperparameters_from(state), len(state)
        )
        with torch.device("meta"):
            model = build(name, hyperparameters)
    except (LookupError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{shown(source)}: looks like {name}, but its hyper-parameters cannot be read from it "
            f"({quoted(error)})"
        ) from error
    load_strictly(model, state, f"{source} ({name})")
    return model


def load_strictly(model: RestorationModel, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model``, which may be on the meta device; every key and shape must fit.

    Raises:
        CheckpointError: names the first missing, unexpected, misshapen or integer keys.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing: {_quote(missing)}")
        if extra:
            # Its time grows with the length of names and their number.
            near = difflib.get_close_matches(extra[0][:200], missing[:1000], n=1)
            parts.append(
                f"{len(extra)} unexpected: {_quote(extra)}" + (f" (meant {near[0]}?)" if near else "")
            )
        raise CheckpointError(f"{shown(source)}: keys do not fit: {'; '.join(parts)}")
    wrong = [key for key in wanted if wanted[key].shape != state[key].shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{shown(source)}: {len(wrong)} tensors have an unexpected shape, first {key}: "
            f"{tuple(state[key].shape)} where {tuple(wanted[key].shape)} is expected"
        )
    integers = [key for key in wanted if wanted[key].is_floating_point() > state[key].is_floating_point()]
    if integers:
        kind = str(state[integers[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{shown(source)}: {len(integers)} tensors hold no floating-point numbers, first {integers[0]}: "
            f"{kind}; give the checkpoint from before quantisation"
        )
    model.load_state_dict(dict(state), assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _quote(keys: list[str], limit: int = 3) -> str:
    return ", ".join(shown(key) for key in keys[:limit]) + (
        f", ... ({len(keys)} in all)" if len(keys) > limit else ""
    )
