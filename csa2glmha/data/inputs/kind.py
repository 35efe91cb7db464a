"""What a kind of inputs is: how the files of a network are opened, read, shaped and refused.

A network names its kind (:attr:`csa2glmha.networks.RestorationModel.inputs`), and
:func:`csa2glmha.data.open.input_kind` finds it. Adding a kind takes one class with the methods of
:class:`InputKind`, and its name there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from csa2glmha.config.data import DataOptions
from csa2glmha.config.options import WorkOptions
from csa2glmha.data import arrays, images
from csa2glmha.data.batches import Data, Example, Inputs
from csa2glmha.data.inputs.refusals import refuse_no_stretch
from csa2glmha.data.stored import StoredImage
from csa2glmha.metrics.outputs import Outputs
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import ForeignNetwork

IMAGES, RGB_TO_SPECTRA, CASSI = "images", "rgb-to-spectra", "cassi"


@dataclass(frozen=True)
class NetworkFacts:
    """What a kind of inputs must know of a network, whatever that runs in.

    Attributes:
        name: for messages.
        inputs: the kind that it names.
        channels, bands: of its first input and its output.
        count: how many inputs it takes.
        multiple: of heights and widths.
        size: height and width, where it holds for one size only.
        metadata: what its file says of itself.
        scale: height and width of its output over those of its (first) input.
        arguments, shapes: of all inputs, what the network calls them and an example's; none if not known.
    """

    name: str
    inputs: str
    channels: int
    bands: int
    count: int = 1
    multiple: int = 1
    size: tuple[int, int] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    scale: Fraction = Fraction(1)
    arguments: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()


def facts_of(model: RestorationModel, metadata: Mapping[str, str] | None = None) -> NetworkFacts:
    """The facts of a network in PyTorch."""
    return NetworkFacts(
        model.architecture,
        model.inputs,
        model.in_channels,
        model.out_channels,
        len(model.input_names),
        model.size_multiple,
        model.fixed_size,
        metadata or {},
        model.scale,
        *(() if not isinstance(model, ForeignNetwork) else (model.argument_names, model.interface.shapes)),
    )


@dataclass(frozen=True)
class Formats:
    """What a network reads and writes.

    Attributes:
        suffixes: of the inputs, lower case.
        wanted: what they are, for messages.
        views: inputs are folders with two views of every image.
        output_suffix: of cubes; "" keeps the names as they are.
        output_channels: of images.
    """

    suffixes: Sequence[str]
    wanted: str
    views: bool
    output_suffix: str
    output_channels: int


def image_formats(output_suffix: str, output_channels: int, views: bool = False) -> Formats:
    """Of networks that take images."""
    wanted = "images" if not views else "two folders of views, such as inputL and inputR, in it"
    return Formats(images.SUFFIXES, wanted, views, output_suffix, output_channels)


def array_formats(output_suffix: str, output_channels: int) -> Formats:
    """Of networks that take cubes or measurements."""
    wanted = f"{arrays.SUFFIX_LIST} files"
    return Formats(arrays.SUFFIXES, wanted, False, output_suffix, output_channels)


@dataclass(frozen=True)
class Source:
    """What was read for one output.

    Attributes:
        inputs: with a batch axis of one.
        stored: the image's file as it is, None if it is none.
    """

    inputs: Inputs
    stored: StoredImage | None = None


#: The files that one output is made from.
Files = tuple[Path, ...]
#: Reads them, in so many bytes of memory.
Read = Callable[[Files, int], Source]


@dataclass(frozen=True)
class FileInputs:
    """How files become inputs, one output at a time.

    Attributes:
        formats: of the files.
        reader: from all files of a run, which together tell the units, to what reads some of them.
    """

    formats: Formats
    reader: Callable[[Sequence[Files]], Read]


class LazyExamples(Sequence[Example]):
    """Examples that are read when they are needed: a folder may not fit into memory."""

    def __init__(self, count: int, read: Callable[[int], Example]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._read(index)


#: What a network is evaluated on, and what the user should know of it.
Examples = tuple[Sequence[Example], tuple[str, ...]]


class InputKind(Protocol):
    """One kind of inputs. Every method that takes options refuses those that it has no use for by name."""

    def takes(self, channels: int, bands: int) -> bool:
        """Whether networks of so many channels in and out take this kind."""
        ...

    def outputs(self, network: NetworkFacts) -> Outputs:
        """What the network makes."""
        ...

    def stretches(self, network: NetworkFacts, options: DataOptions) -> bool:
        """Whether whole images are brought to [0, 1] first.

        Raises:
            UsageError: the options leave out what is not done.
        """
        ...

    def shapes(
        self, network: NetworkFacts, height: int, width: int, batch: int = 1
    ) -> tuple[tuple[int, ...], ...]:
        """Shapes of the inputs, in call order, for an image of ``height`` x ``width`` pixels."""
        ...

    def open_data(self, network: NetworkFacts, options: WorkOptions) -> Data:
        """What a network is converted and trained on.

        Raises:
            DataError, UsageError: nothing usable, or an option that this kind has no use for.
        """
        ...

    def open_examples(
        self, network: NetworkFacts, options: WorkOptions, teacher: bool, crop: int | None
    ) -> Examples:
        """What a network is evaluated on.

        Args:
            network: the network.
            options: those on data and the seed.
            teacher: there is another network to compare outputs with, so ground truth may be missing.
            crop: side of the central squares; None keeps whole images.

        Raises:
            DataError, UsageError: as :meth:`open_data`, or nothing to compare with.
        """
        ...

    def open_files(self, network: NetworkFacts, options: DataOptions, cube_suffix: str) -> FileInputs:
        """How single files are read; ``cube_suffix`` is of outputs that are spectra.

        Raises:
            DataError, UsageError: options that cannot be used.
        """
        ...

    def provenance(self, network: NetworkFacts, options: DataOptions) -> dict[str, str]:
        """What a student's metadata say of how its inputs are prepared."""
        ...

    def constants(self, data: Data) -> dict[str, Tensor]:
        """Inputs that are the same for every image, by name: a student may be made for these alone."""
        ...


class NeverStretched:
    """Of kinds whose values say how bright things are: each input goes into the network as it is."""

    def stretches(self, network: NetworkFacts, options: DataOptions) -> bool:
        """Never."""
        refuse_no_stretch(network.name, False, options)
        return False
