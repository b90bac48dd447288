"""Confidence: whether the size of a latent at `lab` follows the model's confidence or the label's magnitude.

1. A row is an example at `lab` whose x and y are numbers. Its *confidence* is log P(y | context), read at
`pre` of the same example, before the label is seen; its *magnitude* is y. 2. Activation, confidence,
magnitude, x and example number become ranks over the rows. 3. The rank correlation of activation with
confidence is taken as it is, and with magnitude and the other controls regressed out; that with magnitude,
with confidence and the others regressed out. 4. Whole prompts are resampled for intervals. 5. The larger of
the two partial correlations names the size, where it is large enough and told apart from the other.

    r(a, c | K) = corr(a − Ka, c − Kc),    Ka, Kc: least-squares fits of the ranks a, c by the ranks in K

A label of a concept enters K as two indicators, positive and negative, so that rows that the concept does
not use are a level of their own. Ranks are taken once: a resampled prompt brings the ranks that its rows have
among all rows, so that a resample is a weighted sum of the prompts' cross-products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from iclens.activations import LatentActs
from iclens.concepts.language import CONCEPTS, RESERVED, Concept, Rows, concept
from iclens.core import Site, SiteError, TableError, check_latent
from iclens.schemas import ConfidenceTable
from iclens.stats import UNDEFINED, Interval, sample_and_resamples, sample_interval
from iclens.table import Floats, Ints

THRESHOLD = 0.3
"""Least size of a partial correlation that names a latent's size: r² = .09, so that a tenth of what the
controls leave of the ranks is explained; a smaller one can be certain and still say little of the size."""
FEWEST_PROMPTS, FEWEST_ROWS = 10, 30
"""Prompts and rows below which nothing is measured: the intervals resample prompts."""
ALL_ROWS, ACTIVE_ROWS = "all rows", "active rows"
CONFIDENCE, MAGNITUDE, BOTH, NEITHER = "confidence", "magnitude", "both", "neither"
_ACTIVATION, _CONFIDENCE, _MAGNITUDE, _FIRST_CONTROL = 0, 1, 2, 3
_NAMES = ("activation", "log-probability", "y")
_NOTHING_LEFT = 1e-9
"""Share of a column's variance left by the controls below which it is taken for determined by them."""
_FIGURES = ("r", "r_given_magnitude", "magnitude_r")


def confidence(
    latents: Sequence[LatentActs], chosen: Sequence[tuple[Site, int, str]], log_prob: Floats, rows: Rows,
    *, seed: int, n_resamples: int = 200, first_example: int = 1, concepts: Sequence[Concept] = CONCEPTS,
) -> ConfidenceTable:  # fmt: skip
    """Rank correlations of each chosen latent's activation with confidence and with magnitude.

    Two rows per chosen latent, `all rows` and `active rows`; undefined figures are NaN with a reason.

    Args:
        latents: activations at `lab`, one table per site, all of the same prompts.
        chosen: site, latent, and the concept whose label is held fixed; `task identity` has none to hold.
        log_prob: log P(label shown | context) at `pre` of the same example, nats [prompt example].
        rows: of these prompts at `lab`, [prompt·example].
    """
    tables = _checked(latents, chosen, log_prob, rows)
    used = np.flatnonzero(np.isfinite(rows.x) & np.isfinite(rows.y) & (rows.example >= first_example))
    kept, certain = rows.take(used), log_prob.ravel()[used].astype(np.float64)
    if np.isnan(certain).any():
        remedy = "Give `log_prob` of the label shown at every example, read at `pre`."
        raise TableError("log-probabilities of labels", "a NaN among them", remedy)
    times = sample_and_resamples(len(log_prob), n_resamples, np.random.default_rng(seed))
    table = []
    for site, latent, name in chosen:
        activation = tables[site].trajectory(latent).ravel()[used].astype(np.float64)
        facts = [activation, certain, kept.y, kept.x, kept.example]
        if name not in RESERVED:
            label = concept(name, concepts).contrast.label(kept)
            facts += [label > 0, label < 0]
        columns = np.column_stack(facts).astype(np.float64)  # [row fact]
        for over, some in ((ALL_ROWS, np.ones(len(used), dtype=bool)), (ACTIVE_ROWS, activation > 0)):
            row = {"site": str(site), "latent": latent, "concept": name, "over": over}
            table.append(row | _measured(columns[some], kept.prompt[some], times))
    return ConfidenceTable.from_rows(table)


def _checked(
    latents: Sequence[LatentActs], chosen: Sequence[tuple[Site, int, str]], log_prob: Floats, rows: Rows
) -> dict[Site, LatentActs]:
    for acts in latents:
        what = f"confidence at {acts.site.short}"
        if acts.role != "lab":
            raise TableError(what, f"latents at '{acts.role}'", "Give latents at role 'lab'.")
        shape = (acts.n_prompts, acts.n_examples)
        if shape != log_prob.shape or len(rows) != log_prob.size:
            sizes = f"latents {shape}, log-probabilities {log_prob.shape}, {len(rows)} rows"
            raise TableError(what, sizes, "Give `latents`, `log_prob` and `rows` of the same prompts.")
    tables = {acts.site: acts for acts in latents}
    for site, latent, _ in chosen:
        if site not in tables:
            given = ", ".join(site.short for site in tables) or "none"
            raise SiteError(f"confidence at {site.short}", f"latents of {given}", "Choose one of these.")
        check_latent(site, latent, tables[site].d_sae)
    return tables


def _measured(facts: Floats, prompt: Ints, times: Floats) -> dict[str, Any]:
    """Columns of the table from `facts` [row fact]: activation, confidence, magnitude, then other controls.

    `prompt` [row] ascends; `times` has the sample itself first, [1 + resample prompt].
    """
    n_prompts = len(np.unique(prompt))
    row: dict[str, Any] = {"n_rows": len(facts), "n_prompts": n_prompts, "verdict": ""}
    for name in _FIGURES:
        row |= UNDEFINED.columns(name)
    if n_prompts < FEWEST_PROMPTS or len(facts) < FEWEST_ROWS:
        needed = f"{FEWEST_ROWS} and {FEWEST_PROMPTS} needed"
        return row | {"reason": f"{len(facts)} rows in {n_prompts} prompts, {needed}"}
    fixed = [name for name, values in zip(_NAMES, facts.T, strict=False) if (values == values[0]).all()]
    if fixed:
        return row | {"reason": f"{' and '.join(fixed)} the same in every row"}
    covariance = resampled_covariances(standard_ranks(facts), prompt, times)
    controls = np.arange(_FIRST_CONTROL, facts.shape[1])
    plain = partial_correlations(covariance, _CONFIDENCE, controls[:0])
    certain = partial_correlations(covariance, _CONFIDENCE, np.append(controls, _MAGNITUDE))
    magnitude = partial_correlations(covariance, _MAGNITUDE, np.append(controls, _CONFIDENCE))
    intervals = [sample_interval(values) for values in (plain, certain, magnitude)]
    for name, figure in zip(_FIGURES, intervals, strict=True):
        row |= figure.columns(name)
    undefined = [
        f"activation or {name} is determined by what is held fixed"
        for name, figure in zip(_NAMES[1:], intervals[1:], strict=True)
        if not figure.known
    ]
    if undefined:
        return row | {"reason": "; ".join(undefined)}
    gap = sample_interval(np.abs(certain) - np.abs(magnitude))
    verdict, reason = _verdict(intervals[1], intervals[2], gap)
    return row | {"verdict": verdict, "reason": reason}


def standard_ranks(facts: Floats) -> Floats:
    """Average ranks of each column of [row fact], to mean 0 and variance 1; a constant column becomes 0."""
    ranks = rankdata(facts, axis=0) - (len(facts) + 1) / 2
    spread = ranks.std(axis=0)
    return ranks / np.where(spread > 0, spread, 1.0)


def resampled_covariances(columns: Floats, prompt: Ints, times: Floats) -> Floats:
    """Covariances of columns [row column] when whole prompts are drawn `times` [draw prompt].

        Σ = Σ_p w_p C_p / n − m mᵀ,    C_p = Σ_{rows of p} u uᵀ,  n = Σ_p w_p n_p,  m the mean under w

    `prompt` [row] ascends. As [draw column column]; 0 throughout for a draw without a row.
    """
    extended = np.column_stack([columns, np.ones(len(columns))])  # the last column sums weights and means
    present, starts = np.unique(prompt, return_index=True)
    products = np.add.reduceat(extended[:, :, None] * extended[:, None], starts, axis=0)
    width = extended.shape[1]
    summed = (times[:, present] @ products.reshape(len(present), -1)).reshape(-1, width, width)
    summed = summed / np.maximum(summed[:, -1:, -1:], 1.0)
    mean = summed[:, :-1, -1]
    return summed[:, :-1, :-1] - mean[:, :, None] * mean[:, None]


def partial_correlations(covariance: Floats, other: int, given: Ints) -> Floats:
    """Correlation of column 0 with column `other`, the columns `given` regressed out of both, [draw].

        S = Σ_ab − Σ_aK Σ_KK⁺ Σ_Kb,    r = S_01 / √(S_00 S_11)

    Σ is `covariance` [draw column column]; columns of K may depend on each other. NaN where nothing is left.
    """
    pair = np.array([_ACTIVATION, other])
    whole = covariance[:, pair[:, None], pair]  # [draw 2 2]
    left = whole
    if len(given):
        shared = covariance[:, pair[:, None], given]  # [draw 2 given]
        among = covariance[:, np.asarray(given)[:, None], given]
        inverse = np.linalg.pinv(among, rcond=_NOTHING_LEFT, hermitian=True)
        left = whole - shared @ inverse @ shared.transpose(0, 2, 1)
    variance, before = (np.diagonal(part, axis1=1, axis2=2) for part in (left, whole))
    nothing = (variance <= _NOTHING_LEFT * before).any(axis=1)
    scale = np.sqrt(np.where(nothing, 1.0, variance[:, 0] * variance[:, 1]))
    return np.where(nothing, np.nan, left[:, 0, 1] / scale)


def _verdict(certain: Interval, magnitude: Interval, gap: Interval) -> tuple[str, str]:
    """What the size is, and what kept it from being one of the two alone."""
    large = [abs(one.value) >= THRESHOLD and one.low * one.high > 0 for one in (certain, magnitude)]
    if large[0] and gap.low > 0:
        return CONFIDENCE, ""
    if large[1] and gap.high < 0:
        return MAGNITUDE, ""
    if all(large):
        return BOTH, "neither partial correlation is the larger one for certain"
    if any(large):
        name = CONFIDENCE if large[0] else MAGNITUDE
        return NEITHER, f"{name} is not told apart from the other"
    return NEITHER, f"no partial correlation of {THRESHOLD:g} or more whose interval excludes 0"
