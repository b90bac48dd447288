import math
import re
from xml.etree import ElementTree

import altair as alt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from iclens.dashboards.charts import growth as additive_charts
from iclens.dashboards.charts import patching as patching_charts
from iclens.dashboards.charts import rendered as charts
from iclens.dashboards.charts import svg
from iclens.dashboards.records.growth import AccountRow, ArmCurve, InjectionRow, RungCount
from iclens.dashboards.records.patching import Line, LinesView
from iclens.dashboards.records.site import (
    BeliefCurve,
    Curve,
    GrowthCount,
    Histogram,
    PatchRow,
    SweepCell,
    SweepView,
    TaskActivation,
)

HOSTILE = "</text></svg><script>alert(1)</script>"
CURVE = Curve([0, 1, 2, 3], [0.0, 1.0, math.nan, 2.0], [-0.1, 0.9, math.nan, 1.8], [0.1, 1.1, math.nan, 2.2])


def parsed(drawing: Markup) -> ElementTree.Element:
    """Its elements; attributes may stand without quotes, as HTML allows."""
    return ElementTree.fromstring(re.sub(r' ([a-z0-9-]+)=([^\s">]+)', r' \1="\2"', str(drawing)))


def texts(drawing: Markup) -> list[str]:
    return [element.text or "" for element in parsed(drawing).iter("text")]


def path_of(drawing: Markup, class_: str) -> str:
    found = [e.attrib["d"] for e in parsed(drawing).iter("path") if e.get("class") == class_]
    assert len(found) == 1
    return found[0]


def points(path: str) -> list[tuple[float, float]]:
    """Absolute points of a path of M, l and h, the last two relative."""
    found: list[tuple[float, float]] = []
    for command, rest in re.findall(r"([Mlh])([^Mlh]+)", path):
        numbers = [float(n) for n in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", rest)]
        steps = [(n, 0.0) for n in numbers] if command == "h" else [*zip(*[iter(numbers)] * 2, strict=True)]
        for dx, dy in steps:
            x, y = (0.0, 0.0) if command == "M" else found[-1]
            found.append((round(x + dx, 1), round(y + dy, 1)))
    return found


def test_ticks_are_round_and_inside() -> None:
    assert svg.ticks(0, 1) == pytest.approx([0, 0.5, 1])
    assert svg.ticks(-3, 4) == [-2, 0, 2, 4]
    assert svg.ticks(2, 2) == [2]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_stay_inside_any_range(low: float, span: float) -> None:
    found = svg.ticks(low, low + span)
    slack = 1e-6 * max(1.0, abs(low), span)
    assert 1 <= len(found) <= 9
    assert all(low - slack <= v <= low + span + slack for v in found)


def test_line_goes_through_its_values_and_leaves_a_gap() -> None:
    line = path_of(svg.line_chart([("task", CURVE)], "rises"), "line task")
    assert line.count("M") == 2
    assert line.endswith("h0"), "a point alone is drawn by its round cap"
    drawn = list(dict.fromkeys(points(line)))
    assert len(drawn) == 3
    (x0, y0), (x1, y1), (x3, y3) = drawn
    assert (x3 - x0) / (x1 - x0) == pytest.approx(3, abs=0.01)
    assert (y3 - y0) / (y1 - y0) == pytest.approx(2, abs=0.01)
    assert y3 < y0


def test_band_runs_between_low_and_high() -> None:
    drawing = svg.line_chart([("task", CURVE)], "rises")
    band, line = points(path_of(drawing, "band task")), points(path_of(drawing, "line task"))
    assert len(band) == 6
    assert band[0][1] < line[0][1] < band[-1][1]


def test_a_line_without_interval_has_no_band() -> None:
    drawing = svg.line_chart([("exact", Curve.line([0, 1], [0.0, 1.0]))], "exact")
    assert "band" not in drawing and path_of(drawing, "line exact")


def test_a_point_between_two_gaps_is_no_error() -> None:
    alone = Curve.line([0, 1, 2], [math.nan, 1.0, math.nan])
    assert path_of(svg.line_chart([("task", alone)], "one point"), "line task").startswith("M")


def test_an_undefined_curve_still_draws() -> None:
    nothing = Curve.line([0, 1], [math.nan, math.nan])
    drawing = svg.line_chart([("task", nothing)], svg.ends(nothing))
    assert path_of(drawing, "line task") == ""
    assert 'aria-label="undefined"' in drawing


def test_small_charts_keep_hostile_text_as_text() -> None:
    bars = svg.bar_chart([TaskActivation(HOSTILE, 1.0), TaskActivation("2x", math.nan)], HOSTILE)
    patched = svg.interval_chart([PatchRow(HOSTILE, 0, 1, 2, 1.0, 0.9, 1.1, -0.1, 0.1)], HOSTILE)
    for drawing in (bars, patched):
        root = parsed(drawing)
        assert root.get("aria-label") == HOSTILE
        assert not list(root.iter("script"))
    assert texts(bars)[0].startswith("</text>")


def test_held_out_tasks_carry_a_star() -> None:
    bars = svg.bar_chart([TaskActivation("2x", 1.0, split="held out"), TaskActivation("3x", 0.5)], "two")
    assert texts(bars)[:2] == ["2x*", "3x"]


def test_bars_are_as_long_as_their_values() -> None:
    drawing = svg.bar_chart([TaskActivation("2x", 2.0), TaskActivation("3x", 0.5)], "two")
    widths = [float(w) for w in re.findall(r"h(\d[\d.]*)v", path_of(drawing, "bar"))]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)


def test_histogram_draws_a_bar_for_every_filled_bin() -> None:
    drawing = svg.histogram(Histogram([0, 1, 2, 3], [4, 0, 2]), "three bins")
    heights = [float(h) for h in re.findall(r"v(\d[\d.]*)h", path_of(drawing, "bar"))]
    assert len(heights) == 2
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)


def test_heat_map_writes_every_value() -> None:
    cells = [SweepCell(role, layer, 0.1 * layer) for role in ("pre", "lab") for layer in range(3)]
    drawing = charts.sweep_chart(SweepView("P(task)", "", [*cells, SweepCell("x", 0, math.nan)]))
    written = texts(drawing)
    assert [written.count(v) for v in ("0.00", "0.10", "0.20", "–")] == [2, 2, 2, 1]
    assert written.index("x") < written.index("pre") < written.index("lab")
    assert "Largest: 0.200" in parsed(drawing).attrib["aria-label"]


def test_headline_charts_use_the_page_colours_only() -> None:
    counts = [GrowthCount("L1.mlp_out", "pre", 100, 12, 3), GrowthCount("L2.mlp_out", "pre", 100, 0, 0)]
    drawings = [
        charts.belief_chart(BeliefCurve("odd", "", CURVE, CURVE, CURVE)),
        charts.sweep_chart(SweepView("P(task)", "", [SweepCell("pre", 0, 0.9)])),
        charts.growth_chart("pre", counts, (3, 12)),
    ]
    for drawing in drawings:
        colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', drawing))
        assert all(colour.startswith("var(--") or colour in {"none", "transparent"} for colour in colours)
        assert len(drawing) < 20_000


def test_belief_chart_says_where_its_curves_start_and_end() -> None:
    label = parsed(charts.belief_chart(BeliefCurve("odd", "", CURVE, None, CURVE))).attrib
    assert label["aria-label"] == (
        "Log-odds of odd in nats by examples seen: model 0 at 0, 2.00 at 3; control arm 0 at 0, 2.00 at 3."
    )


def test_inline_keeps_drawing_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
        viewBox="0 0 9 9" onload="alert(1)"><script>alert(1)</script><style>p{}</style>
        <a xlink:href="javascript:alert(1)"><text>link</text></a><image href="https://example.org/x"/>
        <foreignObject><p>html</p></foreignObject><g transform="translate(1,2)" style="color:red"><text
        x="1" onclick="alert(1)">kept &lt;b&gt;</text></g></svg>"""
    monkeypatch.setattr(charts.vl_convert, "vegalite_to_svg", lambda _: rendered)
    frame = pd.DataFrame({"x": [1]})
    drawing = charts.inline(alt.LayerChart(layer=[alt.Chart(frame).mark_point()]), "label")
    assert drawing == (
        '<svg viewBox="0 0 9 9" width="9" class="chart rendered" role="img" aria-label="label">'
        '<g transform="translate(1,2)"><text x="1">kept &lt;b&gt;</text></g></svg>'
    )


def test_rendered_charts_keep_hostile_text_as_text() -> None:
    drawing = charts.sweep_chart(SweepView(HOSTILE, HOSTILE, [SweepCell("<b>&", 0, 0.5)]))
    assert "<b>&" in texts(drawing)
    assert HOSTILE in parsed(drawing).attrib["aria-label"]
    assert not list(parsed(drawing).iter("script"))


def test_the_ladder_shows_every_count_above_none() -> None:
    counts = [
        RungCount("L1.mlp_out", "none", 900),
        RungCount("L1.mlp_out", "grows", 17),
        RungCount("L2.mlp_out", "grows linearly", 3),
    ]
    drawn = additive_charts.ladder_chart(counts, ("grows", "grows linearly"))
    assert {"17", "3", "grows", "grows linearly", "L1.mlp_out", "L2.mlp_out"} <= set(texts(drawn))
    assert "900" not in texts(drawn)
    assert 'aria-label="Latents by site and rung of the ladder: L1.mlp_out grows 17; ' in drawn


def test_accounts_are_drawn_in_the_order_given_with_their_distances() -> None:
    rows = [AccountRow("leaky sum", 0, 0, 0, ""), AccountRow("counting", 12.5, 10, 15, HOSTILE)]
    drawn = additive_charts.account_chart(rows)
    found = texts(drawn)
    assert found.index("leaky sum") < found.index("counting")
    assert "12.5" in found and HOSTILE not in drawn


def test_injected_growth_is_drawn_part_by_part_with_its_effect() -> None:
    rows = [
        InjectionRow(site, part, effect, effect - 0.1, effect + 0.1, math.nan)
        for site in ("L1.mlp_out", "L2.resid_post")
        for part, effect in (("all latents", 0.75), ("error only", -0.25))
    ]
    drawn = additive_charts.injection_chart(rows)
    assert drawn.count("all latents  0.75") == 2 and drawn.count("error only  −0.25") == 2
    assert "L2.resid_post error only −0.25" in drawn, "the text alternative"


def test_roles_stand_in_their_order_and_heads_by_number() -> None:
    assert charts.role_order({"all", "10", "2", "0"}) == ["0", "2", "10", "all"]
    assert charts.role_order({"lab", "x", "pre"}) == ["x", "pre", "lab"]


def test_a_map_writes_no_negative_zero() -> None:
    drawn = charts.sweep_chart(SweepView("Zeroed", "", [SweepCell("0", 0, -0.001)], "block", "head"))
    assert "0.00" in texts(drawn) and "-0.00" not in texts(drawn)


def test_a_map_of_heads_says_head_and_block() -> None:
    cells = [SweepCell(str(head), layer, 0.2 * head) for head in range(3) for layer in range(2)]
    label = parsed(charts.sweep_chart(SweepView("Zeroed", "", cells, "block", "head"))).attrib
    assert label["aria-label"] == "Zeroed, layers by heads. Largest: 0.400 at head 2, block 0."


def test_doses_run_over_their_own_axis() -> None:
    doses = Curve([-1, 0, 0.5, 2], [-0.3, 0.0, 0.1, 0.7], [-0.4, 0, 0, 0.5], [-0.2, 0, 0.2, 0.9])
    drawn = svg.line_chart([("task", doses)], "Effect by dose: " + svg.ends(doses) + ".", "natural growths")
    assert "natural growths" in drawn and "examples seen" not in drawn
    assert "−0.300 at −1, 0.700 at 2" in drawn


def test_an_arm_is_drawn_with_and_without_an_exact_posterior() -> None:
    alone, beside = (additive_charts.arm_chart(ArmCurve("D", "repeated", CURVE, e)) for e in (None, CURVE))
    assert "exact posterior" not in alone and "exact posterior" in beside
    assert "exact in arm D" in alone


def test_names_that_are_cut_alike_stay_apart_and_none_is_a_word_of_javascript() -> None:
    names = ["x" * 50 + "a", "x" * 50 + "b", "constructor", "__proto__", "👨‍👩‍👧" * 30]
    drawn = additive_charts.account_chart([AccountRow(name, i, i, i, "") for i, name in enumerate(names)])
    found = texts(drawn)
    assert found.count("x" * 39 + "…") == 2 and {"constructor", "__proto__"} <= set(found)
    assert not any("\u2060" in text for text in found)
    assert names[0] in parsed(drawn).attrib["aria-label"], "the text alternative holds all of it"


def test_roles_may_be_named_anything() -> None:
    assert charts.role_order({"9" * 5000, "²", "2", "lab"}) == ["lab", "2", "9" * 5000, "²"]


def test_a_dot_stands_for_each_value_and_nothing_between_them() -> None:
    apart = path_of(svg.dot_chart([(0, 0.0), (50, 0.0), (100, 0.0)], "three", "x"), "dots")
    assert apart.count("z") == 3 and "h" not in apart
    gap = path_of(
        svg.dot_chart([(i, math.nan if i == 50 else 1.0) for i in range(100)], "a gap", "x"), "dots"
    )
    assert gap.count("h") == 2
    whole = path_of(svg.dot_chart([(i, 1.0) for i in range(100)], "no gap", "x"), "dots")
    assert whole.count("h") == 1 and "z" not in whole


@pytest.mark.parametrize("kind", ["first", "second", "third", "model", "random"])
def test_a_value_without_a_place_is_left_out_of_a_line_over_logarithms(kind: str) -> None:
    """0 has no place on a log2 axis; the values at 1 and 4 have marks, and nothing leads to 0."""
    sizes = Curve([0, 1, 4], [0.2, 0.1, 0.5], [0.1, 0.0, 0.4], [0.3, 0.2, 0.6])
    view = LinesView("sets", "", [Line("greedy", kind, sizes)], "members", "share", (), "log2")
    drawn = patching_charts.lines_chart(view)
    assert "nan" not in drawn and "inf" not in drawn
    marks = path_of(drawn, f"mark k-{kind}")
    assert marks.count("M") == {"model": 4}.get(kind, 2)
    assert path_of(drawn, f"line k-{kind}").count("M") == 1


def place_of(drawing: Markup, written: str) -> float:
    """x of a text that altair drew, in its group's units."""
    found = [e.attrib for e in parsed(drawing).iter("text") if e.text == written]
    assert len(found) == 1, (written, texts(drawing))
    shift = re.search(r"translate\(([-\d.]+)", found[0].get("transform", ""))
    return float(shift[1]) if shift else float(found[0]["x"])


def test_a_number_without_an_interval_stands_at_its_bar() -> None:
    """A number stands 4 pixels beyond its end: 10, its own value, and 20, that of its interval."""
    rows = [AccountRow("a", 10.0, math.nan, math.nan, ""), AccountRow("b", 12.0, 8.0, 20.0, "")]
    drawn = additive_charts.account_chart(rows)
    near, far = (place_of(drawn, text) - 4 for text in ("10.0", "12.0"))
    assert near > 0 and far == pytest.approx(2 * near, rel=0.01)


def test_an_effect_without_an_interval_keeps_its_number_and_none_lies_on_a_bar() -> None:
    rows = [
        InjectionRow("L1.mlp_out", "up", 0.5, math.nan, math.nan, math.nan),
        InjectionRow("L1.mlp_out", "wide", 0.5, 0.25, 1.0, math.nan),
        InjectionRow("L1.mlp_out", "down", -0.5, -0.75, -0.25, math.nan),
    ]
    drawn = additive_charts.injection_chart(rows)
    down, up, wide = (place_of(drawn, text) for text in ("down  −0.500", "up  0.500", "wide  0.500"))
    assert wide - up == pytest.approx(up - down), "at 0, .5 and 1"
