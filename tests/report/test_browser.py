"""The page as a person sees it, in headless Chromium."""

import re

import pytest

from taskpgm.report import write_page
from taskpgm.report.page import plan
from taskpgm.report.style import LIGHT
from tests.report.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page with"),
]
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
# Elements that reach beyond the window, though nothing around them scrolls.
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(e => {
  for (let at = e; at; at = at.parentElement)
    if (getComputedStyle(at).overflowX !== 'visible') return false;
  return e.getBoundingClientRect().right > innerWidth + 0.5;
}).map(e => e.tagName + '.' + e.className + ' ' + e.innerText?.slice(0, 40))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.start()
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="module")
def page(make_workdir, tmp_path_factory):
    return write_page(make_workdir(tmp_path_factory.mktemp("page") / "it", 27, 8), ["launch.py"])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 400])
def test_nothing_is_wider_than_the_window_and_nothing_fails(browser, page, width, theme):
    browser.open(page, width, theme)
    browser.run(OPEN_ALL)
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(TOO_WIDE) == []
    assert browser.errors == []


def test_each_theme_has_its_own_colours_and_figures(browser, page):
    def seen(theme):
        browser.open(page, 1300, theme)
        style = "getComputedStyle(document.body)"
        texts = [browser.run(f"{style}.{key}") for key in ("backgroundColor", "color")]
        paper, ink = (sum(map(int, re.findall(r"\d+", text))) for text in texts)
        return paper, ink, browser.run("document.querySelector('picture img').currentSrc")

    (light_paper, light_ink, light), (dark_paper, dark_ink, dark) = seen("light"), seen("dark")
    assert light_paper > light_ink and dark_paper < dark_ink
    assert light != dark
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


SORT = """
(() => {
  const table = document.querySelector('#why table.sortable');
  const column = [...table.tHead.rows[0].cells].findIndex(h => h.innerText.startsWith('HEAD'));
  table.tHead.rows[0].cells[column].click();
  return [...table.tBodies[0].rows].map(r => r.cells[column].innerText.replace('−', '-'));
})()
"""


def test_a_click_sorts_and_a_second_one_turns_the_order_around(browser, page):
    browser.open(page, 1300, "light")
    shown = [browser.run(SORT.replace("HEAD", "redundancy")) for _ in range(2)]
    down, up = ([float(cell) for cell in cells] for cells in shown)
    assert len(down) == 27
    assert down == sorted(down, reverse=True)
    assert up == sorted(up)
    names = browser.run(SORT.replace("HEAD", "task"))
    assert len(set(names)) == 27
    assert browser.errors == []


def test_316_tasks_open_within_five_seconds_of_work(browser, make_workdir, tmp_path, monkeypatch):
    def drawn_once(study):
        """Both themes get the light figures: the browser has as much to do."""
        for name, alt, draw in plan(study):
            image = draw(LIGHT)
            yield name, alt, lambda _, image=image: image

    monkeypatch.setattr("taskpgm.report.page.plan", drawn_once)
    page = write_page(make_workdir(tmp_path / "it", 316, 30))
    before = browser.thread_seconds()
    browser.open(page, 1300, "light")
    assert browser.run("document.querySelectorAll('tr').length") > 2 * 316
    assert browser.thread_seconds() - before < 5
    assert browser.errors == []
