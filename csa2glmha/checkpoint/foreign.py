"""Loading weights into a network of the user's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from csa2glmha.checkpoint.networks import OneNetwork
from csa2glmha.checkpoint.read import Checkpoint, read_checkpoint
from csa2glmha.config.network import NO_FILE, NetworkOptions
from csa2glmha.core.errors import CheckpointError
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import shown
from csa2glmha.families.family import load_strictly
from csa2glmha.families.registry import family_of_weights
from csa2glmha.networks.builder import Origin, build_network, label_of
from csa2glmha.networks.foreign import ForeignNetwork, Interface, users_own
from csa2glmha.networks.probe import probe
from csa2glmha.reading.own import read_foreign

#: The entry of a student's metadata on a network that is built elsewhere, and what of it is for each layer.
NETWORK, REPLACEMENTS, RECORDED_FEED_FORWARDS = "network", "replacements", "feed_forwards"

OptionsT = TypeVar("OptionsT", bound=NetworkOptions)


def load_foreign(
    path: Path, weights: str | None, options: NetworkOptions
) -> tuple[ForeignNetwork, Checkpoint]:
    """The network that the user named, with the weights of a file.

    Args:
        path: the file; :data:`~csa2glmha.config.network.NO_FILE` leaves the weights as the builder made them.
        weights: which to take of a file that holds several; None: averaged ones.
        options: what builds the network, and what that takes and makes.

    Raises:
        NetworkError: the user's code fails, or makes no such network.
        CheckpointError: the file cannot be read, or its weights do not fit.
        UsageError: there is no such builder, or no such weights.
    """
    assert options.network is not None
    network, origin = build_network(options.network, options.arguments)
    if str(path) == NO_FILE:
        name = Path(options.builder[1])
        checkpoint = Checkpoint(name, network.state_dict(), weights_sha256(network), {}, None, ())
    else:
        label = label_of(network)
        checkpoint = read_checkpoint(path, weights, (OneNetwork.of(network, label),))
        try:
            load_strictly(network, checkpoint.state_dict, f"{path} ({label})")
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_other_arguments(options)}") from error
        family = family_of_weights(checkpoint.state_dict)
        if family is not None:
            checkpoint = replace(checkpoint, notes=(*checkpoint.notes, unneeded(path, family)))
    model = ForeignNetwork(network, _probed(network, options), origin)
    read_foreign(model)
    return model, replace(checkpoint, state_dict=model.state_dict())


def unneeded(path: Path, family: str) -> str:
    """What is said of --network beside a file of a known family."""
    return (
        f"{path}: holds a {family}, which needs no --network: without it, its own rewrites make a faster "
        "ONNX file; keep it if your code makes something else of these weights"
    )


def _other_arguments(options: NetworkOptions) -> str:
    """What to try where weights do not fit the network that was built."""
    given = " ".join(f"--network-arg {each}" for each in options.network_arg)
    return (
        f"; the network was built with {given}: give what it was trained with"
        if given
        else "; if it was trained with other arguments than the defaults, give them with --network-arg"
    )


def foreign_template(
    student: Checkpoint, options: NetworkOptions | None
) -> tuple[ForeignNetwork, tuple[str, ...]]:
    """The network that a student was made of, with any weights, and notes on what is not as it was then.

    Arguments of the builder, and what the network takes and makes, are those of the file unless others are
    given.

    Raises:
        CheckpointError: nobody named the network, or the metadata are damaged.
        NetworkError, UsageError: as :func:`load_foreign`.
    """
    try:
        told = json.loads(student.metadata[NETWORK])
        then = _origin(told)
        interface = Interface.from_json(told["interface"]) if "interface" in told else None
        operators = tuple(str(each) for each in told.get("global_operators", ()))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{shown(student.path)}: damaged student metadata ({shown(error)}); convert the teacher again"
        ) from error
    if options is None or options.network is None:
        raise CheckpointError(_unnamed(student, then))
    given = options.arguments if options.network_arg or then is None else then.arguments
    network, origin = build_network(options.network, given)
    asked = {"example", "value_range", "output_index"} & options.model_fields_set
    if interface is None or asked:
        interface = _probed(network, as_of_student(student.metadata, options))
    change = None if then is None else origin.changed_since(then)
    notes = () if change is None else (f"since this student was made, {change}",)
    model = ForeignNetwork(network, interface, origin)
    if REPLACEMENTS in told:
        model.global_operators = operators
    else:  # a file of before there were any
        read_foreign(model)
    return model, notes


def as_of_student(metadata: Mapping[str, str], options: OptionsT) -> OptionsT:
    """The options for a student's teacher: what they leave open is as the student's file has it.

    Args:
        metadata: of the student.
        options: of --network; what was given stays.
    """
    if options.network is None or NETWORK not in metadata:
        return options
    try:
        told = json.loads(metadata[NETWORK])
        then = _origin(told)
        face = Interface.from_json(told["interface"])
    except (LookupError, TypeError, ValueError, AttributeError):
        return options  # loading the student says what is wrong with it
    found: dict[str, Any] = {
        "network_arg": () if then is None else tuple(f"{k}={dumps(v)}" for k, v in then.arguments.items()),
        "example": tuple("x".join(map(str, shape)) for shape in face.shapes),
        "value_range": face.value_range,
        "output_index": face.output_index,
    }
    given = options.model_fields_set
    return options.model_copy(update={name: value for name, value in found.items() if name not in given})


def described(model: nn.Module) -> dict[str, Any]:
    """What a student's metadata say of a network that is built elsewhere, as JSON values."""
    kind = type(users_own(model))
    named = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    if not isinstance(model, ForeignNetwork):
        return named
    origin = model.origin
    return {
        **named,
        "builder": origin.builder,
        "arguments": dict(origin.arguments),
        "sources": dict(origin.sources),
        "interface": model.interface.to_json(),
        "global_operators": list(model.global_operators),
    }


def weights_sha256(model: nn.Module) -> str:
    """Of names, shapes and values of all weights, in float32: the same for a network and for its file."""
    digest = hashlib.sha256()
    for name, value in users_own(model).state_dict().items():
        plain = value.detach().cpu()
        plain = plain.float() if plain.is_floating_point() else plain
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _probed(network: nn.Module, options: NetworkOptions) -> Interface:
    wanted = Interface((), 0, value_range=options.value_range, output_index=options.output_index)
    return probe(network, str(options.network), options.example_shapes, wanted)


def _origin(told: Mapping[str, Any]) -> Origin | None:
    """Where a student's network came from, if it was named by its builder."""
    if "builder" not in told:
        return None
    sources = {str(name): str(value) for name, value in told["sources"].items()}
    return Origin(str(told["builder"]), dict(told["arguments"]), sources)


def _unnamed(student: Checkpoint, then: Origin | None) -> str:
    """What to say of a student whose network is not of a known family, where nobody named it."""
    kind = shown(student.metadata.get("architecture", "another network"))
    was = "" if then is None else f", which was {shown(then.builder)} then"
    return (
        f"{shown(student.path)}: is a student of {kind}, which csa2glmha does not build; name the network "
        f"with --network{was}; in Python, csa2glmha.load(file, network=...) takes it"
    )
