"""Reports and pictures that the tests of report.html share."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import torch

from csa2glmha.data.batches import Example
from csa2glmha.metrics.comparisons import Comparison, compare_image
from csa2glmha.report.html import html_page
from csa2glmha.report.stored import parse_report
from tests.report.test_report_document import REPORT

VOID = {"br", "hr", "img", "input", "link", "meta", "wbr"}


def example_report(*without: str, optional: bool = False) -> dict[str, Any]:
    """A report of a Restormer; with ``optional`` that of analysis, search, Pareto plot and baselines too."""
    report = {key: copy.deepcopy(value) for key, value in REPORT.items() if key not in without}
    return report | optional_parts(report) if optional else report


def optional_parts(report: dict[str, Any]) -> dict[str, Any]:
    layers = []
    for layer in report["layers"]:
        c, heads = layer["head_channels"], layer["heads"]
        rising = [1 - math.exp(-0.4 * rank) * (1 - rank / c) for rank in range(1, c + 1)]
        falling = [0.5 * math.exp(-0.3 * rank) * (1 - rank / c) for rank in range(1, c + 1)]
        layers.append(
            {
                "name": layer["name"], "channels": heads * c, "heads": heads, "head_channels": c,
                "temperature": [1.25] * heads, "static_share": [0.875] * heads,
                "cumulative": [rising] * heads, "key_error": falling, "value_error": falling,
            }
        )  # fmt: skip

    def point(label: str, kind: str, ratio: float, time: float | None, drop: float | None) -> dict[str, Any]:
        return {
            "label": label, "kind": kind, "macs": ratio * 154.9e9, "macs_ratio": ratio, "params": 22_000_000,
            "time_ratio": time, "psnr_to_teacher": None if kind == "teacher" else 50.0, "psnr_drop": drop,
        }  # fmt: skip

    def predicted(rank: int, macs: float, psnr: float | None) -> dict[str, Any]:
        return {"rank": rank, "macs": macs, "params": 22_000_000, "error": 1e-5, "psnr_to_teacher": psnr}

    return {
        "analysis": {"images": 32, "layers": layers},
        "search": {
            "budget": {"kind": "macs", "target": 110e9, "absolute": True},
            "reached": {"macs": 109_200_000_000, "params": 22_000_000},
            "predicted": {
                "macs": 109.2e9, "psnr_drop": -0.013, "psnr_to_teacher": 47.125,
                "uniform": [
                    predicted(4, 100e9, 44.25), predicted(8, 110e9, 46.5), predicted(16, 130e9, 50.5),
                ],
                "searched": [
                    predicted(4, 99e9, 45.0), predicted(8, 109.2e9, 47.125), predicted(16, 130e9, None),
                ],
            },
            "gap": 0.004,
            "optimality": "proven",
            "choices": choices(report),
        },
        "pareto": {
            "points": [
                point("teacher", "teacher", 1.0, 1.0, None),
                point("rank 4", "uniform", 0.7, 0.71, -0.08),
                point("rank 8", "uniform", 0.75, 0.74, -0.02),
                point("chosen", "auto", 0.72, None, -0.015),
                point("pruned", "baseline", 0.8, 0.9, -3.21),
            ]
        },
        "baselines": [
            {
                "name": "pruned channels", "description": "least norm", "macs": 120e9, "params": 20_000_000,
                "before": {"psnr_to_teacher": 21.5, "psnr_drop": -9.75},
                "after": {"psnr_to_teacher": 38.25, "psnr_drop": None},
            },
            {
                "name": "plain SVD", "description": "of weights", "macs": 121e9, "params": 21_000_000,
                "before": {"psnr_to_teacher": 33.5, "psnr_drop": None}, "after": None,
            },
        ],
    }  # fmt: skip


def choices(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a search measured of the layers: full, and a few ranks of keys, of queries and keys, of values."""
    found = []
    for number, layer in enumerate(report["layers"]):
        for side, ranks, rank_q, rank_k, rank_v in (
            ("logits", "q full k full", None, None, None),
            ("logits", "q full k 4", None, 4, None),
            ("logits", "q 4 k 4", 4, 4, None),
            ("logits", "q full k 0", None, 0, None),
            ("values", "v full", None, None, None),
            ("values", "v 8", None, None, 8),
            ("values", "v 2", None, None, 2),
        ):
            psnr = 60.0 - 5 * number - 40 / (1 + sum(rank or 0 for rank in (rank_q, rank_k, rank_v)))
            full = "full" in ranks.split()[-1]
            found.append(
                {
                    "layer": layer["name"], "side": side, "ranks": ranks,
                    "rank_q": rank_q, "rank_k": rank_k, "rank_v": rank_v,
                    "error": 0.0 if full else 10 ** (-psnr / 10), "psnr_to_teacher": None if full else psnr,
                    "predicted": None,
                    "macs_saved": 0 if full else 1_500_000, "params_saved": 0 if full else -1500,
                    "picked": ranks in ("q full k 4", "v 8"),
                }
            )  # fmt: skip
    return found


def page_of_values(values: dict[str, Any], images: Sequence[Comparison] = ()) -> str:
    """The page of a report that is given as JSON values."""
    return html_page(parse_report(values), images)


def example_images(count: int = 2, spectral: bool = False, ground_truth: bool = True) -> list[Comparison]:
    """Comparisons of random images of 24 x 32 pixels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        clean = torch.rand(7 if spectral else 3, 24, 32, generator=generator)
        before = (0.9 * clean).clamp(0, 1)
        example = Example(f"photo {number}.png", (clean.unsqueeze(0),), clean if ground_truth else None)
        found.append(compare_image(example, before, (before + 0.01).clamp(0, 1), spectral))
    return found


def with_images(report: dict[str, Any], images: list[Comparison]) -> dict[str, Any]:
    """The report with the entries of the images, as a conversion writes them."""
    return report | {
        "comparisons": {
            "difference_gain": 20,
            "webp_quality": "lossless",
            "images": [each.figures for each in images],
        }
    }


def hostile(value: Any, text: str) -> Any:
    """The value with ``text`` added to every string in it, keys left alone."""
    if isinstance(value, dict):
        return {key: hostile(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [hostile(each, text) for each in value]
    return value + text if isinstance(value, str) else value


class Page(HTMLParser):
    """A page's elements in order, and the text that is read; complains of elements left open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.code: dict[str, str] = {"style": "", "script": ""}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, self._open

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag}: an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.code:
            self.code[self._open[-1]] += data
        else:
            self.words.append(data)
