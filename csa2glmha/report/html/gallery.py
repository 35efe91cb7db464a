"""The pictures of a few held-out images: side by side, and under a slider where the browser runs scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from csa2glmha.metrics.comparisons import Comparison, View
from csa2glmha.metrics.pictures import DIFFERENCE_GAIN
from csa2glmha.report.blocks import Block, Chart, Fold, Gallery, Group, Heading, Legend, Series, Table
from csa2glmha.report.html.pictures import LOSSLESS, all_pictures, choose_quality, encode_pictures
from csa2glmha.report.part import Figure
from csa2glmha.report.schema import ImageFigures, Spectrum
from csa2glmha.report.sections.axes import axis_of
from csa2glmha.report.sections.numbers import TIMES, finite, fixed, known, short, signed

TITLES = {
    "input": "Input",
    "teacher": "Teacher",
    "student": "Student",
    "difference": f"Difference {TIMES}{DIFFERENCE_GAIN}",
    "ground_truth": "Ground truth",
}
_ALT = {
    "input": "What the networks were given: {}",
    "teacher": "The teacher's output: {}",
    "student": "The student's output: {}",
    "difference": f"Student minus teacher, amplified {DIFFERENCE_GAIN} times around grey: {{}}",
    "ground_truth": "The ground truth: {}",
}
_LETTERS = "abcdefgh"
_LINES = (
    ("ground_truth", "var(--ground-truth)", 5.0),
    ("teacher", "var(--teacher)", 2.4),
    ("student", "var(--student)", 2.0),
)


@dataclass(frozen=True)
class Pin:
    """Where a pixel is whose spectrum is drawn; left and top in percent."""

    letter: str
    left: float
    top: float


@dataclass(frozen=True)
class Picture:
    """One panel, as the page has it."""

    role: str
    title: str
    source: str
    words: str
    caption: str
    width: int
    height: int
    pins: Sequence[Pin]


@dataclass(frozen=True)
class Strip:
    """All panels of a view; without a heading where there is one view."""

    name: str
    heading: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Image:
    """One held-out image: its figures, its pictures and, of spectra, its charts."""

    name: str
    facts: Sequence[tuple[str, str]]
    strips: Sequence[Strip]
    spectra: Sequence[Block]


@dataclass(frozen=True)
class Pictures:
    """The section as its template needs it."""

    note: str
    images: Sequence[Image]


def pictures_of(gallery: Gallery) -> Pictures:
    """The pictures of a gallery, encoded."""
    panels = all_pictures(gallery.images)
    quality = gallery.comparisons.webp_quality
    quality = choose_quality(panels) if quality is None else quality
    source = iter(encode_pictures(panels, quality))
    stored = "without loss" if quality == LOSSLESS else f"as WebP of quality {quality}"
    search = "; the rank search measured on crops of them" if gallery.searched else ""
    note = (
        f"Held-out images, which neither calibration nor training has seen{search}. The difference is "
        f"student minus teacher, amplified {DIFFERENCE_GAIN} times: grey is none. Pictures are "
        f"stored {stored}."
    )
    entries = zip(gallery.comparisons.images, gallery.images, strict=True)
    return Pictures(note, [_image(entry, image, source) for entry, image in entries])


def _image(entry: ImageFigures, image: Comparison, source: Iterator[str]) -> Image:
    spectra = entry.spectra or ()
    return Image(
        entry.name,
        _facts(entry),
        [_strip(entry, view, spectra, source) for view in image.views],
        _spectra(entry, spectra) if spectra else [],
    )


def _facts(entry: ImageFigures) -> list[tuple[str, str]]:
    facts = [("PSNR to the teacher", fixed(entry.psnr_to_teacher, 2, " dB"))]
    if entry.student_psnr is not None:
        teacher, student = entry.teacher_psnr, entry.student_psnr
        text = f"{fixed(teacher, 3)} → {fixed(student, 3, ' dB')}"
        if teacher is not None and finite(teacher) is not None and finite(student) is not None:
            text += f" ({signed(student - teacher, 3)})"
        facts.append(("PSNR to the ground truth", text))
    return facts


def _strip(entry: ImageFigures, view: View, spectra: Sequence[Spectrum], source: Iterator[str]) -> Strip:
    height, width = view.panels[0].image.shape[-2:]
    alone = view.title == "image"
    what = entry.name if alone else f"{entry.name}, {view.title}"
    pictures = [
        Picture(
            panel.role,
            TITLES[panel.role],
            next(source),
            _ALT[panel.role].format(what),
            TITLES[panel.role] + (f" ({panel.note})" if panel.note else ""),
            width,
            height,
            _pins(spectra, height, width) if panel.role == "teacher" else (),
        )
        for panel in view.panels
    ]
    return Strip(view.title, "" if alone else view.title.capitalize(), pictures)


def _pins(spectra: Sequence[Spectrum], height: int, width: int) -> list[Pin]:
    return [
        Pin(letter, 100 * (pixel.column + 0.5) / width, 100 * (pixel.row + 0.5) / height)
        for letter, pixel in zip(_LETTERS, spectra, strict=False)
    ]


def _spectra(entry: ImageFigures, spectra: Sequence[Spectrum]) -> list[Block]:
    lines = [line for line in _LINES if _values(spectra[0], line[0])]
    all_values = [value for pixel in spectra for name, _, _ in lines for value in _values(pixel, name)]
    top = axis_of("intensity", known(all_values), zero=True)
    bands = len(spectra[0].teacher)
    x = axis_of("band", [1, bands], margin=0.02)
    drawn: list[Block] = []
    for letter, pixel in zip(_LETTERS, spectra, strict=False):
        series = [
            Series(name, _points(_values(pixel, name)), colour, width=width, dashed=name == "student")
            for name, colour, width in lines
        ]
        place = f"{letter}: row {pixel.row}, column {pixel.column}"
        label = f"Spectra of {entry.name} at pixel {place}"
        drawn.append(Group([Heading(place, 5), Chart(label, series, x, top, room="third")]))
    header = ["band", *(f"{letter} {name}" for letter in _LETTERS[: len(spectra)] for name, _, _ in lines)]
    rows = [
        [str(band + 1), *(short(_values(pixel, name)[band]) for pixel in spectra for name, _, _ in lines)]
        for band in range(bands)
    ]
    looks = [(name, colour, "dashed" if name == "student" else "line") for name, colour, _ in reversed(lines)]
    return [
        Heading("Spectra at three pixels" if len(spectra) == 3 else "Spectra", 4),
        Legend(looks),
        Group(drawn, "multiples"),
        Fold("Spectra as a table", [Table(header, rows, f"Spectra of {entry.name}")]),
    ]


def _values(pixel: Spectrum, name: str) -> Sequence[Figure]:
    values: Sequence[Figure] | None = getattr(pixel, name)
    return values or ()


def _points(values: Sequence[Figure]) -> list[tuple[float, float]]:
    return [(band, number) for band, value in enumerate(values, 1) if (number := finite(value)) is not None]
