"""The pictures of a few held-out images: side by side, and under a slider where the browser runs scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from csa2glmha.metrics.comparisons import Comparison, View
from csa2glmha.metrics.pictures import DIFFERENCE_GAIN
from csa2glmha.report.html.axes import axis_of
from csa2glmha.report.html.charts import Series, chart, legend
from csa2glmha.report.html.markup import Markup, details, escape, table, tag
from csa2glmha.report.html.numbers import TIMES, finite, fixed, short, signed
from csa2glmha.report.html.pictures import LOSSLESS, all_pictures, encode_pictures

TITLES = {
    "input": "Input",
    "teacher": "Teacher",
    "student": "Student",
    "difference": f"Difference {TIMES}{DIFFERENCE_GAIN}",
    "truth": "Truth",
}
_ALT = {
    "input": "What the networks were given: {}",
    "teacher": "The teacher's output: {}",
    "student": "The student's output: {}",
    "difference": f"Student minus teacher, amplified {DIFFERENCE_GAIN} times around grey: {{}}",
    "truth": "The ground truth: {}",
}
_LETTERS = "abcdefgh"
_LINES = (
    ("truth", "var(--truth)", 5.0),
    ("teacher", "var(--teacher)", 2.4),
    ("student", "var(--student)", 2.0),
)


def gallery(
    comparisons: dict[str, Any], images: Sequence[Comparison], searched: bool = False
) -> Markup | None:
    """The section.

    Args:
        comparisons: the report's entries of the images, and how their pictures are stored.
        images: the pictures, in the same order.
        searched: a rank search measured on crops of the held-out images.
    """
    if not images:
        return None
    quality = comparisons["webp_quality"]
    source = iter(encode_pictures(all_pictures(images), quality))
    shown = [
        _image(number, entry, image, source)
        for number, (entry, image) in enumerate(zip(comparisons["images"], images, strict=True))
    ]
    stored = "without loss" if quality == LOSSLESS else f"as WebP of quality {quality}"
    search = "; the rank search measured on crops of them" if searched else ""
    note = (
        f"Held-out images, which neither calibration nor training has seen{search}. The difference is "
        f"student minus teacher, amplified {DIFFERENCE_GAIN} times: grey is none. Pictures are "
        f"stored {stored}."
    )
    return tag("div", tag("p", note, class_="note"), tag("div", shown, class_="gallery"))


def _image(number: int, entry: dict[str, Any], image: Comparison, source: Iterator[str]) -> Markup:
    spectra = entry.get("spectra") or []
    return tag(
        "article",
        tag("h3", entry["name"]),
        _facts(entry),
        [_strip(entry, view, spectra, source) for view in image.views],
        _spectra(entry, spectra) if spectra else None,
        class_="image",
        data_name=f"{number + 1}: {entry['name']}",
    )


def _facts(entry: dict[str, Any]) -> Markup:
    facts = [("PSNR to the teacher", fixed(entry["psnr_to_teacher"], 2, " dB"))]
    if "student_psnr" in entry:
        teacher, student = entry["teacher_psnr"], entry["student_psnr"]
        text = f"{fixed(teacher, 3)} → {fixed(student, 3, ' dB')}"
        if finite(teacher) is not None and finite(student) is not None:
            text += f" ({signed(student - teacher, 3)})"
        facts.append(("PSNR to the truth", text))
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="facts")


def _strip(entry: dict[str, Any], view: View, spectra: list[dict[str, Any]], source: Iterator[str]) -> Markup:
    """All panels of a view."""
    height, width = view.panels[0].image.shape[-2:]
    what = f"{entry['name']}, {view.title}" if view.title != "image" else entry["name"]
    figures = [
        tag(
            "figure",
            tag(
                "div",
                tag(
                    "img",
                    src=next(source),
                    alt=_ALT[panel.role].format(what),
                    width=width,
                    height=height,
                ),
                _pins(spectra, height, width) if panel.role == "teacher" else None,
                class_="frame",
            ),
            tag("figcaption", TITLES[panel.role], f" ({panel.note})" if panel.note else None),
            data_role=panel.role,
            data_title=TITLES[panel.role],
        )
        for panel in view.panels
    ]
    heading = tag("h4", view.title.capitalize()) if view.title != "image" else None
    return tag("div", heading, tag("div", figures, class_="panels"), class_="view", data_name=view.title)


def _pins(spectra: list[dict[str, Any]], height: int, width: int) -> list[Markup]:
    """Where the pixels are whose spectra are drawn."""
    return [
        tag(
            "span",
            letter,
            class_="pin",
            aria_hidden="true",
            style=f"left:{100 * (pixel['column'] + 0.5) / width:.2f}%;"
            f"top:{100 * (pixel['row'] + 0.5) / height:.2f}%",
        )
        for letter, pixel in zip(_LETTERS, spectra, strict=False)
    ]


def _spectra(entry: dict[str, Any], spectra: list[dict[str, Any]]) -> Markup:
    lines = [line for line in _LINES if line[0] in spectra[0]]
    top = axis_of(
        "intensity", [value for pixel in spectra for name, _, _ in lines for value in pixel[name]], zero=True
    )
    bands = len(spectra[0]["teacher"])
    drawn = []
    for letter, pixel in zip(_LETTERS, spectra, strict=False):
        series = [
            Series(
                name,
                list(enumerate(pixel[name], 1)),
                colour,
                width=width,
                dashed=name == "student",
            )
            for name, colour, width in lines
        ]
        place = f"{letter}: row {pixel['row']}, column {pixel['column']}"
        x = axis_of("band", [1, bands], margin=0.02)
        drawn.append(
            tag(
                "div",
                tag("h5", place),
                chart(f"Spectra of {entry['name']} at pixel {place}", series, x, top, room="third"),
            )
        )
    header = ["band", *(f"{letter} {name}" for letter in _LETTERS[: len(spectra)] for name, _, _ in lines)]
    rows = [
        [str(band + 1), *(short(pixel[name][band]) for pixel in spectra for name, _, _ in lines)]
        for band in range(bands)
    ]
    return tag(
        "div",
        tag("h4", "Spectra at three pixels" if len(spectra) == 3 else "Spectra"),
        legend(
            [(name, colour, "dashed" if name == "student" else "line") for name, colour, _ in reversed(lines)]
        ),
        tag("div", drawn, class_="multiples"),
        details("Spectra as a table", table(rows, header, escape(f"Spectra of {entry['name']}"))),
        class_="spectra",
    )
