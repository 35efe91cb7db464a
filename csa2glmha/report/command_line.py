"""The command that makes a conversion again, from its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from csa2glmha.config.options import ConvertOptions, flag_of, migrated
from csa2glmha.core.text import one_line
from csa2glmha.report.schema import Report

#: Options that concern the machine or one run, and not the result.
_LOCAL = {"output", "overwrite", "resume", "device", "workers", "state_minutes", "tensorboard", "baselines"}
#: Of folders and files only the names are told: the rest of a path concerns nobody else.
_PATHS = {"data", "targets", "mask"}


def command_line(report: Report) -> str:
    """`csa2glmha convert ...` with the options that differ from their defaults, and the rank and seed."""
    teacher, options = report.teacher, migrated(report.options)
    words = ["csa2glmha", "convert", teacher.source or teacher.file]
    for name, field in ConvertOptions.model_fields.items():
        value = options.get(name, field.default)
        shown = value != field.default or name in ("rank", "seed")
        if shown and name not in _LOCAL and not _replaced(name, options):
            words += _option(name, value)
    return shlex.join(one_line(word) for word in words)


def _replaced(name: str, options: Mapping[str, JsonValue]) -> bool:
    """Steps stand in place of minutes."""
    return name == "distill_minutes" and options.get("distill_steps") is not None


def _option(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag_of(name, value)]
    return [flag_of(name), Path(str(value)).name if name in _PATHS else str(value)]
