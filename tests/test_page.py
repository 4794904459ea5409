"""The page of a report in a real browser: drawn, sorted, toggled, silent, and harmless."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stored_runs import change, lines, make_run, metrics, put, record

from fedkd import report

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver) and "CI" not in os.environ:
        pytest.skip("no chromium with a chromedriver on PATH; in CI that is a failure")
    assert binary and driver, "CI should have chromium and chromedriver on PATH"
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = binary
    profile = tmp_path_factory.mktemp("profile")
    for word in ("no-sandbox", "headless=new", "window-size=1200,900", "disable-gpu",
                 "disable-dev-shm-usage", "no-first-run", f"user-data-dir={profile}"):  # fmt: skip
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def opened(browser: WebDriver, page: Path) -> None:
    """Load it; the only thing asked for is the file itself, and nothing is complained of."""
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    said = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        m["params"]["request"]["url"] for m in said if m["method"] == "Network.requestWillBeSent"
    ]
    # the browser's own new tab loads parts of itself
    asked = [url for url in asked if not url.startswith(("chrome", "data:"))]
    assert set(asked) == {page.as_uri()}


def run_js(browser: WebDriver, script: str, *given: object) -> Any:  # Any: JSON
    return browser.execute_script(f"return {script}", *given)


def test_a_page_of_one_run(browser: WebDriver, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    put(run, "metrics.json", metrics())
    lines(run, "records.jsonl", [record(p, entropy=0.1 * p, disagreement=0.2) for p in range(4)])
    opened(browser, report.write(run, tmp_path / "out", ["html"]))
    drawn = run_js(browser, "[...document.querySelectorAll('figure')].map(f => [f.id,"
                            " f.querySelectorAll('svg .mark').length])")  # fmt: skip
    assert {name.removeprefix("chart-") for name, _ in drawn} == {
        "accuracy", "waterfall", "bytes", "clients-test", "clients-own", "entropy",
        "disagreement", "calibration", "partition", "times",
    }  # fmt: skip
    assert all(count > 0 for _, count in drawn)
    paths = run_js(browser, "[...document.querySelectorAll('path.curve')].map("
                            "p => p.getTotalLength())")  # fmt: skip
    assert len(paths) >= 8 and all(length > 10 for length in paths)
    names = run_js(browser, "[...document.querySelectorAll('svg')].map("
                            "s => s.getAttribute('aria-label'))")  # fmt: skip
    assert all(names) and len(set(names)) == len(names)


def test_values_are_shown_where_one_points(browser: WebDriver, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    opened(browser, report.write(make_run(tmp_path / "run"), tmp_path / "out", ["html"]))
    mark = browser.find_elements("css selector", "#chart-accuracy circle.mark")[3]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed() and tip.text == "Student\nRound 4: 90 %"


def test_a_curve_is_switched_off_and_on(browser: WebDriver, tmp_path: Path) -> None:
    opened(browser, report.write(make_run(tmp_path / "run"), tmp_path / "out", ["html"]))

    def curves() -> int:
        found: int = run_js(
            browser, "document.querySelectorAll('#chart-accuracy path.curve').length"
        )
        return found

    before = curves()
    button = browser.find_element("css selector", "#chart-accuracy .legend button")
    assert (before, button.text, button.get_attribute("aria-pressed")) == (3, "Student", "true")
    button.click()
    assert (curves(), button.get_attribute("aria-pressed")) == (2, "false")
    button.click()
    assert curves() == 3


def test_a_table_is_sorted_by_its_values(browser: WebDriver, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / n, strategy=n, shift=s) for n, s in (("entropy", 0), ("fedmd", -0.6))
    ]
    opened(browser, report.across(runs, tmp_path / "out", ["html"]))
    table = browser.find_element("css selector", "table[aria-labelledby='table-accuracy-test']")
    head = table.find_elements("css selector", "thead th")[2]

    def column() -> list[float]:
        script = "[...arguments[0].tBodies[0].rows].map(r => Number(r.cells[2].dataset.value))"
        found: list[float] = run_js(browser, script, table)
        return found

    unsorted = column()
    head.find_element("tag name", "button").click()
    assert column() == sorted(unsorted) != unsorted
    assert head.get_attribute("aria-sort") == "ascending"
    head.find_element("tag name", "button").click()
    assert column() == sorted(unsorted, reverse=True)


def test_dark_and_light_and_paper(browser: WebDriver, tmp_path: Path) -> None:
    opened(browser, report.write(make_run(tmp_path / "run"), tmp_path / "out", ["html"]))

    def paper() -> str:
        found: str = run_js(browser, "getComputedStyle(document.body).backgroundColor")
        return found

    button, first = browser.find_element("css selector", "button.theme"), paper()
    button.click()
    assert paper() != first
    button.click()
    assert paper() == first
    assert len(browser.print_page()) > 10_000  # a PDF in base 64


def test_foreign_text_stays_text(browser: WebDriver, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", strategy={"name": "entropy", "note": HOSTILE})
    part = json.loads((run / "partition.json").read_text(encoding="utf-8"))
    change(run, "partition.json", models=[HOSTILE] * 4, classes=[HOSTILE, "1", "2"],
           provenance=f"![x](http://example.org/x.png) {HOSTILE}",
           licence="[x](javascript:alert(1))")  # fmt: skip
    change(run, "run.json", machine=HOSTILE, device=HOSTILE)
    lines(run, "events.jsonl", [{"kind": "failure", "round": 1, "cause": HOSTILE}])
    lines(run, "timings.jsonl", [{"round": 1, "seconds": {HOSTILE: 1.0}}])
    other = make_run(tmp_path / "other", strategy="fedmd")
    change(other, "partition.json", classes=[HOSTILE, "1", "2"], models=part["models"])
    for place, page in enumerate((
        report.write(run, tmp_path / "one", ["html"]),
        report.across([run, other], tmp_path / "two", ["html"]),
    )):  # fmt: skip
        opened(browser, page)
        assert "owned" not in browser.title.partition("<")[0]
        assert (
            run_js(browser, "document.querySelectorAll('main img, main a, main script').length")
            == 0
        )
        assert run_js(browser, "document.scripts.length") == 2
        assert place or HOSTILE[:20] in run_js(browser, "document.body.textContent")
