"""What a network takes and makes, found by trying."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from csa2glmha.core.errors import NetworkError, UsageError
from csa2glmha.core.users_code import calls_users_code, described
from csa2glmha.networks.foreign import MOST_INPUTS, Interface, Shape, alike, chosen_output
from csa2glmha.networks.model import LARGEST_SCALE, LOGITS, skeleton_of
from csa2glmha.networks.ranges import RANGES

#: Multiples that networks ask of heights and widths.
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 12, 24, 48)
#: An image is tried with sides of about this many pixels.
_LEAST_SIDE = 48
#: Two multiples of 64, of different length; and squares that networks of one size are made for.
_SIZES = ((128, 192), (128, 128), (224, 224), (256, 256), (64, 64))
#: Channels of images that are tried after those of the first convolution.
_CHANNELS = (3, 1, 4, 6)
#: Two calls on the same input may differ by this share of the largest value, by rounding alone.
_ROUNDING = 1e-5
#: Images in a batch may differ by this share from what they give alone: other algorithms, no other function.
_ALIKE = 1e-3

calls_users_code(__file__)


def probe(network: nn.Module, builder: str, examples: Sequence[Shape], wanted: Interface) -> Interface:
    """Find out what a network takes: channels, sizes; and whether it makes images, how large, or logits.

    Where the network can be run on shapes alone, most is found without computing anything.

    Args:
        network: in eval mode, with its weights.
        builder: what to call it in messages.
        examples: shapes of its inputs, where the user gave any.
        wanted: of it value range and output.

    Raises:
        NetworkError: it does not run, makes neither images nor logits, or another output at each call.
    """
    try:
        copy.deepcopy(network)
    except Exception as error:
        raise NetworkError(f"--network {builder}: it cannot be copied: {described(error)}") from error
    runs = _runs(network)
    found: Interface | None = None
    errors: list[NetworkError] = []
    for run in runs:
        try:
            found = _found(_Trial(run, builder, wanted.output_index), network, examples)
            break
        except NetworkError as error:
            errors.append(error)
    if found is None:
        raise errors[-1]
    found = replace(found, value_range=wanted.value_range, output_index=wanted.output_index)
    return replace(found, batches=_check(network, builder, found))


Run = Callable[[tuple[Shape, ...]], object]


def _runs(network: nn.Module) -> Iterator[Run]:
    """Ways to run it: without data, which takes no time but is not possible for all; then with data."""
    shapes_only = skeleton_of(network)

    @torch.no_grad()
    def on_shapes(shapes: tuple[Shape, ...]) -> object:
        return shapes_only(*(torch.empty(shape, device="meta") for shape in shapes))

    @torch.no_grad()
    def on_noise(shapes: tuple[Shape, ...]) -> object:
        return network(*noise(shapes))

    yield on_shapes
    yield on_noise


def noise(shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Smooth noise in [0, 1] of these shapes, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


class _Trial:
    """Runs a network on inputs of some shapes.

    Attributes:
        reason: why the last one failed.
    """

    def __init__(self, run: Run, builder: str, index: int) -> None:
        self._run, self._builder, self._index = run, builder, index
        self.reason = ""

    def output(self, shapes: tuple[Shape, ...]) -> Shape | None:
        """The shape of the output; None: it does not run on these."""
        try:
            found = chosen_output(self._run(shapes), self._index)
        except NetworkError:
            raise
        except Exception as error:
            given = ", ".join("x".join(map(str, shape)) for shape in shapes)
            self.reason = f"on an input of {given}: {described(error)}"
            return None
        if not isinstance(found, Tensor):
            raise NetworkError(f"--network {self._builder}: the network makes a {type(found).__name__}")
        return tuple(found.shape)

    def failed(self, advice: str) -> NetworkError:
        """The error that says why."""
        return NetworkError(f"--network {self._builder}: fails {self.reason}; {advice}")


def _found(trial: _Trial, network: nn.Module, examples: Sequence[Shape]) -> Interface:
    shapes, output = _first(trial, network, examples)
    found = _interface(shapes, output)
    for multiple in MULTIPLES:
        smaller = _fitting(trial, found, multiple)
        if smaller is not None:
            return replace(found, multiple=multiple, shapes=smaller)
    height, width = shapes[0][2:]
    return replace(found, fixed_size=(height, width))


def _first(trial: _Trial, network: nn.Module, examples: Sequence[Shape]) -> tuple[tuple[Shape, ...], Shape]:
    """Inputs that the network takes, and the shape of its output."""
    if examples:
        if len(examples[0]) != 4:
            raise UsageError("--example: the first input is an image; give 1xCHANNELSxHEIGHTxWIDTH")
        if len(examples) > MOST_INPUTS:
            raise UsageError(f"--example: a network may have {MOST_INPUTS} inputs at most")
        output = trial.output(tuple(examples))
        if output is None:
            raise trial.failed("give other shapes with --example")
        return tuple(examples), output
    reasons = []
    for height, width in _SIZES:
        for channels in dict.fromkeys((*_first_convolution(network), *_CHANNELS)):
            shapes = ((1, channels, height, width),)
            output = trial.output(shapes)
            if output is not None:
                return shapes, output
            reasons.append(trial.reason)
    trial.reason = reasons[0]
    raise trial.failed(_advice(network))


def _advice(network: nn.Module) -> str:
    """What to give for a network that does not run on one image."""
    shape = "--example 1x3x96x64"
    needed = [each.name for each in _inputs_of(network) if each.default is each.empty]
    if len(needed) > 1:
        listed = f"{', '.join(needed[:-1])} and {needed[-1]}"
        return f"it takes {listed}: give the shape of each, such as {' '.join([shape] * len(needed))}"
    return f"if it takes other inputs, give their shapes, such as {shape}"


def _inputs_of(network: nn.Module) -> list[inspect.Parameter]:
    """The positional arguments of its call, as far as Python knows them."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


def _first_convolution(network: nn.Module) -> tuple[int, ...]:
    """Channels that the convolution defined first takes."""
    found = (module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
    return tuple([first] if (first := next(found, None)) is not None else [])


def _interface(shapes: tuple[Shape, ...], output: Shape) -> Interface:
    """What the first output shows.

    Raises:
        NetworkError: it is neither images nor logits.
    """
    told = "x".join(map(str, output))
    if len(output) not in (2, 4) or output[0] != shapes[0][0]:
        raise NetworkError(
            f"the network makes an output of {told}, neither images nor logits of classes; choose another of "
            "its outputs with --output-index, or name a builder that returns the part that makes these"
        )
    if len(output) == 2:
        return Interface(shapes, output[1], output=LOGITS)
    scale = _scale(shapes[0], output)
    if scale is None:
        raise NetworkError(
            f"an output of {told} is no enlarged or reduced image of an input of "
            f"{'x'.join(map(str, shapes[0]))}"
        )
    return Interface(shapes, output[1], scale=scale)


def _scale(given: Shape, output: Shape) -> Fraction | None:
    """Height and width of the output over those of the input, where they are in one proportion."""
    scales = {Fraction(after, before) for after, before in zip(output[2:], given[2:], strict=True)}
    scale = scales.pop()
    return scale if not scales and 0 < scale <= LARGEST_SCALE else None


def _fitting(trial: _Trial, face: Interface, multiple: int) -> tuple[Shape, ...] | None:
    """Inputs whose sides are odd multiples of a number, if the network takes them and its output fits."""
    height, width = (_odd_multiple(multiple, least) for least in (_LEAST_SIDE, _LEAST_SIDE + 24))
    first, *more = face.shapes
    image = (*first[:2], height, width)
    shapes = (image, *(alike(each, first, image) for each in more))
    output = trial.output(shapes)
    if output is None or len(output) != (2 if face.output == LOGITS else 4):
        return None
    fits = output[1] == face.out_channels if face.output == LOGITS else _scale(image, output) == face.scale
    return shapes if fits else None


def _odd_multiple(multiple: int, least: int) -> int:
    count = -(-least // multiple)
    return multiple * (count + (count + 1) % 2)


@torch.no_grad()
def _check(network: nn.Module, builder: str, face: Interface) -> bool:
    """Run it twice, with its weights, and tell whether it takes several images at once.

    Raises:
        NetworkError: it fails, or makes another output the second time.
    """
    values = RANGES[face.value_range]
    channels = face.shapes[0][1]
    if values.channels not in (None, channels):
        raise UsageError(
            f"--range {face.value_range}: is of {values.channels} channels, --network {builder} takes "
            f"{channels}; leave it out"
        )
    inputs = noise(face.shapes)
    try:
        first, second = (chosen_output(network(*inputs), face.output_index) for _ in range(2))
    except NetworkError:
        raise
    except Exception as error:
        raise NetworkError(f"--network {builder}: {described(error)}") from error
    if not bool(first.isfinite().all()):
        raise NetworkError(
            f"--network {builder}: its output is not finite for an input of noise from 0 to 1; check its "
            "weights and --range"
        )
    difference = float((first - second).abs().max())
    if not difference <= _ROUNDING * float(first.abs().max()):
        raise NetworkError(
            f"--network {builder}: changes from call to call, by {difference:.1e} for the same input, so no "
            "student can be compared with it; switch off what is random (noise, dropout) in the builder"
        )
    return _takes_batches(network, face, inputs, first)


def _takes_batches(network: nn.Module, face: Interface, inputs: tuple[Tensor, ...], first: Tensor) -> bool:
    """Whether two images at once give what each of them gives alone."""
    return len(first) != 1 or takes_batches(
        lambda given: chosen_output(network(*given), face.output_index), inputs, first
    )


def takes_batches(
    call: Callable[[tuple[Tensor, ...]], Tensor], inputs: tuple[Tensor, ...], first: Tensor
) -> bool:
    """Whether two images at once give what each of them gives alone.

    Args:
        call: of the network, on its inputs.
        inputs: with a batch axis of one.
        first: the output for them.
    """
    other = tuple(_darker(each) for each in inputs)  # so that means differ as well
    try:
        second = call(other)
        both = call(tuple(torch.cat(pair) for pair in zip(inputs, other, strict=True)))
    except Exception:  # the network's own: it is made for one
        return False
    alone = torch.cat((first, second))
    return both.shape == alone.shape and bool((both - alone).abs().max() <= _ALIKE * alone.abs().max())


def _darker(given: Tensor) -> Tensor:
    return given.flip(-1) / 2 if given.is_floating_point() else given.flip(-1)
