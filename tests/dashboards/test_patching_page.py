"""Does the page of patching show every value as text, tell its lines apart, and say why a part is empty?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from iclens.core import TableError
from iclens.dashboards.charts import patching as charts
from iclens.dashboards.pages import patching
from iclens.dashboards.pages.page import Chrome
from iclens.dashboards.records.latent import Curve
from iclens.dashboards.records.mechanism import Figure
from iclens.dashboards.records.patching import (
    AnswersView,
    EffectRow,
    EffectsView,
    Grid,
    HeadRow,
    JointRow,
    LadderStep,
    Line,
    LinesView,
    PatchingView,
    RedundancyLadder,
    SingleRow,
    SinglesView,
    SweepCell,
    SweepView,
)
from iclens.dashboards.records.site import SiteView

HOSTILE = "</script><img src=x onerror=alert(1)>"
NAN = math.nan
EFFECTS = EffectsView(
    "L2.resid_post at pre" + HOSTILE,
    "24 prompts.",
    [EffectRow("all latents", Figure(7.8, 7.6, 8.0)), EffectRow("error only", Figure(NAN), "open")],
)
SETS = LinesView(
    "L2.resid_post at pre",
    "50 random sets" + HOSTILE,
    [
        Line("greedy", "first", Curve([1, 2, 8], [0.0, 0.1, 0.5], [NAN, 0.0, 0.4], [NAN, 0.2, 0.6])),
        Line("neurons", "second", Curve.line([1, 8], [0.0, 0.1])),
    ],
    axis="members of the set",
    unit="share of the full effect",
    levels=[("all latents", 0.98), ("difference of means", 0.97)],
    scale="log2",
)
STEPS = [
    LadderStep(0, "", 3.0, Figure(0.83, 0.8, 0.85), Figure(NAN), NAN, NAN, 0, Figure(0.99), Figure(NAN)),
    LadderStep(
        1, "L2", NAN, Figure(0.02, 0.01, 0.03), Figure(0.02), 0.74, 0.82, 3, Figure(0.02), Figure(-0.5),
        "neither",
    ),
]  # fmt: skip


def full(view: PatchingView) -> PatchingView:
    """The heat maps of `view`, and every other part."""
    row = SingleRow("L1.mlp_out", 0, Figure(0.07, 0.01, 0.12), 0.01, 3, 24, 0.03, 0.16, 200)
    return replace(
        view,
        belief="exact" + HOSTILE,
        graded=replace(SETS, title="By examples", scale="linear", levels=()),
        lens=[SweepView("Lens", "64 prompts", [SweepCell("pre", 1, 0.47)], "entering block")],
        strongest=[HeadRow("L2H2", Figure(-10.7), Figure(58.0), 0.05, Figure(0.91), 0.92, 1e-18, 0.014)],
        direct=EFFECTS,
        joint=[JointRow("L0 L1", Figure(-10.6), Figure(-5.69), Figure(-4.93), "they stand in", 8.18)],
        ladders=[RedundancyLadder("Ladder of layers", "64 prompts", "Without L2, no layer does.", STEPS)],
        rungs=[EFFECTS],
        sets=[SETS, LinesView("L1.mlp_out at pre", "", reason="No share is defined: below 1 nat.")],
        singles=[SinglesView("pre", "The 2 of largest effect.", [row, replace(row, site="L9.x" + HOSTILE)])],
        controls=[EFFECTS],
        screens=EFFECTS,
        responses=[
            AnswersView("A*", "4 donors", Curve.line([0, 1], [3.1, 5.2]), Curve.line([0, 1], [3, 5]), 2, 3)
        ],
        grids={
            "sets": Grid(("set", "share", "why undefined"), [("greedy", 0.495, HOSTILE), ("all", NAN, "")])
        },
    )


def page_of(view: SiteView) -> str:
    """The page's text."""
    (page,) = patching.pages(view, Chrome(view.title))
    return page.write()


@pytest.fixture(scope="module")
def text(view_of: Callable[..., SiteView]) -> str:
    """The page with every part."""
    view = view_of(4, 1)
    assert view.patching is not None
    linked = view.pages[0]
    shown = full(view.patching)
    row = replace(shown.singles[0].rows[0], site=linked.site, latent=linked.latent)
    shown = replace(shown, singles=[replace(shown.singles[0], rows=[row, shown.singles[0].rows[1]])])
    return page_of(replace(view, patching=shown))


def test_every_part_has_its_values_as_text(text: str) -> None:
    assert "L2H2" in text and "−10.7" in text
    assert "they stand in" in text and "−4.93" in text
    assert "Without L2, no layer does." in text
    assert "3: 0.740 to 0.820" in text
    assert "No share is defined: below 1 nat." in text
    assert "<td class=n>0.495</td>" in text and "<td class=n>–</td>" in text
    assert "slope 2.00, intercept 3.00" in text


def test_an_attention_below_a_hundredth_of_a_percent_is_0(text: str) -> None:
    row = text[text.index('<th scope="row">L2H2</th>') :].split("</tr>", 1)[0]
    assert re.findall(r"<td class=n>([^<]*)</td>", row)[-3:] == ["92 %", "0", "1.4 %"]


def test_a_latent_is_linked_only_where_it_has_a_page(text: str) -> None:
    assert len(re.findall(r'<a href="latents/[^"]+">L', text)) == 1


def test_no_text_becomes_markup(text: str) -> None:
    assert "<img" not in text and "&lt;img" in text
    assert "<script" not in text and "style=" not in text


def test_links_on_the_page_lead_somewhere(text: str) -> None:
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_an_empty_part_says_why(view_of: Callable[..., SiteView]) -> None:
    reasons = {part: f"Not run: {part} is missing." for part in (
        "sweep", "graded", "lens", "heads", "strongest", "direct", "joint", "ladders", "rungs", "sets",
        "singles", "controls", "screens", "responses",
    )}  # fmt: skip
    shown = page_of(replace(view_of(4, 1), patching=PatchingView(reasons=reasons)))
    assert [part for part, why in reasons.items() if why not in shown] == []
    assert "<table" not in shown and 'class="chart' not in shown


def test_a_grid_refuses_a_row_of_another_length() -> None:
    with pytest.raises(TableError, match="1 figures for 2 columns"):
        Grid(("a", "b"), [("1",)])


def test_a_heat_map_as_a_table_keeps_empty_cells() -> None:
    cells = [SweepCell("lab", 0, 0.1), SweepCell("x", 0, 0.2), SweepCell("x", 3, 0.3)]
    columns, rows = charts.grid_of(SweepView("", "", cells))
    assert columns == ["x", "lab"]
    assert [(row.layer, [cell and cell.value for cell in row.cells]) for row in rows] == [
        (3, [0.3, None]),
        (0, [0.2, 0.1]),
    ]


def test_effects_share_one_scale() -> None:
    small = replace(EFFECTS, rows=[EffectRow("all latents", Figure(3.9))])
    drawn = [str(chart) for _, chart in charts.effects_charts([EFFECTS, small])]
    at = [float(re.search(r'<circle cx="([\d.]+)"', one).group(1)) for one in drawn]  # type: ignore[union-attr]
    left = [float(re.search(r'd="M([\d.]+) 4L[^"]+" class="zero"', one).group(1)) for one in drawn]  # type: ignore[union-attr]
    assert left[0] == left[1]
    assert (at[1] - left[1]) / (at[0] - left[0]) == pytest.approx(0.5, abs=0.01)


def test_sizes_stand_at_their_logarithm() -> None:
    drawn = str(charts.lines_chart(SETS))
    found = re.findall(r'<text x="([\d.]+)" y="197" class="tick mid">(\d+)<', drawn)
    ticks = {value: float(x) for x, value in found}
    assert set(ticks) == {"1", "2", "8"}
    assert (ticks["8"] - ticks["1"]) / (ticks["2"] - ticks["1"]) == pytest.approx(3, abs=0.01)


def test_lines_differ_in_mark_and_an_undefined_value_breaks_one() -> None:
    kinds = ("first", "second", "third", "model", "random")
    assert len({re.sub("k-[a-z]+", "", str(charts.key_mark(kind))) for kind in kinds}) == len(kinds)
    broken = replace(SETS, scale="linear", lines=[Line("a", "first", Curve.line([0, 1, 2], [1, NAN, 3]))])
    path = re.search(r'd="([^"]+)" class="line k-first"', str(charts.lines_chart(broken)))
    assert path is not None and path.group(1).count("M") == 2 and "L" not in path.group(1)


def test_names_of_levels_do_not_stand_on_each_other() -> None:
    drawn = str(charts.lines_chart(SETS))
    assert drawn.count('class="level"') == 2
    assert ">all latents</text>" in drawn and ">difference of means</text>" not in drawn
    assert "difference of means 0.970" in drawn.split("aria-label=", 1)[1].split(">", 1)[0]


def test_the_ladder_is_told_in_words_too() -> None:
    drawn = str(charts.ladder_chart(RedundancyLadder("Ladder", "", "No layer does.", STEPS)))
    label = drawn.split('aria-label="', 1)[1].split('"', 1)[0]
    assert "Intact: 0.830." in label
    assert "Without L2: 0.0200, left where it worked before 0.0200, 0.740 to 0.820 in 3 control sets" in label
    assert ">layer 3<" in drawn and ">none works<" in drawn


@pytest.mark.parametrize("values", [[NAN], []])
def test_charts_of_nothing_are_still_drawn(values: list[float]) -> None:
    curve = Curve.line(list(range(len(values))), values)
    assert "<svg" in str(charts.lines_chart(LinesView("t", "", [Line("a", "first", curve)])))
    assert "<svg" in str(charts.response_chart(AnswersView("t", "", curve, curve, NAN, NAN)))
    assert "nan" not in str(charts.response_chart(AnswersView("t", "", curve, curve, NAN, NAN)))
