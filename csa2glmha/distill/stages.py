"""What is learned in a stage: every layer from its teacher layer, or the network from its teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.core.errors import UsageError
from csa2glmha.core.hooks import CallArguments
from csa2glmha.data.batches import Batch, Inputs
from csa2glmha.distill.features import FEATURE_WEIGHT, Features, blocks_around, seen
from csa2glmha.distill.losses import LOSSES, output_loss, truth_loss
from csa2glmha.distill.processes import Processes
from csa2glmha.distill.settings import LAYERS, DistillSettings
from csa2glmha.metrics.outputs import outputs_like
from csa2glmha.networks import run
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers, glmha_layers

#: Adds the gradients of a scalar.
Backward = Callable[[Tensor], None]


class Objective(Protocol):
    """One objective.

    Attributes:
        parameters: what it trains.
        title: for people.
    """

    parameters: list[nn.Parameter]
    title: str

    def accumulate(self, batch: Batch, backward: Backward) -> tuple[Tensor, Tensor | None]:
        """Add the gradients of a batch; returns its loss, and its mean error to the teacher.

        The error is None where no output was computed.
        """
        ...

    def close(self) -> None:
        """Leave the networks as they were found."""
        ...


def make_stage(
    name: str,
    student: nn.Module,
    teacher: nn.Module,
    settings: DistillSettings,
    processes: Processes,
    held_out: list[Inputs],
) -> Objective:
    """The stage of that name; ``held_out`` are inputs that its losses may be scaled by."""
    if name == LAYERS:
        return LayerStage(student, teacher, settings, processes, held_out)
    return EndStage(student, teacher, settings, processes)


def approximate_layers(student: nn.Module, teacher: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Of every layer that is not exact, by name: the student's module, and the teacher's.

    An exact layer has nothing to learn, and must not: the optimizer would scale rounding errors up to full
    steps.
    """
    pairs, own, theirs = {}, users_own(student), users_own(teacher)
    for name in attention_layers(teacher):
        module = own.get_submodule(name)
        cores = [part for part in module.modules() if isinstance(part, GuidedAttention)]
        if any(not core.config.full for core in cores):
            pairs[name] = (module, theirs.get_submodule(name))
    for name, layer in feed_forwards(student).items():
        if layer.parts.whole and layer.hidden < layer.hidden_before:
            pairs[name] = (layer.module, theirs.get_submodule(name))
    return pairs


class LayerStage:
    """Every GLMHA layer learns its teacher layer's output from the teacher's activations.

    All layers in one pass of the teacher. Each is trained while the teacher's layer is at hand: its
    activations are gone before the next layer's turn, so memory is that of one layer.

    The loss of a layer is that of its difference over the standard deviation of the teacher layer's output,
    which makes layers comparable; the stage's is their mean.
    """

    title = "layer by layer"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        settings: DistillSettings,
        processes: Processes,
        held_out: list[Inputs],
    ) -> None:
        self._teacher, self._processes, self._loss = teacher, processes, LOSSES[settings.loss]
        self._pairs = approximate_layers(student, teacher)
        self._scales = output_deviations(
            {name: pair[1] for name, pair in self._pairs.items()}, teacher, held_out
        )
        self.parameters = [
            parameter
            for module, _ in self._pairs.values()
            for parameter in module.parameters()
            if parameter.requires_grad
        ]

    def accumulate(self, batch: Batch, backward: Backward) -> tuple[Tensor, None]:
        """As :meth:`Objective.accumulate`; without the error, since the student as a whole does not run."""
        losses: list[Tensor] = []

        def learn(name: str, called: CallArguments, output: Tensor) -> None:
            with torch.enable_grad():
                difference = self._pairs[name][0](*called.args, **called.kwargs).float() - output.float()
                loss = self._loss(difference / self._scales[name]) / len(self._pairs)
                backward(loss)
            losses.append(loss.detach())

        modules = {name: pair[1] for name, pair in self._pairs.items()}
        with seen(modules, learn), torch.no_grad(), self._processes.autocast():
            run(self._teacher, batch.inputs)
        return torch.stack(losses).sum(), None

    def close(self) -> None:
        """Nothing was changed."""


class EndStage:
    """The student learns the teacher's output, and the ground truth where that has a weight.

    The outputs of its blocks are learned beside it. A student of closed form goes through the same features
    as its teacher, so every block knows what it should have made, and early blocks need not learn it through
    all later ones. That loss is scaled to the value of the output's own, whatever the units of either.

    Raises:
        UsageError: the ground truth has a weight, and a batch has none (on its first use).
    """

    title = "end to end"

    def __init__(
        self, student: nn.Module, teacher: nn.Module, settings: DistillSettings, processes: Processes
    ) -> None:
        self._student, self._teacher, self._processes = student, teacher, processes
        self._loss, self._truth_weight = settings.loss, settings.truth_weight
        self._features = Features(student, teacher)
        self.parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self._checkpointed = checkpoint_blocks(student) if settings.activation_checkpointing else []

    def accumulate(self, batch: Batch, backward: Backward) -> tuple[Tensor, Tensor]:
        """As :meth:`Objective.accumulate`."""
        with self._processes.autocast(), self._features.seen():
            with torch.no_grad():
                expected = run(self._teacher, batch.inputs)
            output = run(self._student, batch.inputs).float()
        expected = expected.float()
        loss = output_loss(self._loss, output, expected)
        if (errors := self._features.errors(len(output))) is not None:
            loss = loss + FEATURE_WEIGHT * (errors * self._scales(output, expected, errors)).mean()
        if self._truth_weight:
            truth = known_ground_truth(batch, output)
            loss = loss + self._truth_weight * truth_loss(self._loss, output, truth)
        backward(loss)
        return loss.detach(), outputs_like(output).errors(output.detach(), expected).mean()

    @torch.no_grad()
    def _scales(self, output: Tensor, expected: Tensor, errors: Tensor) -> Tensor:
        """Of every sample the loss of its output over that of its features, (B,).

        By sample, so that a batch in parts, on one process or several, is one batch.
        """
        each = zip(output.split(1), expected.split(1), strict=True)
        return torch.stack([output_loss(self._loss, *pair) for pair in each]) / errors.clamp_min(1e-12)

    def close(self) -> None:
        """End the checkpointing of activations."""
        for module in self._checkpointed:
            del module.forward


def known_ground_truth(batch: Batch, output: Tensor) -> Tensor:
    """The ground truth of a batch, of the shape of the output and where that is.

    Raises:
        UsageError: there is none.
    """
    if batch.ground_truth is None or batch.ground_truth.shape != output.shape:
        raise UsageError(
            "--truth-weight: these images come without a ground truth; give --targets, --degrade for clean "
            "images, or of classes a folder for each, or leave the weight out"
        )
    return batch.ground_truth.to(output.device)


def output_deviations(
    modules: dict[str, nn.Module], teacher: nn.Module, inputs: list[Inputs]
) -> dict[str, float]:
    """Standard deviation of the output of some of the teacher's modules, over all their values."""
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in modules}

    def see(name: str, called: CallArguments, output: Tensor) -> None:
        moments = [output.new_tensor(output.numel()), output.sum(), output.square().sum()]
        sums[name] += torch.stack(moments).cpu().double()

    with seen(modules, see), torch.no_grad():
        for each in inputs:
            run(teacher, each)
    return {
        name: max(float(square / count - (total / count) ** 2), 1e-16) ** 0.5
        for name, (count, total, square) in sums.items()
    }


def checkpoint_blocks(student: nn.Module) -> list[nn.Module]:
    """Make the modules around the GLMHA layers compute their activations again instead of keeping them.

    Returns:
        Those modules; deleting their attribute ``forward`` undoes it.
    """
    own = users_own(student)
    blocks = [own.get_submodule(name) for name in blocks_around(student, glmha_layers(student))]
    for module in blocks:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return blocks
