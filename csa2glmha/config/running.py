"""What is compared and timed, and how a command runs: on what device, from which seed, to which place."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from csa2glmha.config.affects import Affects, FilePath, Options


class MeasureOptions(Options):
    """What the report compares and times, and at which size."""

    baselines: Annotated[bool, Affects.REPORT] = Field(
        False,
        description="Also make other methods' students, at equal MACs and steps, and compare: three for the "
        "attention and, where feed-forward networks get narrower, four that prune those.",
    )
    # MST's random mask has this size, and budgets are counted at it.
    input_size: Annotated[int, Affects.MEASUREMENTS] = Field(
        256, ge=8, le=16384, description="Image side for MACs, latency and quality."
    )
    timing: Annotated[bool, Affects.REPORT] = Field(True, description="Do not time the ONNX models.")


class RunOptions(Options):
    """Where a command takes its weights from, what it runs on, and where its results go."""

    weights: Annotated[str | None, Affects.MEASUREMENTS] = Field(
        None,
        min_length=1,
        description="Which weights of a checkpoint that holds several, such as params; averaged ones.",
    )
    # Devices agree up to rounding.
    device: Annotated[str, Affects.NOTHING] = Field(
        "auto", description="auto (a GPU when there is one), cpu, cuda, cuda:N or mps."
    )
    seed: Annotated[int, Affects.MEASUREMENTS] = Field(0, ge=0, lt=2**31, description="Of everything random.")
    output: Annotated[FilePath | None, Affects.NOTHING] = Field(
        None, description="Output folder [CHECKPOINT-rankR]."
    )
    overwrite: Annotated[bool, Affects.NOTHING] = Field(False, description="Replace existing results.")
