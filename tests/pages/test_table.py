"""The table of latents: search, filters, sorting, columns, links, by mouse and by keyboard, and on paper."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from iclens.pages import text
from iclens.pages.latents import address, table_script
from iclens.pages.site import write_site
from iclens.pages.text import number_column, word_column

from .chromium import Browser
from .made_up import HOSTILE, make_rows, make_site


def rows_of(table: pd.DataFrame) -> list[SimpleNamespace]:
    """Rows of the table of latents, each with its key and the address of its page."""
    return [
        SimpleNamespace(**row, key=(row["site"], row["latent"]), page=address(row["site"], row["latent"]))
        for row in table.to_dict("records")
    ]


TABLE = make_rows(40, HOSTILE)
ROWS = rows_of(TABLE)
SPACED = " two  words "
MOVED = TABLE.assign(
    answer=[math.nan if i % 5 == 0 else math.sin(i) for i in range(len(TABLE))],
    label=[SPACED if i % 60 == 7 else label for i, label in enumerate(TABLE["label"])],
)
ANSWERED = rows_of(MOVED)
HEADINGS = "[...document.querySelectorAll('#table thead th:not([hidden])')]"
STATUS = "document.getElementById('status').textContent"
NAMES = "[...document.querySelectorAll('#table tbody [aria-rowindex] th')].map(cell => cell.textContent)"
FOCUS = "document.activeElement"


def names(rows: Sequence[SimpleNamespace]) -> list[str]:
    """What stands in the first column."""
    return [f"{row.site} · {row.latent}" for row in rows]


def show(browser: Browser, site: Path, asked: str = "", **window: int) -> None:
    """Open the table, with what a link asks for, and wait for its rows."""
    browser.open(f"{(site / 'latents.html').resolve().as_uri()}#{asked}", **window)
    browser.until(STATUS)


def enter(browser: Browser, field: str, value: str) -> None:
    """Put a value into a control, as a reader does."""
    browser.run(
        f"(() => {{ const field = document.getElementById('{field}'); field.value = {json.dumps(value)};"
        " field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def expect(browser: Browser, rows: Sequence[SimpleNamespace]) -> None:
    """Exactly these rows are found, in this order, and the first of them stand there."""
    shown = browser.run(NAMES)
    assert shown == names(rows)[: len(shown)]
    assert len(shown) >= min(len(rows), 18)
    said = browser.run(STATUS)
    assert f" of {len(rows)}" in said if rows else said.startswith("No latent matches")
    assert ("(240 in all)" in said) is (len(rows) < 240)


browser_test = pytest.mark.browser


@pytest.fixture(scope="module")
def long_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with 20,004 latents and little else."""
    site, rows = make_site(4, 1, ""), make_rows(3334, "")
    keys = zip(rows["site"].head(200), rows["latent"].head(200), strict=True)
    source = replace(site.source, links={key: address(*key) for key in keys})
    folder = tmp_path_factory.mktemp("long") / "site"
    write_site(replace(site, source=source, rows=rows, latents=(), prompts=None), folder)
    return folder


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose latents move the task's own answer, and whose labels have doubled and edge spaces."""
    site, folder = make_site(4, 0, ""), tmp_path_factory.mktemp("answered") / "site"
    write_site(replace(site, rows=MOVED, prompts=None), folder)
    return folder


def test_a_column_of_numbers_keeps_three_digits_and_no_more_bytes_than_it_needs() -> None:
    values = [0.01234, -0.5, 3.0, 1234.5, math.nan, 1.5e-7, 0.0, math.inf, -1.0, 2e7]
    assert number_column(values) == ".0123 -.5 3 1230  1.5e-7 0  -1 20000000.0"


def test_a_column_of_words_is_places_in_reading_order() -> None:
    words, places = word_column(["L10.mlp_out", "", "L2.mlp_out", "L2.attn_out", "L10.mlp_out"])
    assert words == ["L2.attn_out", "L2.mlp_out", "L10.mlp_out"]
    assert places == "2  1 0 2"
    assert word_column([]) == ([], "")


def test_rows_are_an_inert_shard_that_holds_every_value() -> None:
    script = table_script(TABLE, {row.key: row.page for row in ROWS[:4]})
    head = '"use strict";\niclens.give("latents", '
    assert script.startswith(head) and script.endswith(");\n")
    assert not set("<>&\u2028\u2029") & set(script)
    given = json.loads(script.removeprefix(head).removesuffix(");\n"))
    read = {name: column.split(" ") for name, column in given["values"].items()}
    assert given["rows"] == 240 and {len(column) for column in read.values()} == {240}
    for i, row in enumerate(ROWS):
        for name, words in given["words"].items():
            assert (words[int(read[name][i])] if read[name][i] else "") == getattr(row, name)
        for name in ("density", "slope", "q_value", "auroc", "effect", "control_p"):
            written = float(read[name][i]) if read[name][i] else None
            assert written == text.three_digits(getattr(row, name))
        assert read["latent"][i] == str(row.latent)
    assert read["page"] == ["1"] * 4 + [""] * 236


SEARCHES: dict[str, Callable[[SimpleNamespace], bool]] = {
    "L2.mlp GROWS": lambda row: row.site == "L2.mlp_out" and row.verdict.startswith("grows"),
    "candidate close": lambda row: row.label == "candidate" and row.role == "close",
    "17 l1": lambda row: "17" in str(row.latent) and "L1" in row.site,
    HOSTILE: lambda row: row == ROWS[0],
    "no such latent": lambda row: False,
    "L2.mlp_out-33": lambda row: row.key == ("L2.mlp_out", 33),
    "L2.mlp_out/33": lambda row: row.key == ("L2.mlp_out", 33),
    "l2.MLP_out·33": lambda row: row.key == ("L2.mlp_out", 33),
    "blocks.2.hook_mlp_out/33": lambda row: row.key == ("L2.mlp_out", 33),
    "L2.mlp_out-3": lambda row: row.key == ("L2.mlp_out", 3),
    "mlp_out-3": lambda row: False,
    "blocks.2.hook_mlp_out": lambda row: row.site == "L2.mlp_out",
    "blocks.2.hook_mlp": lambda row: False,
    "counting": lambda row: row.follows == "counting",
    "exact posterior L2": lambda row: row.follows == "exact posterior" and row.site.startswith("L2"),
    "": lambda row: True,
}
"""What is searched for, words and what links, hooks and accounts name, and which rows have all of it."""


@browser_test
def test_all_words_of_a_search_must_occur(browser: Browser, site: Path) -> None:
    show(browser, site)
    expect(browser, ROWS)
    for asked, holds in SEARCHES.items():
        enter(browser, "search", asked)
        expect(browser, [row for row in ROWS if holds(row)])
    assert browser.complaints() == []


@browser_test
@pytest.mark.parametrize(
    ("field", "value", "holds"),
    [
        ("site", "L2.mlp_out", lambda row: row.site == "L2.mlp_out"),
        ("verdict", "none", lambda row: row.verdict == "none"),
        ("label", HOSTILE, lambda row: row.label == HOSTILE),
        ("concept", "double", lambda row: row.concept == "double"),
        ("belief", "exact", lambda row: row.belief == "exact"),
        ("effect", "0.3", lambda row: abs(row.effect) >= 0.3),
        ("q_value", "1e-6", lambda row: row.q_value <= 1e-6),
    ],
)
def test_each_filter_keeps_what_it_names(
    browser: Browser, site: Path, field: str, value: str, holds: Callable[[SimpleNamespace], bool]
) -> None:
    show(browser, site)
    enter(browser, field, value)
    wanted = [row for row in ROWS if holds(row)]
    assert 0 < len(wanted) < 240
    expect(browser, wanted)
    enter(browser, "search", "l2")
    expect(browser, [row for row in wanted if row.site.startswith("L2")])
    browser.run("document.getElementById('restore').click()")
    expect(browser, ROWS)


@browser_test
def test_only_latents_with_a_page(browser: Browser, site: Path) -> None:
    show(browser, site)
    browser.run("document.getElementById('paged').click()")
    expect(browser, ROWS[:4])
    links = browser.run("[...document.querySelectorAll('#table tbody a')].map(link => link.href)")
    assert links == [(site / row.page).resolve().as_uri() for row in ROWS[:4]]


KEYS: dict[str, Callable[[SimpleNamespace], object]] = {
    "latent": lambda row: (row.site, row.latent),
    "density": lambda row: text.three_digits(row.density),
    "role": lambda row: row.role,
    "q_value": lambda row: text.three_digits(row.q_value),
    "label": lambda row: row.label.casefold(),
    "answer": lambda row: text.three_digits(row.answer),
}


@browser_test
@pytest.mark.parametrize("column", list(KEYS))
def test_a_heading_sorts_both_ways_with_the_undefined_last_and_then_restores(
    browser: Browser, answered: Path, column: str
) -> None:
    show(browser, answered)
    heading, key = f"document.querySelector('[data-name={column}]')", KEYS[column]
    known = [row for row in ANSWERED if key(row) not in (None, "")]
    unknown = [row for row in ANSWERED if key(row) in (None, "")]
    orders = ("descending", "ascending") if column in ("density", "answer") else ("ascending", "descending")
    for order in orders:
        browser.run(f"{heading}.firstElementChild.click()")
        assert browser.run(f"{heading}.getAttribute('aria-sort')") == order
        # reversed() twice keeps the table's own order among equals
        upward, downward = sorted(known, key=key), sorted(known[::-1], key=key)[::-1]  # type: ignore[arg-type]
        expect(browser, (upward if order == "ascending" else downward) + unknown)
    browser.run(f"{heading}.firstElementChild.click()")
    assert browser.run(f"{heading}.getAttribute('aria-sort')") == "none"
    expect(browser, ANSWERED)


@browser_test
def test_columns_are_chosen(browser: Browser, site: Path) -> None:
    headings = "[...document.querySelectorAll('#table thead th:not([hidden])')].map(h => h.textContent)"
    show(browser, site)
    before = browser.run(headings)
    assert before[0] == "latent" and "follows" not in before and "density" in before
    browser.run("document.querySelector('[name=column][value=density]').click()")
    browser.run("document.querySelector('[name=column][value=follows]').click()")
    after = [name for name in before if name != "density"] + ["follows"]
    assert browser.run(headings) == after
    assert browser.run("document.querySelectorAll('#table tbody [aria-rowindex]')[3].cells.length") == len(
        after
    )
    show(browser, site, browser.run("location.hash.slice(1)"))
    assert browser.run(headings) == after
    show(browser, site, "columns=")
    assert browser.run(headings) == ["latent"]
    browser.run("document.getElementById('restore').click()")
    assert browser.run(headings) == before


@browser_test
def test_pages_are_screenfuls_and_the_button_keeps_the_focus(browser: Browser, site: Path) -> None:
    show(browser, site, height=900)
    fit = int(browser.run(STATUS).split("–")[1].split(" ")[0])
    assert 10 < fit < 30
    browser.run("document.getElementById('forth').focus()")
    browser.press("Enter", 13)
    assert browser.run(STATUS) == f"rows {fit + 1}–{2 * fit} of 240"
    for _ in range(240 // fit + 2):
        browser.press("Enter", 13)
    assert browser.run(STATUS) == f"rows {240 - fit + 1}–240 of 240"
    assert browser.run(f"{FOCUS}.id + {FOCUS}.ariaDisabled") == "forthtrue"
    assert browser.run(NAMES)[-1] == names(ROWS)[-1]
    browser.run("document.getElementById('back').click()")
    assert browser.run(STATUS) == f"rows {240 - 2 * fit + 1}–{240 - fit} of 240"


@browser_test
def test_a_link_and_back_restore_what_was_shown(browser: Browser, long_site: Path) -> None:
    show(browser, long_site)
    for field, value in (("search", "l2"), ("site", "L2.mlp_out"), ("q_value", "0.9")):
        enter(browser, field, value)
    browser.run("document.querySelector('[data-name=slope] button').click()")
    browser.run("document.querySelector('[name=column][value=label]').click()")
    browser.run("document.getElementById('forth').click()")
    state = f"[location.href, {STATUS}, {NAMES}, [...document.querySelectorAll('#controls [name]')]"
    state += ".map(field => [field.name, field.value, field.checked])]"
    before = browser.run(state)
    fragment = before[0].partition("#")[2]
    for part in ("q=l2", "site=L2.mlp_out", "q_value=0.9", "sort=-slope", "columns=density,", "row="):
        assert part in fragment
    show(browser, long_site, fragment)
    assert browser.run(state) == before
    browser.run("setTimeout(() => { location.href = 'how.html'; })")  # an answer before the page goes away
    browser.until("location.pathname.endsWith('how.html') && document.readyState === 'complete'")
    browser.run("setTimeout(() => history.back())")
    browser.until("location.pathname.endsWith('latents.html') && document.readyState === 'complete'")
    browser.until(STATUS)
    assert browser.run(state) == before


@browser_test
def test_the_table_is_used_by_keyboard_alone(browser: Browser, site: Path) -> None:
    show(browser, site)
    browser.press("/", 191)
    assert browser.run(f"{FOCUS} === document.body"), "a key that is a character works only in the table"
    for place in ("region", "paged", "forth"):
        browser.run(f"document.getElementById('{place}').focus()")
        browser.press("/", 191)
        assert browser.run(f"{FOCUS}.id") == "search", place
    browser.press("/", 191)
    assert browser.run("document.getElementById('search').value") == "/", "in a field it is a character"
    browser.run("document.getElementById('search').select()")
    browser.type("grows")
    for _ in range(40):
        browser.press("Tab", 9)
        if browser.run(f"{FOCUS}.closest('tbody') !== null"):
            break
    place = f"Number({FOCUS}.closest('tr').getAttribute('aria-rowindex'))"
    assert browser.run(place) == 2
    assert browser.run("document.querySelectorAll('#table tbody [tabindex=\"0\"]').length") == 1
    for key, code, there in (
        ("ArrowDown", 40, 3),
        ("ArrowDown", 40, 4),
        ("ArrowUp", 38, 3),
        ("End", 35, 19),
        ("ArrowDown", 40, 19),
        ("Home", 36, 2),
        ("PageDown", 34, 19),
        ("PageUp", 33, 2),
        ("ArrowUp", 38, 2),
        ("ArrowDown", 40, 3),
    ):
        browser.press(key, code)
        assert browser.run(place) == there, key
    browser.press("Enter", 13)
    wanted = [row for row in ROWS if "grows" in row.verdict][1]
    browser.until(f"location.pathname.endsWith({json.dumps(wanted.page)})")


@browser_test
def test_few_rows_are_in_the_page_and_the_focused_one_is_never_lost(
    browser: Browser, long_site: Path
) -> None:
    show(browser, long_site)
    in_page = "document.querySelectorAll('#table tbody tr').length"
    assert browser.run(in_page) < 120
    assert browser.run("document.getElementById('table').getAttribute('aria-rowcount')") == "20005"
    browser.run("document.querySelectorAll('#table tbody a')[2].focus()")
    name = browser.run(f"{FOCUS}.textContent")
    for place in (5000, 19_000, 400):
        browser.run(f"document.getElementById('region').scrollTop = {place} * 34")
        browser.until(f"{STATUS}.startsWith('rows {place + 1:,}–')")
        assert browser.run(in_page) < 120
        assert browser.run(f"{FOCUS}.textContent") == name
        top = browser.run(
            "(() => { const head = document.querySelector('#table thead th').getBoundingClientRect().bottom;"
            "return [...document.querySelectorAll('#table tbody [aria-rowindex]')]"
            ".find(row => row.getBoundingClientRect().bottom > head + 2).getAttribute('aria-rowindex'); })()"
        )
        assert int(top) == place + 2
    browser.press("ArrowDown", 40)
    assert browser.run(f"{FOCUS}.closest('tr').getAttribute('aria-rowindex')") == "5"
    browser.until(f"{STATUS}.startsWith('rows 4–')")
    browser.press("End", 35)
    browser.until(f"{STATUS}.includes('–20,004 of 20,004')")
    assert browser.run(f"{FOCUS}.closest('tr').getAttribute('aria-rowindex')") == "20005"
    browser.run("document.getElementById('region').focus()")
    for key, code, said in (
        ("End", 35, "–20,004 of 20,004"),
        ("Home", 36, "rows 1–"),
        ("ArrowDown", 40, "rows 2–"),
    ):
        browser.press(key, code)
        browser.until(f"{STATUS}.includes('{said}')")
    last = int(re.findall(r"\d+", browser.run(STATUS))[1])  # how many rows fit depends on the fonts there are
    browser.press("PageDown", 34)
    browser.until(f"{STATUS}.startsWith('rows {last + 1}–')")
    assert browser.complaints() == []


@browser_test
def test_the_first_rows_stand_without_a_script_in_every_column_shown(
    browser: Browser, answered: Path
) -> None:
    browser.open(answered / "latents.html", scripts=False)
    assert browser.run("[...document.querySelectorAll('#table tbody th')].map(e => e.textContent)") == names(
        ANSWERED[:50]
    )
    assert browser.run("document.querySelector('.controls').hidden")
    assert "The first 50 of 240 rows" in browser.run("document.querySelector('noscript').innerText")
    shown = browser.run(f"{HEADINGS}.map(heading => heading.textContent)")
    assert shown[-1] == "on the answer"
    cells = browser.run(
        "[...document.querySelectorAll('#table tbody tr')].map(({ cells }) =>"
        " [cells.length, cells[cells.length - 1].textContent])"
    )
    assert cells == [[len(shown), text.number(row.answer)] for row in ANSWERED[:50]]


@browser_test
@pytest.mark.parametrize("damage", ["missing", "cut off", "a column too short", "something else"])
def test_without_its_rows_the_page_says_so_and_keeps_the_first(
    browser: Browser, site: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(site, tmp_path / "site")
    rows = tmp_path / "site" / "data" / "latents.js"
    written = rows.read_text(encoding="utf-8")
    rows.unlink()
    if damage != "missing":
        short = written.replace('"rows":240', '"rows":241')
        changed = {"cut off": written[:2000], "a column too short": short, "something else": "0;\n"}
        rows.write_text(changed[damage], encoding="utf-8")
    browser.open(tmp_path / "site" / "latents.html")
    alert = "document.querySelector('[role=alert]').textContent"
    browser.until(alert)
    assert "data/latents.js is" in browser.run(alert)
    assert browser.run("document.querySelectorAll('#table tbody tr').length") == 50
    assert browser.run("document.querySelector('.controls').hidden")


@browser_test
def test_a_narrow_window_scrolls_the_table_under_its_first_column(browser: Browser, site: Path) -> None:
    show(browser, site, width=360, height=740)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    left = "document.querySelector('#table tbody [aria-rowindex] th').getBoundingClientRect().left"
    before = browser.run(left)
    region = "document.getElementById('region')"
    assert browser.run(f"{region}.scrollLeft = 300, {region}.scrollLeft") == 300
    assert browser.run(left) == before
    fields = "[...document.querySelectorAll('#controls select, #controls input[type=number]')]"
    assert browser.run(f"Math.max(...{fields}.map(f => f.getBoundingClientRect().right))") <= 360


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
    for asked in ("effect=0x10", "q_value=Infinity", "effect=", "q_value=1e999"):
        show(browser, site, asked)
        said = browser.run(STATUS)
        assert " of 240. The link asked for what is not here" in said
        assert said.endswith(asked.replace("=", " "))
    show(browser, site, "row=999")
    assert browser.run(STATUS).endswith("row 999") and "–240 of 240" in browser.run(STATUS)
    enter(browser, "search", "l2")
    assert "not here" not in browser.run(STATUS)
    browser.run("location.hash = 'site=L1.mlp_out'")
    browser.until(f"{STATUS}.includes('of 40 ')")
    browser.run("location.hash = 'main'")
    assert " of 40 " in browser.run(STATUS)


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
