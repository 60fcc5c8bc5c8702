"""The report in headless Chromium: opened from disk, used by mouse and keyboard, and accessible."""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lab import QUICK, MadeOnce, run_pytest, squares
from large_session import ManyRuns

from bvae.verdict import SIGNS

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]

HOSTILE = "<img src=x onerror=document.boom=1>\"'&amp;{{7*7}}"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
)
WIDTHS = (1280, 390)
OPTIONS = """
[A]                    # predicts only background under every seed
gamma = 2
class_weights = [1e4, 1, 1, 1, 1, 1, 1, 1, 1, 1]
candidate = false
[C]                    # learns these objects under every seed that was tried
gamma = 2
class_weights = "none"
"""


@pytest.fixture(scope="module")
def report(made_once: MadeOnce) -> Path:
    """A report with a healthy run, an unhealthy run, and a malicious corpus name."""
    return made_once("browser", make_report) / "report.html"


def make_report(folder: Path) -> None:
    np.savez(folder / f"{HOSTILE}.npz", **squares())
    (folder / "options.toml").write_text(OPTIONS)
    done = run_pytest(
        *("experiments/", *QUICK, "-n0", "--html=report.html", f"--corpus={HOSTILE}.npz", "--grid-size", "8"),
        *("--epochs", "4", "--seeds", "1", "--loss-options", "A,C", "--batch-size", "16"),
        *("--learning-rate", "0.003", "--beta", "0.0002", "--accuracy-band", "0.5:1"),
        *("--loss-options-file=options.toml", "--checkpoint-every-steps", "30"),
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium: Chrome, report: Path) -> Chrome:
    """Open the report; return the browser. Its logs hold only events since then."""
    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)
    resize(chromium, 1280)
    chromium.get(report.as_uri())
    chromium.execute_script("sessionStorage.clear()")
    return chromium


def resize(page: Chrome, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def find(page: Chrome, selector: str) -> list[WebElement]:
    return page.find_elements("css selector", selector)


def shown(page: Chrome, selector: str) -> list[WebElement]:
    return [element for element in find(page, selector) if element.is_displayed()]


def expand_all(page: Chrome) -> None:
    find(page, "#show_all_details")[0].click()


def row(page: Chrome, name: str) -> WebElement:
    return next(body for body in find(page, "#results-table > tbody") if name in body.text)


def test_the_report_has_no_error_and_requests_no_other_file(page: Chrome, report: Path) -> None:
    expand_all(page)
    errors = [entry for entry in page.get_log("browser") if entry["level"] != "INFO"]
    assert errors == []
    assert requested(page) == {report.as_uri()}


def requested(page: Chrome) -> set[str]:
    """Return the URLs requested since the log was last read, except pictures inside the page."""
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {
        event["params"]["request"]["url"].partition("?")[0]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    return {url for url in asked if not url.startswith("data:image/")}


def test_every_picture_decodes_and_has_a_text_alternative(page: Chrome) -> None:
    expand_all(page)
    pictures: list[list[Any]] = page.execute_async_script(
        """const [done] = arguments, all = [...document.images];
        const seen = (image) => [image.naturalWidth, image.getAttribute('width'), image.alt];
        Promise.all(all.map((image) => image.decode()))
          .then(() => done(all.map(seen)), (error) => done([[0, 0, String(error)]]));"""
    )
    assert len(pictures) >= 2 * 14
    for width, written, alternative in pictures:
        assert width == int(written) > 0
        assert len(alternative) > 20


def test_a_malicious_corpus_name_is_only_text(page: Chrome) -> None:
    expand_all(page)
    assert page.execute_script("return document.boom") is None
    assert HOSTILE in find(page, "main")[0].text
    assert find(page, "img[src=x]") == []


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_rows_expand_and_collapse(page: Chrome, how: str) -> None:
    from selenium.webdriver.common.keys import Keys

    def toggle() -> None:
        cell = row(page, "[A-seed0]").find_element("css selector", ".col-result")
        if how == "mouse":
            cell.click()
        else:
            cell.find_element("css selector", "button").send_keys(Keys.ENTER)

    assert shown(page, ".extras-row") == []
    toggle()
    assert len(shown(page, ".extras-row")) == 1
    assert "Filmstrip" in row(page, "[A-seed0]").text
    if how == "keyboard":
        assert page.switch_to.active_element.get_attribute("aria-expanded") == "true"
    toggle()
    assert shown(page, ".extras-row") == []


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_a_log_expands_and_collapses(page: Chrome, how: str) -> None:
    from selenium.webdriver.common.keys import Keys

    expand_all(page)
    expander = shown(page, ".logexpander")[0]
    log = find(page, ".logwrapper")[0]
    for expanded in (True, False):
        if how == "mouse":
            expander.click()
        else:
            expander.send_keys(Keys.ENTER)
        assert ("expanded" in log.get_attribute("class").split()) == expanded


def test_filters_hide_and_show_rows_by_outcome(page: Chrome) -> None:
    assert len(find(page, "tr.collapsible")) == 3
    label = next(label for label in shown(page, ".filters label") if "Passed" in label.text)
    label.click()
    (row,) = find(page, "#results-table > tbody")
    assert "xfailed" in row.get_attribute("class").split()
    label.click()
    assert len(find(page, "tr.collapsible")) == 3


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_columns_sort_rows_both_ways_and_announce_it(page: Chrome, how: str) -> None:
    from selenium.webdriver.common.keys import Keys

    def sort() -> list[str]:
        header = find(page, "th[data-column-type=testId]")[0]
        if how == "mouse":
            header.click()
        else:
            header.find_element("css selector", "button").send_keys(Keys.SPACE)
        return [cell.text for cell in find(page, "td.col-testId")]

    rising, falling = sort(), sort()
    assert rising == sorted(rising)
    assert falling == rising[::-1]
    assert find(page, "th[data-column-type=testId]")[0].get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_a_picture_opens_to_full_size_and_closes(page: Chrome, how: str) -> None:
    from selenium.webdriver.common.keys import Keys

    summary = shown(page, ".bvae-picture summary")[0]
    image = summary.find_element("css selector", "img")
    full = int(image.get_attribute("naturalWidth") or 0)

    def width() -> int:
        return int(image.get_attribute("clientWidth") or 0)

    def act() -> int:
        if how == "mouse":
            image.click()
        else:
            summary.send_keys(Keys.ENTER)
        return width()

    thumbnail = width()
    assert thumbnail < full
    assert act() == full
    assert act() == thumbnail


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_horizontally(page: Chrome, width: int) -> None:
    resize(page, width)

    def excess() -> int:
        return int(page.execute_script("return document.documentElement.scrollWidth - innerWidth"))

    assert excess() <= 0
    expand_all(page)
    assert excess() <= 0
    page.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert excess() <= 0


@pytest.mark.parametrize("width", WIDTHS)
def test_verdict_and_object_iou_are_visible_without_scrolling_the_table(page: Chrome, width: int) -> None:
    resize(page, width)
    (table,) = find(page, ".bvae-scroll[aria-label=Options]")
    edge = table.rect["x"] + table.rect["width"]
    assert edge <= width
    headings = [
        heading.text.split("\n")[0].lower() for heading in table.find_elements("css selector", "thead th")
    ]
    for wanted in ("verdict", "object iou"):
        for cell in table.find_elements("css selector", f"tr > :nth-child({1 + headings.index(wanted)})"):
            assert cell.rect["x"] + cell.rect["width"] <= edge


@pytest.mark.parametrize("width", WIDTHS)
def test_outcome_table_pictures_and_code_come_in_this_order(page: Chrome, width: int) -> None:
    resize(page, width)
    order = [".bvae-outcome", ".bvae-scroll[aria-label=Options]", ".bvae-picture", ".bvae-code"]
    tops = [find(page, selector)[0].rect["y"] for selector in order]
    assert tops == sorted(tops)
    assert tops[0] < 900


@pytest.mark.parametrize("state", ["collapsed", "expanded"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_serious(page: Chrome, width: int, state: str) -> None:
    resize(page, width)
    if state == "expanded":
        expand_all(page)
        page.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert serious_faults(page) == []


def serious_faults(page: Chrome) -> list[tuple[str, str, list[str]]]:
    """Return the serious and critical violations found by axe, which checks accessibility."""
    page.execute_script((importlib.resources.files("axe_core_python") / "axe.min.js").read_text("utf-8"))
    found = page.execute_async_script("axe.run().then((result) => arguments[0](result.violations))")
    return [
        (violation["id"], violation["impact"], [node["html"][:200] for node in violation["nodes"]])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("command", ["report", "compare"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_without_pytest_is_self_contained_fits_and_is_accessible(
    page: Chrome, report: Path, tmp_path: Path, width: int, command: str
) -> None:
    written = tmp_path / "page.html"
    session = report.with_name("runs") / "latest"
    copies = [shutil.copytree(session, tmp_path / name) for name in ("one", "two")]
    arguments = [command, *(copies if command == "compare" else copies[:1]), "--html", written]
    subprocess.run(
        [sys.executable, "-m", "bvae", *arguments], cwd=report.parent, check=True, capture_output=True
    )
    page.get_log("performance")
    page.get(written.as_uri())
    resize(page, width)
    page.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
    assert HOSTILE in find(page, "main")[0].text
    assert serious_faults(page) == []
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
    assert requested(page) == {written.as_uri()}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("place", [0, 1], ids=["bvae report", "pytest-html"])
def test_the_report_of_many_runs_has_a_map_fits_and_is_accessible(
    chromium: Chrome, many_runs: ManyRuns, width: int, place: int
) -> None:
    resize(chromium, width)
    chromium.get_log("browser")
    chromium.get(many_runs.pages[place].as_uri())
    # Elements are counted, because times depend on other processes. A page with 22,000 elements opens in 2 s.
    runs = many_runs.options * many_runs.seeds
    assert len(find(chromium, "*")) < 25 * runs + 2000
    order = [".bvae-outcome", ".bvae-scroll[aria-label=Options]", ".bvae-map", ".bvae-picture"]
    tops = [find(chromium, selector)[0].rect["y"] for selector in order]
    assert tops == sorted(tops)
    cells = find(chromium, ".bvae-map td")
    assert len(cells) == runs
    for cell in cells[:: many_runs.seeds + 1]:
        assert cell.text in SIGNS.values()
        assert cell.accessible_name.startswith("seed ")
    chromium.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert chromium.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
    assert serious_faults(chromium) == []
    assert [entry for entry in chromium.get_log("browser") if entry["level"] != "INFO"] == []
