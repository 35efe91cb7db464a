"""report.html in a real browser, where there is one: Chromium without a window, driven by Selenium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csa2glmha.report.html import write_html
from csa2glmha.report.stored import parse_report
from tests.pages import example_images, example_report, hostile, with_images
from tests.report.test_report_html import HOSTILE

webdriver = pytest.importorskip("selenium.webdriver", reason="no Selenium: install the extra dev")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no Chromium with chromedriver: report.html is not tested in a browser",
)

PHONE, SMALL_PHONE, TABLET, DESK = (390, 844), (320, 640), (800, 1000), (1280, 900)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "headless=new",
        "no-sandbox",  # the superuser has none, as in containers
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of several kinds, by name."""
    found = {}
    for name, optional, spectral in (
        ("plain", False, False),
        ("full", True, False),
        ("spectral", True, True),
    ):
        images = example_images(3, spectral)
        found[name] = with_images(example_report(optional=optional), images), images
    found["hostile"] = hostile(found["spectral"][0], HOSTILE), found["spectral"][1]
    found["bare"] = example_report("data", "quality", "distillation", "onnx", "latency_ms"), []
    paths = {}
    for name, (report, images) in found.items():
        folder = tmp_path_factory.mktemp(f"{name} page")
        write_html(folder, parse_report(report), images)
        paths[name] = folder / "report.html"
    return paths


def open_page(browser: Any, page: Path, size: tuple[int, int] = DESK, scheme: str = "light") -> None:
    # A page that scrolls smoothly is still on its way when the test clicks.
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = {"features": [{"name": name, "value": value} for name, value in features.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for log in ("browser", "performance"):
        browser.get_log(log)  # what pages before this one left
    browser.get(page.as_uri())
    browser.execute_script(
        "try { localStorage.clear() } catch {}; delete document.documentElement.dataset.theme"
    )


def element(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def clip(browser: Any) -> str:
    found: str = browser.execute_script(
        "return getComputedStyle(document.querySelector('.stage .over')).clipPath"
    )
    return found


@pytest.mark.parametrize("name", ["plain", "full", "spectral", "hostile", "bare"])
def test_loads_without_errors_and_without_the_network(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    open_page(browser, pages[name])
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert pages[name].as_uri() in asked
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert [url for url in asked if url.startswith("file:")] == [pages[name].as_uri()]
    loaded = browser.execute_script(
        "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )
    assert loaded


@pytest.mark.parametrize("name", ["full", "spectral", "hostile", "bare"])
@pytest.mark.parametrize("size", [SMALL_PHONE, PHONE, TABLET, DESK], ids=str)
def test_nothing_is_wider_than_the_screen(
    browser: Any, pages: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    open_page(browser, pages[name], size)
    browser.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true })")
    width, room = browser.execute_script(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert width <= room <= size[0]


@pytest.mark.parametrize("size", [PHONE, DESK], ids=str)
def test_one_drawing_of_a_chart_is_shown(browser: Any, pages: dict[str, Path], size: tuple[int, int]) -> None:
    open_page(browser, pages["full"], size)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].filter(c => c.getClientRects().length)"
        ".map(c => c.getAttribute('aria-label'))"
    )
    assert len(shown) == len(set(shown)) >= 7


def test_slider_follows_keys_and_pointer(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages["plain"])
    slider, stage = element(browser, ".stage input"), element(browser, ".stage")
    assert clip(browser) == "inset(0px 0px 0px 50%)"
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert clip(browser) == "inset(0px 0px 0px 52%)"
    slider.send_keys(Keys.HOME)
    assert clip(browser) == "inset(0px 0px 0px 0%)"
    assert slider.get_attribute("aria-label") == "Divider: Teacher on the left, Student on the right"
    assert slider.get_attribute("aria-valuetext") == "0 % Teacher, 100 % Student"
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
    quarter = round(stage.size["width"] / 4)
    ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(
        quarter, 0
    ).release().perform()
    assert clip(browser) == "inset(0px 0px 0px 75%)"
    ActionChains(browser).move_to_element(stage).perform()
    assert clip(browser) == "inset(0px 0px 0px 75%)"  # the pointer moves, no button is held


def test_choices_change_the_pictures(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["spectral"])
    state = (
        "return {left: document.querySelector('.stage img').alt, right: document.querySelector('.over').alt,"
        "images: [...document.querySelectorAll('.image')].map(i => !i.hidden),"
        "views: [...document.querySelectorAll('.image:not([hidden]) .view')].map(v => !v.hidden),"
        "pins: document.querySelectorAll('.stage .pin').length}"
    )
    assert browser.execute_script(state) == {
        "left": "The teacher's output: photo 0.png, false colour",
        "right": "The student's output: photo 0.png, false colour",
        "images": [True, False, False],
        "views": [True, False, False, False],
        "pins": 3,
    }
    for selector in (
        "[name=show-left][value=input]",
        "[name=show-right][value=ground_truth]",
        "[name=show-view][value='2']",
        "[name=show-image][value='1']",
    ):
        element(browser, selector).click()
    changed = browser.execute_script(state)
    assert changed["left"] == "What the networks were given: photo 1.png, band 4 of 7"
    assert changed["right"] == "The ground truth: photo 1.png, band 4 of 7"
    assert (changed["images"], changed["views"]) == ([False, True, False], [False, False, True, False])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    def background() -> float:
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour[4:-1].split(",")))

    open_page(browser, pages["full"], scheme=scheme)
    browser.refresh()
    before, button = background(), element(browser, "#theme")
    assert (before > 600) == (scheme == "light")
    other = {"light": "Dark", "dark": "Light"}
    assert button.text == other[scheme]
    button.click()
    assert (background() > 600) != (before > 600)
    assert button.text.lower() == scheme
    button.click()
    assert background() == before


def test_text_stands_out_from_its_background(browser: Any, pages: dict[str, Path]) -> None:
    """At least 4.5 to 1, as WCAG AA asks of small text, in both themes."""
    script = """
        const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const light = text => {
            const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const [r, g, b] = rgb(text).map(v => linear(v / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = e => { for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor;
            if (!/rgba\\(.*, 0\\)/.test(c)) return c;
        } };
        const poor = [];
        for (const e of document.querySelectorAll('main *, .top *')) {
            if (!e.getClientRects().length || e.closest('.stage, .frame')) continue;
            if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
            const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg');
            const [a, b] = [light(svg ? style.fill : style.color), light(behind(e))];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < 4.5) poor.push([e.textContent.slice(0, 40), ratio]);
        }
        return poor;
    """
    for scheme in ("light", "dark"):
        open_page(browser, pages["spectral"], scheme=scheme)
        assert browser.execute_script(script) == []
