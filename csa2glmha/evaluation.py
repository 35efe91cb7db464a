"""What `evaluate` does: any model file against images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csa2glmha.data.degrade import parse_degradation
from csa2glmha.data.images import MemoryImages, bundled_images
from csa2glmha.data.sources import open_images
from csa2glmha.device import resolve_device
from csa2glmha.errors import UsageError
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.options import ConvertOptions
from csa2glmha.progress import progress, say
from csa2glmha.report.document import render_table
from csa2glmha.report.evaluate import Restore, evaluation_image, restore
from csa2glmha.report.quality import QualityMeter, json_value
from csa2glmha.storage import load_model


def open_model(path: Path, device: str) -> tuple[Restore, int]:
    """A checkpoint, student or ONNX file as a function on (C, H, W), and its number of input channels."""
    if path.suffix.lower() == ".onnx":
        onnx_model = OnnxModel(path)
        return lambda image: onnx_model(image.unsqueeze(0))[0], onnx_model.in_channels
    model = load_model(path).model.to(resolve_device(device))
    return restore(model), model.in_channels


def evaluate_file(
    model: Path, options: ConvertOptions, teacher: Path | None, crop: int | None
) -> dict[str, Any]:
    """PSNR and SSIM of a model, per image and on average, as JSON values.

    Args:
        model: checkpoint, student or ONNX file.
        options: of them data, targets, degrade, device and seed.
        teacher: also compare with this model's outputs.
        crop: judge on the central square of this side; None takes whole images.

    Raises:
        UsageError: nothing to compare with: neither targets, a degradation, nor a teacher.
        Csa2GlmhaError: a file or folder cannot be used.
    """
    data, targets, degrade = options.data, options.targets, options.degrade
    if targets is None and degrade is None and teacher is None:
        raise UsageError(
            "nothing to compare with: give --targets DIR, --degrade noise:25 for clean images, or --teacher"
        )
    if crop is not None and crop < 1:
        raise UsageError(f"--crop {crop}: give a side in pixels, e.g. 256")
    degradation = None if degrade is None else parse_degradation(degrade)
    run, channels = open_model(model, options.device)
    reference = None if teacher is None else open_model(teacher, options.device)[0]
    if data is None:
        images: Any = MemoryImages(bundled_images(channels))
        say(f"no --data: judging on {len(images)} photographs bundled with scikit-image")
    else:
        images, notes = open_images(data, channels, targets)
        for note in notes:
            say(note)
    meters = {name: QualityMeter() for name in ("input", "truth", "teacher")}
    for index in progress(range(len(images)), what="evaluating", unit="image"):
        image = evaluation_image(images, index, degradation, options.seed, crop)
        output = run(image.input).clamp(0, 1)
        if image.truth is not None:
            meters["truth"].add(image.name, output, image.truth)
            if image.input.shape == image.truth.shape:
                meters["input"].add(image.name, image.input.clamp(0, 1), image.truth)
        if reference is not None:
            meters["teacher"].add(image.name, output, reference(image.input).clamp(0, 1))
    return {
        "model": str(model),
        "data": None if data is None else str(data),
        "degradation": degrade,
        "seed": options.seed,
        "images": len(images),
        **{
            name: {
                "mean": {key: json_value(value) for key, value in meter.mean().items()},
                "per_image": {
                    quality.name: {key: json_value(value) for key, value in quality.values.items()}
                    for quality in meter.images
                },
            }
            for name, meter in meters.items()
            if meter.images
        },
    }


def describe_evaluation(found: dict[str, Any]) -> str:
    """The same for people."""
    labels = {
        "input": "input against truth",
        "truth": "output against truth",
        "teacher": "output against teacher",
    }
    rows = []
    for key, label in labels.items():
        if key in found:
            mean = found[key]["mean"]
            psnr, ssim = mean["psnr"], mean["ssim"]
            rows.append(
                (
                    label,
                    f"{psnr:.3f} dB" if isinstance(psnr, float) else str(psnr),
                    f"{ssim:.4f}" if isinstance(ssim, float) else str(ssim),
                )
            )
    return render_table(rows, (f"{found['model']}, {found['images']} images", "PSNR", "SSIM"))
