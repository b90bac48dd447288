"""Does the table of latents find what a search, a filter or a link names, and say what it printed?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from iclens.pages import text
from iclens.pages.site import write_site

from .chromium import Browser
from .made_up import make_site
from .table_reader import NAMES, ROWS, STATUS, TABLE, enter, expect, names, rows_of, show

SPACED = " two  words "
MOVED = TABLE.assign(
    answer=[math.nan if i % 5 == 0 else math.sin(i) for i in range(len(TABLE))],
    label=[SPACED if i % 60 == 7 else label for i, label in enumerate(TABLE["label"])],
)
ANSWERED = rows_of(MOVED)
HEADINGS = "[...document.querySelectorAll('#table thead th:not([hidden])')]"
browser_test = pytest.mark.browser


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose latents move the task's own answer, and whose labels have doubled and edge spaces."""
    site, folder = make_site(4, 0, ""), tmp_path_factory.mktemp("answered") / "site"
    write_site(replace(site, rows=MOVED, prompts=None), folder)
    return folder


@browser_test
@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        ("L2.mlp_out-33", lambda row: row.key == ("L2.mlp_out", 33)),
        ("L2.mlp_out/33", lambda row: row.key == ("L2.mlp_out", 33)),
        ("l2.MLP_out·33", lambda row: row.key == ("L2.mlp_out", 33)),
        ("blocks.2.hook_mlp_out/33", lambda row: row.key == ("L2.mlp_out", 33)),
        ("L2.mlp_out-3", lambda row: row.key == ("L2.mlp_out", 3)),
        ("mlp_out-3", lambda row: False),
        ("blocks.2.hook_mlp_out", lambda row: row.site == "L2.mlp_out"),
        ("blocks.2.hook_mlp", lambda row: False),
        ("counting", lambda row: row.follows == "counting"),
        ("exact posterior L2", lambda row: row.follows == "exact posterior" and row.site.startswith("L2")),
    ],
)
def test_a_search_finds_what_links_hooks_and_accounts_name(
    browser: Browser, site: Path, asked: str, holds: Callable[[SimpleNamespace], bool]
) -> None:
    show(browser, site)
    enter(browser, "search", asked)
    expect(browser, [row for row in ROWS if holds(row)])


@browser_test
def test_the_change_of_the_answer_sorts_largest_first(browser: Browser, answered: Path) -> None:
    known = [row for row in ANSWERED if not math.isnan(row.answer)]
    unknown = [row for row in ANSWERED if math.isnan(row.answer)]
    downward = sorted(known[::-1], key=lambda row: text.three_digits(row.answer))[::-1]  # type: ignore[arg-type, return-value]
    show(browser, answered)
    heading = browser.run("document.querySelector('[data-name=answer]').textContent")
    assert heading == "on the answer"
    browser.run("document.querySelector('[data-name=answer] button').click()")
    expect(browser, downward + unknown)
    place = f"{HEADINGS}.findIndex(heading => heading.dataset.name === 'answer')"
    cell = browser.run(f"document.querySelector('#table tbody [aria-rowindex]').cells[{place}].textContent")
    assert cell == text.number(downward[0].answer)


@browser_test
def test_rows_that_stand_without_a_script_fill_every_column_shown(browser: Browser, answered: Path) -> None:
    browser.open(answered / "latents.html", scripts=False)
    shown = browser.run(f"{HEADINGS}.map(heading => heading.textContent)")
    assert shown[-1] == "on the answer"
    cells = browser.run(
        "[...document.querySelectorAll('#table tbody tr')].map(({ cells }) =>"
        " [cells.length, cells[cells.length - 1].textContent])"
    )
    assert cells == [[len(shown), text.number(row.answer)] for row in ANSWERED[:50]]


@browser_test
def test_words_with_doubled_and_edge_spaces_are_filtered_and_linked(browser: Browser, answered: Path) -> None:
    wanted = [row for row in ANSWERED if row.label == SPACED]
    assert len(wanted) == 4
    show(browser, answered)
    enter(browser, "label", SPACED)
    expect(browser, wanted)
    show(browser, answered, browser.run("location.hash.slice(1)"))
    expect(browser, wanted)


@browser_test
def test_a_link_that_asks_for_what_is_not_there_says_so(browser: Browser, site: Path) -> None:
    asked = "site=L9.none&sort=shape&columns=density,colour&effect=-1&hue=3&row=0x2&constructor=1"
    show(browser, site, asked)
    said = browser.run(STATUS)
    for part in ("site L9.none", "sort shape", "columns colour", "effect -1", "hue 3", "row 0x2"):
        assert part in said
    assert "constructor 1" in said and " of 240. The link asked for what is not here" in said
    show(browser, site, "row=999")
    assert browser.run(STATUS).endswith("row 999") and "–240 of 240" in browser.run(STATUS)
    enter(browser, "search", "l2")
    assert "not here" not in browser.run(STATUS)
    browser.run("location.hash = 'site=L1.mlp_out'")
    browser.until(f"{STATUS}.includes('of 40 ')")
    browser.run("location.hash = 'main'")
    assert " of 40 " in browser.run(STATUS)


@browser_test
@pytest.mark.parametrize(
    "asked", ["effect=0x10", "q_value=Infinity", "effect=", "q_value=1e999", "effect=-1"]
)
def test_a_number_that_the_field_cannot_hold_is_said(browser: Browser, site: Path, asked: str) -> None:
    show(browser, site, asked)
    said = browser.run(STATUS)
    assert " of 240. The link asked for what is not here" in said
    assert said.endswith(asked.replace("=", " "))


@browser_test
def test_a_place_in_the_page_asks_for_no_rows(browser: Browser, site: Path) -> None:
    show(browser, site, "main")
    expect(browser, ROWS)
    assert "not here" not in browser.run(STATUS)
    enter(browser, "site", "L1.mlp_out")
    browser.run("location.hash = 'main'")
    browser.until("location.hash === '#site=L1.mlp_out'")
    expect(browser, [row for row in ROWS if row.site == "L1.mlp_out"])


@browser_test
def test_a_printed_table_is_its_rows_and_says_which(browser: Browser, site: Path) -> None:
    show(browser, site, "sort=latent&row=101")
    enter(browser, "q_value", "0.99")
    browser.run("document.querySelector('#table tbody a, #table tbody [tabindex]').focus()")
    browser.run("(() => { document.getElementById('region').scrollTop = 100 * 34 + 9; })()")
    browser.until(f"{STATUS}.startsWith('rows 102–')")
    said = "document.getElementById('printed')"
    assert browser.run(f"getComputedStyle({said}).display") == "none"
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    browser.media("print")
    for selector in ("#controls", "#pager", ".space"):
        assert browser.run(f"getComputedStyle(document.querySelector('{selector}')).display") == "none"
    region = browser.run("(r => [r.scrollHeight, r.clientHeight])(document.getElementById('region'))")
    assert region[0] == region[1]
    found = [row for row in sorted(ROWS, key=lambda row: (row.site, row.latent)) if row.q_value <= 0.99]
    shown = browser.run(NAMES)
    assert 15 < len(shown) < 40 and shown == names(found)[100 : 100 + len(shown)]
    rows = f"Rows 101–{100 + len(shown)} of {len(found)} (240 in all)"
    assert browser.run(f"{said}.innerText") == f"{rows}; q at most 0.99; sorted by latent, ascending"
    browser.media("screen")
