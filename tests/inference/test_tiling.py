"""Tiles that share attention maps: the same as the whole image, in bounded memory."""

from __future__ import annotations

import copy
import platform
import signal
import threading
from collections.abc import Callable
from functools import partial
from itertools import count, pairwise

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import Csa2GlmhaError, UsageError
from csa2glmha.families.transposed.blocks import TransformerBlock
from csa2glmha.inference.grid import divide, divide_axis, spread
from csa2glmha.inference.lockstep import lockstep
from csa2glmha.inference.memory import OVERHEAD, OVERHEAD_BYTES, tile_needs, whole_needs
from csa2glmha.inference.threads import PausingCall, ended_together
from csa2glmha.inference.tiles import restore_globally, restore_separately
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple, run
from csa2glmha.reading.layers import attention_layers, glmha_layers, replace_layers
from tests.subjects import SUBJECTS, image_alone, randomise

# The receptive field of the deepest of these networks reaches 69 pixels: for Restormer's levels, with two
# 3x3 convolutions a block and one to change level, 1 + 2 (2 + 1) + 2 (4 + 2) + 2 (8 + 4) + (16 + 8) + 2.
OVERLAP = 72


def network(name: str, rank: int | None = None, attention: str = "expanded") -> RestorationModel:
    model = SUBJECTS[name].build()
    if rank is not None:
        torch.manual_seed(0)
        configs = plan_layers(attention_layers(model), Ranks(k=rank, v=rank or None), attention)
        replace_layers(model, configs)
        assert glmha_layers(model) and not attention_layers(model)
        randomise(model)
    return model.eval().requires_grad_(False)


def error(output: Tensor, whole: Tensor) -> float:
    """The largest difference, relative to the range."""
    return float((output - whole).abs().max() / (whole.max() - whole.min()))


# Networks and usual students are in the conformance suite.
CASES = [("restormer", 3, "compact"), ("restormer", 0, "expanded"), ("mst", 0, "expanded")]


@pytest.mark.parametrize(("name", "rank", "attention"), CASES)
def test_all_tiles_in_lockstep_are_the_whole_image(name: str, rank: int, attention: str) -> None:
    model = network(name, rank, attention)
    inputs = SUBJECTS[name].inputs(model, 200, 208)
    with torch.inference_mode():
        whole = run(model, inputs)
        tiles = divide(200, 208, 176, OVERLAP, model.size_multiple)
        assert len(tiles) == 4
        shared = restore_globally(model, inputs, tiles, tiles)
        separate = restore_separately(lambda tile: run(model, tile), inputs, tiles)
    assert error(shared, whole) < 1e-4
    assert error(separate, whole) > 3e-3  # otherwise the network would not tell parts from the whole


@pytest.mark.parametrize("rank", [None, 3])
def test_fixed_maps_of_other_tiles_give_the_whole_image_too(rank: int | None) -> None:
    """The second pass: maps from all of a finer grid, applied to tiles of a coarser one."""
    model = network("restormer", rank)
    inputs = image_alone(model, 192, 216)
    tiles, finer = divide(192, 216, 184, OVERLAP, 8), divide(192, 216, 168, OVERLAP, 8)
    calls = {"layer": 0, "tile": 0}

    def count(what: str) -> None:
        calls[what] += 1

    with torch.inference_mode():
        whole = run(model, inputs)
        shared = restore_globally(
            model, inputs, tiles, spread(finer, 99), lambda: count("layer"), lambda: count("tile")
        )
    assert error(shared, whole) < 1e-4
    assert calls == {"layer": 8, "tile": len(tiles)}


@pytest.mark.parametrize("name", ["promptir", "cidnet"])
def test_fixed_maps_reach_layers_that_look_at_all_pixels_or_at_the_place(name: str) -> None:
    """Prompts come of a mean over all pixels and are resized; others resize with corners in place."""
    model, overlap = network(name), SUBJECTS[name].overlap
    height, width = 2 * overlap + 40, 2 * overlap + 16
    inputs = SUBJECTS[name].inputs(model, height, width)
    tiles, finer = (divide(height, width, 2 * overlap + more, overlap, 8) for more in (32, 24))
    assert len(tiles) == 2 and set(tiles) != set(finer)
    with torch.inference_mode():
        whole = run(model, inputs)
        shared = restore_globally(model, inputs, tiles, finer)
    assert error(shared, whole) < 1e-4


def test_sampled_maps_come_closer_than_each_tiles_own() -> None:
    model = network("restormer", 3)
    (image,) = image_alone(model, 200, 200)
    tiles = divide(200, 200, 72, 16, 8)

    def distance(output: Tensor) -> float:
        return float((output - whole).square().mean())

    with torch.inference_mode():
        whole = run(model, (image,))
        plain = distance(restore_separately(lambda tile: run(model, tile), (image,), tiles))
        some, more = (
            distance(restore_globally(model, (image,), tiles, spread(tiles, count)))
            for count in (len(tiles) // 3, len(tiles))
        )
    assert more < some < plain


def test_padding_counts_as_in_the_whole_image() -> None:
    model = network("restormer", 3)
    (image,) = image_alone(model, 197, 203)
    padded = reflect_pad_to_multiple(image, 8)
    tiles = divide(200, 208, 176, OVERLAP, 8)
    with torch.inference_mode():
        whole = model(image)
        shared = restore_globally(model, (padded,), tiles, tiles)[..., :197, :203]
    assert error(shared, whole) < 1e-4


class OtherBlock(nn.Module):
    """What Restormer's block does, in a class of another name."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.ffn = block.norm2, block.ffn

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class TwiceBlock(OtherBlock):
    """Calls its attention twice, each time with other features."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.3 * self.attn(self.norm2(x)))


class CountingBlock(OtherBlock):
    """Calls its attention so many times as the network has been run: tiles differ."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for _ in range(self.calls):
            x = super().forward(x)
        return x


class UnusedBlock(OtherBlock):
    """Leaves its attention out."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norm2(x))


class SwappedBlock(OtherBlock):
    """Has two attentions and calls them in another order for every second image."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__(block)
        self.other, self.calls = copy.deepcopy(block.attn), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        first, second = (self.attn, self.other) if self.calls % 2 else (self.other, self.attn)
        return second(first(x))


class FailingBlock(OtherBlock):
    """Fails for one of the tiles, the second or later."""

    def __init__(self, block: TransformerBlock, error: BaseException) -> None:
        super().__init__(block)
        self.error, self.calls = error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return super().forward(x)


def with_block(model: RestorationModel, make: Callable[[TransformerBlock], nn.Module]) -> RestorationModel:
    """With another block in the place of the deepest one."""
    block = model.get_submodule("latent.0")
    assert isinstance(block, TransformerBlock)
    model.set_submodule("latent.0", make(block))
    return model


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("block", [OtherBlock, TwiceBlock])
def test_blocks_of_any_class_share_maps_in_every_call(block: type[OtherBlock], rank: int | None) -> None:
    model = with_block(network("restormer", rank), block)
    inputs = image_alone(model, 200, 208)
    tiles, coarser = divide(200, 208, 176, OVERLAP, 8), divide(200, 208, 184, OVERLAP, 8)
    calls = count()
    with torch.inference_mode():
        whole = run(model, inputs)
        together = restore_globally(model, inputs, tiles, tiles, partial(next, calls))
        assert next(calls) == (8 if block is OtherBlock else 9)
        fixed = restore_globally(model, inputs, coarser, tiles)
    assert error(together, whole) < 1e-4 and error(fixed, whole) < 1e-4


def test_a_layer_in_two_places_shares_maps_in_both() -> None:
    model = network("restormer")
    for level in ("decoder_level3", "encoder_level3"):
        block = model.get_submodule(f"{level}.0")
        assert isinstance(block, TransformerBlock)
        block.attn = model.get_submodule("encoder_level3.0.attn")
    inputs, tiles = image_alone(model, 200, 208), divide(200, 208, 176, OVERLAP, 8)
    with torch.inference_mode():
        whole = run(model, inputs)
        assert error(restore_globally(model, inputs, tiles, tiles), whole) < 1e-4


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (UnusedBlock, r"1 of 8 layers made no map of the whole image, first latent\.0\.attn"),
        (SwappedBlock, r"some tiles come to latent\.0\.attn and latent\.0\.other while others do not"),
        (CountingBlock, r"some tiles come to decoder_level3\.0\.attn and latent\.0\.attn \(call 2\)"),
    ],
)
def test_tiles_that_do_not_meet_in_every_layer_are_an_error_that_names_one(
    block: type[OtherBlock], words: str
) -> None:
    model = with_block(network("restormer"), block)
    inputs, tiles = image_alone(model, 64, 64), divide(64, 64, 48, 16, model.size_multiple)
    with pytest.raises(Csa2GlmhaError, match=words + r".*--tile-mode plain"):
        restore_globally(model, inputs, tiles, tiles)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("mistake", [RuntimeError("in the middle"), KeyboardInterrupt(), MemoryError()])
def test_an_error_in_one_tile_ends_all(mistake: BaseException) -> None:
    model = with_block(network("restormer"), lambda block: FailingBlock(block, mistake))
    inputs, tiles = image_alone(model, 64, 64), divide(64, 64, 48, 16, model.size_multiple)
    before = threading.active_count()
    with pytest.raises(type(mistake)) as caught:
        restore_globally(model, inputs, tiles, tiles)
    assert caught.value is mistake
    assert threading.active_count() == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_interrupt_while_a_tile_computes_ends_all() -> None:
    """As the terminal sends it: to the main thread, which waits."""
    model = with_block(network("restormer"), InterruptedBlock)
    inputs, tiles = image_alone(model, 64, 64), divide(64, 64, 48, 16, model.size_multiple)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        restore_globally(model, inputs, tiles, tiles)
    assert threading.active_count() == before


class InterruptedBlock(OtherBlock):
    """The user presses Ctrl-C while the second tile is here."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            signal.raise_signal(signal.SIGINT)
        return super().forward(x)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries do not keep what is freed")
def test_calls_that_wait_keep_no_memory_that_they_have_freed() -> None:
    def work() -> None:
        kept = []
        for _ in range(8):
            between = torch.ones(2**20)
            kept.append(torch.ones(8))
            del between
        parts = [torch.ones(2**20) for _ in range(8)]
        kept.append(torch.ones(8))  # above them, so that the heap does not shrink by itself
        del parts
        call.ask("anything")
        assert kept

    large = torch.ones(2**22 + 2**21)  # from now on the library keeps what is smaller than that
    del large
    calls: list[PausingCall[str, str, None]] = []
    before = psutil.Process().memory_info().rss
    with ended_together(calls):
        for _ in range(32):
            call: PausingCall[str, str, None] = PausingCall(work)
            calls.append(call)
            assert call.proceed() == "anything"
        assert psutil.Process().memory_info().rss - before < 200 * 2**20  # of 32 times 32 MiB


def test_tiles_compute_as_their_caller_does() -> None:
    seen = []

    def settings() -> tuple[object, ...]:
        return (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
        )

    for context in (
        torch.inference_mode(),
        torch.no_grad(),
        torch.enable_grad(),
        torch.autocast("cpu", dtype=torch.float16),
    ):
        with context:
            call: PausingCall[str, str, None] = PausingCall(lambda: seen.append(settings()))
            with ended_together([call]):
                assert call.proceed() is None
            assert seen.pop() == settings()


def test_the_network_is_given_back_as_it_was() -> None:
    model = network("mst_plus_plus", 2)
    names = [name for name, _ in model.named_modules()]
    before = [id(module) for module in model.modules()]
    with pytest.raises(RuntimeError, match="on the way"), lockstep(model):
        assert sum("forward" in vars(module) for module in model.modules()) == 5
        raise RuntimeError("on the way")
    assert [id(module) for module in model.modules()] == before
    assert [name for name, _ in model.named_modules()] == names
    assert not any("forward" in vars(module) for module in model.modules())


@given(
    length=st.integers(1, 60),
    size=st.integers(1, 40),
    overlap=st.integers(0, 60),
    multiple=st.sampled_from([1, 4, 8]),
)
def test_cores_divide_an_axis_with_context_around_them(
    length: int, size: int, overlap: int, multiple: int
) -> None:
    length, size = length * multiple, size * multiple
    try:
        spans = divide_axis(length, size, overlap, multiple)
    except UsageError:
        assert length > size and size - 2 * overlap < 3 * multiple
        return
    assert spans[0].core_start == 0 and sum(span.core_length for span in spans) == length
    for span, following in pairwise(spans):
        assert following.core_start == span.core_start + span.core_length
    for span in spans:
        assert span.core_length > 0 and span.length == min(size, length)
        before = span.core_start - span.start
        after = span.start + span.length - span.core_start - span.core_length
        assert before >= overlap or span.start == 0
        assert after >= overlap or span.start + span.length == length
        assert all(value % multiple == 0 for value in (span.start, span.core_start, span.core_length))


def test_borders_within_a_row_of_features_are_an_error_in_one_line() -> None:
    span = divide_axis(40, 24, 4, 4)[1]  # answers for its last 20 pixels of 24
    assert (span.start, span.length, span.core(12)) == (16, 24, slice(2, 12))
    with pytest.raises(Csa2GlmhaError, match=r"makes 3 rows or columns of 24 pixels.*more --memory"):
        span.core(3)


def test_a_sample_is_spread_and_grows_by_adding() -> None:
    tiles = divide(80, 120, 16, 0, 8)
    assert len(tiles) == 5 * 8
    eight = spread(tiles, 8)
    assert len(set(eight)) == 8 and spread(tiles, 20)[:8] == eight
    assert set(spread(tiles, 999)) == set(tiles)
    assert 3 <= sum(tile.rows.start >= 32 for tile in eight) <= 5
    assert 3 <= sum(tile.columns.start >= 52 for tile in eight) <= 5


def test_memory_is_that_of_the_tensors_alive() -> None:
    class Doubling(RestorationModel):
        architecture = "none"

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2**23))

        @property
        def in_channels(self) -> int:
            return 1

        def forward(self, x: Tensor) -> Tensor:
            a = x * self.weight[:1]  # alive with the input: 2 maps; a view of the weight is no other memory
            b = torch.cat((a, a), 1)  # 4
            del a
            return b.sum(1, keepdim=True)  # input, b, sum: 4 again

    kib = 4 * 1024 * 1024
    assert whole_needs(Doubling(), 1024, 1024) == int(4 * kib * OVERHEAD) + OVERHEAD_BYTES


def test_memory_grows_with_the_sample_and_not_with_the_image() -> None:
    model = network("restormer", 3)
    needs = tile_needs(model, (128, 128), (64, 64), True)
    one, four = whole_needs(model, 128, 128) - OVERHEAD_BYTES, whole_needs(model, 256, 256) - OVERHEAD_BYTES
    assert four == pytest.approx(4 * one, rel=0.01)
    # A tile that waits keeps the features between the blocks, not what is made on the way.
    assert 0 < needs.sample_each < 0.6 * one / 4
    assert needs.sample_size(needs.sample_fixed + 5 * needs.sample_each) == 5
    assert needs.sample_size(0) == 0
    assert next(model.parameters()).device.type == "cpu"
