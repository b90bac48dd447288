"""Are a concept's charts drawn where their numbers are, and do records of the page fit together?"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from iclens.core import TableError
from iclens.dashboards.charts import concepts as charts
from iclens.dashboards.records.concepts import (
    BoxView,
    ConceptsView,
    ConceptView,
    MovedRow,
    MovedView,
    ProbeRow,
    ProbeView,
    ShownLatent,
    TuningView,
)
from iclens.dashboards.records.mechanism import Figure

NAN = math.nan


def latent(**changes: Any) -> ShownLatent:
    return replace(ShownLatent("L1.mlp_out", "lab", 7, "", "", Figure(0.9)), **changes)


def test_operand_levels_are_shares_of_the_largest() -> None:
    assert [charts.level(v, 2.0) for v in (2.0, 1.0, 0.01, 0.0, -1.0, NAN)] == [8, 4, 1, 0, 0, 0]


def test_operand_boxes_stand_where_their_numbers_are() -> None:
    boxes = [BoxView(0, 0, 10, 1.0, 5), BoxView(10, 20, 10, 2.0, 5), BoxView(10, 0, 10, 0.0, 5)]
    drawn = str(charts.operand_chart("L2.mlp_out · 7", "lab", boxes))
    paths = dict(re.findall(r'<path d="M([\d. ]+)h[^"]*" class="box (m\d)"', drawn))
    places = {kind: tuple(float(v) for v in at.split()) for at, kind in paths.items()}
    assert places["m4"][0] < places["m8"][0] == places["m0"][0]  # x grows to the right
    assert places["m8"][1] < places["m4"][1] == places["m0"][1]  # y grows upwards
    assert "largest 2.00, x 10 to 19 and y 20 to 29" in drawn


def test_a_latent_that_is_never_active_is_said_to_be() -> None:
    assert charts.peak_words([BoxView(0, 0, 10, 0.0, 5)]) == "never active"
    assert charts.peak_words([BoxView(0, 0, 10, NAN, 0)]) == "never active"


def test_tuning_chart_has_a_zero_line_and_its_peak_in_words() -> None:
    by_difference = TuningView("y-2x", [-3, 0, 3], [1.0, 4.0, 2.0], [2, 2, 5])
    drawn = str(charts.tuning_chart("L2.mlp_out · 7", "lab", by_difference))
    assert 'class="zero"' in drawn and "by y-2x: largest 4.00 at 0." in drawn and "y − 2x</text>" in drawn
    assert charts.counted(TuningView("y", [1, 2], [0.0, 1.0], [2, 2000])) == "2 values, 2 to 2,000 rows each"


def test_only_what_is_above_chance_is_shaded() -> None:
    assert [charts.shade(v) for v in (NAN, 0.2, 0.5, 0.52, 0.75, 1.0)] == ["", "", "", "", "a2", "a5"]


def test_reasons_are_those_of_undefined_figures_alone() -> None:
    nested = [[Figure(NAN, reason="b"), Figure(0.5, reason="low")], [Figure(NAN, reason="a")], Figure(NAN)]
    assert charts.reasons([*nested, Figure(NAN, reason="b")]) == ["b", "a"]


def test_rows_of_another_width_than_their_heading_are_refused() -> None:
    with pytest.raises(TableError, match="1 figures for 2 sizes"):
        ProbeView("s", "r", ["1", "2"], [ProbeRow("latents", [Figure(0.5)])], "", 1, 1)
    row = MovedRow("one", "pre", [Figure(0.1)], Figure(0.1), "", 0.5, 40, 60, 64, "")
    with pytest.raises(TableError, match="1 figures for 2 beliefs"):
        MovedView("ablate", "", ["odd", "double"], "odd", [row])
    with pytest.raises(TableError, match="values"):
        TuningView("y", [1, 2], [0.0], [1, 1])
    with pytest.raises(TableError, match=r"odd, L1\.mlp_out · 7"):
        ConceptsView([ConceptView("odd", "", "", latents=[latent()])])
