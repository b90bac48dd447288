"""Is the size of a latent the model's confidence in the label, or the label's magnitude?

1. A row is an example at `lab` whose x and y are numbers. Its *confidence* is log P(y | context), read at
`pre` of the same example, before the label is seen; its *magnitude* is y. 2. Activation, confidence,
magnitude, x and example number become ranks over the rows. 3. The rank correlation of activation with
confidence is taken as it is, and with magnitude and the other controls regressed out; that with magnitude,
with confidence and the others regressed out. 4. Whole prompts are resampled for intervals. 5. The larger of
the two partial correlations names the size, where it is large enough and told apart from the other.

What enters: latents at `lab`, the chosen ones, log-probabilities and rows. What leaves: a `ConfidenceTable`.

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
from iclens.core import Site, SiteError, TableError
from iclens.schemas import ConfidenceTable
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
    latents: Sequence[LatentActs],
    chosen: Sequence[tuple[Site, int, str]],
    log_prob: Floats,
    rows: Rows,
    *,
    seed: int,
    n_resamples: int = 200,
    first_example: int = 1,
    concepts: Sequence[Concept] = CONCEPTS,
) -> ConfidenceTable:
    """Rank correlations of each chosen latent's activation with confidence and with magnitude.

    Args:
        latents: activations at `lab`, one table per site, all of the same prompts.
        chosen: site, latent, and the concept whose label is held fixed. A name that is no contrast, such as
            `task identity`, has no label to hold.
        log_prob: log P(label shown | context) at `pre` of the same example, nats [prompt example].
        rows: of these prompts at `lab`, [prompt·example].
        seed: of the prompt bootstrap; every latent is measured on the same resamples.
        n_resamples: resamples of prompts.
        first_example: rows count from this example on, examples.
        concepts: where the concepts' labels are looked up.

    Returns:
        Two rows per chosen latent, `all rows` and `active rows`; undefined figures are NaN with a reason.

    Raises:
        SiteError: for a site that is not among `latents`, a latent outside its SAE, or an unknown concept.
        TableError: when latents are of another role or of other prompts than `log_prob` and `rows`, or a
            log-probability is NaN.
    """
    tables = _checked(latents, chosen, log_prob, rows)
    known = np.isfinite(rows.x) & np.isfinite(rows.y) & (rows.example >= first_example)
    used = np.flatnonzero(known)
    kept, certain = rows.take(used), log_prob.ravel()[used].astype(np.float64)
    if np.isnan(certain).any():
        raise TableError(
            "log-probabilities of labels",
            "a NaN among them",
            "Give `log_prob` of the label shown at every example, read at `pre`.",
        )
    times = _times(len(log_prob), n_resamples, seed)
    labels = {name: _indicators(name, concepts, kept) for _, _, name in chosen}
    columns: dict[str, list[Any]] = {name: [] for name in ConfidenceTable.COLUMNS}
    for site, latent, name in chosen:
        activation = tables[site].trajectory(latent).ravel()[used].astype(np.float64)
        facts = np.column_stack([activation, certain, kept.y, kept.x, kept.example, *labels[name]]).astype(
            np.float64
        )
        for over, some in ((ALL_ROWS, np.ones(len(used), dtype=bool)), (ACTIVE_ROWS, activation > 0)):
            found = _measured(facts[some], kept.prompt[some], times)
            row = {"site": str(site), "latent": latent, "concept": name, "over": over} | found
            for key, values in columns.items():
                values.append(row[key])
    return ConfidenceTable(columns)


def _checked(
    latents: Sequence[LatentActs], chosen: Sequence[tuple[Site, int, str]], log_prob: Floats, rows: Rows
) -> dict[Site, LatentActs]:
    for acts in latents:
        if acts.role != "lab":
            raise TableError(
                f"confidence at {acts.site.short}", f"latents at '{acts.role}'", "Give latents at role 'lab'."
            )
        shape = (acts.n_prompts, acts.n_examples)
        if shape != log_prob.shape or len(rows) != log_prob.size:
            raise TableError(
                f"confidence at {acts.site.short}",
                f"latents {shape}, log-probabilities {log_prob.shape}, {len(rows)} rows",
                "Give `latents`, `log_prob` and `rows` of the same prompts.",
            )
    tables = {acts.site: acts for acts in latents}
    for site, latent, _ in chosen:
        if site not in tables:
            given = ", ".join(site.short for site in tables) or "none"
            raise SiteError(f"confidence at {site.short}", f"latents of {given}", "Choose one of these.")
        if not 0 <= latent < tables[site].d_sae:
            raise SiteError(
                f"latent {latent} of {site.short}",
                f"the SAE has {tables[site].d_sae}",
                f"Choose one from 0 to {tables[site].d_sae - 1}.",
            )
    return tables


def _indicators(name: str, concepts: Sequence[Concept], rows: Rows) -> tuple[Floats, ...]:
    """Whether a row is a positive and whether it is a negative, [row] each; nothing for a reserved name."""
    if name in RESERVED:
        return ()
    label = concept(name, concepts).contrast.label(rows)
    return (label > 0).astype(np.float64), (label < 0).astype(np.float64)


def _times(n_prompts: int, n_resamples: int, seed: int) -> Floats:
    """How often each prompt is drawn, the sample itself first, [1 + resample, prompt]."""
    drawn = np.random.default_rng(seed).multinomial(
        n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_resamples
    )
    return np.concatenate([np.ones((1, n_prompts)), drawn.astype(np.float64)])


def _measured(facts: Floats, prompt: Ints, times: Floats) -> dict[str, Any]:
    """Columns of the table for one latent and set of rows.

    Args:
        facts: activation, confidence, magnitude, then the other controls, [row fact].
        prompt: prompt of each row, ascending, [row].
        times: as of `_times`.
    """
    n_prompts = len(np.unique(prompt))
    found: dict[str, Any] = {"n_rows": len(facts), "n_prompts": n_prompts, "verdict": ""}
    found |= {f"{name}{end}": np.nan for name in _FIGURES for end in ("", "_low", "_high")}
    if n_prompts < FEWEST_PROMPTS or len(facts) < FEWEST_ROWS:
        needed = f"{FEWEST_ROWS} and {FEWEST_PROMPTS} needed"
        return found | {"reason": f"{len(facts)} rows in {n_prompts} prompts, {needed}"}
    fixed = [name for name, values in zip(_NAMES, facts.T, strict=False) if (values == values[0]).all()]
    if fixed:
        return found | {"reason": f"{' and '.join(fixed)} the same in every row"}
    covariance = resampled_covariances(standard_ranks(facts), prompt, times)
    others = np.arange(_FIRST_CONTROL, facts.shape[1])
    plain = partial_correlations(covariance, _CONFIDENCE, others[:0])
    certain = partial_correlations(covariance, _CONFIDENCE, np.append(others, _MAGNITUDE))
    magnitude = partial_correlations(covariance, _MAGNITUDE, np.append(others, _CONFIDENCE))
    intervals = [_interval(values) for values in (plain, certain, magnitude)]
    for name, (value, low, high) in zip(_FIGURES, intervals, strict=True):
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    undefined = [
        f"activation or {name} is determined by what is held fixed"
        for name, (value, _, _) in zip(_NAMES[1:], intervals[1:], strict=True) if np.isnan(value)
    ]  # fmt: skip
    if undefined:
        return found | {"reason": "; ".join(undefined)}
    verdict, reason = _verdict(intervals[1], intervals[2], _interval(np.abs(certain) - np.abs(magnitude)))
    return found | {"verdict": verdict, "reason": reason}


def standard_ranks(facts: Floats) -> Floats:
    """Average ranks of each column of [row fact], to mean 0 and variance 1; a constant column becomes 0."""
    ranks = rankdata(facts, axis=0) - (len(facts) + 1) / 2
    spread = ranks.std(axis=0)
    return ranks / np.where(spread > 0, spread, 1.0)


def resampled_covariances(columns: Floats, prompt: Ints, times: Floats) -> Floats:
    """Covariances of the columns when whole prompts are drawn, [draw column column].

        Σ = Σ_p w_p C_p / n − m mᵀ,    C_p = Σ_{rows of p} u uᵀ,  n = Σ_p w_p n_p,  m the mean under w

    Args:
        columns: [row column].
        prompt: prompt of each row, ascending, [row].
        times: w, how often each prompt is drawn, [draw prompt].

    Returns:
        0 throughout for a draw without a row.
    """
    held = np.column_stack([columns, np.ones(len(columns))])
    present, starts = np.unique(prompt, return_index=True)
    products = np.add.reduceat(held[:, :, None] * held[:, None], starts, axis=0)
    width = held.shape[1]
    summed = (times[:, present] @ products.reshape(len(present), -1)).reshape(-1, width, width)
    summed = summed / np.maximum(summed[:, -1:, -1:], 1.0)
    mean = summed[:, :-1, -1]
    return summed[:, :-1, :-1] - mean[:, :, None] * mean[:, None]


def partial_correlations(covariance: Floats, other: int, given: Ints) -> Floats:
    """Correlation of column 0 with column `other`, the columns `given` regressed out of both, [draw].

        S = Σ_ab − Σ_aK Σ_KK⁺ Σ_Kb,    r = S_01 / √(S_00 S_11)

    Args:
        covariance: Σ, [draw column column].
        other: a column.
        given: columns held fixed, [column]; they may depend on each other.

    Returns:
        NaN where nothing of one of the two is left.
    """
    pair = np.array([_ACTIVATION, other])
    own = covariance[:, pair[:, None], pair]
    shared = covariance[:, pair[:, None], given]
    among = covariance[:, np.asarray(given)[:, None], given]
    if len(given):
        inverse = np.linalg.pinv(among, rcond=_NOTHING_LEFT, hermitian=True)
        left = own - shared @ inverse @ shared.transpose(0, 2, 1)
    else:
        left = own
    variance, before = (np.diagonal(part, axis1=1, axis2=2) for part in (left, own))
    nothing = (variance <= _NOTHING_LEFT * before).any(axis=1)
    scale = np.sqrt(np.where(nothing, 1.0, variance[:, 0] * variance[:, 1]))
    return np.where(nothing, np.nan, left[:, 0, 1] / scale)


def _interval(values: Floats) -> tuple[float, float, float]:
    """The sample's value, first in [draw], and the percentiles of the defined resamples after it."""
    again = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(again):
        return float(values[0]), np.nan, np.nan
    low, high = np.quantile(again, (0.025, 0.975))
    return float(values[0]), float(low), float(high)


def _verdict(
    certain: tuple[float, float, float], magnitude: tuple[float, float, float],
    gap: tuple[float, float, float],
) -> tuple[str, str]:  # fmt: skip
    """What the size is, and what kept it from being one of the two alone.

    Args:
        certain: partial correlation with confidence, and its interval.
        magnitude: that with magnitude.
        gap: |certain| − |magnitude|, and its interval.
    """
    large = [abs(value) >= THRESHOLD and low * high > 0 for value, low, high in (certain, magnitude)]
    if large[0] and gap[1] > 0:
        return CONFIDENCE, ""
    if large[1] and gap[2] < 0:
        return MAGNITUDE, ""
    if all(large):
        return BOTH, "neither partial correlation is the larger one for certain"
    if any(large):
        name = CONFIDENCE if large[0] else MAGNITUDE
        return NEITHER, f"{name} is not told apart from the other"
    return NEITHER, f"no partial correlation of {THRESHOLD:g} or more whose interval excludes 0"
