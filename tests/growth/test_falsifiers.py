"""Every falsifier fires on what it is for, stays silent otherwise, and says when it was not asked."""

from dataclasses import replace

import pytest

from iclens.growth.verdict import FALSIFIERS, Figures, ask
from iclens.stats import Interval

SOUND = Figures(
    n_tested=900, n_grows=80, n_confirmed=60, n_shortlisted=70, n_rising=200, n_own=40,
    n_sublinear=5, n_shaped=70,
    belief_exponent=Interval(1.0, 0.9, 1.1), duplicates=Interval(0.2, 0.1, 0.3),
    evidence=Interval(0.9, 0.8, 1.0), order=Interval(0.1, 0.05, 0.2), n_dosed=12, n_causal=9,
    closure=Interval(0.6, 0.5, 0.7), closure_site="L2.mlp_out", n_directions=6, n_directions_grow=6,
)  # fmt: skip
BROKEN = {
    "F1": replace(SOUND, n_confirmed=0),
    "F2": replace(SOUND, belief_exponent=Interval(0.5, 0.4, 0.7)),
    "F3": replace(SOUND, n_own=0),
    "F4": replace(SOUND, duplicates=Interval(1.0, 0.9, 1.1), evidence=Interval(0.0, -0.1, 0.1)),
    "F5": replace(SOUND, order=Interval(2.0, 1.5, 2.6)),
    "F6": replace(SOUND, n_causal=0),
    "F7": replace(SOUND, closure=Interval(0.1, 0.05, 0.15)),
    "F8": replace(SOUND, n_only_direction=1),
}


def fired(figures: Figures) -> dict[str, str]:
    table = ask(figures)
    return dict(zip(table["falsifier"], table["fired"], strict=True))


def test_nothing_fires_on_growth_as_claimed() -> None:
    assert fired(SOUND) == dict.fromkeys(BROKEN, "did not fire")
    assert [name for name, _, _ in FALSIFIERS] == list(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_each_fires_alone_on_its_own_failure(name: str) -> None:
    assert fired(BROKEN[name]) == dict.fromkeys(BROKEN, "did not fire") | {name: "fired"}


def test_most_latents_sublinear_fires_as_the_belief_does() -> None:
    assert fired(replace(SOUND, n_sublinear=36))["F2"] == "fired"
    assert fired(replace(SOUND, n_sublinear=35))["F2"] == "did not fire"


def test_what_was_not_measured_is_not_tested_and_says_what_it_needs() -> None:
    table = ask(Figures())
    assert set(table["fired"]) == {"not tested"}
    assert all(text.endswith((".", "…")) and len(text) > 10 for text in table["evidence"])


def test_the_figures_stand_in_the_sentence() -> None:
    table = ask(SOUND)
    row = list(table["falsifier"]).index("F7")
    assert table["evidence"][row] == (
        "At L2.mlp_out, the best site, the pushed latents account for 0.60 [0.50, 0.70] of the answer's "
        "growth."
    )
