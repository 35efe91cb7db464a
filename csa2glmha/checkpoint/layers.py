"""The layers of a student, as its file describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from csa2glmha.attention.stored import read_config
from csa2glmha.checkpoint.foreign import NETWORK, RECORDED_FEED_FORWARDS, REPLACEMENTS
from csa2glmha.networks.foreign import Interface, shapes_from, users_own
from csa2glmha.networks.skipped import skip, skipped_layers
from csa2glmha.reading.feedforwards import narrow_to, narrowed_widths
from csa2glmha.reading.layers import AttentionLayer, attention_layers, glmha_layers, replace_layers
from csa2glmha.reading.own import read_on_noise
from csa2glmha.reading.recorded_feedforward import RecordedFeedForward, carried_by, carry
from csa2glmha.reading.replacement import Replacement, put_replacement, replacement_of


def described_layers(student: nn.Module) -> dict[str, Any]:
    """The configurations of all layers, by their names in the user's own network, as JSON values."""
    return {name: layer.config.to_json() for name, layer in glmha_layers(users_own(student)).items()}


def described_widths(student: nn.Module) -> dict[str, int]:
    """What feed-forward networks that have lost hidden channels have left, by such names."""
    return narrowed_widths(users_own(student))


def described_skips(student: nn.Module) -> list[str]:
    """The layers that a student goes without, by such names."""
    return skipped_layers(users_own(student))


def described_replacements(student: nn.Module) -> dict[str, Any]:
    """What else is needed to put in layers and widths where the teacher was recorded; otherwise nothing."""
    layers = glmha_layers(users_own(student)).items()
    made = {name: each.to_json() for name, layer in layers if (each := replacement_of(layer)) is not None}
    recorded = carried_by(users_own(student)) or {}
    wide = {name: each.to_json() for name, each in recorded.items()}
    entries = {REPLACEMENTS: made, RECORDED_FEED_FORWARDS: wide}
    return {name: each for name, each in entries.items() if each}


def put_layers(model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Put uninitialised layers in the place of a teacher's, as the metadata of its student describe them.

    Its feed-forward networks get the widths that they have there, and skipped layers are left out.

    Args:
        model: the teacher with any weights; one of the user's own is that, without what is around it.
        metadata: of the student.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: they are damaged, or do not fit the network.
    """
    stored: Mapping[str, object] = json.loads(metadata["layers"])
    told = json.loads(metadata.get(NETWORK, "{}"))
    replacements = told.get(REPLACEMENTS, {})
    # A network that need not be read is not run, either.
    layers = {} if stored and stored.keys() <= replacements.keys() else _read(model, told)
    configs = {}
    for name, value in stored.items():
        try:
            if name in replacements:
                replacement = Replacement.from_json(replacements[name])
                put_replacement(model, name, replacement, read_config(value, replacement))
            elif name not in layers:
                raise ValueError("the network has no such attention")
            else:
                configs[name] = read_config(value, layers[name].form)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    replace_layers(model, configs)
    _carry_feed_forwards(model, told.get(RECORDED_FEED_FORWARDS))
    narrow_to(model, dict(json.loads(metadata["feed_forwards"])))
    skip(model, _names(json.loads(metadata["skipped"])))


def _names(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("skipped: this is no list of names")
    return value


def _carry_feed_forwards(model: nn.Module, told: Mapping[str, object] | None) -> None:
    """Let a network carry where its feed-forward networks are, as the file says; None: it does not say."""
    if told is None:
        return
    found = {}
    for name, value in told.items():
        try:
            found[name] = RecordedFeedForward.from_json(value)
            found[name].put_into(model)
        except ValueError as error:
            raise ValueError(f"feed-forward network {name!r}: {error}") from None
    carry(model, found)


def _read(model: nn.Module, told: Mapping[str, Any]) -> dict[str, AttentionLayer]:
    """The attention of a network of which the file does not say how its layers are put in.

    In files of before there were replacements, a network without a reader is one that was recorded.
    """
    if REPLACEMENTS not in told and "interface" in told and "recorded_readers" not in vars(model):
        interface = Interface.from_json(told["interface"])
        read_on_noise(model, interface.shapes, interface.value_range)
    elif REPLACEMENTS not in told and "inputs" in told and not attention_layers(model):
        read_on_noise(model, shapes_from(told["inputs"]))
    return attention_layers(model)
