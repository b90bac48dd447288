"""Does a page of every kind open quietly, fit, print, and work by keyboard, from disk and from a server?"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iclens.pages.profile import Profile
from iclens.pages.site import UNSEEN, write_site
from iclens.schemas import TABLES

from .chromium import DESKTOP, PHONE, SHIFT, Browser
from .made_up import make_site

pytestmark = pytest.mark.browser

A4 = 718
"""Width of an A4 page between a centimetre of margin on either side, CSS pixels."""
REACHABLE = """
[...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex]')]
  .filter(e => e.tabIndex >= 0 && !e.disabled && e.checkVisibility({ visibilityProperty: true }))
"""
"""Whatever the Tab key has to reach."""
HERE = """
(() => {
  const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
  const bar = document.querySelector('.bar').getBoundingClientRect();
  const under = getComputedStyle(document.querySelector('.bar')).position === 'sticky' ? bar.bottom : 0;
  return {
    at: window.expected.indexOf(e),
    name: e.outerHTML.slice(0, 120),
    outlined: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
    inside: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
    covered: !e.closest('.bar, .skip') && box.height < 200 && box.top < under - 1,
  };
})()
"""


def address(page_path: str, site: Path, served: str, source: str) -> str:
    """Of a page, on disk or on the server."""
    return f"{served if source == 'http' else site.resolve().as_uri()}/{page_path}"


@pytest.mark.parametrize(
    ("source", "width", "scheme", "scripts"),
    [
        ("file", DESKTOP, "light", True),
        ("file", PHONE, "dark", True),
        ("file", PHONE, "light", False),
        ("http", DESKTOP, "dark", True),
        ("http", PHONE, "light", True),
    ],
    ids=lambda value: (
        {True: "scripts", False: "no-scripts"}.get(value, str(value)) if value else "no-scripts"
    ),
)
def test_page_opens_quietly_fits_and_asks_for_nothing_outside(
    browser: Browser,
    site: Path,
    served: str,
    page_path: str,
    source: str,
    width: int,
    scheme: str,
    scripts: bool,
) -> None:
    browser.open(address(page_path, site, served, source), width=width, scheme=scheme, scripts=scripts)
    assert browser.complaints() == []
    assert len(browser.requested()) >= 2, "the page and its style sheet"
    base = address("", site, served, source)
    assert [url for url in browser.requested() if not url.startswith(base)] == []
    assert browser.run("document.querySelectorAll('img, main script, iframe, object, embed').length") == 0
    assert browser.run("document.documentElement.scrollWidth") <= width
    words = browser.run("document.querySelector('main').innerText.length")
    assert words > 100, "it says something, with and without scripts"
    paper = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(paper) < 60 if scheme == "dark" else min(paper) > 240


def test_an_empty_study_opens_quietly_too(browser: Browser, tmp_path: Path) -> None:
    made = make_site(2, 1, "", gone=set(TABLES))
    made.latents[0].profile = Profile(made.latents[0].profile.density, reason=UNSEEN)
    write_site(replace(made, prompts=[]), tmp_path / "site")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) == 9
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    for table in ("sweep", "ladder", "transforms", "growth", "quality"):
        assert f"has left no {table}.parquet." in text
    assert "of another form" not in text
    for page in pages:
        browser.open(page, width=PHONE, scheme="dark")
        assert browser.complaints() == [], page.name
        assert browser.run("document.documentElement.scrollWidth") <= PHONE, page.name


def test_page_has_its_landmarks_and_one_heading(browser: Browser, site: Path, page_path: str) -> None:
    browser.open(site / page_path)
    counted = browser.run(
        "['main', 'h1', 'header', 'footer', 'header nav', 'html[lang]', 'a.skip[href=\"#main\"]']"
        ".map(kind => document.querySelectorAll(kind).length)"
    )
    assert counted == [1] * 7
    assert browser.run("document.title.length") > 5
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.localName[1]))")
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), "no level is left out"


def test_skip_link_comes_first_and_leads_to_the_content(browser: Browser, site: Path, page_path: str) -> None:
    browser.open(site / page_path)
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.matches('.skip')")
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("Enter", 13)
    assert browser.run("document.activeElement.id") == "main"
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.closest('main, footer') !== null")


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_tab_reaches_everything_in_order_and_shows_where_it_is(
    browser: Browser, site: Path, page_path: str, width: int
) -> None:
    browser.open(site / page_path, width=width)
    expected = browser.run(f"(window.expected = {REACHABLE}).length")
    steps = min(expected, 60)
    seen: list[dict[str, Any]] = []
    for _ in range(steps):
        browser.press("Tab", 9)
        seen.append(browser.run(HERE))
    assert [step["at"] for step in seen] == list(range(steps)), "nothing is passed over"
    assert [step["name"] for step in seen if not step["outlined"]] == []
    assert [step["name"] for step in seen if not step["inside"] or step["covered"]] == []
    browser.press("Tab", 9, SHIFT)
    assert browser.run("window.expected.indexOf(document.activeElement)") == steps - 2


DRAWN = "[...document.querySelectorAll('main .chart *')].filter(e => e.checkVisibility()).length"
PRINTED = """
(() => {
  const visible = (e) => e.checkVisibility();
  const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0) / 3;
  const seen = [...document.querySelectorAll('body, main, p, td, th, dd, h1, h2')].filter(visible);
  return {
    controls: [...document.querySelectorAll('nav, form, .controls, .pager, .skip, button')]
      .filter(e => visible(e) && !e.closest('th')).map(e => e.outerHTML.slice(0, 100)),
    cut: [...document.querySelectorAll('main *')].filter(visible)
      .filter(e => ['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX))
      .filter(e => e.scrollWidth > e.clientWidth + 1 && !e.matches('.unseen'))
      .map(e => e.outerHTML.slice(0, 100)),
    paper: light(getComputedStyle(document.body).backgroundColor),
    ink: Math.max(...seen.map(e => light(getComputedStyle(e).color))),
    width: document.documentElement.scrollWidth,
  };
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_prints_dark_on_light_uncut_and_without_controls(
    browser: Browser, site: Path, page_path: str, scheme: str
) -> None:
    browser.open(site / page_path, width=A4, scheme=scheme)
    drawn = browser.run(DRAWN)
    browser.media("print")
    assert browser.run(DRAWN) == drawn, "no part of a chart is left out"
    printed = browser.run(PRINTED)
    assert printed["controls"] == []
    assert printed["cut"] == []
    assert printed["paper"] > 250
    assert printed["ink"] < 130
    assert printed["width"] <= 1.6 * A4, "a printer shrinks what is wider, and beyond this it cannot be read"
    assert browser.print_pdf().startswith(b"%PDF")
