"""Options that a kind of inputs has no use for, refused by name."""

from __future__ import annotations

from csa2glmha.config.data import DataOptions
from csa2glmha.core.errors import UsageError


def refuse_no_stretch(name: str, wanted: bool, options: DataOptions) -> None:
    """Raise UsageError for --no-stretch where nothing is stretched; ``wanted``: it would be."""
    if not (wanted or options.stretch):
        raise UsageError(
            f"--no-stretch: {name} takes images as they are, only networks from RGB to spectra have "
            "them stretched; leave it out"
        )


def refuse_cassi_options(name: str, options: DataOptions) -> None:
    """Raise UsageError for options on masks and measurements where the network takes none."""
    for option in ("mask", "mask_key", "measurement_scale"):
        value = getattr(options, option)
        if value is not None:
            raise UsageError(
                f"--{option.replace('_', '-')} {value}: {name} takes no mask and no measurements; "
                "leave it out"
            )


def refuse_further_inputs(name: str, count: int) -> None:
    """Raise UsageError for a network that an image alone is not enough for."""
    if count > 1:
        raise UsageError(
            f"{name} takes {count} inputs and does not say how large they are; export it again, or give the "
            "student or checkpoint with --network"
        )


def refuse_image_options(name: str, options: DataOptions) -> None:
    """Raise UsageError for options that make or pair images where the network takes CASSI snapshots."""
    if options.degrade is not None:
        raise UsageError(
            f"--degrade {options.degrade}: {name}'s inputs are CASSI measurements, simulated from cubes; "
            "leave it out"
        )
    if options.targets is not None:
        raise UsageError(f"--targets {options.targets}: for {name}, give the cubes as --data; leave this out")
