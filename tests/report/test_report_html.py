"""report.html as text: what is in it, what is not, and that nothing in a report can break it."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from csa2glmha.core.errors import OutputError
from csa2glmha.data.batches import Example
from csa2glmha.metrics.comparisons import compare_image, compare_images
from csa2glmha.report.html import write_html
from csa2glmha.report.html.labels import place_labels
from csa2glmha.report.html.markup import Markup, escape, join, tag
from csa2glmha.report.html.pictures import LOSSLESS, choose_quality, encode_pictures
from csa2glmha.report.schema_search import Search
from csa2glmha.report.sections.axes import Axis, axis_of, round_steps
from csa2glmha.report.sections.numbers import fixed, percent_change, short, signed
from csa2glmha.report.sections.search import _points
from csa2glmha.report.sections.summary import lead_sentence, search_sentence
from csa2glmha.report.sections.tradeoff import pareto_front
from csa2glmha.report.stored import parse_report
from tests.pages import Page, example_images, example_report, hostile, page_of_values, with_images

OPTIONAL = ("data", "quality", "distillation", "onnx", "latency_ms")
HOSTILE = """</script></title></style><script>alert(1)</script><img src=x onerror=alert(2)>"'&<!--\x00"""


def page_of(*without: str, optional: bool = False, **images: Any) -> Page:
    shown = example_images(**images)
    return Page(page_of_values(with_images(example_report(*without, optional=optional), shown), shown))


# --- the page


@pytest.mark.parametrize("spectral", [False, True])
def test_page_needs_nothing_but_itself(spectral: bool) -> None:
    page = page_of(optional=True, spectral=spectral)
    for name, attributes in page.elements:
        for key in ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"):
            value = attributes.get(key)
            if value is not None:
                assert value.startswith(("data:", "#")), (name, key, value[:60])
    assert {attributes["src"][:23] for attributes in page.all("img")} == {"data:image/webp;base64,"}
    assert not {"iframe", "object", "embed", "base", "form"} & {name for name, _ in page.elements}
    code = page.code["style"] + page.code["script"]
    assert not re.search(r"https?:|//[a-z]|url\(|@import|@font-face|fetch\(|XMLHttp|import\(|eval\(", code)


def test_policy_allows_the_pages_script_and_no_connection() -> None:
    page = page_of()
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.code["script"].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_page_tells_everything() -> None:
    text = page_of().text
    for part in (
        "32 % fewer multiply-accumulates and 15 % fewer parameters, at a cost of 0.020 dB of PSNR.",
        "rank 8 (q 16)", "expanded attention", "input 256 × 256",
        "−32 %", "154.9 G → 105.0 G", "26.13 M → 22.21 M", "−33 %", "3000 ms → 2000 ms",
        "31.250 → 31.230 dB", "49.50 dB before distillation", "0.8995",
        "FLOPs 310.0 G 211.0 G 0.681",
        "latent.0.attn", "612.0 M → 200.0 M", "602.00 k → 190.00 k", "−67 %", "logits from maps", "as it was",
        "8 × 48 full 8 8", "0.25",
        "240 steps in 6.0 minutes", "49.00 → 54.00 dB", "The weights of step 210 were kept.",
        "kept: step 210",
        "layer by layer 70 1.8 49.00 → 51.50 +2.50", "end to end 210 5.3 0.001 54.00",
        "model.onnx: 89.0 MB, opset 18, simplified", "1 × 3 × 96 × 64 2e−6 3e−6", "a remark",
        "2950 to 3100", "photos", "noise:25", "photos: 1 file skipped (1 empty): a.png (empty)",
        "central 256 x 256 pixels of held-out images", "ab" * 32, "python 3.11.0, torch 2.6.0",
        "initialise 12.5, distill 360.0", '{"dim": 48}', "csa2glmha 0.1.0 on cpu, 1 threads",
        "photo 0.png", "photo 1.png", "Difference ×20", "Pictures are stored without loss.",
    ):  # fmt: skip
        assert part in text, part
    assert not re.search(r"\b(None|nan|inf)\b", text)


def test_optional_parts() -> None:
    text = page_of(optional=True).text
    for part in (
        "Sizes were chosen layer by layer for a budget of multiply-accumulates: 110.0 G",
        "predicted: MACs 109.2 G, change of PSNR −0.013 dB, PSNR to the teacher before distillation",
        " 47.125 dB; gap to the optimum 0.004 (proven).",
        "Measured on 32 images.", "rank for 95% of the energy", "1.25", "0.875",
        "one rank everywhere", "chosen per layer", "other methods, below the chart",
        "pruned: −3.210 dB",
        "MACs, share of the teacher's", "time, share of the teacher's",
        "rank 8", "8 110.0 G 0.710 46.50 47.12 +0.62", "16 130.0 G 0.839 50.50 – –",
        "this student 109.2 G 0.705 47.12", "chosen per layer",
        "latent.0.attn logits q full k 4 52.00 1.5 M −1.50 k yes", "values v full exact 0 0",
        "pruned channels", "least norm", "21.50", "−9.750", "38.25", "GLMHA, this student", "plain SVD",
    ):  # fmt: skip
        assert part in text, part
    without = page_of()
    for name in ("tradeoff", "search", "baselines", "spectra"):
        assert name not in [section.get("id") for section in without.all("section")]
    assert "Sizes were chosen" not in without.text


def test_page_without_measurements() -> None:
    page = Page(page_of_values(example_report(*OPTIONAL)))
    assert [each["id"] for each in page.all("section")] == ["layers", "ranks", "distillation", "making"]
    assert "None: the student is the initialisation." in page.text
    assert page.all("img") == []
    assert "26.13 M → 22.21 M" in page.text


@pytest.mark.parametrize("optional", [False, True])
def test_links_lead_somewhere_and_ids_are_unique(optional: bool) -> None:
    page = page_of(optional=optional)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = [link["href"] for link in page.all("a")]
    assert len(targets) >= 8 and all(target in {f"#{name}" for name in ids} for target in targets)


def test_figures_have_words_for_those_who_do_not_see_them() -> None:
    page = page_of(optional=True, spectral=True)
    assert all(picture["alt"] for picture in page.all("img"))
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in page.all("svg"))
    assert all(region["aria-label"] for _, region in page.elements if region.get("role") == "region")
    assert page.text.count("as a table") >= 7
    assert page.all("html") == [{"lang": "en"}]


def test_numbers_of_drawings_are_finite() -> None:
    page = page_of(optional=True, spectral=True)
    for _, attributes in page.elements:
        for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "points", "width", "height", "r"):
            assert not re.search("nan|inf", attributes.get(key) or ""), attributes


def test_hostile_strings_stay_text() -> None:
    images = example_images(spectral=True)
    plain = with_images(example_report(optional=True), images)
    report = hostile(plain, HOSTILE)
    report["versions"] = {HOSTILE: HOSTILE}
    page, expected = Page(page_of_values(report, images)), Page(page_of_values(plain, images))
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert page.code == expected.code
    assert len(page.all("img")) == len(expected.all("img"))
    assert {name for name, _ in page.elements} <= {name for name, _ in expected.elements} | {"wbr"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--\ufffd" in page.text


def test_names_that_are_not_unicode_are_written(tmp_path: Path) -> None:
    report = example_report()
    report["data"]["source"] = "photos \udcff"  # as Python names a file whose name cannot be decoded
    write_html(tmp_path, parse_report(report), [])
    assert "photos \ufffd" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_unknown_values() -> None:
    report = example_report(optional=True)
    report["quality"]["student"]["teacher"]["psnr"] = "inf"
    report["quality"]["student"]["ground_truth"]["psnr"] = None
    report["distillation"]["curve"][1]["psnr"] = "inf"
    report["distillation"]["after"] = None
    for point in report["pareto"]["points"]:
        point |= {"time_ratio": None, "psnr_drop": None}
    text = Page(page_of_values(report)).text
    assert "with the same outputs but for rounding" in text
    assert "∞" in text and "PSNR to the teacher, dB" in text and "time, share of" not in text
    assert "None" not in text


def test_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder would have to be")
    with pytest.raises(OutputError, match="cannot write"):
        write_html(tmp_path / "taken", parse_report(example_report()), [])
    (tmp_path / "taken").unlink()
    (tmp_path / "report.html").write_text("earlier")
    images = example_images()
    with pytest.raises(ValueError, match="zip"):  # pictures and figures that do not belong together
        write_html(tmp_path, parse_report(with_images(example_report(), images[:1])), images)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "earlier"


# --- the words of the headline


def test_lead_sentence() -> None:
    report = example_report()
    quality = report["quality"]

    def lead() -> str:
        return lead_sentence(parse_report(report))

    quality["student"]["ground_truth"]["psnr"] = 31.266
    assert lead().endswith("parameters, with 0.016 dB more PSNR.")
    quality["student"]["ground_truth"]["psnr"] = 31.2502
    assert lead().endswith("parameters, at the same PSNR.")
    del quality["teacher"]["ground_truth"]
    assert lead().endswith(", with outputs that agree with the teacher's to 55.0 dB.")
    report["complexity"]["after"] = {"params": 27_000_000, "macs": 154_900_000_000, "flops": 1}
    assert lead().startswith("as many multiply-accumulates and 3.3 % more parameters, ")
    del report["quality"]
    assert lead().endswith("3.3 % more parameters.")


def test_search_sentence() -> None:
    def sentence(kind: str, target: float, absolute: bool, **more: Any) -> str:
        values = example_report(optional=True)["search"]
        predicted = {"psnr_to_teacher": None} | more.pop("predicted", {})
        budget = {"kind": kind, "target": target, "absolute": absolute}
        missing = {"gap": None, "optimality": "", "choices": [], "predicted": predicted, "budget": budget}
        return search_sentence(Search.model_validate(values | missing | more))

    start = "Sizes were chosen layer by layer for a budget of "
    assert sentence("max_drop", 0.05, False) == f"{start}loss of PSNR: 0.050 dB."
    words = sentence("latency", 1.2, False, predicted={"psnr_drop": -0.01}, optimality="proven")
    assert words == f"{start}latency: 1.2 of the teacher's; predicted: change of PSNR −0.010 dB (proven)."
    for kind, target, words in (("macs", 110e9, "110.0 G"), ("params", 20e6, "20.00 M")):
        assert sentence(kind, target, True).endswith(f": {words}.")


def test_search_without_its_measurements() -> None:
    """Sensitivities need choices, the curves predictions."""
    report = example_report("schema", optional=True)
    for each in report["search"]["choices"]:
        del each["psnr_to_teacher"]  # as in reports of an earlier version, whose pages a sweep makes anew
    assert "Sensitivity of every layer" not in Page(page_of_values(report)).text
    del report["search"]["choices"]
    text = Page(page_of_values(report)).text
    assert "Predicted: one rank for all layers" in text and "Sensitivity of every layer" not in text
    del report["search"]["predicted"]["uniform"]
    assert "What the search measured" not in Page(page_of_values(report)).text


def test_lines_of_sensitivities() -> None:
    """A line a layer and side, over the ranks that were measured; other choices are in the table."""
    page = page_of(optional=True)
    labels = [str(each.get("aria-label")) for each in page.all("svg")]
    # Of keys and of values, for wide screens and narrow ones.
    assert sum(label.startswith("PSNR to the teacher by rank of") for label in labels) == 4
    searched = parse_report(example_report(optional=True)).search
    assert searched is not None
    lines = _points(searched.choices, "latent.0.attn", "logits")
    assert lines == [(0, 20.0), (4, 52.0)]


def test_pareto_front() -> None:
    points = [(0.7, -0.2), (0.7, -0.1), (0.8, -0.15), (0.9, -0.02), (0.95, -0.02), (0.6, -0.5)]
    assert pareto_front(points) == [(0.6, -0.5), (0.7, -0.1), (0.9, -0.02)]
    assert pareto_front([]) == []


# --- comparisons


@pytest.mark.parametrize("ground_truth", [False, True])
def test_comparison_of_an_image(ground_truth: bool) -> None:
    (image,) = example_images(1, ground_truth=ground_truth)
    (view,) = image.views
    roles = ["input", "teacher", "student", "difference", *(["ground_truth"] if ground_truth else [])]
    assert [panel.role for panel in view.panels] == roles
    difference = view.panels[3].image
    torch.testing.assert_close(difference, torch.full((3, 24, 32), 0.7))  # 0.5 + 20 x 0.01
    assert image.figures["psnr_to_teacher"] == pytest.approx(40, abs=0.01)
    assert ("student_psnr" in image.figures) == ground_truth
    assert "spectra" not in image.figures


def test_comparison_of_spectra() -> None:
    (image,) = example_images(1, spectral=True)
    assert [view.title for view in image.views] == [
        "false colour",
        "band 2 of 7",
        "band 4 of 7",
        "band 6 of 7",
    ]
    assert [len(panel.image) for panel in image.views[0].panels] == [1, 3, 3, 3, 3]
    assert {len(panel.image) for view in image.views[1:] for panel in view.panels} == {1}
    assert len(image.figures["spectra"]) == 3
    for pixel in image.figures["spectra"]:
        teacher, ground_truth = pixel["teacher"], pixel["ground_truth"]
        assert len(teacher) == len(pixel["student"]) == 7
        assert np.allclose(teacher, 0.9 * np.array(ground_truth), atol=2e-5)
    for panel in (panel for view in image.views for panel in view.panels):
        assert 0 <= float(panel.image.min()) <= float(panel.image.max()) <= 1


def test_large_images_are_shown_in_part() -> None:
    clean = torch.rand(3, 500, 40, generator=torch.Generator().manual_seed(0))
    image = compare_image(Example("tall", (clean.unsqueeze(0),), None), clean, clean, False)
    assert {tuple(panel.image.shape) for panel in image.views[0].panels} == {(3, 384, 40)}
    assert torch.equal(image.views[0].panels[0].image, clean[:, 58:442])
    assert (image.figures["shown_height"], image.figures["shown_width"]) == (384, 40)
    assert image.figures["psnr_to_teacher"] == "inf"


def test_a_few_images_are_compared() -> None:
    examples = [Example(str(i), (torch.rand(1, 1, 8, 8),), None) for i in range(5)]
    found = compare_images(examples, lambda x: x[0][0], lambda x: x[0][0] / 2, False)
    assert [each.figures["name"] for each in found] == ["0", "1", "2"]
    dual = Example("dual", (torch.rand(1, 6, 8, 8),), None)
    shown = compare_image(dual, torch.rand(3, 8, 8), torch.rand(3, 8, 8), False).views[0].panels[0].image
    assert torch.equal(shown, dual.inputs[0][0, :3])


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def test_pictures_lose_nothing_while_there_is_room() -> None:
    images = [torch.rand(c, 40, 56, generator=torch.Generator().manual_seed(c)) for c in (1, 3)]
    assert choose_quality(images) == LOSSLESS
    uris = encode_pictures(images, LOSSLESS)
    for uri, image in zip(uris, images, strict=True):
        expected = (image * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.array_equal(decoded(uri), expected)
    lower = choose_quality(images, budget=5000)
    assert lower in (92, 80)
    assert sum(map(len, encode_pictures(images, lower))) < sum(map(len, uris))
    assert choose_quality(images, budget=1) == 60


def test_the_page_says_the_reports_quality_of_pictures() -> None:
    images = example_images()
    report = with_images(example_report(), images)
    report["comparisons"]["webp_quality"] = 80
    page = Page(page_of_values(report, images))
    assert "Pictures are stored as WebP of quality 80." in page.text
    lossless = Page(page_of_values(with_images(example_report(), images), images))
    assert len(page.all("img")[0]["src"] or "") < len(lossless.all("img")[0]["src"] or "")


# --- markup, numbers, axes


def test_markup() -> None:
    assert tag("p", "a < b", class_="x", hidden=True, title=None, data_n=1) == (
        '<p class="x" hidden data-n="1">a &lt; b</p>'
    )
    assert tag("img", alt='"') == '<img alt="&#34;">'
    assert tag("ul", [tag("li", each) for each in "ab"], None) == "<ul><li>a</li><li>b</li></ul>"
    assert escape(Markup("<b>")) == "<b>"
    assert join(["<", Markup("<br>"), None]) == "&lt;<br>"
    assert escape("a\x00\ud800\n") == "a\ufffd\ufffd\n"


def test_numbers() -> None:
    assert [fixed(value, 2, " dB") for value in (-1.234, math.inf, None, math.nan)] == [
        "−1.23 dB", "∞ dB", "–", "–",
    ]  # fmt: skip
    assert [signed(value, 2) for value in (0.5, -0.5, -0.001, None)] == ["+0.50", "−0.50", "0.00", "–"]
    assert [percent_change(4, after) for after in (3, 4, 4.1, 0)] == ["−25 %", "0.0 %", "+2.5 %", "−100 %"]
    assert percent_change(0, 1) == "–"
    assert [short(value) for value in (0, 0.25, -3, 1e-7, 2.5e6)] == ["0", "0.25", "−3", "1e−7", "2.5e6"]


def test_axes() -> None:
    assert round_steps(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert round_steps(49.2, 57.1, 4) == [50, 52, 54, 56]
    axis = Axis("", 0, 10)
    assert [axis.at(value) for value in (-5, 0, 5, 20)] == [0, 0, 0.5, 1]
    assert Axis("", 0.01, 1, logarithmic=True).at(0.1) == pytest.approx(0.5)
    assert set(axis_of("", [1e-3, 1.0, 0.0], logarithmic=True).marks(3)) >= {1e-3, 1e-2, 0.1, 1.0}
    for values in ([], [0.0], [3.0, 3.0], [-1e-9, 0.0]):
        for zero in (False, True):
            found = axis_of("", values, zero=zero)
            assert found.low < found.high
            assert all(found.low <= value <= found.high for value in values)
            assert found.marks(4)


def test_labels_do_not_cover_each_other() -> None:
    points = [((x, 50.0), f"name {x}") for x in (20.0, 30.0, 40.0, 50.0, 60.0)]
    placed = place_labels(points, [point for point, _ in points], (0, 0, 200, 100), 7, 15)
    assert 2 <= len(placed) <= 5
    boxes = []
    for label, (x, y), anchor in placed:
        width = 7 * len(label)
        left = x - {"": 0, "middle": width / 2, "end": width}[anchor]
        boxes.append((left, y - 12, left + width, y + 3))
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
