"""The data that a network is converted, trained and judged on, from what the user names."""

from __future__ import annotations

from collections.abc import Mapping

from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.errors import UsageError
from csa2glmha.data.batches import Data
from csa2glmha.data.inputs.cassi_data import CassiData, prepare_cassi
from csa2glmha.data.sources import ImageData, prepare_images, wants_stretch
from csa2glmha.networks import RestorationModel

#: What metadata call it whether images are stretched: "yes" or "no", nothing where they never are.
STRETCH = "stretch"


def open_data(model: RestorationModel, options: ConvertOptions) -> Data:
    """Open the images, cubes or measurements that a network takes, and split off the held-out ones.

    Args:
        model: the teacher.
        options: of them those on data, input_size, crop, calibration_size and seed.

    Raises:
        DataError, UsageError: nothing usable, or an option that this network has no use for.
    """
    if "mask" in model.input_names:
        refuse_no_stretch(model.architecture, False, options)
        return _open_cassi(model, options)
    refuse_cassi_options(model.architecture, options)
    wanted = wants_stretch(model.in_channels, model.out_channels)
    refuse_no_stretch(model.architecture, wanted, options)
    return prepare_images(
        options.data,
        options.targets,
        options.degrade,
        model.in_channels,
        options.seed,
        model.out_channels,
        options.mat_key,
        options.pair,
        wanted and options.stretch,
    )


def as_trained(metadata: Mapping[str, str], options: ConvertOptions) -> ConvertOptions:
    """The options with what a student's metadata say of how its images are prepared."""
    return options.model_copy(update={"stretch": False}) if metadata.get(STRETCH) == "no" else options


def stretch_provenance(model: RestorationModel, options: ConvertOptions) -> dict[str, str]:
    """What a student's metadata say of how its images are prepared."""
    if not wants_stretch(model.in_channels, model.out_channels) or "mask" in model.input_names:
        return {}
    return {STRETCH: "yes" if options.stretch else "no"}


def refuse_no_stretch(architecture: str, wanted: bool, options: ConvertOptions) -> None:
    """Raise UsageError for --no-stretch where nothing is stretched; ``wanted``: it would be."""
    if not (wanted or options.stretch):
        raise UsageError(
            f"--no-stretch: {architecture} takes images as they are, only networks from RGB to spectra have "
            "them stretched; leave it out"
        )


def refuse_cassi_options(architecture: str, options: ConvertOptions) -> None:
    """Raise UsageError for options on masks and measurements where the network takes none."""
    for name in ("mask", "mask_key", "measurement_scale"):
        value = getattr(options, name)
        if value is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: {architecture} takes no mask and no measurements; "
                "leave it out"
            )


def refuse_image_options(architecture: str, options: ConvertOptions) -> None:
    """Raise UsageError for options that make or pair images where the network takes CASSI snapshots."""
    if options.degrade is not None:
        raise UsageError(
            f"--degrade {options.degrade}: {architecture}'s inputs are CASSI measurements, simulated from "
            "cubes; leave it out"
        )
    if options.targets is not None:
        raise UsageError(
            f"--targets {options.targets}: for {architecture}, give the cubes as --data; leave this out"
        )


def _open_cassi(model: RestorationModel, options: ConvertOptions) -> CassiData:
    refuse_image_options(model.architecture, options)
    data = prepare_cassi(
        options.data,
        options.mask,
        options.mat_key,
        model.in_channels,
        model.size_multiple,
        options.input_size,
        options.seed,
        options.mask_key,
        options.measurement_scale,
    )
    # Defaults shrink to a small mask; what was asked for is done or refused.
    for name in ("calibration_size", "crop"):
        if name in options.model_fields_set and getattr(options, name) is not None:
            data.check_side(getattr(options, name), "--" + name.replace("_", "-"))
    if options.mask is not None and "input_size" in options.model_fields_set:
        raise UsageError(
            f"--input-size {options.input_size}: with --mask the size is the mask's; leave it out"
        )
    return data


__all__ = [
    "STRETCH",
    "CassiData",
    "ImageData",
    "as_trained",
    "open_data",
    "refuse_cassi_options",
    "refuse_image_options",
    "refuse_no_stretch",
    "stretch_provenance",
]
