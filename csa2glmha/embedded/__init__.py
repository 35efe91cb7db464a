"""The small denoiser that comes with the package, and how `demo` converts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

TEACHER_FILE = "restormer_d16_denoise25.safetensors"


@contextmanager
def embedded_teacher() -> Iterator[Path]:
    """Path of the embedded checkpoint: a Restormer for colour Gaussian noise of sigma 25/255."""
    with resources.as_file(resources.files("csa2glmha.embedded") / TEACHER_FILE) as path:
        yield path


def demo_options() -> dict[str, Any]:
    """Conversion options that fit the demonstration into a few minutes on two cores."""
    return {
        "degrade": "noise:25",
        "calibration_crops": 24,
        "distill_minutes": 1.0,
        "batch": 4,
        "crop": 64,
    }
