"""Which images, cubes or measurements, how they are prepared, and what is calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from csa2glmha.config.affects import Affects, FilePath, Options
from csa2glmha.config.pattern import parse_pattern
from csa2glmha.core.errors import UsageError


def _named(value: Any) -> Any:
    """One value as several; of a mapping, as recipes and Python may have it, "name=value" each."""
    if isinstance(value, Mapping):
        return tuple(f"{name}={each}" for name, each in value.items())
    return (value,) if isinstance(value, str) else value


Named = Annotated[tuple[str, ...], BeforeValidator(_named)]


class DataOptions(Options):
    """The data, and what is done to them."""

    data: Annotated[FilePath | None, Affects.MEASUREMENTS] = Field(
        None, description="Folder to calibrate, distil, evaluate on: images, for CASSI networks also cubes."
    )
    targets: Annotated[FilePath | None, Affects.MEASUREMENTS] = Field(
        None, description="Folder of their ground truth, paired by file name; from RGB to spectra, cubes."
    )
    pair: Annotated[str | None, Affects.MEASUREMENTS] = Field(
        None,
        description="How names of --data and --targets differ, where that is not seen by itself: "
        "'{}_in={}_gt', many to one '{}_*={}', of folders blur=sharp.",
    )
    degrade: Annotated[str | None, Affects.MEASUREMENTS] = Field(
        None,
        description="Make inputs of clean images: noise:25, blur:1-2+noise:5, motion:15, jpeg:40, "
        "gamma:2+dark:0.1, none.",
    )
    mask: Annotated[FilePath | None, Affects.MEASUREMENTS] = Field(
        None, description="CASSI networks: file of the aperture mask; the student is for this mask alone."
    )
    mask_key: Annotated[str | None, Affects.MEASUREMENTS] = Field(
        None, description="Name of the mask in a .mat or .npz file of several arrays."
    )
    measurement_scale: Annotated[float | None, Affects.MEASUREMENTS] = Field(
        None,
        gt=0,
        le=1e9,
        description="CASSI networks: the stored value of a measurement that is 1, white through a half-open "
        "mask: 4095 for counts of 12 bits, half the number of bands for plain sums; recognised unless given.",
    )
    stretch: Annotated[bool, Affects.MEASUREMENTS] = Field(
        True,
        description="RGB to spectra: take images as they are, not stretched to [0, 1] as in training.",
    )
    mat_key: Annotated[str | None, Affects.MEASUREMENTS] = Field(
        None, description="Name of the array in .mat and .npz files of --data."
    )

    inputs: Annotated[Named, Affects.MEASUREMENTS] = Field(
        (),
        description="Of a network that takes more than an image: NAME=FOLDER with an image or array for "
        "each image, by name; or NAME=FILE, NAME=FILE:ARRAY or NAME=NUMBER for all. Once for each input.",
    )

    @property
    def further(self) -> dict[str, str]:
        """By the name of an input, a folder, a file or a number.

        Raises:
            UsageError: one is not of the form NAME=..., or is given twice.
        """
        found: dict[str, str] = {}
        for text in self.inputs:
            name, equals, value = (part.strip() for part in text.partition("="))
            if not (equals and value and name.isidentifier()) or name in found:
                raise UsageError(
                    f"--input {text}: give NAME=FOLDER, NAME=FILE or NAME=NUMBER, each name once"
                )
            found[name] = value
        return found

    def check_data(self) -> None:
        """Raise UsageError for options that exclude or miss each other."""
        _ = self.further
        if self.mask_key is not None and self.mask is None:
            raise UsageError(f"--mask-key {self.mask_key}: needs --mask, the file that it names an array of")
        if self.targets is not None and self.data is None:
            raise UsageError("--targets needs --data: the folder of the inputs that the targets belong to")
        if self.pair is not None:
            parse_pattern(self.pair)
            if self.targets is None:
                raise UsageError(
                    f"--pair {self.pair}: says how inputs and --targets belong together; add those"
                )
        if self.targets is not None and self.degrade is not None:
            raise UsageError("--targets and --degrade exclude each other: paired inputs are degraded already")


class CalibrationOptions(Options):
    """What statistics of the attention are gathered on."""

    calibration_crops: Annotated[int, Affects.MEASUREMENTS] = Field(
        32, ge=2, le=100_000, description="Crops for the attention statistics."
    )
    calibration_size: Annotated[int, Affects.MEASUREMENTS] = Field(
        128, ge=16, le=4096, description="Their side in pixels."
    )
