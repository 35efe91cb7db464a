"""How to distil."""

from __future__ import annotations

from dataclasses import dataclass

from csa2glmha.distill.optimizer import MUON

#: Share of the budget that goes to the layer-wise stage where both are run.
LAYER_SHARE = 0.1
#: Peak learning rate of the layer-wise stage, over that of the end-to-end stage: a layer on its own
#: cannot throw off those behind it.
LAYER_RATE = 3.0

#: The stages in their order: every layer against the teacher's, then the whole against its output.
LAYERS, END = "layers", "end"


@dataclass(frozen=True)
class DistillSettings:
    """How long and how hard to train.

    Attributes:
        steps: optimizer steps; None takes as many as fit into ``minutes``.
        minutes: the time budget when ``steps`` is None.
        stages: "layers" (every layer learns its teacher layer's output), "end" (the network learns the
            teacher's output), or "both", in this order.
        layer_share: of the budget, for "layers" where both are run.
        layer_rate: peak learning rate of that stage, over ``learning_rate``.
        batch: images a step on each process, in each of ``accumulate`` parts.
        accumulate: parts whose gradients make one step together.
        optimizer: "muon" (see :class:`csa2glmha.distill.optimizer.Muon`) or "adam".
        learning_rate: peak of the schedule (linear warm-up, half cosine to zero). The student starts
            close to its teacher: rates that suit training from scratch throw that away.
        warmup: share of a stage's steps spent warming up.
        loss: "l1", "charbonnier" or "l2".
        truth_weight: of the loss against the ground truth, beside the teacher's output of weight one.
        precision: "fp32", or "bf16" or "fp16" for the networks' arithmetic; weights stay float32.
        activation_checkpointing: compute activations twice instead of keeping them.
        workers: processes that make the batches; 0 makes them in the training process.
    """

    steps: int | None = None
    minutes: float = 6.0
    stages: str = END
    layer_share: float = LAYER_SHARE
    layer_rate: float = LAYER_RATE
    batch: int = 2
    accumulate: int = 1
    optimizer: str = MUON
    learning_rate: float = 2e-4
    warmup: float = 0.1
    loss: str = "l1"
    truth_weight: float = 0.0
    precision: str = "fp32"
    activation_checkpointing: bool = False
    workers: int = 0

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages to run."""
        return (LAYERS, END) if self.stages == "both" else (self.stages,)

    def share(self, stage: str) -> float:
        """The share of the budget that is spent at the end of a stage."""
        return self.layer_share if self.stages == "both" and stage == LAYERS else 1.0

    def peak(self, stage: str) -> float:
        """The peak learning rate of a stage."""
        return self.learning_rate * (self.layer_rate if stage == LAYERS else 1.0)
