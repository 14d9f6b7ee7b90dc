"""The report in a real browser: headless Chromium, where there is one."""

from __future__ import annotations

import re

import pytest

from mergekit3d.reporting.report import write_report
from tests.reporting.browser import CHROMIUM, Browser

LEAST_CONTRAST = 4.5
"""WCAG 2.2, AA, for text of any size."""

WIDER = """[...document.querySelectorAll('body *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, nav, pre, .hidden, legend'))
  .map(e => e.tagName + '.' + e.className)"""

CONTRASTS = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const over = (colour, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
    return `rgb(${r}, ${g}, ${b})`;
  };
  const light = text => {
    const [r, g, b] = text.match(/\\d+/g).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
    return layers.reduce((under, colour) => over(colour, under), 'rgb(255, 255, 255)');
  };
  const poor = [];
  let least = 99;
  document.querySelectorAll('details').forEach(e => { e.open = true; });
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest('.hidden, legend, .skip')) continue;
    const style = getComputedStyle(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    const under = ground(element);
    const [a, b] = [light(over(ink, under)), light(under)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    least = Math.min(least, contrast);
    if (contrast < LEAST) poor.push([element.tagName, element.textContent.slice(0, 40), contrast.toFixed(2)]);
  }
  return {least, poor};
})()"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(everything, tmp_path_factory):
    """A report with every part."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(everything, path)
    return path


def test_page_opens_without_a_request_or_a_complaint(browser, page):
    """Nothing but the file itself is loaded; the console stays empty; a hostile name runs nothing."""
    browser.requests.clear()
    browser.complaints.clear()
    browser.view()
    browser.open(page)

    assert [page.resolve().as_uri()] == [url for url in browser.requests if not url.startswith("data:")]
    assert [] == [text for text in browser.complaints if "decode" not in text]
    assert browser.evaluate("document.querySelectorAll('script').length") == 0


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(browser, page, width):
    """Wide tables and charts scroll within themselves, closed or unfolded."""
    browser.view(width=width)
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")

    assert width == browser.evaluate("document.documentElement.scrollWidth")
    assert [] == browser.evaluate(WIDER)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_in_both_themes(browser, page, dark):
    """Contrast of 4.5 or more against what lies under it, in tables, tinted cells and charts alike."""
    browser.view(dark=dark)
    browser.open(page)
    found = browser.evaluate(CONTRASTS.replace("LEAST", str(LEAST_CONTRAST)))

    assert [] == found["poor"]
    assert found["least"] >= LEAST_CONTRAST


def test_theme_follows_the_system_and_the_switch(browser, page):
    """The page's ground is light or dark as the system says, and as the reader says after a click or a key."""

    def ground():
        red, green, blue = map(int, re.findall(r"\d+", browser.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])
        return "light" if red + green + blue > 384 else "dark"

    browser.view(dark=False)
    browser.open(page)
    seen = [ground()]
    for click in ("theme-dark", "theme-auto", "theme-light"):
        browser.evaluate(f"document.getElementById('{click}').click()")
        seen.append(ground())
    browser.view(dark=True)
    seen.append(ground())
    browser.evaluate("document.getElementById('theme-auto').click()")
    seen.append(ground())

    assert ["light", "dark", "light", "light", "light", "dark"] == seen


def test_keys_reach_all_that_can_be_used(browser, page):
    """The first Tab shows the way past the head; summaries, scrolling tables and the theme take the focus."""
    browser.view()
    browser.open(page)
    for key in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=key, key="Tab", code="Tab", windowsVirtualKeyCode=9)

    assert "Skip to the results" == browser.evaluate("document.activeElement.textContent")
    assert browser.evaluate("[...document.querySelectorAll('summary, .scroll, .theme input')].every(e => e.tabIndex === 0)")


def test_print_is_light_and_unfolded(browser, page):
    """On paper the ground is white whatever the theme, the menu is gone, and what is folded on the screen is shown."""
    browser.view(dark=True, media="print")
    browser.open(page)

    assert "rgb(255, 255, 255)" == browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert "none" == browser.evaluate("getComputedStyle(document.querySelector('nav')).display")
    assert browser.evaluate("[...document.querySelectorAll('details > :not(summary)')].every(e => e.getBoundingClientRect().height > 5)")
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 2
