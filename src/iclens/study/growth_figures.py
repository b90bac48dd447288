"""Which figures do the falsifiers look at? Taken from the tables of the growth stages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from iclens.core import Site
from iclens.growth.detect import MIN_ACTIVE
from iclens.growth.shape import fit_shapes
from iclens.growth.verdict import ADDITIVE, LEVEL, UNDECIDED, Figures
from iclens.schemas import BayesTestTable, ClosureTable, ConfirmTable, DoseTable, ShapeTable, VerdictTable
from iclens.stats import Interval
from iclens.table import Floats

BELIEF, ROLE = "exact", "pre"
OUTPUT = Site(0, "resid_post")
"""Stands for the logits in a shape table of a belief, which needs some site."""


def figures(
    verdicts: VerdictTable,
    confirmed: ConfirmTable,
    shapes: ShapeTable,
    tests: BayesTestTable,
    *,
    dose: DoseTable,
    closure: ClosureTable,
    paired_belief: Floats,
    directions: Mapping[str, Floats],
    n_rising: int,
    n_examples: int,
) -> Figures:
    """What the falsifiers look at.

    Args:
        verdicts: every latent's rung.
        confirmed: the short list on the confirm split.
        shapes: its shapes.
        tests: Bayesian tests of the answer's log-odds.
        dose: dose-responses.
        closure: what the pushed latents account for.
        paired_belief: the answer's log-odds, T − control on the shape prompts, [1 prompt example].
        directions: site (short) → paired projections on the supervised direction, [prompt example].
        n_rising: latents that rise in their own arm.
        n_examples: examples in context at which latents were pushed and compared.
    """
    grows = verdicts.growing()
    held = confirmed["confirm_p"] <= LEVEL
    pushed = (dose["belief"] == BELIEF) & (dose["n_examples"] == n_examples) & (dose["n_controls"] > 0)
    shaped = np.isfinite(shapes["exponent"])
    sublinear = (shapes["exponent_high"] < ADDITIVE[0]) | (shapes["step_margin"] <= 0)
    best, site = _best_closure(closure, n_examples)
    grown = {name: _grows(values) for name, values in directions.items()}
    latents = {Site.parse(str(site)).short for site in confirmed["site"][held & (confirmed["role"] == ROLE)]}
    return Figures(
        n_tested=int(np.isfinite(verdicts["q_value"]).sum()),
        n_grows=len(grows),
        n_confirmed=int(held.sum()),
        n_shortlisted=len(confirmed),
        n_rising=n_rising,
        n_own=int((held & (confirmed["own_low"] > 0)).sum()),
        n_sublinear=int((shaped & sublinear).sum()),
        n_shaped=int(shaped.sum()),
        belief_exponent=_exponent(paired_belief),
        duplicates=_test(tests, "duplicates"),
        evidence=_test(tests, "evidence"),
        order=_test(tests, "order"),
        n_dosed=int(pushed.sum()),
        n_causal=int(dose["causal"][pushed].sum()),
        n_undecided=sum(str(reason).startswith(UNDECIDED) for reason in dose["reason"][pushed]),
        closure=best,
        closure_site=site,
        n_directions=len(grown),
        n_directions_grow=sum(grown.values()),
        n_only_direction=sum(grows_ and name not in latents for name, grows_ in grown.items()),
        n_only_latents=sum(not grows_ and name in latents for name, grows_ in grown.items()),
    )


def closures(table: ClosureTable, n_examples: int) -> dict[str, tuple[float, str]]:
    """Site → lower end of its closure of the answer's growth, and that in words."""
    rows = (table["belief"] == BELIEF) & (table["n_examples"] == n_examples)
    found = {}
    for i in np.flatnonzero(rows):
        shown = Interval(*(float(table[name][i]) for name in ("closure", "closure_low", "closure_high")))
        said = f"the site's pushed latents account for {shown} of the answer's growth"
        found[str(table["site"][i])] = (shown.low, table["reason"][i] or said)
    return found


def _best_closure(table: ClosureTable, n_examples: int) -> tuple[Interval, str]:
    rows = np.flatnonzero(
        (table["belief"] == BELIEF) & (table["n_examples"] == n_examples) & np.isfinite(table["closure"])
    )
    if not rows.size:
        return Interval(), ""
    i = rows[table["closure"][rows].argmax()]
    shown = Interval(*(float(table[name][i]) for name in ("closure", "closure_low", "closure_high")))
    return shown, Site.parse(str(table["site"][i])).short


def _exponent(paired: Floats) -> Interval:
    n_seen = np.arange(paired.shape[2])
    table = fit_shapes(n_seen, paired, place=(OUTPUT, ROLE), latent_ids=np.zeros(1, dtype=int))
    return Interval(*(float(table[name][0]) for name in ("exponent", "exponent_low", "exponent_high")))


def _test(tests: BayesTestTable, name: str) -> Interval:
    rows = np.flatnonzero((tests["test"] == name) & (tests["response"] == "model"))
    if not rows.size:
        return Interval()
    return Interval(*(float(tests[column][rows[0]]) for column in ("estimate", "low", "high")))


def _grows(values: Floats) -> bool:
    """Whether the paired slope of [prompt example] is above 0, one-sided t over prompts."""
    centred = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    slopes = values @ centred
    if len(slopes) < MIN_ACTIVE or slopes.std() == 0:
        return False
    t = slopes.mean() / (slopes.std(ddof=1) / np.sqrt(len(slopes)))
    return float(stats.t.sf(t, len(slopes) - 1)) <= LEVEL
