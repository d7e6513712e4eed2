"""The page as a person sees it, in a real browser."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from morphogen.record import Change, Layer, Report, Round, Row
from morphogen.report import html


def report(rounds: int = 12, name: str = "toy") -> Report:
    def shape(i: int) -> tuple[Layer, ...]:
        layers = [Layer("conv1", "conv", 8 + i), Layer("conv1.1", "conv", 8 + i)][: 1 + (i > 5)]
        return (*layers, Layer("output", "output", 10))

    return Report(
        name, name, "classification", "accuracy", 0,
        tuple(
            Round(i, i / 2, 10 * i, float(i), "grow" if i < 8 else "settle", math.nan if i == 0 else 2 / i, 2.5 / (i + 1), i / 20,
                  100 + 40 * i, shape(i)) for i in range(rounds)
        ),
        (Change(3, 1.5, "conv1", 8, 12, "validation loss -0.013", (100, 140)),),
        (Row("found by morphogen", 0.979, 4812, 14.2), Row("same shape from scratch", None, 4812, 9.0, "a note")),
        ("a note",), {"torch": "2"},
    )  # fmt: skip


def test_the_page_needs_nothing_from_outside() -> None:
    page = html(report())
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in page


def test_names_cannot_inject_markup() -> None:
    page = html(report(name="</script><script>alert(1)</script>"))
    assert "<script>alert" not in page


def test_thousands_of_rounds_are_thinned_and_the_last_stays() -> None:
    page = html(report(3000))
    assert len(page) < 400_000
    assert '"round":2999' in page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser: install Debian's chromium and chromium-driver to run this test")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield session
    session.quit()


def test_the_slider_moves_the_shape(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "report.html").write_text(html(report()), encoding="utf-8")
    browser.get((tmp_path / "report.html").as_uri())

    def units() -> list[str]:
        return [bar.get_attribute("data-units") for bar in browser.find_elements(By.CSS_SELECTOR, "#shape .bar")]

    slider = browser.find_element(By.ID, "round")
    assert units() == ["19", "19", "10"]
    slider.send_keys(Keys.HOME)
    assert units() == ["8", "10"]
    assert "epoch 0.0" in browser.find_element(By.ID, "readout").text
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert units() == ["10", "10"]
    readout = browser.find_element(By.ID, "readout").text
    assert "epoch 1.0" in readout
    assert "10.00 %" in readout
    assert "180" in readout
    width = [bar.size["width"] for bar in browser.find_elements(By.CSS_SELECTOR, "#shape .fill")]
    assert width[0] == pytest.approx(width[1], abs=1)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert len(browser.find_elements(By.CSS_SELECTOR, "tr.found")) == 1
