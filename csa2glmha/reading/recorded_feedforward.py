"""A feed-forward network that a recording has shown: what a student's file holds of it."""

from __future__ import annotations

from torch import Tensor, nn

from csa2glmha.attention.layout import Layout
from csa2glmha.feedforward.form import FeedForward, Parts
from csa2glmha.feedforward.tensors import Cut
from csa2glmha.reading.wiring import Index, WiringPart


class RecordedCut(WiringPart):
    """As :class:`~csa2glmha.feedforward.tensors.Cut`."""

    tensor: str
    axis: Index
    together: bool = False


class RecordedFeedForward(WiringPart):
    """Where the parts of a feed-forward network are; see :class:`~csa2glmha.feedforward.form.Parts`.

    Attributes:
        module: name of the module around all of it.
    """

    module: str
    contraction: str
    cuts: tuple[RecordedCut, ...]
    whole: bool
    output: Layout

    @classmethod
    def of(cls, layer: FeedForward) -> RecordedFeedForward:
        """The inverse of :meth:`put_into`."""
        parts = layer.parts
        cuts = tuple(
            RecordedCut(tensor=each.tensor, axis=each.axis, together=each.together) for each in parts.cuts
        )
        return cls(
            module=layer.path,
            contraction=parts.contraction,
            cuts=cuts,
            whole=parts.whole,
            output=parts.output,
        )

    def put_into(self, model: nn.Module) -> FeedForward:
        """The feed-forward network in a model that has these modules.

        Raises:
            ValueError: in one line, why it is not there.
        """
        try:
            module = model.get_submodule(self.module)
        except AttributeError:
            raise ValueError(f"the network has no module {self.module!r}") from None
        cuts = tuple(Cut(each.tensor, each.axis, each.together) for each in self.cuts)
        layer = FeedForward(module, Parts(self.contraction, cuts, self.whole, self.output), self.module)
        try:
            hidden = layer.hidden
        except (AttributeError, TypeError):
            raise ValueError(f"contraction: no such layer {self.contraction!r}") from None
        if Cut(f"{self.contraction}.weight", 1) not in cuts or len(set(cuts)) != len(cuts):
            raise ValueError("cuts: not of the contraction, or one twice")
        for cut in cuts:
            tensor = _tensor_of(module, cut.tensor)
            if tensor is None:
                raise ValueError(f"cuts: there is no parameter {cut.tensor!r}")
            if cut.axis >= tensor.ndim or tensor.shape[cut.axis] % hidden or not tensor.shape[cut.axis]:
                raise ValueError(f"cuts: {cut.tensor!r} has not the {hidden} hidden channels")
        return layer


def _tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer by its name."""
    owner, _, last = name.rpartition(".")
    try:
        found = module.get_submodule(owner)
    except AttributeError:
        return None
    return dict(found.named_parameters(recurse=False)).get(
        last, dict(found.named_buffers(recurse=False)).get(last)
    )


def carry(model: nn.Module, found: dict[str, RecordedFeedForward]) -> None:
    """Let a network carry what was found of its feed-forward networks, by name, as its copies do."""
    vars(model)["recorded_feed_forwards"] = found


def carried_by(model: nn.Module) -> dict[str, RecordedFeedForward] | None:
    """The inverse; None: nobody has looked for them."""
    found: dict[str, RecordedFeedForward] | None = vars(model).get("recorded_feed_forwards")
    return found
