"""RGB images, each brought to [0, 1] by its own contrast, as inputs of networks that make spectra of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from csa2glmha.config.data import DataOptions
from csa2glmha.data.inputs.images import ImageInputs
from csa2glmha.data.inputs.kind import NetworkFacts
from csa2glmha.data.inputs.refusals import refuse_no_stretch
from csa2glmha.data.sources import wants_stretch

#: What metadata call it whether images are stretched: "yes" or "no", nothing where they never are.
STRETCH = "stretch"

OptionsT = TypeVar("OptionsT", bound=DataOptions)


class RgbToSpectra(ImageInputs):
    """Images that are stretched first, unless the network was made without that."""

    def takes(self, channels: int, bands: int) -> bool:
        """Colour images, and what is no image as output."""
        return wants_stretch(channels, bands)

    def stretches(self, network: NetworkFacts, options: DataOptions) -> bool:
        """Unless the options or the student's metadata say otherwise."""
        refuse_no_stretch(network.name, True, options)
        return as_trained(network.metadata, options).stretch

    def provenance(self, network: NetworkFacts, options: DataOptions) -> dict[str, str]:
        """Whether images were stretched."""
        return {STRETCH: "yes" if options.stretch else "no"}


def as_trained(metadata: Mapping[str, str], options: OptionsT) -> OptionsT:
    """The options with what a student's metadata say of how its images are prepared."""
    return options.model_copy(update={"stretch": False}) if metadata.get(STRETCH) == "no" else options
