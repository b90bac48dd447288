"""Does the page of how it was computed show every record, and say what is not known?"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from iclens.dashboards.pages import how
from iclens.dashboards.pages.page import Chrome
from iclens.dashboards.records.how import Command, HowView, Named, SelfTest, StageRow, TestGroup
from iclens.dashboards.records.site import SiteView

HOSTILE = "</script><img src=x onerror=alert(1)>"
LONG = "cb8ff8e66942c46064472d7427fed376737480bfebfefb57d57ba4e8591f95c4"
HOW = HowView(
    config="study: demo" + HOSTILE,
    run="20260101T000000Z-00000000",
    stages=[
        StageRow(
            "sweep", "10_sweep", "done", 20.81, "71b6faa11ea863b1",
            [Named("config", "564d7e6aeeee0220")], [Named("best layer" + HOSTILE, "3")],
            [Named("sweep.parquet", LONG)], "iclens sweep RUN",
        ),
        StageRow("patch", "11_patch", "no record: 11_patch/stage.json is missing or damaged"),
    ],
    commands=[Command("iclens study RUN/config.yaml" + HOSTILE, "everything")],
    hashes=[Named("model", "fc6bd3d101d03fa7")],
    versions=[Named("torch", "2.13.0")],
    seeds=[Named("sweep.seed", "2")],
    tests=[
        TestGroup(
            "the growth claim",
            "It does not prove it.",
            [
                SelfTest("Does growth saturate?", "fired", "n^0.30" + HOSTILE, "Fires when yes."),
                SelfTest("Is the order what matters?", "passed", "0.10", "Fires when yes."),
                SelfTest("Found again?", "not asked", "Not run: no other SAEs.", "Fires below half."),
            ],
        )
    ],
    measured=[Named("manifest", LONG)],
)  # fmt: skip


def page_of(view: SiteView) -> str:
    """The page's text."""
    (page,) = how.pages(view, Chrome(view.title))
    return page.write()


def test_every_record_is_shown(view_of: Callable[..., SiteView]) -> None:
    text = page_of(replace(view_of(4, 1), how=HOW))
    for said in (
        "20.8", "71b6faa11ea863b1", "no record: 11_patch/stage.json", "iclens sweep RUN", "fc6bd3d101d03fa7",
        "2.13.0", "sweep.seed", "It does not prove it.", "Not run: no other SAEs.", "Fires below half.",
        "study: demo",
    ):  # fmt: skip
        assert said in text
    assert "<img" not in text and "<script" not in text and "style=" not in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_a_long_hash_is_shortened_and_stands_whole_in_its_title(view_of: Callable[..., SiteView]) -> None:
    text = page_of(replace(view_of(4, 1), how=HOW))
    assert text.count(f'<code title="{LONG}">cb8ff8e66942c460…</code>') == 2
    assert "<code>71b6faa11ea863b1</code>" in text


def test_verdicts_are_counted(view_of: Callable[..., SiteView]) -> None:
    more = replace(HOW.tests[0], tests=[*HOW.tests[0].tests, HOW.tests[0].tests[0]])
    text = page_of(replace(view_of(4, 1), how=replace(HOW, tests=[more])))
    stats = text.split('<dl class="stats">', 1)[1].split("</dl>", 1)[0]
    assert re.findall(r"<dt>([^<]+)</dt><dd>(\d+)</dd>", stats) == [
        ("passed", "1"), ("fired", "2"), ("not asked", "1"),
    ]  # fmt: skip


def test_what_is_not_known_is_said(view_of: Callable[..., SiteView]) -> None:
    empty = replace(view_of(4, 1), how=None, quality=(), provenance=(), notes=())
    text = page_of(empty)
    for said in (
        "No record of this run", "No self-test is known.", "No SAE was measured.", "No stage is known.",
        "No command is known.", "None is known.", "The config is not known.",
    ):  # fmt: skip
        assert said in text
    lost = replace(empty, how=HowView(reasons={"card": "Not known: no card."}))
    text = page_of(lost)
    assert "Not known: no card." in text and "None is known." not in text
