"""How the student is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from csa2glmha.config.affects import Affects, FilePath, Options
from csa2glmha.core.errors import UsageError


class DistillOptions(Options):
    """How long and how hard, in how much memory, and where a run can go on."""

    distill: Annotated[bool, Affects.WEIGHTS] = Field(True, description="Stop at the initialisation.")
    distill_steps: Annotated[int | None, Affects.WEIGHTS] = Field(
        None, ge=0, le=1_000_000_000, description="Distillation steps, instead of minutes."
    )
    distill_minutes: Annotated[float, Affects.WEIGHTS] = Field(
        6.0, gt=0, le=1e6, description="Time for distillation."
    )
    distill_stages: Annotated[Literal["end", "layers", "both"], Affects.WEIGHTS] = Field(
        "end", description="end: the output against the teacher's; layers: each against the teacher's; both."
    )
    batch: Annotated[int, Affects.WEIGHTS] = Field(
        2, ge=1, le=65536, description="Crops per distillation step, on each process."
    )
    accumulate: Annotated[int, Affects.WEIGHTS] = Field(
        1, ge=1, le=4096, description="Times as many, in parts one after another."
    )
    crop: Annotated[int | None, Affects.WEIGHTS] = Field(
        None, ge=16, le=4096, description="Their side in pixels; 96, for CASSI networks 128 or the mask's."
    )
    optimizer: Annotated[Literal["muon", "adam"], Affects.WEIGHTS] = Field(
        "muon", description="muon: matrices take orthogonalised steps, all else Adam's; adam."
    )
    learning_rate: Annotated[float, Affects.WEIGHTS] = Field(
        2e-4, gt=0, le=1, description="Peak learning rate of the distillation."
    )
    loss: Annotated[Literal["l1", "charbonnier", "l2"], Affects.WEIGHTS] = Field(
        "l1", description="Loss of the distillation."
    )
    truth_weight: Annotated[float, Affects.WEIGHTS] = Field(
        0.0, ge=0, le=1e6, description="Weight of the loss against the ground truth; the teacher's is 1."
    )
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Affects.WEIGHTS] = Field(
        "fp32", description="Arithmetic of the distillation."
    )
    # Activations computed twice are the same both times.
    activation_checkpointing: Annotated[bool, Affects.NOTHING] = Field(
        False, description="Distil in less memory: compute activations twice instead of keeping them."
    )
    workers: Annotated[int, Affects.NOTHING] = Field(
        0, ge=0, le=256, description="Processes that make batches beside each trainer."
    )
    resume: Annotated[bool, Affects.NOTHING] = Field(
        False, description="Continue an interrupted run where it was."
    )
    state_minutes: Annotated[float, Affects.NOTHING] = Field(
        5.0, ge=0, le=1e6, description="Minutes between states to resume from."
    )
    tensorboard: Annotated[FilePath | None, Affects.NOTHING] = Field(
        None, description="Folder for TensorBoard's curves."
    )

    def check_distillation(self) -> None:
        """Raise UsageError for options that exclude each other."""
        if self.distill_steps is not None and "distill_minutes" in self.model_fields_set:
            raise UsageError("--distill-steps and --distill-minutes exclude each other: give one of them")
