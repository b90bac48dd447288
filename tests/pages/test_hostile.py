"""Does a text that is an attack, or no text at all, stay text, in its place, wherever a study puts text?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest

from iclens.model.load import TokenText
from iclens.pages.profile import Excerpt
from iclens.pages.site import write_site
from iclens.pages.text import spelt_out, visible

from .chromium import DESKTOP, PHONE, Browser
from .hostile import HOSTILE
from .made_up import make_rows, make_site

pytestmark = pytest.mark.browser

TAGS = """
(() => {
  const tags = {};
  for (const e of document.querySelectorAll('*')) tags[e.localName] = (tags[e.localName] ?? 0) + 1;
  return tags;
})()
"""
HANDLERS = """
[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]
  .filter(a => /^on|^style$|^srcdoc$|^formaction$/.test(a.name) || /^\\s*(javascript|data):/i.test(
    ['href', 'src', 'action', 'xlink:href'].includes(a.name) ? a.value : ''))
  .map(a => `${e.localName} ${a.name}`))
"""


def replacing(words: dict[str, str]) -> Callable[[str], str]:
    """Gives each text a hostile one, always the same."""
    supply = cycle(HOSTILE.values())

    def text(plain: str) -> str:
        if plain not in words:
            words[plain] = next(supply)
        return words[plain]

    return text


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A realistic site with everything in it."""
    folder = tmp_path_factory.mktemp("plain") / "site"
    write_site(make_site(4, 3, ""), folder)
    return folder


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same site with a hostile text in place of every text of the run."""
    words: dict[str, str] = {}
    site = make_site(4, 3, "", text=replacing(words))
    folder = tmp_path_factory.mktemp("attacked") / "site"
    write_site(site, folder)
    assert set(words.values()) == set(HOSTILE.values()), "each of them stands somewhere"
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that shows every hostile text in places that are known."""
    texts, site = list(HOSTILE.values()), make_site(20, 1, "")
    words = pd.Series(texts, dtype=object)
    rows = make_rows(len(texts), "").head(len(texts)).assign(label=words, follows=words)
    (page,) = site.latents
    (latent,) = page.roles
    tokens, values = [TokenText(text) for text in texts], [1.0 + i % 3 for i in range(len(texts))]
    effects = [(text, 1.0) for text in texts]
    page.profile = replace(
        page.profile, prompts={latent: [Excerpt(texts[0], tokens, values, False, False)]}, random={},
        promotes={latent: effects}, suppresses={},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("shown") / "site"
    write_site(replace(site, rows=rows), folder)
    return folder


def same_paths(one: Path, two: Path) -> list[str]:
    """Pages of two sites, which have the same."""
    paths = [sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html")) for site in (one, two)]
    assert paths[0] == paths[1]
    return paths[0]


@pytest.mark.parametrize(("width", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")])
def test_nothing_executes_is_asked_for_or_leaves_its_place(
    browser: Browser, plain: Path, attacked: Path, width: int, scheme: str
) -> None:
    for path in same_paths(plain, attacked):
        browser.open(plain / path, width=width, scheme=scheme)
        expected, handlers = browser.run(TAGS), set(browser.run(HANDLERS))
        browser.open(attacked / path, width=width, scheme=scheme)
        assert browser.complaints() == [], path
        assert all(url.startswith(attacked.resolve().as_uri()) for url in browser.requested()), path
        assert browser.run("window.ran === undefined"), path
        assert set(browser.run(HANDLERS)) <= handlers, path
        tags = browser.run(TAGS)
        assert {tag: n - expected.get(tag, 0) for tag, n in tags.items() if n > expected.get(tag, 0)} == {}, (
            path
        )
        browser.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert browser.run("document.documentElement.scrollWidth") <= width, path


CELLS = """
(async () => {
  const seen = new Set(), at = (id) => document.getElementById(id);
  for (let page = 0; page < 100; page++) {
    for (const cell of document.querySelectorAll('#table tbody td')) seen.add(cell.textContent);
    if (at('forth').getAttribute('aria-disabled') === 'true') return [...seen];
    at('forth').click();
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  }
  return [];
})()
"""
"""Texts of the table's cells, screen by screen to its end."""
FOUND = """
(() => {
  const rows = [...document.querySelectorAll('#table tbody tr:not(.space)')];
  return [document.getElementById('status').textContent, rows.map(row => row.textContent)];
})()
"""
"""What the table says of itself, and the text of each of its rows."""


def test_every_token_is_shown_in_its_visible_form(browser: Browser, shown: Path) -> None:
    browser.open(next((shown / "latents").iterdir()), width=PHONE)
    tokens = browser.run("[...document.querySelectorAll('.prompt .tokens b')].map(e => e.textContent)")
    assert tokens == [spelt_out(visible(text)) for text in HOSTILE.values()]
    effects = browser.run("[...document.querySelectorAll('.logits code')].map(e => e.textContent)")
    assert effects == tokens
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") <= PHONE


def test_every_text_reaches_the_table_through_its_rows(browser: Browser, shown: Path) -> None:
    browser.open(shown / "latents.html")
    browser.until(
        "document.querySelector('#table tbody th') && document.getElementById('status').textContent"
    )
    cells = set(browser.run(CELLS))
    assert [name for name, text in HOSTILE.items() if spelt_out(text) not in cells] == []
    assert browser.complaints() == []
    assert browser.run("window.ran === undefined && ({}).polluted === undefined")
    for text in ("<script>", "__proto__", "constructor", '";alert(1);//', "in-no-row"):
        browser.run("document.getElementById('search').focus(), document.getElementById('search').select()")
        browser.type(text)
        browser.until(f"new URLSearchParams(location.hash.slice(1)).get('q') === {json.dumps(text)}")
        status, rows = browser.run(FOUND)
        n = sum(text in spelt_out(one).lower() for one in HOSTILE.values())
        assert f" of {n} (" in status if n else status.startswith("No latent matches"), status
        assert bool(rows) == bool(n)
        assert [row for row in rows if text not in row.lower()] == [], text
    assert browser.complaints() == []


OVERLAPS = """
(() => {
  const tokens = [...document.querySelectorAll('.prompt .tokens b')];
  const boxes = tokens.flatMap((e, i) => [...e.getClientRects()].map(box => ({ i, box })));
  return boxes.filter(({ i, box }, k) => boxes.slice(k + 1).some(({ i: j, box: other }) => i !== j
    && Math.min(box.right, other.right) - Math.max(box.left, other.left) > 1
    && Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top) > 6))
    .map(({ i }) => tokens[i].textContent.slice(0, 40));
})()
"""


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_no_token_lies_upon_another(browser: Browser, shown: Path, width: int) -> None:
    browser.open(next((shown / "latents").iterdir()), width=width)
    assert browser.run(OVERLAPS) == []


BESIDE = """
[...document.querySelectorAll('figcaption b')].filter(e => /[\\u0590-\\u06ff]/.test(e.textContent)).map(e => {
  const range = document.createRange();
  range.setStart(e.nextSibling, 1);
  range.setEnd(e.nextSibling, 2);
  return [e.getBoundingClientRect().right, range.getBoundingClientRect().left];
})
"""
"""Where a name ends, and where the first character after it and a space begins."""


@pytest.mark.parametrize("name", ["שלום", "مرحبا", "\u202eabc ש"])
def test_what_follows_a_text_stays_where_it_was_written(browser: Browser, tmp_path: Path, name: str) -> None:
    """A name that reads from right to left does not draw the number after it to its other side."""
    write_site(make_site(2, 1, "", text=lambda word: name if word == "L2" else word), tmp_path / "site")
    browser.open(tmp_path / "site" / "patching.html")
    places = browser.run(BESIDE)
    assert places and all(end <= start for end, start in places), places
