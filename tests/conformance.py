"""What every family of networks must do, from its checkpoint to its ONNX file.

Each function of :data:`CHECKS` looks at one :class:`~tests.subjects.Subject` and may write to an empty
folder; ``test_conformance.py`` runs all of them on every family that csa2glmha supports. A test of a family
that is not among those runs them on a Subject of its own.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from csa2glmha.checkpoint import write_safetensors
from csa2glmha.checkpoint.networks import without_wrappers
from csa2glmha.checkpoint.student import load, load_model, save_student, student_metadata
from csa2glmha.cli import cli
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import CheckpointError, DataError
from csa2glmha.data.batches import Batch, Inputs
from csa2glmha.distill import DistillSettings, distill, teacher_outputs
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.inference.grid import divide
from csa2glmha.inference.tiles import restore_globally, restore_separately
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers, plan_widths
from csa2glmha.initialize.feedforward import narrow_feed_forwards
from csa2glmha.initialize.outputs import outputs_of
from csa2glmha.initialize.refit import refit
from csa2glmha.initialize.residual import skippable
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.networks import RestorationModel, run
from csa2glmha.networks.skipped import skip, skipped_layers
from csa2glmha.reading.feedforwards import feed_forwards, narrowed_widths
from csa2glmha.reading.layers import attention_layers, glmha_layers
from tests.conftest import shared_folder
from tests.subjects import SUBJECTS, Subject, load_as

#: Of outputs over the largest value: of ONNX Runtime, whose operators add up in another order.
ONNX_ROUNDING = 1e-4
#: Of tiles over the range of the output, and what tiles with maps of their own differ by at the least.
TILES, TILES_ALONE = 1e-4, 3e-3
#: Of a student of low rank over the variance of the output: no less, or it would not be approximate.
APPROXIMATE = 1e-4
SHA = "ab" * 32


# --- the networks


@cache
def network(subject: Subject) -> RestorationModel:
    """The tiny network; no check changes it."""
    return subject.build()


@cache
def student(subject: Subject) -> RestorationModel:
    """Its student of low rank; no check changes it."""
    teacher = network(subject)
    ranks = Ranks(k=subject.rank, v=subject.rank)
    configs = plan_layers(attention_layers(teacher), ranks)
    calibration = [subject.inputs(teacher, 16, 24, 2, seed) for seed in (2, 3)]
    made, _ = initialise_student(teacher, configs, calibration)
    return made.requires_grad_(False)


@cache
def narrow_student(subject: Subject) -> RestorationModel:
    """That with feed-forward networks of half their width; no check changes it."""
    teacher, made = network(subject), copy.deepcopy(student(subject))
    widths = plan_widths(feed_forwards(teacher), 0.5)
    calibration = [subject.inputs(teacher, 16, 24, 2, seed) for seed in (2, 3)]
    errors = narrow_feed_forwards(teacher, made, widths, calibration)
    assert set(errors) == set(widths) and all(0 <= error < 1 for error in errors.values())
    return made.requires_grad_(False)


def at_full_rank(model: RestorationModel) -> RestorationModel:
    return initialise_student(model, plan_layers(attention_layers(model), Ranks()), None)[0]


def metadata_of(model: RestorationModel, subject: Subject) -> dict[str, str]:
    return student_metadata(model, SHA, 7, {"ranks": f"k {subject.rank}, v {subject.rank}", "task": "none"})


def sizes(subject: Subject) -> tuple[tuple[int, int], ...]:
    """Three sizes of images, none square; one is odd where the family takes that."""
    return (16, 24), (32, 8), ((13, 21) if subject.odd_sizes else (40, 16))


def relative_error(output: Tensor, expected: Tensor) -> float:
    assert output.shape == expected.shape
    assert output.isfinite().all()
    return float((output - expected).abs().max() / expected.abs().max())


def write_checkpoint(path: Path, state: dict[str, Tensor], container: str | None, prefix: str) -> Path:
    named = {prefix + name: value for name, value in state.items()}
    torch.save(named if container is None else {container: named, "epoch": 3}, path)
    return path


def where_in_file(container: str | None, prefix: str) -> str | None:
    """What the weights are called there: wrapper modules, as ``module.``, go without saying."""
    parts = [part for part in (container, without_wrappers(prefix).rstrip(".")) if part]
    return ".".join(parts) or None


def refused(path: Path, what: str) -> None:
    """The file is refused in one line that names it and says ``what``, a regular expression."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert re.search(what, message), message


# --- the checks


@torch.no_grad()
def recognised_and_loaded(subject: Subject, place: Path) -> None:
    """From the weights alone, and as the authors' training code wraps them."""
    model = network(subject)
    inputs = subject.inputs(model, *sizes(subject)[0], 2)
    for container, prefix in {(None, ""), (subject.container, subject.prefix)}:
        path = write_checkpoint(place / "model.pth", model.state_dict(), container, prefix)
        loaded = load_model(path)
        assert loaded.model.architecture == subject.name
        assert not loaded.is_student and not loaded.model.training
        assert loaded.checkpoint.wrapper == where_in_file(container, prefix)
        assert loaded.model.hyperparameters == model.hyperparameters
        assert torch.equal(run(loaded.model, inputs), run(model, inputs))


@torch.no_grad()
def official_outputs(subject: Subject, place: Path) -> None:
    """The official code's output for the official weights, of the network and of its student at full rank."""
    if not subject.fixtures:
        pytest.skip(f"no outputs of the official code of {subject.name}")
    shared = shared_folder()
    for fixture in subject.fixtures:
        model = load(shared / fixture.checkpoint)
        assert model.architecture == subject.name
        assert model.hyperparameters == fixture.hyperparameters
        arrays = np.load(shared / fixture.arrays)
        inputs = fixture.inputs(arrays, shared)
        expected = torch.from_numpy(arrays[fixture.output])
        for each in (model, at_full_rank(model if subject.fix is None else subject.fix(model, inputs))):
            output = run(each, inputs)[..., :: fixture.stride, :: fixture.stride]
            assert relative_error(output, expected) < fixture.tolerance, fixture.checkpoint


@torch.no_grad()
def exact_at_full_rank(subject: Subject, place: Path) -> None:
    """Every layer is replaced, and no output differs by more than rounding; images are not needed."""
    model = network(subject)
    full = at_full_rank(model)
    assert len(glmha_layers(full)) == subject.layers and not attention_layers(full)
    for height, width in sizes(subject):
        inputs = subject.inputs(model, height, width, 2)
        assert relative_error(run(full, inputs), run(model, inputs)) < subject.rounding


@torch.no_grad()
def student_file(subject: Subject, place: Path) -> None:
    """A loaded student is the one that was saved, and saved again it is the same file."""
    teacher, made = network(subject), student(subject)
    inputs = subject.inputs(teacher, *sizes(subject)[0], 2, seed=4)
    expected = run(teacher, inputs)
    assert float((run(made, inputs) - expected).square().mean() / expected.var()) > APPROXIMATE
    path, again = place / "student.safetensors", place / "again.safetensors"
    metadata = metadata_of(made, subject)
    save_student(path, made, metadata)
    loaded = load_model(path)
    assert loaded.is_student and loaded.model.architecture == subject.name
    assert loaded.checkpoint.metadata == metadata
    assert metadata_of(loaded.model, subject) == metadata
    assert loaded.model.hyperparameters == made.hyperparameters
    assert configs_of(loaded.model) == configs_of(made)
    assert torch.equal(run(loaded.model, inputs), run(made, inputs))
    save_student(again, loaded.model, loaded.checkpoint.metadata)
    assert again.read_bytes() == path.read_bytes()


def configs_of(model: nn.Module) -> dict[str, Any]:
    return {name: layer.config for name, layer in glmha_layers(model).items()}


@torch.no_grad()
def onnx_files(subject: Subject, place: Path) -> None:
    """ONNX Runtime gives the outputs of PyTorch at every size, of the network and of its student."""
    for name, model in (("teacher", network(subject)), ("student", student(subject))):
        report = export_onnx(model, place / f"{name}.onnx")
        assert report.rewritten and report.notes == ()
        exported = OnnxModel(report.path)
        assert exported.input_names == model.input_names
        assert exported.fixed_size is None
        for batch, (height, width) in enumerate(sizes(subject), 1):
            inputs = subject.inputs(model, height, width, batch)
            assert relative_error(exported(*inputs), run(model, inputs)) < ONNX_ROUNDING
    if not subject.odd_sizes:
        with pytest.raises(DataError):
            run(network(subject), subject.inputs(network(subject), 13, 21))


@torch.no_grad()
def one_size_only(subject: Subject, place: Path) -> None:
    """A network that holds for one size is exact there, and says so of any other, in ONNX too."""
    if subject.fix is None:
        pytest.skip(f"{subject.name} has no form for one size of images")
    model, (size, other, _) = student(subject), sizes(subject)
    inputs = subject.inputs(model, *size, 2)
    fixed = subject.fix(model, inputs)
    assert fixed.fixed_size == size
    assert relative_error(run(fixed, inputs), run(model, inputs)) < subject.rounding
    path = place / "student.safetensors"
    save_student(path, fixed, metadata_of(fixed, subject))
    loaded = load(path)
    assert loaded.fixed_size == size and loaded.input_names == fixed.input_names
    assert torch.equal(run(loaded, inputs), run(fixed, inputs))
    report = export_onnx(fixed, place / "fixed.onnx")
    assert {entry.shape[2:] for entry in report.parity} == {size}
    exported = OnnxModel(report.path)
    assert exported.fixed_size == size and exported.input_names == fixed.input_names
    taken = len(fixed.input_names)
    assert relative_error(exported(*inputs[:taken]), run(fixed, inputs)) < ONNX_ROUNDING
    wrong = subject.inputs(model, *other)[:taken]
    for called in (fixed, exported):
        with pytest.raises(DataError, match=rf"{size[0]}\D+{size[1]}"):
            called(*wrong)


@torch.no_grad()
def tiles_are_the_whole(subject: Subject, place: Path) -> None:
    """Tiles that share attention maps, made from all of them, give what the whole image gives.

    The student has narrower feed-forward networks beside its low-rank attention.
    """
    for model in (network(subject), narrow_student(subject)):
        multiple, overlap = model.size_multiple, subject.overlap
        size, height, width = 2 * overlap + 32, 2 * overlap + 56, 2 * overlap + 64
        inputs = subject.inputs(model, height, width)
        tiles = divide(height, width, size, overlap, multiple)
        assert len(tiles) == 4
        maps = count()
        together = restore_globally(model, inputs, tiles, tiles, on_layer=partial(next, maps))
        assert next(maps) == subject.layers + subject.shared
        whole = run(model, inputs)
        alone = restore_separately(partial(run, model), inputs, tiles)
        span = float(whole.max() - whole.min())
        assert float((together - whole).abs().max()) < TILES * span
        # Otherwise the network would not tell parts from the whole.
        assert float((alone - whole).abs().max()) > TILES_ALONE * span


@torch.no_grad()
def feed_forwards_are_narrowed(subject: Subject, place: Path) -> None:
    """Every one; a student file says so, and what is loaded from it, saved again or exported is the same."""
    layers = feed_forwards(network(subject))
    assert layers, f"{subject.name} says nothing of its feed-forward networks"
    made, wide = narrow_student(subject), student(subject)
    widths = narrowed_widths(made)
    assert widths.keys() == layers.keys()
    assert all(0 < width < layers[name].hidden for name, width in widths.items())
    path, again = place / "student.safetensors", place / "again.safetensors"
    save_student(path, made, metadata_of(made, subject))
    loaded = load_model(path)
    assert narrowed_widths(loaded.model) == widths
    assert metadata_of(loaded.model, subject) == loaded.checkpoint.metadata
    shown = CliRunner().invoke(cli, ["inspect", str(path), "--input-size", "32"], catch_exceptions=False)
    assert all(f"{width} of {layers[name].hidden}" in shown.stdout for name, width in widths.items())
    save_student(again, loaded.model, loaded.checkpoint.metadata)
    assert again.read_bytes() == path.read_bytes()
    report = export_onnx(made, place / "narrow.onnx")
    assert report.rewritten and report.notes == ()
    exported = OnnxModel(report.path)
    for height, width in sizes(subject)[:2]:
        inputs = subject.inputs(made, height, width)
        output = run(made, inputs)
        assert torch.equal(run(loaded.model, inputs), output)
        assert relative_error(exported(*inputs), output) < ONNX_ROUNDING
        assert not torch.equal(run(wide, inputs), output)
    shapes = made.input_shapes(*sizes(subject)[0])
    assert count_complexity(made, *shapes).macs < count_complexity(wide, *shapes).macs


@torch.no_grad()
def layers_are_skipped(subject: Subject, place: Path) -> None:
    """An attention and a feed-forward network whose outputs are added to a stream, if there are such."""
    teacher, made = network(subject), copy.deepcopy(student(subject))
    inputs = subject.inputs(teacher, 16, 24)
    allowed = skippable(teacher, inputs)
    groups = [
        [name for name in allowed if name in found]
        for found in (attention_layers(teacher), feed_forwards(teacher))
    ]
    names = [group[len(group) // 2] for group in groups if group]
    assert names, f"no layer of {subject.name} could be skipped"
    wide = run(made, inputs)
    for name in names:
        made.get_submodule(name).register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    expected = run(made, inputs)
    skip(made, names)
    assert skipped_layers(made) == sorted(names, key=[name for name, _ in made.named_modules()].index)
    assert torch.equal(run(made, inputs), expected) and not torch.equal(expected, wide)
    path = place / "student.safetensors"
    save_student(path, made, metadata_of(made, subject))
    loaded = load_model(path)
    assert metadata_of(loaded.model, subject) == loaded.checkpoint.metadata
    assert torch.equal(run(loaded.model, inputs), expected)
    shown = CliRunner().invoke(cli, ["inspect", str(path), "--input-size", "32"], catch_exceptions=False)
    assert all(f"{name} " in shown.stdout for name in names) and "skipped" in shown.stdout
    report = export_onnx(made, place / "skipped.onnx")
    assert report.rewritten and report.notes == ()
    exported = OnnxModel(report.path)
    for height, width in sizes(subject)[:2]:
        inputs = subject.inputs(made, height, width)
        assert relative_error(exported(*inputs), run(made, inputs)) < ONNX_ROUNDING


@torch.no_grad()
def projections_are_refitted(subject: Subject, place: Path) -> None:
    """Of every attention and feed-forward layer; afterwards the student is closer to its teacher."""
    teacher, made = network(subject), copy.deepcopy(narrow_student(subject))
    calibration = [subject.inputs(teacher, 16, 24, 2, seed) for seed in (2, 3)]
    layers = outputs_of(made, teacher)
    assert layers.keys() == attention_layers(teacher).keys() | feed_forwards(teacher).keys()

    def difference() -> float:
        return sum(float((run(made, each) - run(teacher, each)).square().mean()) for each in calibration)

    before, fits = difference(), refit(teacher, made, layers, calibration)
    assert fits.keys() == layers.keys()
    assert all(fit.after <= fit.before * (1 + 1e-6) for fit in fits.values())
    assert difference() < before
    # The student computes what the walk went on with: a second walk begins where the first one ended, but
    # for layers whose few pixels leave weights free.
    for name, fit in refit(teacher, made, layers, calibration).items():
        assert math.isclose(fit.before, fits[name].after, rel_tol=0.02, abs_tol=0.1), name


@dataclass(frozen=True)
class Crops:
    """The same two images in every step."""

    inputs: Inputs

    def batch(self, step: int, first: int, count: int) -> Batch:
        return Batch(self.inputs, None)


def one_step_of_distillation(subject: Subject, place: Path) -> None:
    """It brings the student closer to its teacher, which stays as it is."""
    teacher, made = network(subject), copy.deepcopy(student(subject)).requires_grad_(True)
    before, teachers = copy.deepcopy(made.state_dict()), copy.deepcopy(teacher.state_dict())
    inputs = subject.inputs(teacher, 16, 24, 2, seed=4)
    settings = DistillSettings(steps=1, stages="end", learning_rate=1e-4)
    result = distill(made, teacher, Crops(inputs), teacher_outputs(teacher, [inputs]), settings)
    assert result.steps == result.best_step == 1 and result.skipped == 0
    assert math.isfinite(result.curve[-1]["loss"]) and result.curve[-1]["loss"] > 0
    assert result.after > result.before
    after = made.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    for name in glmha_layers(made):
        own = [key for key in after if key.startswith(f"{name}.")]
        assert any(not torch.equal(after[key], before[key]) for key in own), name
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, teachers[key]), key


def inspected(subject: Subject, place: Path) -> None:
    """`csa2glmha inspect` names the family and every attention layer, of a network and of a student."""
    model, made = network(subject), student(subject)
    write_checkpoint(place / "model.pth", model.state_dict(), subject.container, subject.prefix)
    save_student(place / "student.safetensors", made, metadata_of(made, subject))
    names = list(attention_layers(model))
    assert len(names) == subject.layers
    for file, kind in (("model.pth", "teacher"), ("student.safetensors", "student")):
        words = ["inspect", str(place / file), "--input-size", "32", "--rank", str(subject.rank)]
        shown = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert shown.exit_code == 0
        assert f"{file}: {subject.name} ({kind})\n" in shown.stdout
        assert all(name in shown.stdout for name in names)
        found = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
        assert found.exit_code == 0
        values = json.loads(found.stdout)
        assert (values["architecture"], values["kind"]) == (subject.name, kind)
        assert [layer["name"] for layer in values["layers"]] == names


def other_files_are_refused(subject: Subject, place: Path) -> None:
    """Files of other families are theirs; what pretends to be of this one, or is not whole, is refused."""
    model = network(subject)
    others = [other for name, other in SUBJECTS.items() if name != subject.name]
    assert others
    for other in others:
        foreign = network(other).state_dict()
        path = write_checkpoint(place / "other.pth", foreign, other.container, other.prefix)
        assert load(path).architecture == other.name
        with pytest.raises(CheckpointError, match=r"keys do not fit: \d+ (missing|unexpected)"):
            load_as(subject.name, foreign, "other.pth")
        # A student file says itself what family it is of.
        claim = metadata_of(student(other), other) | {"architecture": subject.name}
        write_safetensors(place / "other.safetensors", student(other).state_dict(), claim)
        refused(place / "other.safetensors", "damaged student metadata|keys do not fit")
    state = model.state_dict()
    refused(write_checkpoint(place / "relative.pth", subject.relative(state), None, ""), subject.refusal)
    last = list(state)[-1]
    rest = {key: value for key, value in state.items() if key != last}
    refused(write_checkpoint(place / "rest.pth", rest, None, ""), re.escape(last))
    whole = write_checkpoint(place / "whole.pth", state, subject.container, subject.prefix).read_bytes()
    (place / "cut.pth").write_bytes(whole[: len(whole) // 2])
    refused(place / "cut.pth", "damaged")


Check = Callable[[Subject, Path], None]

CHECKS: tuple[Check, ...] = (
    recognised_and_loaded,
    official_outputs,
    exact_at_full_rank,
    student_file,
    onnx_files,
    one_size_only,
    tiles_are_the_whole,
    feed_forwards_are_narrowed,
    layers_are_skipped,
    projections_are_refitted,
    one_step_of_distillation,
    inspected,
    other_files_are_refused,
)
