"""Does a text that is an attack, or no text at all, stay text, in its place, wherever a study puts text?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from iclens.dashboards.inert import inert
from iclens.dashboards.records.site import (
    Fact,
    Finding,
    LatentRow,
    LatentView,
    LogitEffect,
    PromptView,
    SiteView,
    TokenView,
)
from iclens.dashboards.site import build_site
from iclens.dashboards.text import visible
from iclens.tables.verdicts import LADDER

from .chromium import DESKTOP, PHONE, Browser
from .hostile import HOSTILE, filled

pytestmark = pytest.mark.browser

KNOWN = frozenset({*LADDER, "falls", "passed", "fired", "not asked", "full", "open", "linear", "log"})
"""Words that the code knows by name."""
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
def plain_view(view_of: Callable[..., SiteView]) -> SiteView:
    """A realistic study with everything in it."""
    return view_of(per_site=4, n_pages=3, hostile="")


@pytest.fixture(scope="module")
def plain(plain_view: SiteView, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its site."""
    return build_site(plain_view, tmp_path_factory.mktemp("plain") / "site").index.parent


@pytest.fixture(scope="module")
def attacked(plain_view: SiteView, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the same study with a hostile text in place of every text."""
    words: dict[str, str] = {}
    view = filled(plain_view, replacing(words), KNOWN)
    assert set(words.values()) == set(HOSTILE.values()), "each of them stands somewhere"
    return build_site(view, tmp_path_factory.mktemp("attacked") / "site").index.parent


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that shows every hostile text in places that are known."""
    texts = list(HOSTILE.values())
    rows = [LatentRow("L1.mlp_out", i, 0.1, label=text, follows=text) for i, text in enumerate(texts)]
    tokens = [TokenView(text, 1.0 + i % 3) for i, text in enumerate(texts)]
    page = LatentView(
        "L1.mlp_out", 0, prompts=[PromptView(texts[0], tokens)],
        promotes=[LogitEffect(text, 1.0) for text in texts],
    )  # fmt: skip
    view = SiteView(
        texts[0], texts[1], [Finding(text, text, text) for text in texts],
        provenance=[Fact(text, text) for text in texts], latents=rows, pages=[page], notes=texts,
    )  # fmt: skip
    return build_site(view, tmp_path_factory.mktemp("shown") / "site").index.parent


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
        expected = browser.run(TAGS)
        browser.open(attacked / path, width=width, scheme=scheme)
        assert browser.complaints() == [], path
        assert all(url.startswith(attacked.resolve().as_uri()) for url in browser.requested()), path
        assert browser.run("window.ran === undefined"), path
        assert browser.run(HANDLERS) == [], path
        tags = browser.run(TAGS)
        assert {tag: n - expected.get(tag, 0) for tag, n in tags.items() if n > expected.get(tag, 0)} == {}, path
        assert browser.run("document.documentElement.scrollWidth") <= width, path


