"""The page of a run, clicked through in a real browser."""

from __future__ import annotations

import re
import shutil

import pytest

from fusionkit.analysis.page import page
from fusionkit.analysis.report import report

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromium-driver are not installed"
)
EVIL = "</script><script>document.title = 'x'</script><img src=x onerror=\"document.title = 'x'\">"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def open_page(driver, tmp_path):
    def open_page(found):
        path = tmp_path / "page.html"
        path.write_text(page(found), encoding="utf-8")
        driver.get(path.as_uri())
        return driver

    yield open_page
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def one(driver, selector):
    (found,) = find(driver, selector)
    return found


def choose(driver, selector, text):
    from selenium.webdriver.support.ui import Select

    Select(one(driver, selector)).select_by_visible_text(text)


def shown(driver) -> int:
    return int(one(driver, "#count").text.partition(" ")[0])


def test_nothing_is_loaded_from_elsewhere(runs):
    text = page(report(runs["routed"], shown=5))
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", text)
    assert text.count("</script>") == 2


@needs_browser
def test_every_section_is_there_and_answers(open_page, runs):
    found = report(runs["routed"], shown=60)
    driver = open_page(found)
    assert driver.title == "quickstart - fusionkit"
    names = [link.get_attribute("href").partition("#")[2] for link in find(driver, "nav a")]
    assert names == ["overview", "curves", "experts", "entropy", "cards", "samples"]
    assert all(find(driver, f"section#{name}") for name in names)
    assert len(find(driver, "#overview tbody tr")) == 2  # the run and its baseline
    assert len(find(driver, "#curves svg")) >= 3

    def values():
        return [cell.get_attribute("data-value") for cell in find(driver, "#experts rect")]

    mean = values()
    assert len(mean) == 2 * 16
    slide = "const s = document.getElementById('layer'); s.value = 3;"
    driver.execute_script(f"{slide} s.dispatchEvent(new Event('input'))")
    third = [value for layers in found["routing"]["importance"] for value in layers[2]]
    assert [float(value) for value in values()] == third
    assert values() != mean
    assert one(driver, "#experts output").text == "layer 3"

    assert len(find(driver, "#cards article")) == 16
    first = one(driver, "#cards article:first-child .small").text
    choose(driver, "#card-layer", "layer 1")
    assert one(driver, "#cards article:first-child .small").text != first


@needs_browser
def test_the_sample_browser(open_page, runs):
    found = report(runs["routed"], shown=60)
    driver = open_page(found)
    samples = found["samples"]
    assert shown(driver) == 60
    assert len(find(driver, ".sample")) == 24
    one(driver, "#on").click()
    one(driver, "#on").click()
    assert one(driver, "#count").text == "60 samples, page 3 of 3"
    assert len(find(driver, ".sample")) == 12
    assert not one(driver, "#on").is_enabled()
    choose(driver, "#by-outcome", "wrong")
    assert shown(driver) == sum(not sample["right"] for sample in samples)
    choose(driver, "#by-class", "holds")
    assert shown(driver) == sum(not s["right"] and s["target"] == 1 for s in samples)
    choose(driver, "#by-outcome", "all")
    choose(driver, "#by-class", "all")
    words = samples[0]["fields"]["claim"]["text"].upper()
    one(driver, "#by-text").send_keys(words)
    assert shown(driver) == sum(words.lower() in s["fields"]["claim"]["text"] for s in samples)
    assert find(driver, "#route svg") == []
    card = find(driver, ".sample")[0]
    card.click()
    assert card.get_attribute("aria-pressed") == "true"
    assert len(find(driver, "#route rect")) == 4 * 16


@needs_browser
def test_two_runs_side_by_side(open_page, runs):
    found = report(runs["routed"], runs["plain"], shown=60)
    driver = open_page(found)
    counts = [int(cell.text) for cell in find(driver, "#agreement td:nth-child(2)")]
    assert sum(counts) == 60
    choose(driver, "#by-other", "only this one right")
    assert shown(driver) == counts[1]


@needs_browser
def test_without_experts(open_page, runs):
    driver = open_page(report(runs["plain"], shown=5))
    assert "mixes no prompt experts" in one(driver, "#experts").text
    assert find(driver, "#cards") == []
    assert find(driver, "#by-expert") == []


@needs_browser
def test_markup_in_data_stays_text(open_page, runs):
    found = report(runs["routed"], shown=3)
    found["name"] = found["samples"][0]["id"] = EVIL
    found["samples"][0]["fields"]["claim"]["text"] = EVIL
    found["experts"][3][0]["words"] = [[EVIL, 1.0]]
    found["classes"][0] = EVIL
    driver = open_page(found)
    assert one(driver, "h1").text == EVIL
    assert driver.title.startswith("</script>")
    assert EVIL in find(driver, ".sample")[0].text
    assert find(driver, "img[src=x]") == []
