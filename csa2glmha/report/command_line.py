"""The command that makes a conversion again, from its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from csa2glmha.config.affects import Affects, options_that_affect
from csa2glmha.config.options import ConvertOptions, flag_of, migrated
from csa2glmha.core.text import one_line
from csa2glmha.report.schema import Report

#: Of folders and files only the names are told: the rest of a path concerns nobody else.
_PATHS = {"data", "targets", "mask"}


def command_line(report: Report) -> str:
    """`csa2glmha convert ...` with the rank, the seed, and what differs from its default.

    Left out is what changes neither the student nor the report, such as places and the machine.
    """
    teacher, options = report.teacher, migrated(report.options)
    words = ["csa2glmha", "convert", teacher.source or teacher.file]
    for name in options_that_affect(Affects.REPORT, ConvertOptions):
        default = ConvertOptions.model_fields[name].default
        value = options.get(name, default)
        value = tuple(value) if isinstance(value, list) else value
        if (value != default or name in ("rank", "seed")) and not _replaced(name, options):
            words += _option(name, value)
    return shlex.join(one_line(word) for word in words)


def _replaced(name: str, options: Mapping[str, JsonValue]) -> bool:
    """Steps stand in place of minutes."""
    return name == "distill_minutes" and options.get("distill_steps") is not None


def _option(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag_of(name, value)]
    if isinstance(value, tuple):
        values = [_of_file(str(each)) if name == "inputs" else str(each) for each in value]
        return [word for each in values for word in (flag_of(name), each)]
    return [flag_of(name), Path(str(value)).name if name in _PATHS or name == "network" else str(value)]


def _of_file(given: str) -> str:
    """NAME=FOLDER without the path to the folder; numbers stay."""
    name, _, value = given.partition("=")
    return f"{name}={Path(value).name}"
