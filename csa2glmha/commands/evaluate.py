"""What `evaluate` does: any model file against images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csa2glmha.checkpoint.student import load_model
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import sha256_of
from csa2glmha.core.hub import display_name
from csa2glmha.core.progress import progress, say
from csa2glmha.core.strict_json import json_number
from csa2glmha.data.batches import Example
from csa2glmha.data.degrade import parse_degradation
from csa2glmha.data.folders import check_folder
from csa2glmha.data.images import MemoryImages, bundled_images
from csa2glmha.data.inputs.cassi_data import CassiData, open_scenes
from csa2glmha.data.inputs.masks import is_made_for
from csa2glmha.data.inputs.stretch import NOTE as STRETCH_NOTE
from csa2glmha.data.inputs.stretch import Stretched
from csa2glmha.data.open import as_trained, refuse_cassi_options, refuse_image_options, refuse_no_stretch
from csa2glmha.data.sources import IMAGE_CHANNELS, image_example, is_spectral, open_inputs, wants_stretch
from csa2glmha.export.fitted import FittedOnnx
from csa2glmha.export.runtime import CPU_PROVIDER, OnnxModel, provider_name
from csa2glmha.metrics.evaluate import Restore, restore
from csa2glmha.metrics.quality import (
    CHANNEL_NAMES,
    RANGE_HINT,
    SSIM_WINDOW,
    QualityMeter,
    out_of_range,
)
from csa2glmha.networks import RestorationModel
from csa2glmha.report.document import metrics_of, render_table


@dataclass(frozen=True)
class OpenModel:
    """A model file that can be run.

    Attributes:
        run: the model.
        architecture: its name; "" if an ONNX file does not say.
        channels, bands: of its (first) input and its output.
        size: height and width, if it holds for one size only.
        network: the PyTorch network; None for an ONNX file.
        metadata: what the file says of itself.
        foreign: an ONNX file that another program made.
    """

    run: Restore
    architecture: str
    channels: int
    bands: int
    size: tuple[int, int] | None
    network: RestorationModel | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    foreign: bool = False

    def stretches(self, options: ConvertOptions) -> bool:
        """Whether whole images are stretched to [0, 1] for it.

        Raises:
            UsageError: the options leave out what is not done.
        """
        wanted = self.architecture != "mst" and wants_stretch(self.channels, self.bands)
        refuse_no_stretch(self.architecture or "this model", wanted, options)
        return wanted and as_trained(self.metadata, options).stretch

    def check_mask(self, mask: Path, key: str | None) -> None:
        """Raise UsageError for another mask than the one that is baked in."""
        if not is_made_for(self.metadata, mask, key):
            raise UsageError(f"--mask {mask}: is not the mask that this model was made for")


def open_model(path: Path, device: str, weights: str | None = None) -> OpenModel:
    """Open a checkpoint, student or ONNX file.

    Args:
        path: the file.
        device: as for :func:`~csa2glmha.core.device.resolve_device`. Of an ONNX file a provider of
            ONNX Runtime, such as "cpu" or "cuda"; "auto" is the CPU, where its memory can be foretold.

        weights: which to take of a checkpoint that holds several; None: averaged ones.

    Raises:
        UsageError: a device that is not known or not there, or weights that are not.
        CheckpointError: the file cannot be used.
    """
    if path.suffix.lower() == ".onnx":
        if weights is not None:
            raise UsageError(f"--weights {weights}: {path} is an ONNX file and has one set; leave it out")
        provider = CPU_PROVIDER if device == "auto" else provider_name(device, "--device")
        network = OnnxModel(path, provider=provider)
        fitted, taken = FittedOnnx(network), len(network.input_names)
        return OpenModel(
            lambda inputs: fitted(inputs)[0],
            network.metadata.get("architecture", "mst" if taken > 1 else ""),
            network.in_channels,
            network.out_channels,
            network.fixed_size,
            metadata=network.metadata,
            foreign=network.foreign,
        )
    loaded = load_model(path, weights)
    for note in loaded.checkpoint.notes:
        say(note)
    model = loaded.model.to(resolve_device(device))
    return OpenModel(
        restore(model),
        model.architecture,
        model.in_channels,
        model.out_channels,
        model.fixed_size,
        model,
        loaded.checkpoint.metadata,
    )


def _open_both(
    model: Path, teacher: Path | None, options: ConvertOptions
) -> tuple[OpenModel, OpenModel | None]:
    """Both models; --weights chooses the teacher's where there is one, if not those it was converted from."""
    if teacher is None:
        return open_model(model, options.device, options.weights), None
    opened = open_model(model, options.device)
    weights, made_from = options.weights, opened.metadata
    known = weights is None and "teacher_weights" in made_from and teacher.is_file()
    if known and made_from.get("teacher_sha256") == sha256_of(teacher):
        weights = made_from["teacher_weights"]
    return opened, open_model(teacher, options.device, weights)


def evaluate_file(
    model: Path, options: ConvertOptions, teacher: Path | None, crop: int | None, channel: str = "rgb"
) -> dict[str, Any]:
    """Quality of a model, per image and on average, as JSON values.

    Args:
        model: checkpoint, student or ONNX file.
        options: of them those on weights, data, device and seed.
        teacher: also compare with this model's outputs.
        crop: judge on the central square of this side; None takes whole images.
        channel: "rgb", or "y": PSNR and SSIM of :func:`~csa2glmha.metrics.quality.luma`.

    Raises:
        UsageError: nothing to compare with: neither targets, a degradation, nor a teacher.
        Csa2GlmhaError: a file or folder cannot be used.
    """
    if crop is not None and crop < SSIM_WINDOW:
        raise UsageError(f"--crop {crop}: give a side in pixels, at least {SSIM_WINDOW}, which SSIM needs")
    opened, other = _open_both(model, teacher, options)
    if other is not None and (other.channels, other.bands) != (opened.channels, opened.bands):
        raise UsageError(
            f"--teacher {teacher}: turns {other.channels} channels into {other.bands}, {model} turns "
            f"{opened.channels} into {opened.bands}; give the checkpoint that it was made from"
        )
    reference = None if other is None else other.run
    cassi = opened.architecture == "mst"
    stretched = opened.stretches(options)
    spectral = cassi or is_spectral(opened.channels, opened.bands)
    if channel == "y" and (spectral or opened.bands != 3):
        raise UsageError(f"--channel y: {model} makes no colour images; leave it out")
    examples, notes = (_cassi if cassi else _images)(opened, options, teacher, crop)
    for note in notes:
        say(note)
    # Read to the first that is fit for it, before any is run on.
    if reference is None and all(example.truth is None for example in examples):
        raise UsageError(
            f"{options.data}: no ground truth to compare with; give --teacher to compare with its outputs"
        )
    meters = {name: QualityMeter(spectral, of_luma=channel == "y") for name in ("input", "truth", "teacher")}
    beyond = 0
    for index in progress(range(len(examples)), what="evaluating", unit="image"):
        example = examples[index]
        output = opened.run(example.inputs)
        beyond += int(spectral and out_of_range(output))
        output = output.clamp(0, 1)
        if example.truth is not None:
            meters["truth"].add(example.name, output, example.truth)
            given = example.inputs[0][0]
            if given.shape == example.truth.shape:
                meters["input"].add(example.name, given.clamp(0, 1), example.truth)
        if reference is not None:
            meters["teacher"].add(example.name, output, reference(example.inputs).clamp(0, 1))
    if beyond:
        say(f"{beyond} of {len(examples)} outputs reach far beyond [0, 1]: {RANGE_HINT}")
    return {
        "model": display_name(model),
        "data": None if options.data is None else str(options.data),
        "degradation": options.degrade,
        "stretched": stretched,
        "seed": options.seed,
        "channel": channel if channel == "y" else None if spectral else CHANNEL_NAMES.get(opened.bands),
        "notes": list(notes),
        "images": len(examples),
        **({"outputs_out_of_range": beyond} if spectral else {}),
        **{
            name: {
                "mean": {key: json_number(value) for key, value in meter.mean().items()},
                **({"bands": meter.bands()} if spectral else {}),
                "per_image": {
                    quality.name: {key: json_number(value) for key, value in quality.values.items()}
                    for quality in meter.images
                },
            }
            for name, meter in meters.items()
            if meter.images
        },
    }


class _Lazy(Sequence[Example]):
    """Examples that are read when they are needed: a folder may not fit into memory."""

    def __init__(self, count: int, read: Callable[[int], Example]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._read(index)


def _images(
    model: OpenModel, options: ConvertOptions, teacher: Path | None, crop: int | None
) -> tuple[Sequence[Example], tuple[str, ...]]:
    refuse_cassi_options(model.architecture or "this model", options)
    data, targets, degrade = options.data, options.targets, options.degrade
    spectral = is_spectral(model.channels, model.bands)
    if data is not None:  # before the question for a truth of images that are not there
        check_folder(data, "folder", "images" if model.channels in IMAGE_CHANNELS else "cubes")
    if targets is None and teacher is None and (degrade is None or spectral):
        cubes = "--targets DIR of cubes" if spectral else "--targets DIR, --degrade noise:25 for clean images"
        raise UsageError(f"nothing to compare with: give {cubes}, or --teacher")
    degradation = None if degrade is None else parse_degradation(degrade)
    if data is None:
        if model.channels not in IMAGE_CHANNELS:
            raise UsageError(f"no images of {model.channels} channels come with this tool: give --data DIR")
        images: Any = MemoryImages(bundled_images(model.channels))
        notes: tuple[str, ...] = (
            f"no --data: judging on {len(images)} photographs bundled with scikit-image",
        )
    else:
        images, notes = open_inputs(data, model.channels, targets, model.bands, options.mat_key, options.pair)
    if model.stretches(options):
        images = Stretched(images)
        notes += (STRETCH_NOTE,)
    examples = _Lazy(
        len(images),
        lambda index: image_example(images, index, degradation, options.seed, crop, not spectral),
    )
    return examples, notes


def _cassi(
    model: OpenModel, options: ConvertOptions, teacher: Path | None, crop: int | None
) -> tuple[Sequence[Example], tuple[str, ...]]:
    refuse_image_options(model.architecture, options)
    if crop is not None:
        raise UsageError(f"--crop {crop}: a scene belongs to its place under the mask; leave it out")
    if model.size is not None and options.mask is None:
        raise UsageError(f"{model.architecture} with a mask baked in: give the file of that mask, --mask")
    scenes, mask, recorded, _, notes = open_scenes(
        options.data,
        options.mask,
        options.mat_key,
        model.channels,
        options.input_size,
        options.seed,
        options.mask_key,
        options.measurement_scale,
    )
    if model.size is not None and tuple(mask.shape) != model.size:
        height, width = model.size
        raise UsageError(
            f"--mask {options.mask}: has {mask.shape[0]}x{mask.shape[1]} pixels, the one baked in has "
            f"{height}x{width}"
        )
    if options.mask is not None:
        model.check_mask(options.mask, options.mask_key)
    if recorded and teacher is None:
        raise UsageError(
            f"nothing to compare with: {options.data} holds recorded measurements; give --teacher"
        )
    data = CassiData(scenes, scenes, recorded, mask, model.channels, 1, str(options.data), notes)
    return _Lazy(len(scenes), lambda index: data.example(scenes, index)), notes


def describe_evaluation(found: dict[str, Any]) -> str:
    """The same for people."""
    labels = {
        "input": "input against truth",
        "truth": "output against truth",
        "teacher": "output against teacher",
    }
    known = [key for key in labels if key in found]
    metrics = [metric for metric in metrics_of(found["channel"]) if metric[0] in found[known[0]]["mean"]]
    rows = []
    for key in known:
        mean = found[key]["mean"]
        values = [(mean[name], unit, digits) for name, _, unit, _, digits in metrics]
        rows.append(
            (
                labels[key],
                *(f"{v:.{digits}f}{unit}" if isinstance(v, float) else str(v) for v, unit, digits in values),
            )
        )
    header = (f"{found['model']}, {found['images']} images", *(label for _, label, _, _, _ in metrics))
    return render_table(rows, header)
