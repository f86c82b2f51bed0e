"""The report as a person uses it: headless Chromium opens the file, clicks, types, sorts, and looks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from bench.analysis import literature, studies
from bench.reports import contents, write
from tests import rows as made

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EVIL = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


@cache
def all_rows() -> list[dict[str, Any]]:
    return [*made.all_rows(), made.measured("lora=on lora.rank=2") | {"reason": EVIL}]


@cache
def trials() -> pd.DataFrame:
    return studies.trials(pd.DataFrame(all_rows()))


pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("report")
    write.write_report(
        contents.build_report(pd.DataFrame(all_rows()), literature.read_claims(literature.LEDGER), {}),
        target,
    )
    return target / "index.html"


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


Opened = Callable[..., Chrome]


@pytest.fixture
def opened(chrome: Chrome, page: Path) -> Iterator[Opened]:
    """Opens the page at a size and in a theme; in the end nothing was complained of and nothing fetched."""
    chrome.get("about:blank")
    chrome.get_log("browser")
    chrome.get_log("performance")

    def show(width: int = 1280, height: int = 900, theme: str = "light", script: bool = True) -> Chrome:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        chrome.get(page.as_uri())
        if script:
            WebDriverWait(chrome, 60).until(
                lambda driver: driver.find_elements(By.CSS_SELECTOR, "#every-row tbody tr")
            )
        return chrome

    yield show
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert [entry["message"] for entry in chrome.get_log("browser")] == []
    asked = requests(chrome)
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith((page.as_uri(), "blob:", "data:"))] == []


def requests(chrome: Chrome) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def said(chrome: Chrome) -> str:
    return chrome.find_element(By.CSS_SELECTOR, ".dt-info").text.partition(" (")[0]


def column(chrome: Chrome, name: str) -> list[str]:
    headers = [header.text for header in chrome.find_elements(By.CSS_SELECTOR, "#every-row thead th")]
    lines = chrome.find_elements(By.CSS_SELECTOR, "#every-row tbody tr")
    at = headers.index(name)
    return [line.find_elements(By.TAG_NAME, "td")[at].text for line in lines]


def header(chrome: Chrome, name: str) -> WebElement:
    headers = chrome.find_elements(By.CSS_SELECTOR, "#every-row thead th")
    return next(found for found in headers if found.text == name)


def test_filters_leave_the_trials_that_pass_them(opened: Opened) -> None:
    chrome = opened()
    assert said(chrome) == f"1 to 25 of {len(trials())} trials"
    Select(chrome.find_element(By.CSS_SELECTOR, "[data-filter=precision]")).select_by_value("nf4")
    four_bit = trials()[trials()["precision"] == "nf4"]
    assert said(chrome) == f"1 to {len(four_bit)} of {len(four_bit)} trials"
    assert set(column(chrome, "precision")) == {"nf4"}
    chrome.find_element(By.CSS_SELECTOR, "[data-most]").send_keys("0.0099")
    small = four_bit[four_bit["peak_allocated_bytes"] <= 0.0099 * 2**30]
    assert 0 < len(small) < len(four_bit)
    assert said(chrome) == f"1 to {len(small)} of {len(small)} trials"
    chrome.find_element(By.CSS_SELECTOR, "[type=reset]").click()
    WebDriverWait(chrome, 20).until(lambda driver: said(driver) == f"1 to 25 of {len(trials())} trials")


def test_search_finds_words_in_any_column(opened: Opened) -> None:
    chrome = opened()
    chrome.find_element(By.CSS_SELECTOR, ".dt-search input").send_keys("out of memory")
    full = (trials()["status"] == "oom").sum()
    WebDriverWait(chrome, 20).until(lambda driver: said(driver) == f"1 to {full} of {full} trials")
    assert set(column(chrome, "status")) == {"oom"}


def test_headers_sort_by_mouse_and_by_keyboard(opened: Opened) -> None:
    chrome = opened()
    header(chrome, "peak GiB").click()
    numbers = [float(text) for text in column(chrome, "peak GiB")]
    assert numbers == sorted(numbers)
    peaks = trials()[trials()["status"] == "ok"]["peak_allocated_bytes"]
    least = peaks.min() / 2**30
    assert numbers[0] == pytest.approx(least, rel=1e-3)
    header(chrome, "peak GiB").find_element(By.CSS_SELECTOR, "[tabindex]").send_keys(Keys.ENTER)
    numbers = [float(text) for text in column(chrome, "peak GiB")]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] == pytest.approx(peaks.max() / 2**30, rel=1e-3)


def test_rows_are_text(opened: Opened) -> None:
    chrome = opened()
    chrome.find_element(By.CSS_SELECTOR, ".dt-search input").send_keys("onerror")
    WebDriverWait(chrome, 20).until(lambda driver: said(driver) == "1 to 1 of 1 trials")
    assert column(chrome, "reason") == [EVIL]
    assert chrome.title != "owned"


def test_a_click_unfolds_the_command(opened: Opened) -> None:
    chrome = opened()
    folded = chrome.find_element(By.CSS_SELECTOR, "td.code details")
    assert not folded.find_element(By.TAG_NAME, "code").is_displayed()
    folded.find_element(By.TAG_NAME, "summary").click()
    shown = folded.find_element(By.TAG_NAME, "code")
    assert shown.is_displayed()
    assert shown.text in {row["overrides"] for row in all_rows()}


def test_hovering_over_a_bar_says_what_it_is(opened: Opened) -> None:
    chrome = opened()
    figure = chrome.find_element(By.ID, "figure-memory-1")
    chrome.execute_script("arguments[0].scrollIntoView()", figure)
    drawn = "#figure-memory-1 .vega-embed svg .mark-rect path"
    WebDriverWait(chrome, 30).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, drawn))
    bar = chrome.find_elements(By.CSS_SELECTOR, drawn)[0]
    ActionChains(chrome).move_to_element(bar).perform()
    WebDriverWait(chrome, 20).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, "#vg-tooltip-element.visible")
    )
    tip = chrome.find_element(By.ID, "vg-tooltip-element").text
    assert "label" in tip
    assert "fp32" in tip


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_and_text_can_be_read(opened: Opened, width: int, theme: str) -> None:
    chrome = opened(width=width, theme=theme)
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
    paper, ink = (luminance(chrome, name) for name in ("backgroundColor", "color"))
    assert (paper < ink) == (theme == "dark")
    lighter, darker = max(paper, ink), min(paper, ink)
    assert (lighter + 0.05) / (darker + 0.05) >= 7, "WCAG 2 contrast, AAA"


def luminance(chrome: Chrome, name: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    text = chrome.execute_script(f"return getComputedStyle(document.body).{name}")
    channels = [int(part) / 255 for part in text.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_without_javascript_the_essentials_are_there(opened: Opened) -> None:
    chrome = opened(script=False)

    def count(selector: str) -> Any:
        return len(chrome.find_elements(By.CSS_SELECTOR, selector))

    assert count("figure svg") == count("figure") > 5
    assert chrome.find_element(By.CSS_SELECTOR, "table.plain").is_displayed()
    assert chrome.find_element(By.CLASS_NAME, "still").is_displayed()
    assert not chrome.find_element(By.CSS_SELECTOR, ".filters").is_displayed()
