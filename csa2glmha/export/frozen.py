"""Networks whose code makes plain numbers of sizes: ``int(x.shape[0])``, or a loop over the rows of windows.

PyTorch's exporter runs the network once. What is a plain number then is a constant in the graph, so that the
graph is right for that batch, height or width only. The exporter itself tells of some such sizes. Of others
it tells nothing, and the file gives something else at another size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from csa2glmha.core.errors import CheckpointError, ExportError
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.export.verify import Check, case_of
from csa2glmha.networks import RestorationModel

#: What a file's report says where the batch alone is such a number.
SINGLE_IMAGES = "the file takes single images: the network's code makes a plain number of the batch"
#: The axes of images, and those of further inputs that go with them.
_AXES = {0: "batch", 2: "height", 3: "width"}
#: Of what PyTorch's exporter says of an axis that the graph would be right for one size of only.
_CONFLICT = re.compile(r"(?:static shape of|specialized due to).*\.shape\[(\d+)\]")


class FrozenError(ExportError):
    """A file would be right at one size only.

    Attributes:
        axes: that the network's code makes plain numbers of: "batch", "height", "width".
    """

    def __init__(self, network: RestorationModel, axes: Iterable[str]) -> None:
        self.axes = frozenset(axes)
        sizes = " and ".join(name for name in _AXES.values() if name in self.axes)
        channels = network.in_channels
        super().__init__(
            f"{network.architecture}: its code makes plain numbers of its input's {sizes}, or decides by "
            "them, so a file would be right at some sizes only: csa2glmha export with "
            f"--shape 1x{channels}xHxW (in Python: shape=(1, {channels}, H, W)) writes one for the size "
            "that you give; or use the PyTorch checkpoint"
        )


def frozen_by_exporter(message: str) -> frozenset[str]:
    """The axes that PyTorch's exporter says are constants in the graph; none where it failed otherwise.

    >>> frozen_by_exporter("- tracing inferred a static shape of 2 for dimension inputs['image'].shape[0].")
    frozenset({'batch'})
    """
    found = (int(axis) for axis in _CONFLICT.findall(message))
    return frozenset(_AXES[axis] for axis in found if axis in _AXES)


def check_frozen(file: Path, network: RestorationModel, check: Check, refusal: ExportError) -> None:
    """Say so where a file was refused since it is right only at the size at which the network was run.

    Args:
        file: that was refused.
        network: that it is of.
        check: what it was held against; the first case is of the size at which the network was run.
        refusal: why it was refused.

    Raises:
        FrozenError: it is right at that size, and changing batch, height or width, or both of these, makes
            it wrong.
    """
    try:
        runtime = OnnxModel(file)
    except CheckpointError:  # no graph that runs at all
        return
    first, *others = check.cases
    if not check.agrees(runtime, first):
        return
    frozen: set[str] = set()
    for case in others:
        if check.agrees(runtime, case):
            continue
        for axes in ((0,), (2,), (3,), (2, 3)):  # both, where the code decides by the area
            shape = list(first.inputs[0].shape)
            for axis in axes:
                shape[axis] = case.inputs[0].shape[axis]
            names = {_AXES[axis] for axis in axes}
            if not names & frozen and not check.agrees(runtime, case_of(network, case.inputs, shape)):
                frozen |= names
    if frozen:
        raise FrozenError(network, frozen) from refusal
