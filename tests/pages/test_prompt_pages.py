"""Do the pages of prompts show both runs as they stand in the records, with a script and without?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iclens.pages import prompts as pages
from iclens.pages import text
from iclens.pages.prompts import START, Pair, Read, Run, Shown, Token
from iclens.pages.section import Chrome, Source
from iclens.pages.site import files, write_site

from .chromium import Browser
from .made_up import MadeUp, make_site
from .made_up_prompts import make_prompts

HOSTILE = "</script><img src=x onerror=alert(1)>"
KEYS = (("L1.resid_post", 5), ("L1.resid_post", 9), ("L2.mlp_out", 7))
LINKS = {key: f"latents/{key[0]}-{key[1]}.html" for key in KEYS}
MADE = make_prompts(KEYS, lambda word: word + HOSTILE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site, folder = make_site(2, 0, ""), tmp_path_factory.mktemp("prompts") / "site"
    write_site(replace(site, prompts=MADE, source=replace(site.source, links=LINKS)), folder)
    return folder


def sources(shown: Sequence[Pair]) -> dict[str, str]:
    """Path → text of every page of prompts."""
    return {path: write() for path, write in pages.files(shown, Source(MadeUp(), LINKS), Chrome("Made up"))}


def small_pair() -> Pair:
    """One example and a query in A, the query alone in B."""
    start = [Token("<s>", "start", START), Token("\n", "start", START)]
    a = [*start, Token("(", "open", 0), Token("7", "x", 0), Token("(", "open", 1), Token("9", "x", 1)]
    b = [*start, Token("(", "open", 0), Token("9", "x", 0)]
    reads = Read([("10", 0.75)], 0.75), Read([("\n", 0.5)], 0.125)
    latent = Shown(5, "grows", [0, 0, 8, 1, 0.1, 4.5], [0, 0, 0, 12.5])
    sites, lens = {"L1.resid_post": [latent]}, [("the end", *reads)]
    return Pair("x+1", "9", "10", Run(a, reads[0]), Run(b, reads[1]), sites, [], "", lens)


def test_there_are_no_pages_without_prompts() -> None:
    assert not [path for path, _ in files(replace(make_site(2, 0), prompts=None)) if "prompt" in path]
    assert list(sources([])) == ["prompts.html"]
    assert "No prompt is shown" in sources([])["prompts.html"]


def test_list_quotes_the_first_examples_and_says_who_is_right() -> None:
    listed = sources([small_pair()])["prompts.html"]
    row = listed[listed.index("<tbody>") : listed.index("</tbody>")]
    assert '<a href="prompts/1.html">Prompt 1</a>' in row
    assert ">1: <bdi>(7</bdi><" in row
    assert ">10 <small>0.750 right</small>" in row
    assert ">↵ <small>0.500 wrong</small>" in row
    assert pages.quoted(MADE[1]).count("(") == pages.LISTED and pages.quoted(MADE[1])[-1] == "…"


def test_levels_are_shares_of_the_largest_activation_in_both_runs() -> None:
    latent = small_pair().sites["L1.resid_post"][0]
    column = pages.column("L1.resid_post", latent, {("L1.resid_post", 5): "latents/a.html"})
    assert latent.peak == 12.5 and (column.peak, column.page) == ("12.5", "../latents/a.html")
    assert column.levels == {"a": "005113", "b": "0008"}
    assert column.values == {"a": ["8.00", "1.00", "0.100", "4.50"], "b": ["12.5"]}
    assert column.cells("a") == [(0, ""), (0, ""), (5, "8.00"), (1, "1.00"), (1, "0.100"), (3, "4.50")]


def test_the_first_token_does_not_set_the_scale() -> None:
    column = pages.column("L1.resid_post", Shown(5, "", [900, 4, 1], [0, 2]), {})
    assert (column.peak, column.levels) == ("4.00", {"a": "882", "b": "04"})
    assert Shown(5, "", [900, 0], [900]).peak == 900 and Shown(5, "", [], []).peak == 0


def test_query_comes_first_with_run_a_above_run_b() -> None:
    groups = [(title, [(run, pos) for run, pos, _ in rows]) for title, rows in pages._groups(small_pair())]
    assert groups == [
        ("The query", [("a", 4), ("b", 2), ("a", 5), ("b", 3)]),
        ("Before the first example", [("a", 0), ("b", 0), ("a", 1), ("b", 1)]),
        ("Example 1", [("a", 2), ("a", 3)]),
    ]


def test_a_token_that_continues_a_character_is_told_from_an_empty_one() -> None:
    assert Token("", "x", 0, continues=True).shown == "·"
    assert Token("", "x", 0).shown == "∅"
    assert Token("b ", "x", 0, continues=True).shown == "b␣"


def test_shard_holds_every_site_and_every_value_of_the_records() -> None:
    source = sources(MADE)["data/prompts/2.js"]
    prefix = '"use strict";\niclens.give("prompts/2", '
    assert source.startswith(prefix)
    sites: list[dict[str, Any]] = json.loads(source.removeprefix(prefix).removesuffix(");\n"))
    pair = MADE[1]
    assert [given["site"] for given in sites] == list(pair.sites) == ["L1.resid_post", "L2.mlp_out"]
    for (site, latents), given in zip(pair.sites.items(), sites, strict=True):
        for one, column in zip(latents, given["latents"], strict=True):
            assert bool(column["page"]) == ((site, one.latent) in KEYS)
            for run, values in (("a", one.a), ("b", one.b)):
                left = iter(column["values"][run])
                drawn = [next(left) if level != "0" else "0" for level in column["levels"][run]]
                assert drawn == [text.number(value) for value in values]


def test_a_pair_without_a_latent_says_so() -> None:
    written = sources([replace(small_pair(), sites={})])
    assert "No latent is shown." in written["prompts/1.html"]
    assert "data/prompts/1.js" not in written


GRID = """[...document.querySelectorAll('#grid tr[data-at]')]
  .map(row => [row.dataset.at, ...[...row.cells].slice(1).map(cell => cell.textContent)])"""
COLOURS = "[...document.querySelectorAll('.run b')].map(e => [e.className, e.title, e.textContent])"
STATUS = "document.getElementById('coloured').textContent"


def expected_grid(pair: Pair, site: str) -> list[list[str]]:
    """What the grid holds for a site: place, then every latent's activation, blank where it is silent."""
    values = {"a": [one.a for one in pair.sites[site]], "b": [one.b for one in pair.sites[site]]}
    return [
        [f"{run}{pos}", *(text.number(own[pos]) if own[pos] > 0 else "" for own in values[run])]
        for _, rows in pages._groups(pair)
        for run, pos, _ in rows
    ]


@pytest.mark.browser
def test_without_a_script_the_first_site_is_there_and_its_first_latent_colours_the_text(
    browser: Browser, folder: Path
) -> None:
    page = folder / "prompts" / "1.html"
    browser.open(page, scripts=False)
    assert browser.run("document.querySelector('.pick').hidden && !document.querySelector('noscript').hidden")
    written = browser.run(GRID), browser.run(COLOURS), browser.run(STATUS)
    assert written[0] == expected_grid(MADE[0], "L1.resid_post")
    assert sum(bool(colour) for colour, _, _ in written[1]) > 10
    browser.open(page)
    assert (browser.run(GRID), browser.run(COLOURS), browser.run(STATUS)) == written
    assert not browser.run("document.querySelector('.pick').hidden")
    assert browser.complaints() == []


@pytest.mark.browser
def test_another_site_comes_from_the_shard_and_back(browser: Browser, folder: Path) -> None:
    browser.open(folder / "prompts" / "2.html")
    written = browser.run(GRID)
    assert not [url for url in browser.requested() if url.endswith("data/prompts/2.js")]
    for name in ("L2.mlp_out", "L1.resid_post"):
        browser.run(
            f"(() => {{ const s = document.getElementById('site'); s.value = '{name}';"
            " s.dispatchEvent(new Event('change')); })()"
        )
        browser.until(f"document.getElementById('caption').textContent === '{name}'")
        assert browser.run(GRID) == expected_grid(MADE[1], name)
        assert browser.run(STATUS).startswith(f"{name} · ")
        first = MADE[1].sites[name][0].latent
        assert browser.run("location.hash") == f"#latent={name}/{first}"
        links = browser.run(
            "[...document.querySelectorAll('#grid thead a')].map(a => a.getAttribute('href'))"
        )
        assert links == [f"../latents/{at}-{latent}.html" for at, latent in KEYS if at == name]
    assert browser.run(GRID) == written
    assert browser.complaints() == []


@pytest.mark.browser
def test_of_two_sites_asked_for_at_once_the_later_is_shown(browser: Browser, folder: Path) -> None:
    browser.open(folder / "prompts" / "2.html")
    browser.run(
        "(() => { const s = document.getElementById('site');"
        " for (const name of ['L2.mlp_out', 'L1.resid_post'])"
        " { s.value = name; s.dispatchEvent(new Event('change')); }"
        " iclens.need(s.dataset.rows).then(() => setTimeout(() => { window.given = true; })); })()"
    )
    browser.until("window.given")
    assert browser.run("document.getElementById('site').value") == "L1.resid_post"
    assert browser.run(GRID) == expected_grid(MADE[1], "L1.resid_post")


@pytest.mark.browser
def test_enter_on_a_latent_colours_the_text_by_it_and_names_it_in_the_address(
    browser: Browser, folder: Path
) -> None:
    browser.open(folder / "prompts" / "2.html")
    one = MADE[1].sites["L1.resid_post"][3]
    browser.run("document.querySelectorAll('#grid thead button')[3].focus()")
    browser.press("Enter", 13)
    pressed = browser.run(
        "[...document.querySelectorAll('#grid thead button')].map(b => b.getAttribute('aria-pressed'))"
    )
    assert [i for i, state in enumerate(pressed) if state == "true"] == [3]
    titles = [title for _, title, _ in browser.run(COLOURS)]
    assert titles == [text.number(value) if value > 0 else "" for value in (*one.a, *one.b)]
    assert browser.run(STATUS) == f"L1.resid_post · {one.latent}, largest {text.number(one.peak)}"
    assert browser.run("location.hash") == f"#latent=L1.resid_post/{one.latent}"
    assert browser.complaints() == []


@pytest.mark.browser
def test_a_link_to_a_latent_opens_its_site_and_selects_it(browser: Browser, folder: Path) -> None:
    address = (folder / "prompts" / "1.html").resolve().as_uri()
    browser.open(f"{address}#latent=L2.mlp_out/702")
    browser.until(f"{STATUS}.startsWith('L2.mlp_out · 702, largest')")
    assert browser.run("document.getElementById('site').value") == "L2.mlp_out"
    browser.run("location.replace('#latent=L1.resid_post/9')")
    browser.until(f"{STATUS}.startsWith('L1.resid_post · 9, largest')")
    browser.run("location.replace('#latent=L2.mlp_out/123456')")
    browser.until(f"{STATUS}.endsWith('; 123456 is not shown with this prompt')")
    browser.run("location.replace('#latent=L9.mlp_out/1')")
    browser.until(f"{STATUS}.endsWith('; L9.mlp_out is not shown with this prompt')")
    browser.run("location.replace('#latent=%E0%A4%A/1')")
    assert browser.complaints() == []


@pytest.mark.browser
def test_a_missing_shard_is_said_and_the_page_goes_on(browser: Browser, folder: Path, tmp_path: Path) -> None:
    site = Path(shutil.copytree(folder, tmp_path / "site"))
    (site / "data" / "prompts" / "1.js").unlink()
    browser.open(f"{(site / 'prompts' / '1.html').resolve().as_uri()}#latent=L2.mlp_out/702")
    assert "data/prompts/1.js" in browser.until(f"{STATUS}.includes('missing') && {STATUS}")
    assert browser.run("document.getElementById('site').value") == "L1.resid_post"
    assert browser.run(GRID) == expected_grid(MADE[0], "L1.resid_post")
    browser.open(f"{(site / 'prompts' / '1.html').resolve().as_uri()}#latent=L1.resid_post/9")
    assert browser.run(STATUS).startswith("L1.resid_post · 9, largest")
    assert not [url for url in browser.requested() if url.endswith("data/prompts/1.js")]


@pytest.mark.browser
def test_next_and_previous_lead_through_the_prompts(browser: Browser, folder: Path) -> None:
    for number, rel, other in ((1, "next", 2), (2, "next", 3), (3, "prev", 2), (2, "prev", 1)):
        browser.open(folder / "prompts" / f"{number}.html")
        there = (folder / "prompts" / f"{other}.html").resolve().as_uri()
        assert browser.run(f"document.querySelector('a[rel={rel}]').href") == there
    browser.open(folder / "prompts" / "3.html")
    assert browser.run("document.querySelector('a[rel=next]')") is None


@pytest.mark.browser
@pytest.mark.parametrize(("width", "stacked"), [(1280, False), (799, True), (360, True)])
def test_runs_stand_side_by_side_or_one_below_the_other(
    browser: Browser, folder: Path, width: int, stacked: bool
) -> None:
    browser.open(folder / "prompts" / "1.html", width=width)
    tops = browser.run("[...document.querySelectorAll('.ab > div')].map(e => e.getBoundingClientRect().top)")
    assert (tops[1] > tops[0]) is stacked
    assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_text_of_every_script_keeps_its_place_in_the_line(browser: Browser, folder: Path) -> None:
    browser.open(folder / "prompts" / "1.html")
    lefts = browser.run(
        "[...document.querySelectorAll('.run p')].slice(2, 6)"
        ".map(p => [...p.querySelectorAll('b')].map(e => e.getBoundingClientRect().left))"
    )
    assert all(len(line) == 6 and line == sorted(line) for line in lefts)
    shown = browser.run("document.querySelector('.run').textContent")
    assert HOSTILE.replace(" ", "␣") in shown and "مرحبا" in shown and "\\u{202e}7" in shown
