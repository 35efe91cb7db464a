"""The options of a conversion, from the command line, Python or a recipe file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from csa2glmha.config.data import CalibrationOptions, DataOptions
from csa2glmha.config.deployment import DeployOptions
from csa2glmha.config.distillation import DistillOptions
from csa2glmha.config.initial import InitialOptions
from csa2glmha.config.network import NetworkOptions
from csa2glmha.config.rank_options import RankOptions
from csa2glmha.config.recipe import load_recipe
from csa2glmha.config.running import MeasureOptions, RunOptions
from csa2glmha.core.errors import UsageError
from csa2glmha.core.text import shortened

#: Flags that do not follow from the name of their field.
_FLAGS = {"timing": "--latency", "value_range": "--range", "inputs": "--input", "runtimes": "--for"}


# Pydantic lists the fields of the last base first.
class WorkOptions(
    RunOptions, NetworkOptions, MeasureOptions, DistillOptions, CalibrationOptions, DataOptions
):
    """All but the ranks: what is learnt from and how, what is measured, and how a command runs."""


class ConvertOptions(WorkOptions, DeployOptions, InitialOptions, RankOptions):
    """Everything that decides the result of a conversion.

    Field names are the keys of a recipe, and with dashes the options of the command line, which takes
    defaults and descriptions from here. A function that needs one concern alone takes that part: these
    options are each of their parts.
    """

    @model_validator(mode="before")
    @classmethod
    def _as_named_now(cls, values: Any) -> Any:
        return migrated(values) if isinstance(values, Mapping) else values

    def check_widths(self) -> None:
        """Raise UsageError for one width of all layers where each layer's is to be searched for."""
        if self.automatic and self.ffn_share < 1:
            raise UsageError(
                f"--ffn {self.ffn}: --rank auto chooses the widths, too; leave --ffn out, give --ffn full, "
                "or give --rank"
            )


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of recipes and reports by the names that they have now.

    ``latency`` was once the budget, or whether to time.
    """
    found = dict(values)
    if isinstance(found.get("latency"), bool):
        found.setdefault("timing", found["latency"])
        del found["latency"]
    return found


def flag_of(name: str, value: object = None) -> str:
    """The option of the command line that sets a field; where ``value`` is False, the one that says no."""
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    return flag.replace("--", "--no-", 1) if value is False else flag


def make_options(**values: Any) -> ConvertOptions:
    """Validate options.

    Raises:
        UsageError: the first value that is unknown or out of range, in one line.
    """
    try:
        options = ConvertOptions(**values)
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None
    options.check_network()
    options.check_ranks()
    options.check_widths()
    options.check_distillation()
    options.check_data()
    return options


def read_recipe(path: Path) -> dict[str, Any]:
    """The options a recipe file sets; relative folders in it are taken from the current directory.

    Raises:
        UsageError: not readable, not YAML, or not a mapping of known options.
    """
    content = load_recipe(path)
    unknown = [str(key) for key in content if key not in ConvertOptions.model_fields]
    if unknown:
        raise UsageError(
            f"recipe {path}: unknown option {shortened(unknown[0])!r}; "
            f"known: {', '.join(ConvertOptions.model_fields)}"
        )
    try:
        ConvertOptions(**content)
    except ValidationError as error:
        raise UsageError(f"recipe {path}: {_first_problem(error)}") from None
    return migrated(content)


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    # Of a value that may be of several types, the range that it is out of says more than a type it is not of.
    alike = [each for each in problems if each["loc"][:1] == first["loc"][:1]]
    first = next((each for each in alike if each["type"] in _RANGES), first)
    name = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        return f"unknown option {name!r}; known: {', '.join(ConvertOptions.model_fields)}"
    return f"{flag_of(name)} {shortened(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


_RANGES = {
    "finite_number",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
}
