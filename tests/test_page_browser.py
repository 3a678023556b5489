"""The run page in a real browser: what it shows is what its data says, whatever a model wrote.

Needs Debian's packages chromium and chromium-driver, and selenium (extra dev).
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_fakes import HOSTILE, rollout, write_evaluation

from rollout.page.evaluation import evaluation_view, write_evaluation_page
from rollout.page.html import write_page
from rollout.page.view import Curves, Mark, RunView

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium (extra dev) is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="Debian's packages chromium and chromium-driver are not installed"
    ),
]
RIGHT, WRONG = True, False
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def _open(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> dict:
    """Opens a page; returns its data. The browser logs whatever the page's policy blocks."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("data-ready") == "true"
    assert browser.get_log("browser") == []
    return json.loads(browser.find_element(By.ID, "data").get_attribute("textContent"))


def _filter(browser: Any, label: str, value: str) -> None:
    Select(browser.find_element(By.XPATH, f"//form//label[span='{label}']/select")).select_by_value(value)


def _listed(browser: Any) -> list[int]:
    items = browser.find_elements(By.CSS_SELECTOR, ".item")
    return [int(item.get_attribute("data-rollout")) for item in items]


def _text(browser: Any, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).get_attribute("textContent")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run, made up from an evaluation's rollouts, with curves and an alarm."""
    folder = tmp_path_factory.mktemp("page")
    rollouts = [
        rollout(
            "kept",
            [(r"so \boxed{7}", RIGHT), ("b is 3", WRONG)],
            (r"Half: $\frac{7}{1}$, so \boxed{7}", RIGHT),
        ),
        rollout("lost", [("c is 7", RIGHT), ("d is 7 too", RIGHT)], ("but 8", WRONG)),
        rollout("hopeless", [("e", WRONG), ("f", WRONG)], ("needle in the haystack", WRONG)),
    ]
    view = evaluation_view(write_evaluation(folder / "run", rollouts), 10**6)
    steps = tuple(range(1, 31))
    values = {
        "reward/trace": tuple(0.1 * step for step in steps),
        "kl/trace": (0.0,) * 30,
        "other": (1.0,) * 30,
    }
    marks = (Mark(step=5, kind="alarm", text="x"),)
    run = RunView(
        name="run",
        kind="training",
        facts=view.facts,
        rows=view.rows,
        curves=Curves(steps=steps, values=values),
        marks=marks,
        sources=view.sources,
        rollouts=view.rollouts,
    )
    return write_page(folder / "page.html", [run])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_draws_every_part(browser, page, width, scheme):
    _open(browser, page, width, scheme)
    inside = browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert inside
    for selector in ("#overview table", "#curves canvas", "#pareto canvas", "#rollouts .node"):
        assert browser.find_element(By.CSS_SELECTOR, selector).is_displayed(), selector
    behind = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (behind == "rgb(255, 255, 255)") == (scheme == "light")


def test_filters_list_the_rollouts_that_the_data_says(browser, page):
    data = _open(browser, page)
    rollouts = data["runs"][0]["rollouts"]
    for flag in data["flags"]:
        _filter(browser, "Notable", flag)
        assert _listed(browser) == [i for i, each in enumerate(rollouts) if flag in each["flags"]], flag
    browser.find_element(By.XPATH, "//form//button[.='Clear']").click()
    assert len(_listed(browser)) == len(rollouts)
    _filter(browser, "Verdict", "correct")
    _filter(browser, "Role", "refine")
    expected = [
        i
        for i, each in enumerate(rollouts)
        if any(call["role"] == "refine" and call["verdict"] == "correct" for call in each["calls"])
    ]
    assert _listed(browser) == expected == [0]
    assert browser.find_elements(By.CSS_SELECTOR, ".node.hit")


def test_a_filter_keeps_the_focus_that_a_keyboard_needs_and_tells_what_is_shown(browser, page):
    _open(browser, page)
    control = browser.find_element(By.XPATH, "//form//label[span='Verdict']/select")
    control.send_keys("w")
    assert control.get_attribute("value") == "wrong"
    assert browser.switch_to.active_element == control
    browser.find_element(By.ID, "clear").click()
    assert browser.switch_to.active_element.get_attribute("id") == "clear"
    assert browser.find_element(By.XPATH, "//form//label[span='Verdict']/select").get_attribute("value") == ""
    browser.find_element(By.CSS_SELECTOR, '.node[data-call="1"]').click()
    assert _text(browser, "#announced[role=status]") == "Shown: Call #1: draft, round 0"


def test_text_search_keeps_its_focus_and_finds_what_only_one_solution_holds(browser, page):
    _open(browser, page)
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    browser.switch_to.active_element.send_keys("NEEDLE")
    assert _listed(browser) == [2]
    assert browser.switch_to.active_element.get_attribute("id") == "search"
    assert _text(browser, "#matches") == "1 of 3 rollouts match."


def test_a_click_on_a_draft_shows_its_call(browser, page):
    data = _open(browser, page)
    shown = data["runs"][0]["rollouts"][0]
    for place, call in enumerate(shown["calls"]):
        node = browser.find_element(By.CSS_SELECTOR, f'.node[data-call="{place}"]')
        assert call["verdict"] in node.get_attribute("class").split()
        assert ("answer" in node.get_attribute("class").split()) == (shown["chosen"] == [place])
        node.click()
        facts = _text(browser, "#call dl")
        assert call["verdict"] in facts and f"{call['completion_tokens']} out" in facts
        assert _text(browser, "#call h4") == f"Call #{place}: {call['role']}, round {call['round']}"
        toggle = browser.find_element(By.CSS_SELECTOR, "#call input[type=checkbox]")
        toggle.click()
        assert _text(browser, ".solution") == call["solution"]
        assert call["thinking"] in _text(browser, "#call")
        assert not browser.find_element(
            By.XPATH, "//details[starts-with(summary, 'Thinking')]"
        ).get_attribute("open")


def test_nodes_that_wrote_more_are_larger(browser, page):
    data = _open(browser, page)
    calls = data["runs"][0]["rollouts"][0]["calls"]
    sizes = [
        browser.find_element(By.CSS_SELECTOR, f'.node[data-call="{i}"]').size["width"]
        for i in range(len(calls))
    ]
    order = sorted(range(len(calls)), key=lambda i: calls[i]["completion_tokens"])
    assert [sizes[i] for i in order] == sorted(sizes) and sizes[order[0]] < sizes[order[-1]]


def test_the_workspace_marks_the_drafts_that_it_was_made_from(browser, page):
    data = _open(browser, page)
    shown = data["runs"][0]["rollouts"][0]
    browser.find_element(By.CSS_SELECTOR, ".node.workspace").click()
    marks = [
        mark.get_attribute("textContent") for mark in browser.find_elements(By.CSS_SELECTOR, "#call mark")
    ]
    assert marks == [f"#{i}{shown['calls'][i]['solution']}" for i in (0, 1)]


def test_mathematics_is_typeset_and_the_rest_stays(browser, page):
    _open(browser, page)
    formulas = browser.find_elements(By.CSS_SELECTOR, ".solution .katex-html")
    assert len(formulas) == 2
    assert browser.find_element(By.CSS_SELECTOR, ".solution .katex-mathml mfrac")
    assert _text(browser, ".solution").startswith("Half: ")


def test_amounts_of_money_are_not_mathematics(browser, tmp_path):
    text = "It costs $5 and $6, or $3-$4; escaped \\$7; \\(x+1\\)"
    folder = write_evaluation(tmp_path / "ev", [rollout("p", [("a", WRONG)], (text, RIGHT))])
    _open(browser, write_evaluation_page(folder))
    assert len(browser.find_elements(By.CSS_SELECTOR, ".solution .formula")) == 1
    assert "It costs $5 and $6, or $3-$4" in _text(browser, ".solution")


def test_the_keyboard_alone_moves_through_rollouts_and_graph(browser, page):
    _open(browser, page)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys("j")
    assert browser.find_element(By.CSS_SELECTOR, ".item[aria-current]").get_attribute("data-rollout") == "1"
    body.send_keys("k")
    browser.execute_script("document.querySelector('.node[data-call=\"0\"]').focus()")
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert browser.switch_to.active_element.get_attribute("data-call") == "1"
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert "workspace" in browser.switch_to.active_element.get_attribute("class")
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert _text(browser, "#call h4").startswith("Call #2: refine")
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_a_screen_reader_finds_landmarks_names_and_headers(browser, page):
    _open(browser, page)
    for tag in ("header", "nav[aria-label]", "main", "footer", "form[role=search][aria-label]"):
        assert len(browser.find_elements(By.CSS_SELECTOR, tag)) == 1, tag
    unnamed = browser.execute_script(
        "const named = (e) => e.getAttribute('aria-label') || e.labels?.length"
        " || (e.tagName === 'BUTTON' && e.textContent.trim());"
        "return [...document.querySelectorAll('button, input, select')].filter((e) => !named(e))"
        ".map((e) => e.outerHTML)"
    )
    assert unnamed == []
    for made in browser.find_elements(By.CSS_SELECTOR, "section table:not(.u-legend)"):
        assert made.find_elements(By.CSS_SELECTOR, "caption") and made.find_elements(
            By.CSS_SELECTOR, "th[scope=col]"
        )
    pictures = browser.find_elements(By.CSS_SELECTOR, ".chart .u-wrap")
    assert all(each.get_attribute("role") == "img" and each.get_attribute("aria-label") for each in pictures)
    assert "trace: 0.1 at step 1, 3 at step 30" in pictures[0].get_attribute("aria-label")


def test_smoothing_log_scale_and_another_metric_redraw_the_curves(browser, page):
    _open(browser, page)
    count = len(browser.find_elements(By.CSS_SELECTOR, "#curves figure"))
    Select(browser.find_element(By.XPATH, "//label[span='Another metric']/select")).select_by_value("other")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#curves figure")) == count + 1
    # Smoothed and unsmoothed line of the first metric: they come and go together.
    both = "#panel-other + figure .u-legend .u-series:not(:first-child)"
    browser.find_element(By.CSS_SELECTOR, f"{both}:not([hidden]) th").click()
    assert len(browser.find_elements(By.CSS_SELECTOR, both)) == 2
    assert len(browser.find_elements(By.CSS_SELECTOR, f"{both}.u-off")) == 2
    browser.find_element(By.ID, "log").click()
    browser.execute_script(
        "const s = document.getElementById('smoothing'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    assert len(browser.find_elements(By.CSS_SELECTOR, "#curves canvas")) == count + 1
    assert browser.get_log("browser") == []


RECORDED = """
window.names = [];
const fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const width = this.measureText(text).width;
  const left = this.textAlign === "right" ? x - width : x;
  window.names.push({ text, left, right: left + width, y });
  return fillText.apply(this, arguments);
};
"""
"""Notes what is written on canvases, before the page's own scripts."""


@pytest.mark.parametrize("width", WIDTHS)
def test_names_of_points_that_coincide_cover_one_another_nowhere(browser, page, tmp_path, width):
    row = evaluation_view(page.parent / "run", 10**6).rows[0]
    names = [f"operator{i}" for i in range(8)]
    rows = tuple(replace(row, operator=name, b_total=row.b_total + i % 2) for i, name in enumerate(names))
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": RECORDED})
    try:
        _open(
            browser,
            write_page(tmp_path / "page.html", [RunView(name="run", kind="x", facts={}, rows=rows)]),
            width,
        )
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    drawn = {each["text"]: each for each in browser.execute_script("return names") if each["text"] in names}
    assert sorted(drawn) == names
    for one, other in itertools.combinations(drawn.values(), 2):
        beside = one["right"] <= other["left"] or other["right"] <= one["left"]
        assert beside or abs(one["y"] - other["y"]) >= 12, (one, other)


def test_the_list_shows_what_tells_questions_apart(browser, tmp_path):
    asked = [f"Solve the problem step by step.\n\nWhat is\n{i} + {i}?" for i in range(9)]
    asked.append("Of another kind:\nhow many?")
    rollouts = [rollout(f"p{i}", [("a", WRONG)], ("b", WRONG), question=each) for i, each in enumerate(asked)]
    _open(browser, write_evaluation_page(write_evaluation(tmp_path / "ev", rollouts)))
    shown = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".item .question")]
    assert shown == [*(f"\u2026 {i} + {i}?" for i in range(9)), "Of another kind: how many?"]
    assert _text(browser, "#shown .question").startswith("Solve the problem step by step.\n")


def test_a_point_of_the_picture_leads_to_its_rollouts(browser, page):
    data = _open(browser, page)
    _filter(browser, "Notable", "truncated")
    assert _listed(browser) == []
    browser.find_element(By.CSS_SELECTOR, "#pareto-points button").click()
    rollouts = data["runs"][0]["rollouts"]
    assert _listed(browser) == [i for i, each in enumerate(rollouts) if each["operator"] == "pdr"]
    _filter(browser, "Notable", "truncated")
    # The only point: x is in the middle, y between 5 below and 7 above its interval of 40 to 60.
    box = browser.find_element(By.CSS_SELECTOR, "#pareto .u-over")
    down = (0.5 - (50 - 35) / (67 - 35)) * box.size["height"]
    ActionChains(browser).move_to_element_with_offset(box, 0, int(down)).click().perform()
    assert len(_listed(browser)) == len(rollouts)


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_texts_run_no_script_and_break_no_layout(browser, tmp_path, width):
    rollouts = [
        rollout(f"p{i} {text[:300]}", [(text, WRONG), (text[::-1], RIGHT)], (text, RIGHT), question=text)
        for i, text in enumerate(HOSTILE)
    ]
    path = write_evaluation_page(write_evaluation(tmp_path / "ev", rollouts))
    data = _open(browser, path, width)
    places = range(len(data["runs"][0]["rollouts"]))
    assert len(places) == len(HOSTILE)
    for place in places:
        browser.execute_script(f"document.querySelector('.item[data-rollout=\"{place}\"]').click()")
        for node in browser.find_elements(By.CSS_SELECTOR, ".node"):
            browser.execute_script("arguments[0].click()", node)
            browser.execute_script(
                "document.querySelectorAll('details').forEach((each) => (each.open = true))"
            )
            wide = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, HOSTILE[place][:40]
    assert "owned" not in browser.title
    assert browser.find_elements(By.CSS_SELECTOR, "main script, main img, main iframe, main [onload]") == []
    links = browser.execute_script(
        "return [...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))"
    )
    assert all(link.startswith("#") for link in links)
    assert "\u202e" not in browser.execute_script("return document.querySelector('main').textContent")
    assert browser.get_log("browser") == []
