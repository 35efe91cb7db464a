"""A network of the user's own: what builds it, and what it takes and makes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, JsonValue

from csa2glmha.config.affects import Affects, Options
from csa2glmha.core.errors import UsageError
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import shortened

#: Stands for a checkpoint where the network comes with its weights.
NO_FILE = "-"
_SHAPE = re.compile(r"[1-9][0-9]{0,5}(x[1-9][0-9]{0,5})+")


def _each(value: Any) -> Any:
    """One value as several; of a mapping, as recipes may have it, "name=value" each."""
    if isinstance(value, Mapping):
        return tuple(f"{name}={dumps(each)}" for name, each in value.items())
    return (value,) if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], BeforeValidator(_each)]


class NetworkOptions(Options):
    """What builds the user's own network, and what that takes and makes."""

    network: Annotated[str | None, Affects.MEASUREMENTS] = Field(
        None,
        description="Your own network, a class or function that returns an nn.Module: mypackage.archs:build "
        "or path/to/file.py:build. This is your code, and it is run.",
    )
    network_arg: Annotated[Several, Affects.MEASUREMENTS] = Field(
        (), description="A keyword argument of --network, such as dim=32 or 'heads=[1,2,4]'; repeatable."
    )
    example: Annotated[Several, Affects.MEASUREMENTS] = Field(
        (),
        description="Shape of an input that --network takes, such as 1x3x96x64, where that is not found by "
        "trying; once for each input.",
    )
    value_range: Annotated[Literal["0-1", "-1-1", "0-255", "imagenet"], Affects.MEASUREMENTS] = Field(
        "0-1",
        description="Values that --network takes and makes; imagenet: with its mean and deviation.",
    )
    output_index: Annotated[int, Affects.MEASUREMENTS] = Field(
        -1, description="Which output of --network counts, where it has several: 0 is the first, -1 the last."
    )

    def stem_of(self, checkpoint: Path) -> str:
        """What results are called by: the file's name, or the builder's where there is no file."""
        return self.builder[1] if str(checkpoint) == NO_FILE else checkpoint.stem

    @property
    def builder(self) -> tuple[str, str]:
        """Where the builder is, and its name.

        Raises:
            UsageError: --network has another form, or is not given.
        """
        if self.network is None:
            raise UsageError(
                f"{NO_FILE}: stands for a network that brings its weights; name it with --network"
            )
        where, colon, name = self.network.rpartition(":")
        if not (where and colon and name.replace(".", "").isidentifier()):
            raise UsageError(
                f"--network {shortened(self.network)}: give package.module:name or path/to/file.py:name, the "
                "name of a class or a function that returns an nn.Module"
            )
        return where, name

    @property
    def arguments(self) -> dict[str, JsonValue]:
        """Keyword arguments of the builder.

        Raises:
            UsageError: one is not of the form name=value, or is given twice.
        """
        found: dict[str, JsonValue] = {}
        for name, value in map(_argument, self.network_arg):
            if name in found:
                raise UsageError(f"--network-arg {name}: is given twice; give one value")
            found[name] = value
        return found

    @property
    def example_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of inputs.

        Raises:
            UsageError: one is none.
        """
        for text in self.example:
            if not _SHAPE.fullmatch(text):
                raise UsageError(f"--example {shortened(text)}: give a shape such as 1x3x96x64")
        return tuple(tuple(map(int, text.split("x"))) for text in self.example)

    def check_network(self) -> None:
        """Raise UsageError for options that miss --network, or have another form."""
        if self.network is not None:
            _ = self.builder, self.arguments, self.example_shapes
            return
        for name in ("network_arg", "example", "value_range", "output_index"):
            if getattr(self, name) != type(self).model_fields[name].default:
                flag = "--range" if name == "value_range" else f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag}: is about --network, your own network; add that, or leave it out")


def _argument(text: str) -> tuple[str, JsonValue]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise UsageError(f"--network-arg {shortened(text)}: give name=value, such as dim=32")
    return name.strip(), _literal(value)


def _literal(text: str) -> JsonValue:
    """What JSON or YAML makes of it; JSON first, which knows 1e-4 for a number."""
    try:
        found: JsonValue = json.loads(text)
        return found
    except ValueError:
        pass
    try:
        found = yaml.safe_load(text)
        dumps(found)
        return found
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError):
        return text
