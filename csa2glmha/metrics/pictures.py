"""Pictures for the report."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: How much the difference between student and teacher is amplified to be visible at all.
DIFFERENCE_GAIN = 20
#: Bands of a spectrum that are shown, evenly spread.
BANDS_SHOWN = 4
#: Pixels whose spectra are plotted.
PIXELS_SHOWN = 3
_CAPTION_HEIGHT = 28
_GAP = 6


def comparison(
    input_image: Tensor,
    teacher: Tensor,
    student: Tensor,
    ground_truth: Tensor | None,
    gain: int = DIFFERENCE_GAIN,
) -> Tensor:
    """Input, teacher, student, amplified difference and ground truth side by side, with captions.

    Args:
        input_image, teacher, student, ground_truth: (C, H, W) in [0, 1], C = 1 or 3 (of 6 the first 3 are
            shown).
        gain: the difference is shown as 0.5 + gain * (student - teacher).

    Returns:
        (3, H', W').
    """
    panels = [
        ("input", input_image),
        ("teacher", teacher),
        ("student", student),
        (f"difference x{gain}", 0.5 + gain * (student - teacher)),
    ]
    if ground_truth is not None:
        panels.append(("ground truth", ground_truth))
    return _row(panels)


def spectral_comparison(
    teacher: Tensor, student: Tensor, ground_truth: Tensor | None, gain: int = DIFFERENCE_GAIN
) -> Tensor:
    """A few bands of teacher, student, amplified difference and ground truth: a row a band, with captions.

    Every row has a brightness of its own, that of the teacher's brightest pixels in that band.

    Args:
        teacher, student, ground_truth: (bands, H, W), not below 0.
        gain: the difference is shown as 0.5 + gain * (student - teacher), in the data's own units.

    Returns:
        (3, H', W').
    """
    bands = len(teacher)
    rows: list[Tensor] = []
    for band in spread_evenly(bands, BANDS_SHOWN):
        white = max(float(np.quantile(teacher[band].numpy(), 0.995)), 1e-3)
        panels = [
            (f"teacher, band {band + 1} of {bands}", teacher[band : band + 1] / white),
            ("student", student[band : band + 1] / white),
            (f"difference x{gain}", 0.5 + gain * (student - teacher)[band : band + 1]),
        ]
        if ground_truth is not None:
            panels.append(("ground truth", ground_truth[band : band + 1] / white))
        if rows:
            rows.append(torch.ones(3, _GAP, rows[0].shape[2]))
        rows.append(_row(panels))
    return torch.cat(rows, 1)


def plot_spectra(path: Path, teacher: Tensor, student: Tensor, ground_truth: Tensor | None) -> None:
    """Write a PNG of the spectra of teacher, student and ground truth (bands, H, W) at a few pixels.

    They are the most colourful pixels that are apart from each other.
    """
    # Here, for it is slow to import, and photographs have no spectra.
    from matplotlib.figure import Figure

    pixels = colourful_pixels(teacher, PIXELS_SHOWN)
    figure = Figure(figsize=(3.4 * (1 + len(pixels)), 3.2), dpi=110, layout="constrained")
    image, *plots = figure.subplots(1, 1 + len(pixels))
    shown = teacher.mean(0)
    image.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=max(float(shown.max()), 1e-3))
    image.set_axis_off()
    image.set_title("teacher, mean of the bands", fontsize=9)
    bands = np.arange(1, len(teacher) + 1)
    top = 1.08 * max(
        float(each[:, row, column].max()) for row, column in pixels for each in (teacher, student)
    )
    for letter, (row, column), plot in zip("abc", pixels, plots, strict=False):
        image.plot(column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor="#e4572e")
        image.annotate(
            letter, (column, row), (7, -4), textcoords="offset points", color="#e4572e", weight="bold"
        )
        if ground_truth is not None:
            plot.plot(
                bands,
                ground_truth[:, row, column].numpy(),
                color="#9a9a9a",
                linewidth=3,
                label="ground truth",
            )
        plot.plot(bands, teacher[:, row, column].numpy(), color="#1b4965", linewidth=1.6, label="teacher")
        plot.plot(
            bands, student[:, row, column].numpy(), "--", color="#e4572e", linewidth=1.6, label="student"
        )
        plot.set_title(f"{letter}: row {row}, column {column}", fontsize=9)
        plot.set_xlabel("band", fontsize=8)
        plot.set_ylim(0, max(top, 1e-3))
        plot.tick_params(labelsize=8)
    plots[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png")


def colourful_pixels(cube: Tensor, count: int) -> list[tuple[int, int]]:
    """Pixels (row, column) of the most uneven spectra of (bands, H, W), away from each other."""
    uneven = F.avg_pool2d(cube.unsqueeze(0).float(), 5, 1, 2)[0].std(0)
    height, width = uneven.shape
    apart = max(min(height, width) // 4, 1)
    found = []
    for _ in range(count):
        row, column = divmod(int(uneven.argmax()), width)
        found.append((row, column))
        uneven[max(row - apart, 0) : row + apart, max(column - apart, 0) : column + apart] = -1
    return found


def as_large_as(image: Tensor, other: Tensor) -> Tensor:
    """The image (C, H, W) at the size of another one, by repeating or leaving out pixels."""
    if image.shape[-2:] == other.shape[-2:]:
        return image
    return F.interpolate(image.unsqueeze(0), other.shape[-2:], mode="nearest")[0]


def spread_evenly(count: int, shown: int) -> list[int]:
    """Indices in the middle of ``shown`` equal parts of ``count``."""
    shown = min(count, shown)
    return [(2 * index + 1) * count // (2 * shown) for index in range(shown)]


def _row(panels: list[tuple[str, Tensor]]) -> Tensor:
    columns: list[Tensor] = []
    for index, (caption, image) in enumerate(panels):
        if index:
            columns.append(torch.ones(3, columns[0].shape[1], _GAP))
        columns.append(_captioned(_colour(image), caption))
    return torch.cat(columns, 2)


def _colour(image: Tensor) -> Tensor:
    image = image.clamp(0, 1)
    return image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)


def _captioned(image: Tensor, caption: str) -> Tensor:
    strip = np.full((_CAPTION_HEIGHT, image.shape[2], 3), 255, np.uint8)
    cv2.putText(strip, caption, (4, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    caption_strip = torch.from_numpy(strip).permute(2, 0, 1).float() / 255
    return torch.cat((caption_strip, image), 1)
