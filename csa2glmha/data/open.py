"""The data that a network is converted, trained and evaluated on, from what the user names."""

from __future__ import annotations

from csa2glmha.config.data import DataOptions
from csa2glmha.config.options import WorkOptions
from csa2glmha.core.errors import CheckpointError
from csa2glmha.data.batches import Data
from csa2glmha.data.inputs.classes import ClassifiedImages
from csa2glmha.data.inputs.images import ImageInputs
from csa2glmha.data.inputs.kind import CASSI, IMAGES, RGB_TO_SPECTRA, InputKind, NetworkFacts, facts_of
from csa2glmha.data.inputs.rgb_to_spectra import STRETCH, RgbToSpectra, as_trained
from csa2glmha.data.inputs.snapshots import CassiSnapshots
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import CLASSES

#: All kinds of inputs, by the name that networks give.
KINDS: dict[str, InputKind] = {
    IMAGES: ImageInputs(),
    RGB_TO_SPECTRA: RgbToSpectra(),
    CASSI: CassiSnapshots(),
    CLASSES: ClassifiedImages(),
}
#: What the numbers of channels decide, where the kind that a network names has other ones.
_BY_CHANNELS = (RGB_TO_SPECTRA, IMAGES)


def input_kind(network: NetworkFacts) -> InputKind:
    """The kind of inputs that a network takes: what it names, where its numbers of channels are of that kind.

    Raises:
        CheckpointError: it names a kind that is not known here.
    """
    if network.inputs not in KINDS:
        raise CheckpointError(
            f"{network.name}: takes inputs of the kind {network.inputs!r}, which this version does not know; "
            "update csa2glmha"
        )
    fitting = (KINDS[name] for name in (network.inputs, *_BY_CHANNELS))
    return next(kind for kind in fitting if kind.takes(network.channels, network.bands))


def open_data(model: RestorationModel, options: WorkOptions) -> Data:
    """Open the images, cubes or measurements that a network takes, and split off the held-out ones.

    Args:
        model: the teacher.
        options: of them those on data, input_size, crop, calibration_size and seed.

    Raises:
        DataError, UsageError: nothing usable, or an option that this network has no use for.
    """
    network = facts_of(model)
    return input_kind(network).open_data(network, options)


def input_provenance(model: RestorationModel, options: DataOptions) -> dict[str, str]:
    """What a student's metadata say of how its inputs are prepared."""
    network = facts_of(model)
    return input_kind(network).provenance(network, options)


__all__ = ["KINDS", "STRETCH", "as_trained", "input_kind", "input_provenance", "open_data"]
