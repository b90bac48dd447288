"""Verdicts: frozen claims confirmed on held-out prompts, dose-responses, the ladder's rungs, falsifiers.

1. The short list's claims are frozen in a manifest with a hash, with the prompts that may confirm them.
   Only then are those read: the paired slope of each claim, one test each, Holm over the list.
2. A short-listed latent climbs the ladder while its gates hold, and the first that fails gives the reason:

       none < grows < grows linearly < grows with evidence < causally additive < accounts for belief

   confirmed on held-out prompts, rising in its own arm and not only against a control that falls, and
   certified additive; increments follow the label evidence; pushing it moves the belief linearly, as no
   matched random latent does; its site's pushed latents account for a stated share of the belief's growth.
3. Eight falsifiers say whether what would refute additive growth has happened, and on which figures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from iclens.activations import Place
from iclens.core import REDO_STAGE, Site, TableError
from iclens.growth.shape import ADDITIVE
from iclens.schemas import FALLS, LADDER, ConfirmTable, FalsifierTable, VerdictTable
from iclens.stats import UNDEFINED, Interval, half_width, holm
from iclens.table import Floats, Ints, expect_shape

LEVEL = 0.05
"""Level of the confirmation and of the comparison with matched latents."""
CLOSURE = 0.25
"""Least share of the belief's growth that a site's causal latents must account for (falsifier F7)."""
KEY = ["site", "role", "latent"]

# ------------------------------------------------------------------------- claims and confirmation


@dataclass(frozen=True)
class Claim:
    """One latent and what is claimed of it."""

    site: str  # short form
    role: str  # token of each example
    latent: int  # its id
    slope: float  # paired slope of the discovery split, activation × decoder norm per example
    says: str  # "grows" or "grows linearly"


@dataclass(frozen=True)
class Manifest:
    """Everything that was decided before the confirm split was read."""

    claims: tuple[Claim, ...]  # in the order of the short list
    prompts: tuple[int, ...]  # prompts of the confirm split, [prompt]
    study: str  # hash of what the study was asked

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON."""
        return hashlib.sha256(self.json().encode()).hexdigest()

    def json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, exact numbers."""
        fields = {
            "claims": [[c.site, c.role, c.latent, float(c.slope).hex(), c.says] for c in self.claims],
            "prompts": list(self.prompts),
            "study": self.study,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    def freeze(self, path: Path) -> str:
        """Write the manifest and its hash; returns the hash."""
        path.write_text(f"{self.sha256}\n{self.json()}\n", encoding="utf-8")
        return self.sha256

    @classmethod
    def thaw(cls, path: Path) -> Manifest:
        """Read what `freeze` wrote."""
        try:
            sha256, text = path.read_text(encoding="utf-8").splitlines()
            fields = json.loads(text)
            claims = tuple(
                Claim(site, role, latent, float.fromhex(slope), says)
                for site, role, latent, slope, says in fields["claims"]
            )
            manifest = cls(claims, tuple(fields["prompts"]), fields["study"])
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise TableError(f"manifest {path}", f"unreadable ({cause})", REDO_STAGE) from cause
        if sha256 != manifest.sha256 or text != manifest.json():
            raise TableError(f"manifest {path}", "changed after it was frozen", REDO_STAGE)
        return manifest


def confirm(
    manifest: Manifest,
    differences: Mapping[Place, Floats],
    prompts: Ints,
    own: Mapping[Place, Floats] | None = None,
) -> ConfirmTable:
    """The paired slope of every claim on the confirm split; shrinkage says how lucky discovery was.

    Args:
        differences: (site, role) → paired T − control of its claims in the manifest's order, activation
            × decoder norm, [claim prompt example].
        prompts: the prompts they come from, which have to be the manifest's, [prompt].
        own: (site, role) → the same of the task's arm alone; its slope is NaN when not given.
    """
    if tuple(int(p) for p in prompts) != manifest.prompts:
        remedy = "Give those that `manifest.prompts` lists."
        raise TableError("confirmation", "other prompts than the manifest's", remedy)
    claims, n = manifest.claims, len(prompts)
    places: dict[Place, list[int]] = {}
    for i, claim in enumerate(claims):
        places.setdefault((Site.parse(claim.site), claim.role), []).append(i)
    slopes, alone = (np.full((len(claims), n), np.nan) for _ in range(2))
    for place, rows in places.items():
        if place not in differences or len(differences[place]) != len(rows):
            remedy = "Give `differences` of this site and role for every one of its claims."
            raise TableError(f"confirmation at {place[0].short} {place[1]}", "claims are missing", remedy)
        slopes[rows] = _slopes(differences[place])
        if own is not None:
            alone[rows] = _slopes(own[place])
    mean, error = slopes.mean(axis=1), slopes.std(axis=1, ddof=1) / np.sqrt(n)
    differing = (slopes != 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = stats.t.sf(mean / error, n - 1)
    # As in detection: no sign test of so many prompts could go lower.
    p = np.where(differing > 0, np.maximum(tail, 0.5 ** differing.astype(float)), np.nan)
    half = stats.t.ppf(0.975, n - 1) * error
    discovery = np.array([claim.slope for claim in claims], dtype=float)
    own_mean, own_half = alone.mean(axis=1), half_width(alone.std(axis=1, ddof=1), n)
    return ConfirmTable({
        "site": [str(Site.parse(claim.site)) for claim in claims],
        "role": [claim.role for claim in claims], "latent": [claim.latent for claim in claims],
        "n_prompts": np.full(len(claims), n), "discovery_slope": discovery, "confirm_slope": mean,
        "confirm_low": mean - half, "confirm_high": mean + half, "confirm_p": holm(p),
        "shrinkage": mean / discovery, "own_slope": own_mean, "own_low": own_mean - own_half,
        "reason": np.where(differing > 0, "", "the arms do not differ on the confirm split"),
    })  # fmt: skip


def _slopes(values: Floats) -> Floats:
    """Least-squares slope over examples, [claim prompt]."""
    centred = np.arange(values.shape[2]) - (values.shape[2] - 1) / 2
    return values.astype(np.float64) @ (centred / (centred**2).sum())


# --------------------------------------------------------------------------------- dose-responses

DOSES: Floats = np.array([-1.0, -0.5, 0.5, 1.0, 1.5, 2.0])
"""Doses in natural growths; 0 is the base."""
MOST_QUADRATIC = 0.1
"""Largest share of a dose-response's variance that curvature may make up for it to count as linear: the k²
term is then at most .43 of the line at one natural growth."""
NATURAL_SQUARE, NATURAL_FOURTH = 1 / 3, 1 / 5
"""Means of k² and k⁴ over the natural range −1..1, on which k and k² are orthogonal."""
UNDECIDED = "beyond all its matched random latents, which are too few for so many pushed ones"
"""Why a latent whose p is as small as its controls allow is not called."""


@dataclass(frozen=True)
class DoseFit:
    """Dose-responses of several latents, [latent] each; `slopes` is [latent prompt]."""

    slope: Floats
    low: Floats
    high: Floats
    quadratic_share: Floats
    slopes: Floats


def fit_doses(responses: Floats, doses: Floats = DOSES) -> DoseFit:
    """Slope s, its interval over prompts, and curvature of each latent's dose-response [latent prompt dose].

        r(k) − r(0) = s·k + c·k²        s: nats per natural growth

    The quadratic share is of the variance over −1..1, where it does not depend on the sign of c: over the
    doses themselves, which reach further up than down, k + k²/2 would share .08 and k − k²/2 .65. `doses`
    have no 0.
    """
    axes = ("latent", "prompt", "dose")
    sizes = expect_shape("dose-responses", responses=(responses, axes), doses=(doses, ("dose",)))
    if sizes["prompt"] < 2 or sizes["dose"] < 3:
        given = f"{sizes['prompt']} prompts at {sizes['dose']} doses"
        raise TableError("dose-responses", given, "Give at least 2 prompts and 3 doses.")
    solve = np.linalg.pinv(np.stack([doses, doses**2], axis=1))  # [(s, c) dose]
    slopes = responses @ solve[0]
    mean = responses.mean(axis=1) @ solve.T
    linear, quadratic = np.square(mean * np.sqrt([NATURAL_SQUARE, NATURAL_FOURTH])).T
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(linear + quadratic > 0, quadratic / (linear + quadratic), 0.0)
    half = half_width(slopes.std(axis=1, ddof=1), sizes["prompt"])
    middle = slopes.mean(axis=1)
    return DoseFit(middle, middle - half, middle + half, share, slopes)


def causal_reasons(
    low: Floats, high: Floats, quadratic_share: Floats, q_value: Floats, unbeaten: np.ndarray | None = None
) -> list[str]:
    """Why each latent is not causal, [latent]; empty where it is.

    `low` and `high` are of the slope's interval, `q_value` of the comparison with matched latents, NaN where
    there were none; `unbeaten` says whether no matched latent raises the belief as much, [latent] each.
    """
    reasons, first = [], np.zeros(len(low), dtype=bool) if unbeaten is None else unbeaten
    for least, most, curved, q, best in zip(low, high, quadratic_share, q_value, first, strict=True):
        if not np.isfinite(least):
            reasons.append("its effect is undefined")
        elif least <= 0:
            reasons.append(f"pushing it does not raise the belief: [{least:.3g}, {most:.3g}] nats")
        elif curved > MOST_QUADRATIC:
            reasons.append(f"its dose-response is not linear: k² makes up {curved:.0%}")
        elif not q <= LEVEL and best:
            reasons.append(f"{UNDECIDED} (q {q:.2g}): more controls would tell")
        elif not q <= LEVEL:
            reasons.append(f"not beyond matched random latents (q {q:.2g})")
        else:
            reasons.append("")
    return reasons


# -------------------------------------------------------------------------------------- the ladder


@dataclass(frozen=True)
class Found:
    """Results of each step, as frames with the columns of their tables."""

    detection: pd.DataFrame  # every latent (GrowthTable)
    shape: pd.DataFrame  # the short list's trajectories (ShapeTable with `site role latent`)
    # its evidence regressions, columns `site role latent evidence evidence_low evidence_high count reason`
    evidence: pd.DataFrame
    # its dose-responses on the belief of the task's answer, columns `site role latent dose_effect dose_low
    # dose_high control_p share causal reason`
    dose: pd.DataFrame
    # its confirmation, columns `site role latent confirm_slope confirm_p shrinkage reason`
    confirm: pd.DataFrame
    # site → lower end of the 95 % interval of the share of the belief's growth that its causal latents
    # account for, and the sentence that says so
    closure: dict[str, tuple[float, str]]


def judge(found: Found) -> VerdictTable:
    """A rung for every latent, with the reason why it is not the next one.

    What a latent would have passed further up stays in its columns: a gate never excuses another.
    """
    steps = {
        "shape": ["exponent", "exponent_low", "exponent_high", "best_curve", "certified", "shape_reason"],
        "evidence": ["evidence", "evidence_low", "evidence_high", "count", "evidence_reason"],
        "dose": ["dose_effect", "dose_low", "dose_high", "control_p", "share", "causal", "dose_reason"],
        "confirm": ["confirm_slope", "confirm_p", "shrinkage", "own_slope", "own_low", "confirm_reason"],
    }
    rows = found.detection.rename(columns={"verdict": "detected", "reason": "untested"})
    for name, columns in steps.items():
        frame = getattr(found, name).rename(columns={"reason": f"{name}_reason"})
        rows = rows.merge(frame[[*KEY, *columns]], on=KEY, how="left", validate="one_to_one")
    rows["shortlisted"] = rows["confirm_reason"].notna()
    records: list[Any] = rows.to_dict("records")
    judged = [_climb(row, found) for row in records]
    rows["verdict"], rows["reason"] = [verdict for verdict, _ in judged], [reason for _, reason in judged]
    rows["best_curve"] = rows["best_curve"].astype(object).fillna("")
    return VerdictTable({name: rows[name].to_numpy() for name in VerdictTable.COLUMNS})


def _climb(row: dict[str, Any], found: Found) -> tuple[str, str]:
    """Verdict and reason of one row."""
    if row["detected"] == "none":
        return "none", row["untested"] or f"no paired growth (q {row['q_value']:.2g})"
    if row["detected"] == FALLS:
        return FALLS, "it falls beside its control; the ladder is for growth"
    if not row["shortlisted"]:
        return "grows", "not on the short list: others grow more clearly"
    # The gates above "grows", in the order of the ladder: why it is not passed, empty where it is.
    closure, sentence = found.closure.get(row["site"], (float("nan"), "closure was not measured"))
    gates = (
        _linear(row),
        _evidence(row),
        "" if row["causal"] is True else str(row["dose_reason"] or "it was not pushed"),
        "" if closure >= CLOSURE else sentence,
    )
    for rung, reason in enumerate(gates, start=1):
        if reason:
            return LADDER[rung], reason
    return LADDER[-1], ""


def _linear(row: dict[str, Any]) -> str:
    if not row["confirm_p"] <= LEVEL:
        return row["confirm_reason"] or f"not confirmed on held-out prompts (Holm p {row['confirm_p']:.2g})"
    if row["own_low"] <= 0:
        slope = f"{row['own_slope']:.2g}, at least {row['own_low']:.2g}"
        return f"only against its control does it clearly rise: its own slope is {slope}"
    return "" if row["certified"] is True else str(row["shape_reason"])


def _evidence(row: dict[str, Any]) -> str:
    if not np.isfinite(row["evidence"]):
        return row["evidence_reason"] or "no evidence regression was made"
    interval = f"{row['evidence']:.3g} [{row['evidence_low']:.3g}, {row['evidence_high']:.3g}] per nat"
    return "" if row["evidence_low"] > 0 else f"its increments do not follow the evidence: {interval}"


# -------------------------------------------------------------------------------------- falsifiers


@dataclass(frozen=True)
class Figures:
    """What the falsifiers look at."""

    # n_tested, n_grows: detection tests made, and latents called growing beyond every control
    n_tested: int = 0
    n_grows: int = 0
    # n_confirmed, n_shortlisted: short-listed latents, and those that held on the confirm split
    n_confirmed: int = 0
    n_shortlisted: int = 0
    n_rising: int = -1  # latents whose own arm rises, controls not subtracted; -1 when not measured
    n_own: int = 0  # confirmed latents of the short list that rise in their own arm as well
    # short-listed latents whose exponent's upper bound is below .8, or where a step wins
    n_sublinear: int = 0
    n_shaped: int = 0  # short-listed latents whose shape could be judged
    belief_exponent: Interval = UNDEFINED  # exponent of the answer's paired log-odds, with its 90 % interval
    # growth per repeated example ÷ growth per distinct one, on the answer's log-odds
    duplicates: Interval = UNDEFINED
    evidence: Interval = UNDEFINED  # nats of belief per nat of label evidence, beyond a count of examples
    # variance over orders ÷ variance over sets of examples, on the answer's log-odds
    order: Interval = UNDEFINED
    # n_dosed, n_causal: latents pushed, and those that move the belief as no matched latent does
    n_dosed: int = 0
    n_causal: int = 0
    n_undecided: int = 0  # latents that no matched one beats, whose controls are too few for that to count
    # share of the belief's growth that the pushed latents of the best site account for
    closure: Interval = UNDEFINED
    closure_site: str = ""  # that site
    # n_directions, n_directions_grow: sites whose direction was tested, and where it grows
    n_directions: int = 0
    n_directions_grow: int = 0
    # n_only_direction, n_only_latents: of these sites, those where only the direction grows, and those where
    # only latents are confirmed to
    n_only_direction: int = 0
    n_only_latents: int = 0


Outcome = tuple[bool | None, str]
"""Whether it fired (None: not tested), and the figures in words."""


def ask(figures: Figures) -> FalsifierTable:
    """Every falsifier in order; one whose figures are missing is "not tested"."""
    states = {True: "fired", False: "did not fire", None: "not tested"}
    rows = []
    for name, question, test in FALSIFIERS:
        fired, evidence = test(figures)
        evidence = evidence[:1].upper() + evidence[1:] + ("" if evidence.endswith("…") else ".")
        rows.append({"falsifier": name, "question": question, "fired": states[fired], "evidence": evidence})
    return FalsifierTable.from_rows(rows)


def _nothing_grows(f: Figures) -> Outcome:
    if f.n_tested == 0:
        return None, "no latent was active often enough to be tested"
    text = f"{f.n_grows} of {f.n_tested} tests, of a latent at a role, grow; {f.n_confirmed} of "
    return f.n_confirmed == 0, text + f"{f.n_shortlisted} short-listed ones are confirmed on held-out prompts"


def _not_additive(f: Figures) -> Outcome:
    if not f.belief_exponent.known and f.n_shaped == 0:
        return None, "no shape could be judged"
    belief = f.belief_exponent.known and f.belief_exponent.high < ADDITIVE[0]
    latents = f.n_shaped > 0 and f.n_sublinear > f.n_shaped / 2
    parts = []
    if f.belief_exponent.known:
        parts.append(f"the answer's log-odds grow as n^{f.belief_exponent}")
    if f.n_shaped:
        parts.append(f"{f.n_sublinear} of the {f.n_shaped} whose shape could be judged saturate or step")
    return belief or latents, "; ".join(parts)


def _in_controls(f: Figures) -> Outcome:
    if f.n_rising < 0:
        return None, "trajectories without their controls were not measured"
    text = f"{f.n_grows} tests find a rise beyond every control, {f.n_rising} in the task's own arm; of the "
    text += f"{f.n_confirmed} confirmed, {f.n_own} do both, the others rise because a control falls"
    return f.n_rising > 0 and f.n_own == 0, text


def _counting(f: Figures) -> Outcome:
    if not (f.duplicates.known and f.evidence.known):
        return None, "it needs arm D and a regression on the label evidence"
    text = (
        f"a repeated example is worth {f.duplicates} of a distinct one; {f.evidence} nats of belief per nat"
    )
    return f.duplicates.high >= 1 and f.evidence.low <= 0, f"{text} of evidence"


def _order(f: Figures) -> Outcome:
    if not f.order.known:
        return None, "it needs arms E1, E2, …"
    return f.order.low > 1, f"variance over orders ÷ over sets of examples {f.order}"


def _like_controls(f: Figures) -> Outcome:
    if f.n_dosed == 0:
        return None, "no latent was pushed"
    text = f"{f.n_causal} of {f.n_dosed} pushed latents move the answer beyond matched random ones"
    if f.n_causal == 0 and f.n_undecided:
        return None, f"{text}, but {f.n_undecided} exceed every control they have: more controls are needed"
    return f.n_causal == 0, text


def _does_not_close(f: Figures) -> Outcome:
    if not f.closure.known:
        return None, "no latent was pushed"
    text = f"at {f.closure_site}, the best site, the pushed latents account for {f.closure}"
    return f.closure.value < CLOSURE, f"{text} of the answer's growth"


def _hidden(f: Figures) -> Outcome:
    if f.n_directions == 0:
        return None, "no supervised direction was measured"
    text = f"the direction T − S grows at {f.n_directions_grow} of {f.n_directions} sites; it alone at "
    text += f"{f.n_only_direction}, confirmed latents alone at {f.n_only_latents}"
    return f.n_only_direction + f.n_only_latents > 0, text


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
