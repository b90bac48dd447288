"""Does the page of patching say, draw and list what a run's tables hold, and why a part is not there?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from iclens.pages.findings import cards
from iclens.pages.patching import PATCHING
from iclens.results.read import Results

from .reading import Fake, Part, read

NAN = math.nan
SITE = "blocks.2.hook_resid_post"


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A run without a stage."""
    return Fake(tmp_path)


def page(fake: Fake) -> dict[str, Part]:
    """The page of patching."""
    return read(PATCHING, fake.source)


def swept(
    role: str, layer: int, recipient: str, value: float, metric: str = "task on own x"
) -> dict[str, Any]:
    """A row of a SweepTable."""
    row = {"role": role, "layer": layer, "recipient": recipient, "metric": metric, "scale": "probability"}
    return row | {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "base": 0.02}


def chosen(kind: str, size: int, share: float, **more: Any) -> dict[str, Any]:
    """A row of a SetTable."""
    row = {"site": SITE, "role": "pre", "direction": "sufficiency", "kind": kind, "size": size}
    row |= {"chosen_for": "exact", "belief": "exact", "share_of_full": share, "control_share": NAN}
    return row | {"effect": 8 * share, "screen_share": share} | more


def test_a_damaged_or_empty_table_is_told_from_a_missing_one(fake: Fake) -> None:
    (fake.place("sweep") / "sweep.parquet").write_bytes(b"nothing")
    fake.save("redundancy_ladder")
    parts = page(fake)
    assert "Not shown: sweep.parquet is damaged" in parts["Where does the residual carry the task?"].words
    assert "asks for no step (`sweep.ladder_steps`)" in parts["The redundancy ladder"].words


def test_what_cannot_be_drawn_takes_only_its_own_part_away(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.save("sweep", swept("pre", 3, "S arm", 0.98))
    fake.save("screens", {"site": SITE, "role": "pre", "belief": "exact", "r2": 0.9})
    read_ = Results.table

    def broken(results: Results, name: str) -> Any:
        table = read_(results, name)
        return table.drop(columns="metric") if name == "sweep" else table

    monkeypatch.setattr(Results, "table", broken)
    parts = page(fake)
    assert "Not there, because what it reads" in parts["Where does the residual carry the task?"].words
    assert parts["Would a linear screen have found them?"].charts


def test_sweeps_and_losses_of_heads(fake: Fake) -> None:
    fake.save("sweep", swept("pre", 6, "S arm", 0.99, "copy"), swept("pre", 3, "S arm", 0.98),
              swept("lab", 0, "S arm", 0.2))  # fmt: skip
    lost = {"kind": "zero", "place": "pre", "layer": 2, "effect": -0.9, "ci_low": -1.0, "ci_high": -0.8}
    fake.save(
        "heads",
        lost | {"head": 1, "metric": "task on own x"},
        lost | {"head": -1, "metric": "task on own x"},
        lost | {"head": 1, "metric": "effect on exact", "effect": -5.0},
        lost | {"head": 0, "metric": "effect on exact", "effect": 1.0},
    )
    at = {"layer": 2, "score_low": 1.0, "bos_mass": 1e-18, "own_x_mass": 0.014, "label_mass": 0.92}
    fake.save("head_scores", at | {"head": 0, "attribution": 9.0}, at | {"head": 1, "attribution": 0.1})
    parts = page(fake)
    sweep, copied = parts["Where does the residual carry the task?"].tables
    assert sweep == [["patched before block", "pre", "lab"], ["3", "0.980 [0.880, 1.08]", ""],
                     ["0", "", "0.200 [0.100, 0.300]"]]  # fmt: skip
    assert copied[1] == ["6", "0.990 [0.890, 1.09]"]
    assert (
        parts["Where does the residual carry the task?"]
        .charts[0]
        .startswith(
            "Task applied to B's own x (run B: S arm): largest 0.98 at role pre, patched before block 3."
        )
    )
    heads = parts["Which heads does the answer need?"]
    assert heads.tables[0] == [["block", "1", "all"], ["2", *["0.900 [0.800, 1.00]"] * 2]]
    rows = parts["The heads that matter most"].tables[0]
    assert [tuple(row[:2]) for row in rows[1:]] == [
        ("L2H1", "−5.00 [−1.00, −0.800]"),
        ("L2H0", "1.00 [−1.00, −0.800]"),
    ]
    assert rows[1][-4:] == ["92 %", "0", "1.4 %", "0"]
    fake.save("heads")
    parts = page(fake)
    assert [row[0] for row in parts["The heads that matter most"].tables[0][1:]] == ["L2H0", "L2H1"]
    assert "as no head was ablated" in parts["The heads that matter most"].words


def test_joint_effects_and_the_ladder_in_words(fake: Fake) -> None:
    row = {"belief": "exact", "joint": -8.0}
    fake.save(
        "redundancy",
        row | {"ablated": "L0 L1", "index_low": -5.0, "index_high": -4.0},
        row | {"ablated": "L1 L2", "index_low": 1.0, "index_high": 2.0},
        row | {"ablated": "L2 L3", "index_low": 1.0, "index_high": 2.0, "reason": "saturated"},
        row | {"ablated": "L3 L4", "index_low": -1.0, "index_high": 1.0},
        row | {"ablated": "L4 L5", "index_low": NAN, "index_high": NAN},
    )
    step = {"unit": "layer", "kind": "zero", "place": "pre", "belief": "exact"}
    first = step | dict.fromkeys(("ne_before", "control_ne_least", "control_ne_greatest"), NAN)
    beside = {"n_controls": 3, "control_ne_least": 0.74, "control_ne_greatest": 0.82, "ne_before": 0.02}
    fake.save("redundancy_ladder", first | {"step": 0, "first_layer": 3.0, "ne": 0.83},
              step | beside | {"step": 1, "ablated": "L2", "first_layer": NAN, "verdict": "backup"},
              )  # fmt: skip
    parts = page(fake)
    assert [row[-1].strip() for row in parts["Do heads stand in for each other?"].tables[0][1:]] == [
        "they stand in for each other", "they need each other", "they cannot add up saturated", "they add up",
        "undefined",
    ]  # fmt: skip
    ladder = parts["The redundancy ladder"]
    assert (
        "Intact, layer 3 works first; without L2, no layer does. Verdict: backup: later heads" in ladder.words
    )
    assert ladder.tables[0][2][4] == "3: 0.740 to 0.820"
    assert "intact: 0.830;" in ladder.charts[0]
    assert "left where it worked before 0.0200, 0.740 to 0.820 in 3 control sets" in ladder.charts[0]


def test_sets_hold_their_curves_controls_and_levels(fake: Fake) -> None:
    beside = {"n_controls": 50, "control_share": 0.01, "control_low": -0.02, "control_high": 0.03}
    other = {"site": "blocks.1.hook_mlp_out", "reason": "below 1 nat"}
    fake.save(
        "sets", chosen("greedy", 1, 0.2, **beside), chosen("greedy", 2, 0.6), chosen("all latents", 9, 0.97),
        chosen("full activation", 0, 1.0), chosen("greedy", 1, NAN, **other),
    )  # fmt: skip
    part = page(fake)["How few latents do it?"]
    assert part.charts == [
        "L2.resid_post at pre: A’s values into B, share of the full effect by members of the set: "
        "greedy 0.200 at 1, 0.600 at 2; random sets, 95 % of them 0.0100 at 1, 0.0100 at 1; "
        "all latents 0.970."
    ]
    assert "Full activation: +8.00 nats." in part.words and "No share is defined: below 1 nat." in part.words


def test_single_latents_are_the_largest_of_the_belief(fake: Fake) -> None:
    row = {"site": SITE, "role": "pre", "belief": "exact"}
    rows = [row | {"latent": i, "effect": (-1) ** i * float(i)} for i in range(20)]
    fake.save("patches", *rows, row | {"latent": 7, "belief": "odd", "effect": 99.0})
    part = page(fake)["Does a single latent move the belief?"]
    assert [row[0] for row in part.tables[0][1:]] == [f"L2.resid_post · {i}" for i in range(19, 4, -1)]
    assert "The 15 of largest effect on exact, of 20 that differ between A and B." in part.words


@pytest.mark.parametrize(
    ("n_controls", "words"),
    [(8, "no q can be that small: it takes 19."), (49, "no q of 21 tests can be that small unless 9 beat")],
)
def test_the_card_says_what_its_controls_can_show(fake: Fake, n_controls: int, words: str) -> None:
    row = {"site": SITE, "role": "pre", "belief": "exact", "effect": 1.0, "n_controls": n_controls}
    row |= {"control_p": 0.1, "q_value": 0.5}
    fake.save("patches", *(row | {"latent": i} for i in range(21)))
    card = dict(cards(fake.source))["Does one latent, patched from run A into run B, move a belief?"]
    assert words in card.evidence


def test_controls_are_those_of_the_largest_set(fake: Fake) -> None:
    row = {"site": SITE, "role": "pre", "belief": "exact", "latents": "1 2"}
    fake.save("patch_controls", row | {"latents": "1", "control": "own", "effect": 9.0},
              row | {"control": "own", "effect": 4.0}, row | {"control": "sign flip", "effect": -4.0},
              )  # fmt: skip
    part = page(fake)["Is it this task at this place?"]
    assert part.charts == [
        "L2.resid_post at pre: 1 2, change in log-odds, nats: own 4.00; sign flip −4.00."
    ] and len(part.tables[0]) == 4  # fmt: skip


def test_answers_by_x_with_their_fits(fake: Fake) -> None:
    curve = {"task": "2x+3", "site": SITE, "recipient": "S arm", "n_seen": 12, "patch": "A*"}
    point = curve | {"sd": NAN}
    fake.save("responses", point | {"x": 1, "answer": "odd", "mean": 5.0},
              point | {"x": 0, "answer": "3", "mean": 3.5})  # fmt: skip
    fake.save("response_fits", curve | {"slope": 1.5, "intercept": 3.5, "n_x": 2})
    part = page(fake)["Does the patched answer follow run B’s own x?"]
    assert part.charts == [
        "A*, not patched, E[y | x] by x of run B’s query: E[y | x] 3.50 at 0, 5.00 at 1; fitted line 3.50 "
        "at 0, 5.00 at 1; the task’s own answer 3.00 at 0, 3.00 at 0."
    ]
    assert "Slope 1.50, intercept 3.50." in part.words
    assert part.tables[0][1:] == [["0", "3", "3.50"], ["1", "odd", "5.00"]]
