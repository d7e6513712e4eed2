"""The page: what is written into it, what a browser makes of it, and what data cannot do to it."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from morphogen.record import Bin, Evaluation, Importance, Layer, Line, Report, TableRow
from morphogen.report.html import html

webdriver = pytest.importorskip("selenium.webdriver")

FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1100,900",
)


class Tags(HTMLParser):
    """The tags of a page in order, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_says_the_result_in_one_sentence(report: Report) -> None:
    sentence = (
        "Found conv 16 – conv 16 – conv 32 – linear 16 – linear 10: 97.92 % accuracy, log loss "
        "0.0712, with 13,194 parameters in 14 s"
    )
    assert f"<h1>{sentence}</h1>" in html(report).replace("\u00a0", " ")


def test_asks_the_network_for_nothing(report: Report) -> None:
    page = html(report)
    assert not re.search(r"//[\w.]+\.\w|@import|url\(|\bfetch\b|XMLHttpRequest", page)
    loads = [attributes.get("src") or attributes.get("href") for _, attributes in Tags(page).found]
    assert [address for address in loads if address] == ["data:,"]


def test_names_the_found_network_and_every_change_with_its_reason(report: Report) -> None:
    page = html(report)
    assert page.count('<tr class="found">') == 1
    assert (
        '<tr class="found"><td>found by morphogen</td><td>0.0712</td><td>97.92 '
        "%</td><td>13,194</td><td>13.8</td><td></td></tr>" in page
    )
    for change in report.changes:
        assert f"<td>{change.before} → {change.after}</td><td>{change.reason}</td>" in page
    assert "<dt>commit</dt><dd>f3c1be1</dd>" in page


def test_a_missing_score_is_a_dash(report: Report) -> None:
    assert "<td>found</td><td>–</td><td>–</td><td>–</td><td>–</td><td></td>" in html(
        replace(report, table=(TableRow("found", None, None, None),))
    )


def test_text_in_the_data_stays_text(report: Report, hostile: Report) -> None:
    tags = [tag for tag, _ in Tags(html(hostile)).found]
    assert "img" not in tags
    assert tags.count("script") == [tag for tag, _ in Tags(html(report)).found].count("script")
    evil = hostile.changes[0].where
    assert data_of(html(hostile))["changes"][0][2] == evil


def test_numbers_that_are_none_are_null(report: Report) -> None:
    rounds = (
        replace(report.rounds[0], train_loss=math.nan, valid_loss=math.inf, valid_score=math.nan),
        *report.rounds[1:],
    )
    first = data_of(html(replace(report, rounds=rounds)))["rounds"][0]
    assert (first["train"], first["valid"], first["score"]) == (None, None, "–")


def test_a_long_run_keeps_its_ends(report: Report) -> None:
    rounds = tuple(replace(report.rounds[0], round=i) for i in range(1234))
    shown = [r["round"] for r in data_of(html(replace(report, rounds=rounds)))["rounds"]]
    assert len(shown) == 500
    assert (shown[0], shown[-1]) == (0, 1233)


def test_the_round_that_was_kept_is_the_result(report: Report) -> None:
    page = html(replace(report, kept=12))
    assert data_of(page)["kept"] == 12
    assert data_of(html(report))["kept"] == 39


CLASSES = Evaluation(
    "test",
    30,
    ("a<b>", '"x" & y', "third"),
    ((8, 1, 1), (0, 9, 1), (2, 0, 8)),
    (Bin(0.45, 0.5, 6), Bin(0.95, 0.9, 24)),
    (Line("a<b>", ((0.0, 0.0), (0.1, 0.9), (1.0, 1.0)), 0.9), Line("third", ((0.0, 0.0),), 0.5)),
    (Line("a<b>", ((0.0, 1.0), (1.0, 0.3)), 0.7),),
    importance=(Importance("<col>", 0.5, 0.4, 0.6), Importance("none", -0.01, -0.05, 0.03)),
)
NUMBERS = Evaluation(
    "validation",
    3,
    residuals=((1.0, 0.5), (2.0, -0.25), (3.0, 0.0)),
    importance=tuple(Importance(f"c{i}", 0.1, 0.0, 0.2) for i in range(23)),
)


def test_figures_of_classes_need_no_script(report: Report) -> None:
    page = html(replace(report, evaluation=CLASSES))
    assert page.count('<svg class="still"') == 5
    assert "Confusion matrix: 25 of 30 rows right" in page
    assert "<title>9 rows, 90.0 %</title>" in page
    assert "a&lt;b&gt; <b>0.900</b>" in page
    assert "off by <b>0.050</b> on average" in page
    assert "+0.5" in page
    assert "30 test rows" in page
    assert "col" not in [tag for tag, _ in Tags(page).found]


def test_figures_of_numbers(report: Report) -> None:
    page = html(replace(report, task="regression", metric="RMSE", evaluation=NUMBERS))
    assert page.count('<svg class="still"') == 2
    assert page.count('class="point"') == 3
    assert "by how much RMSE rises" in page
    assert page.count('class="whisker"') == 20
    assert "and 3 more columns" in page
    assert "3 validation rows" in page


def test_without_an_evaluation_its_place_is_hidden(report: Report) -> None:
    assert '<section id="evaluation" aria-labelledby="evaluation-title" hidden>' in html(report)


# In a browser
# ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser: install Debian's chromium and chromium-driver to run this test")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield session
    session.quit()


Open = Callable[[Report], Any]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a report; afterwards nothing may have failed, nor been asked of a
    network.
    """

    def open_(report: Report) -> Any:
        path = tmp_path / "report.html"
        path.write_text(html(report), encoding="utf-8")
        browser.get_log("performance")
        browser.get(path.as_uri())
        return browser

    yield open_
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # the browser's own first page may still be loading
    asked = [r["request"]["url"] for r in requests if r["documentURL"].startswith("file:")]
    assert asked
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []


def units(browser: Any) -> list[int]:
    return [
        int(bar.get_attribute("data-units"))
        for bar in browser.find_elements("css selector", "#shape .bar")
    ]


def readout(browser: Any) -> str:
    return " ".join(browser.find_element("id", "readout").text.split())


def move(browser: Any, position: int) -> None:
    browser.execute_script(
        "const s = document.getElementById('round'); s.value = arguments[0]; s.dispatchEvent(new "
        "Event('input'))",
        position,
    )


def test_the_slider_shows_the_shape_of_each_round(opened: Open, report: Report) -> None:
    page = opened(report)
    assert units(page) == [layer.units for layer in report.rounds[-1].shape]
    for number in (0, 7, 9, 12, 39):
        move(page, number)
        r = report.rounds[number]
        assert units(page) == [layer.units for layer in r.shape]
        shown = readout(page)
        assert f"round {number} of 39 epoch {r.epoch:.1f}" in shown
        assert f"parameters in training {r.parameters:,}" in shown
        assert f"validation accuracy {100 * r.valid_score:.2f} %" in shown


def test_the_bars_are_as_long_as_their_units(opened: Open, report: Report) -> None:
    page = opened(report)
    move(page, 9)
    widths = [
        fill.size["width"] for fill in page.find_elements("css selector", "#shape .bar .fill")
    ]
    scale = widths[0] / units(page)[0]
    assert widths == pytest.approx([scale * n for n in units(page)], abs=1.0)


def test_keys_buttons_and_a_click_on_a_curve_move_the_slider(opened: Open, report: Report) -> None:
    page = opened(report)
    slider = page.find_element("id", "round")
    slider.send_keys("\ue011")  # Home
    assert slider.get_attribute("value") == "0"
    assert "epoch 0.0" in slider.get_attribute("aria-valuetext")
    page.execute_script("document.querySelector('#changes button[data-round=\"12\"]').click()")
    assert slider.get_attribute("value") == "12"
    assert "learned depth w = 1.62" in page.find_element("id", "why").text
    assert len(page.find_elements("css selector", "#changes tr.current")) == 2
    before = page.find_element("css selector", "#loss line.now").get_attribute("x1")
    page.execute_script(
        "arguments[0].scrollIntoView({behavior: 'instant'})", page.find_element("id", "loss")
    )
    webdriver.ActionChains(page).move_to_element(page.find_element("id", "loss")).click().perform()
    assert 15 < int(slider.get_attribute("value")) < 25
    assert page.find_element("css selector", "#loss line.now").get_attribute("x1") != before


def test_learned_depths_and_their_gates_are_drawn(opened: Open, report: Report) -> None:
    page = opened(report)
    assert len(page.find_elements("css selector", "#depth path.curve")) == 2
    assert len(page.find_elements("css selector", "#gates path.curve")) == 4
    move(page, 0)
    assert "conv1 w 1.00" in page.find_element("id", "hover").text
    assert "learned depth of conv1 over epochs, from 1 to 1.3" in page.find_element(
        "id", "depth"
    ).get_attribute("aria-label")
    page = opened(replace(report, rounds=tuple(replace(r, depths=()) for r in report.rounds)))
    assert not page.find_element("id", "depths").is_displayed()


def test_it_plays_to_the_end(opened: Open, report: Report) -> None:
    page = opened(replace(report, rounds=report.rounds[:4]))
    play = page.find_element("id", "play")
    play.click()
    assert play.get_attribute("aria-label") == "Pause"
    page.execute_async_script(
        "const done = arguments[0], slider = document.getElementById('round');"
        "const look = () => slider.value === '3' ? done() : setTimeout(look, 30); look()"
    )
    assert play.get_attribute("aria-label") == "Play"


def test_hostile_text_runs_nothing(opened: Open, hostile: Report) -> None:
    page = opened(hostile)
    move(page, 0)
    assert page.find_elements("css selector", "img") == []
    assert page.find_element("css selector", "#shape .name").text == hostile.rounds[0].shape[0].name


def test_the_smallest_and_the_largest_report(opened: Open, report: Report) -> None:
    page = opened(Report("none", "none", "regression", "RMSE", 0))
    assert not page.find_element("id", "growth").is_displayed()
    page = opened(replace(report, rounds=report.rounds[:1], changes=(), table=()))
    assert units(page) == [8, 8, 8, 10]
    shape = tuple(Layer("same name", "conv", 8 + i) for i in range(60))
    rounds = tuple(
        replace(report.rounds[5], round=i, epoch=float(i), shape=shape) for i in range(500)
    )
    page = opened(replace(report, rounds=rounds, changes=report.changes * 12))
    assert units(page) == [layer.units for layer in shape]
    page.set_window_size(500, 900)
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("evaluation", [CLASSES, NUMBERS], ids=["classes", "numbers"])
@pytest.mark.parametrize("width", [500, 1100])
def test_figures_stay_inside_the_page(
    opened: Open, report: Report, evaluation: Evaluation, width: int
) -> None:
    page = opened(replace(report, evaluation=evaluation))
    page.set_window_size(width, 900)
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    sizes = [svg.size for svg in page.find_elements("css selector", "svg.still")]
    assert min(size["width"] for size in sizes) > 200
    assert min(size["height"] for size in sizes) > 30


def test_the_page_opens_at_the_round_that_was_kept(opened: Open, report: Report) -> None:
    page = opened(replace(report, kept=12))
    assert units(page) == [layer.units for layer in report.rounds[12].shape]
    assert "round 12 of 39" in readout(page)
