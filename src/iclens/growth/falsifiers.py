"""What would refute additive Bayesian feature growth, and did it happen?

Each falsifier is a function of figures measured elsewhere; it says whether it fired and on which figures. One
whose figures are missing is "not tested", never silent. Source: the claim's own predictions, H1 to H5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from iclens.growth.verdict import CLOSURE
from iclens.tables.verdicts import FalsifierTable

ADDITIVE = (0.8, 1.25)
"""Exponents of n that count as additive."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; NaN where it was not measured."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether it was measured."""
        return math.isfinite(self.value)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Figures:
    """What the falsifiers look at.

    Args:
        n_tested, n_grows: detection tests made, and latents called growing beyond every control.
        n_confirmed, n_shortlisted: short-listed latents, and those that held on the confirm split.
        n_rising: latents whose own arm rises, controls not subtracted; -1 when not measured.
        n_own: confirmed latents of the short list that rise in their own arm as well.
        n_sublinear: short-listed latents whose exponent's upper bound is below .8, or where a step wins.
        n_shaped: short-listed latents whose shape could be judged.
        belief_exponent: exponent of the answer's paired log-odds, with its 90 % interval.
        duplicates: growth per repeated example ÷ growth per distinct one, on the answer's log-odds.
        evidence: nats of belief per nat of label evidence, beyond a count of examples.
        order: variance over orders ÷ variance over sets of examples, on the answer's log-odds.
        n_dosed, n_causal: latents pushed, and those that move the belief as no matched latent does.
        n_undecided: latents that no matched one beats, whose controls are too few for that to count.
        closure: share of the belief's growth that the pushed latents of the best site account for.
        closure_site: that site.
        n_directions, n_directions_grow: sites whose direction was tested, and where it grows.
        n_only_direction, n_only_latents: of these sites, those where only the direction grows, and those
            where only latents are confirmed to.
    """

    n_tested: int = 0
    n_grows: int = 0
    n_confirmed: int = 0
    n_shortlisted: int = 0
    n_rising: int = -1
    n_own: int = 0
    n_sublinear: int = 0
    n_shaped: int = 0
    belief_exponent: Interval = Interval()
    duplicates: Interval = Interval()
    evidence: Interval = Interval()
    order: Interval = Interval()
    n_dosed: int = 0
    n_causal: int = 0
    n_undecided: int = 0
    closure: Interval = Interval()
    closure_site: str = ""
    n_directions: int = 0
    n_directions_grow: int = 0
    n_only_direction: int = 0
    n_only_latents: int = 0


Outcome = tuple[bool | None, str]
"""Whether it fired (None: not tested), and the figures in a sentence."""


def ask(figures: Figures) -> FalsifierTable:
    """Every falsifier in order."""
    rows = [(name, question, *test(figures)) for name, question, test in FALSIFIERS]
    said = {True: "fired", False: "did not fire", None: "not tested"}
    return FalsifierTable(
        {
            "falsifier": [row[0] for row in rows],
            "question": [row[1] for row in rows],
            "fired": [said[row[2]] for row in rows],
            "evidence": [row[3] for row in rows],
        }
    )


def _nothing_grows(f: Figures) -> Outcome:
    if f.n_tested == 0:
        return None, "No latent was active often enough to be tested."
    found = f"{f.n_grows} of {f.n_tested} tests, of a latent at a role, grow"
    confirmed = f"{f.n_confirmed} of {f.n_shortlisted} short-listed ones are confirmed on held-out prompts"
    return f.n_confirmed == 0, f"{found}; {confirmed}."


def _not_additive(f: Figures) -> Outcome:
    if not f.belief_exponent.known and f.n_shaped == 0:
        return None, "No shape could be judged."
    belief = f.belief_exponent.known and f.belief_exponent.high < ADDITIVE[0]
    latents = f.n_shaped > 0 and f.n_sublinear > f.n_shaped / 2
    shown = f"the answer's log-odds grow as n^{f.belief_exponent}" if f.belief_exponent.known else ""
    counted = (
        f"{f.n_sublinear} of the {f.n_shaped} whose shape could be judged saturate or step"
        if f.n_shaped
        else ""
    )
    return belief or latents, _sentence("; ".join(part for part in (shown, counted) if part))


def _in_controls(f: Figures) -> Outcome:
    if f.n_rising < 0:
        return None, "Trajectories without their controls were not measured."
    found = f"{f.n_grows} tests find a rise beyond every control, {f.n_rising} in the task's own arm; of the "
    found += f"{f.n_confirmed} confirmed, {f.n_own} do both, the others rise because a control falls"
    return f.n_rising > 0 and f.n_own == 0, _sentence(found)


def _counting(f: Figures) -> Outcome:
    if not (f.duplicates.known and f.evidence.known):
        return None, "It needs arm D and a regression on the label evidence."
    fired = f.duplicates.high >= 1 and f.evidence.low <= 0
    found = (
        f"a repeated example is worth {f.duplicates} of a distinct one; {f.evidence} nats of belief per nat"
    )
    return fired, _sentence(f"{found} of evidence")


def _order(f: Figures) -> Outcome:
    if not f.order.known:
        return None, "It needs arms E1, E2, …"
    return f.order.low > 1, _sentence(f"variance over orders ÷ over sets of examples {f.order}")


def _like_controls(f: Figures) -> Outcome:
    if f.n_dosed == 0:
        return None, "No latent was pushed."
    found = f"{f.n_causal} of {f.n_dosed} pushed latents move the answer beyond matched random ones"
    if f.n_causal == 0 and f.n_undecided:
        found += f", but {f.n_undecided} exceed every control they have: more controls are needed"
        return None, _sentence(found)
    return f.n_causal == 0, _sentence(found)


def _does_not_close(f: Figures) -> Outcome:
    if not f.closure.known:
        return None, "No latent was pushed."
    found = f"at {f.closure_site}, the best site, the pushed latents account for {f.closure}"
    return f.closure.value < CLOSURE, _sentence(f"{found} of the answer's growth")


def _hidden(f: Figures) -> Outcome:
    if f.n_directions == 0:
        return None, "No supervised direction was measured."
    found = f"the direction T − S grows at {f.n_directions_grow} of {f.n_directions} sites; it alone at "
    found += f"{f.n_only_direction}, confirmed latents alone at {f.n_only_latents}"
    return f.n_only_direction + f.n_only_latents > 0, _sentence(found)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


FALSIFIERS: tuple[tuple[str, str, Callable[[Figures], Outcome]], ...] = (
    ("F1", "Does no latent grow with the task's examples, held-out prompts included?", _nothing_grows),
    ("F2", "Does growth saturate or step, rather than add (exponent below .8)?", _not_additive),
    ("F3", "Do latents grow as much where the labels carry no task (controls)?", _in_controls),
    ("F4", "Does a repeated example count as much as a new one (counting, not evidence)?", _counting),
    ("F5", "Does the order of the examples matter more than which they are?", _order),
    ("F6", "Does pushing a growing latent do no more than pushing a random one?", _like_controls),
    ("F7", "Do the growing latents account for less than 25 % of the belief's growth?", _does_not_close),
    ("F8", "Does a supervised direction grow where no latent does, or the reverse?", _hidden),
)
"""Name, question in words, and test of each."""
