"""Planted trajectories, codes and attention: data with a known answer, for calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from iclens.activations import LatentActs, Place, select_prompts
from iclens.core import Site, TableError, nearest
from iclens.growth.accounts import Design, compare
from iclens.growth.bayes import fit_log_odds
from iclens.growth.detect import test_arms, test_growth
from iclens.growth.shape import POWERS, distances, fit_shapes, means_of, profile_interval
from iclens.growth.verdict import DOSES, Claim, Manifest, causal_reasons, confirm, fit_doses
from iclens.prompts.build import PromptSet
from iclens.schemas import ShapeTable
from iclens.stats import benjamini_hochberg, control_p, ratio_of_means, split_prompts
from iclens.table import Floats, Ints

CONCEPTS = ("parity", "band", "numeric")
CONFOUND = "large"
NOTHING = "none"
BAND = 5
SLOPES, OFFSETS = (1, 2, 3, 4, 5, 10), (-7, -3, -1, 0, 1, 2, 3, 5, 8, 10)
INPUTS = np.arange(10, 98)
"""Two-digit x, so that every y is a number from 0 to 999."""


@dataclass(frozen=True)
class Codes:
    """Planted latents.

    Args:
        kind: a concept, `CONFOUND` or `NOTHING`, [latent].
        values: activations, [latent row].
        truth: concept or `CONFOUND` → whether it holds in each row, [row].
        slope, offset: a and b of the task of each row, [row].
        task: their number in the grid of `SLOPES` × `OFFSETS`, [row].
        x, y: input and answer of each row, [row].
    """

    kind: np.ndarray
    values: Floats
    truth: dict[str, np.ndarray]
    slope: Ints
    offset: Ints
    task: Ints
    x: Ints
    y: Ints


def plant_codes(*, n_latents: int, n_rows: int, confounding: float, snr: float, seed: int) -> Codes:
    """Latents of which a fifth each code for a concept, for the confound and for nothing.

    Args:
        n_latents: in all.
        n_rows: rows in all.
        confounding: V between every concept and the confound, from 0 to 1.
        snr: gain ÷ standard deviation of the noise.
        seed: of everything.

    Raises:
        TableError: for a confounding outside [0, 1].
    """
    if not 0 <= confounding <= 1:
        raise TableError(f"confounding {confounding}", "not from 0 to 1", "Give a share from 0 to 1.")
    rng = np.random.default_rng(seed)
    large = rng.random(n_rows) < 0.5
    agree = rng.random((len(CONCEPTS), n_rows)) < (1 + confounding) / 2
    truth = {name: np.where(same, large, ~large) for name, same in zip(CONCEPTS, agree, strict=True)}
    truth[CONFOUND] = large
    task, x = _rows(truth["parity"], truth["band"], large, rng)
    slope, offset = np.array(SLOPES)[task // len(OFFSETS)], np.array(OFFSETS)[task % len(OFFSETS)]
    kind = np.resize(np.array([*CONCEPTS, CONFOUND, NOTHING]), n_latents)
    signal = np.stack([truth.get(str(name), np.zeros(n_rows, dtype=bool)) for name in kind])
    values = np.where(signal, snr, 0.0) + rng.standard_normal((n_latents, n_rows))
    return Codes(kind, values, truth, slope, offset, task, x, slope * x + offset)


def _rows(
    odd: np.ndarray, band: np.ndarray, large: np.ndarray, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """For each row, a task and an input whose answer is odd, in the band and large as asked, [row] each.

    Every task that has such an input is equally probable, then every such input of it.
    """
    slope, offset = np.repeat(SLOPES, len(OFFSETS)), np.tile(OFFSETS, len(SLOPES))
    y = slope[:, None] * INPUTS + offset[:, None]
    halfway = np.median(y)
    held = 4 * (y % 2) + 2 * (np.abs(y - 2 * INPUTS) <= BAND) + (y > halfway)
    asked = 4 * odd + 2 * band + large
    task, x = np.empty(len(asked), dtype=int), np.empty(len(asked), dtype=int)
    for stratum in np.unique(asked):
        fits, rows = held == stratum, np.flatnonzero(asked == stratum)
        task[rows] = rng.choice(np.flatnonzero(fits.any(axis=1)), len(rows))
        x[rows] = [rng.choice(INPUTS[fits[one]]) for one in task[rows]]
    return task, x


@dataclass(frozen=True)
class CalibrationRow:
    """One figure of a calibration.

    Args:
        quantity: what was measured.
        demand: what it has to be, in words, for example "≤ .05".
        figure: the measured value.
        mc_error: its Monte-Carlo standard error.
        met: whether the demand holds, up to two Monte-Carlo errors where the demand is a rate.
        detail: on what, in a few words.
    """

    quantity: str
    demand: str
    figure: float
    mc_error: float
    met: bool
    detail: str = ""


def at_most(quantity: str, bound: float, hits: int, n: int, detail: str = "") -> CalibrationRow:
    """A share of hits that should not exceed `bound`; two binomial errors at the bound are allowed for."""
    share, slack = hits / n, 2 * binomial_error(bound, n)
    return CalibrationRow(
        quantity, f"≤ {bound:g}", share, binomial_error(share, n), share <= bound + slack, detail
    )


def at_least(quantity: str, bound: float, hits: int, n: int, detail: str = "") -> CalibrationRow:
    """A share of hits that should reach `bound`; two binomial errors at the bound are allowed for."""
    share, slack = hits / n, 2 * binomial_error(bound, n)
    return CalibrationRow(
        quantity, f"≥ {bound:g}", share, binomial_error(share, n), share >= bound - slack, detail
    )


def stated(quantity: str, hits: int, n: int, detail: str = "") -> CalibrationRow:
    """A share of hits that no demand is made of."""
    share = hits / n
    return CalibrationRow(quantity, "stated", share, binomial_error(share, n), True, detail)


def coverage(quantity: str, hits: int, n: int, detail: str = "") -> CalibrationRow:
    """Share of 95 % intervals that hold the truth; .93 to .97, up to two binomial errors."""
    share, slack = hits / n, 2 * binomial_error(0.95, n)
    met = 0.93 - slack <= share <= 0.97 + slack
    return CalibrationRow(quantity, ".93 to .97", share, binomial_error(share, n), met, detail)


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of n independent runs."""
    return float(np.sqrt(share * (1 - share) / n))


NAMES: Mapping[str, str] = {
    "sum pool": "counting",
    "softmax with sink": "attention pooling",
    "recency": "recency",
    "latch": "latch",
}
"""Head → the account that it is an instance of."""
ARMS = ("T", "D", "C3", "W")
SINK, RATE = 3.0, 0.6
ATTENTION_EXAMPLES = 16


def contexts(arm: str, n_prompts: int, n_examples: int = ATTENTION_EXAMPLES) -> Design:
    """What an arm shows: T right labels, D one example repeated, C3 one wrong, W the second half wrong."""
    label = np.ones(n_examples - 1)
    if arm == "C3":
        label[3] = -1
    if arm == "W":
        label[n_examples // 2 :] = -1
    before = np.tri(n_examples, n_examples - 1, -1)
    new = before.copy()
    if arm == "D":
        new[:, 1:] = 0
    shape = (n_prompts, n_examples, n_examples - 1)
    return Design(np.broadcast_to(label * before, shape), np.broadcast_to(new, shape))


def head_output(head: str, design: Design) -> Floats:
    """What the head writes before each query, [prompt example]; computed label by label."""
    values = design.right
    n_prompts, n_examples, n_slots = values.shape
    out = np.zeros((n_prompts, n_examples))
    for query in range(n_examples):
        shown = [slot for slot in range(n_slots) if values[:, query, slot].any()]
        seen = values[:, query, shown]
        if not shown:
            continue
        if head == "sum pool":
            out[:, query] = seen.sum(axis=1)
        elif head == "softmax with sink":
            weights = np.exp(np.zeros(len(shown)))
            out[:, query] = seen @ weights / (weights.sum() + SINK)
        elif head == "recency":
            out[:, query] = seen @ RATE ** np.arange(len(shown) - 1, -1, -1)
        else:
            out[:, query] = (seen > 0).any(axis=1)
    return out


def noisy_outputs(head: str, *, n_prompts: int, seed: int, snr: float = 3.0) -> dict[str, Floats]:
    """The head's outputs by arm with noise over prompts and examples.

    Args:
        head: a key of `NAMES`.
        n_prompts: prompts, paired over arms.
        seed: of the noise.
        snr: range of arm T's mean output ÷ standard deviation of the noise.
    """
    rng = np.random.default_rng(seed)
    scale = np.ptp(head_output(head, contexts("T", 1))) / snr
    level = rng.standard_normal((n_prompts, 1))
    found = {}
    for arm in ARMS:
        gain = 1 + 0.2 * rng.standard_normal((n_prompts, 1))
        noise = 0.7 * level + 0.7 * rng.standard_normal((n_prompts, ATTENTION_EXAMPLES))
        found[arm] = gain * head_output(head, contexts(arm, n_prompts)) + scale * noise
    return found


def named(head: str, *, n_prompts: int = 64, seed: int, snr: float = 3.0) -> str:
    """The account that the head's outputs are given."""
    designs = {arm: contexts(arm, n_prompts) for arm in ARMS}
    return compare(noisy_outputs(head, n_prompts=n_prompts, seed=seed, snr=snr), designs, seed=seed).best


def measure_attention(seed: int, n_runs: int) -> list[CalibrationRow]:
    """How often each head is named correctly, in `n_runs` seeds from `seed` on."""
    rows = []
    for head, account in NAMES.items():
        hits = sum(named(head, seed=seed + run) == account for run in range(n_runs))
        rows.append(at_least(f"mechanism named: {head}", 0.90, hits, n_runs, "64 prompts, snr 3, four arms"))
    return rows


READOUT_PROMPTS, N_CONTROLS = 48, 100
N_EACH = 10
GAIN_SD, NOISE_SD = 0.3, 0.3
ANY_DIRECTION_SD = 0.05
"""What a push along any direction does to the belief, nats, standard deviation over directions."""


@dataclass(frozen=True)
class Readout:
    """Planted latents and what pushing them does.

    Args:
        kind: "read grower", "unread grower" or "read, no growth", [latent].
        truth: nats per natural growth, [latent].
        responses: r(k) − r(0), [latent prompt dose].
        controls: effects at dose 1 of random latents pushed as far, [latent control].
        natural: the belief's own growth, nats [prompt].
    """

    kind: np.ndarray
    truth: Floats
    responses: Floats
    controls: Floats
    natural: Floats


def plant_readout(seed: int, *, n_prompts: int = READOUT_PROMPTS, curvature: float = 0.0) -> Readout:
    """A read-out with `N_EACH` latents of each kind.

    Args:
        seed: of everything.
        n_prompts: prompts pushed.
        curvature: k² term relative to the linear one; the slope at dose 0 stays the truth.
    """
    rng = np.random.default_rng(seed)
    kind = np.repeat(["read grower", "unread grower", "read, no growth"], N_EACH)
    growth = np.where(kind == "read, no growth", 0.0, rng.uniform(0.5, 2.0, len(kind)))
    weight = np.where(kind == "unread grower", 0.0, rng.uniform(0.3, 1.5, len(kind)))
    any_direction = ANY_DIRECTION_SD * rng.standard_normal(len(kind))
    truth = growth * weight + np.where(growth > 0, any_direction, 0.0)
    gain = 1 + GAIN_SD * rng.standard_normal((len(kind), n_prompts, 1))
    noise = NOISE_SD * rng.standard_normal((len(kind), n_prompts, len(DOSES)))
    responses = gain * truth[:, None, None] * (DOSES + curvature * DOSES**2) + noise
    spread = np.hypot(ANY_DIRECTION_SD, NOISE_SD / np.sqrt(n_prompts))
    controls = spread * rng.standard_normal((len(kind), N_CONTROLS))
    own = 1 + GAIN_SD * rng.standard_normal(n_prompts)
    return Readout(kind, truth, responses, controls, truth.sum() * own)


def measure_readout(seed: int, n_runs: int) -> list[CalibrationRow]:
    """Coverage and bias of dose slopes, bias of closure, and whether unread growers are flagged."""
    inside, n_slopes, flagged, called = 0, 0, 0, 0
    ratios, covered = [], 0
    for run in range(n_runs):
        planted = plant_readout(seed + run)
        fit = fit_doses(planted.responses)
        inside += int(((fit.low <= planted.truth) & (planted.truth <= fit.high)).sum())
        n_slopes += len(planted.truth)
        p = control_p(planted.responses[:, :, list(DOSES).index(1.0)].mean(axis=1), planted.controls)
        grower = planted.kind != "read, no growth"
        q = np.full(len(p), np.nan)
        q[grower] = benjamini_hochberg(p[grower])
        causal = np.array([why == "" for why in causal_reasons(fit.low, fit.high, fit.quadratic_share, q)])
        flagged += int((~causal[planted.kind == "unread grower"]).sum())
        called += int(causal[planted.kind == "read grower"].sum())
        closure = ratio_of_means(fit.slopes.sum(axis=0), planted.natural, seed=run)
        ratios.append(closure.value)
        covered += int(closure.low <= 1 <= closure.high)
    bias, error = abs(float(np.mean(ratios)) - 1), float(np.std(ratios, ddof=1) / np.sqrt(n_runs))
    n = N_EACH * n_runs
    return [
        coverage("coverage of the dose slope", inside, n_slopes, f"{READOUT_PROMPTS} prompts"),
        coverage("coverage of the normalised effect", covered, n_runs, "sum of slopes ÷ the belief's growth"),
        CalibrationRow("bias of the normalised effect", "≤ .05", bias, error,
                       bias <= 0.05 + 2 * error, f"{n_runs} runs"),
        at_least("growers without an effect flagged", 0.95, flagged, n, "unread growers"),
        at_least("growers with an effect called causal", 0.90, called, n, "read growers"),
    ]  # fmt: skip


RHO, SLOPE_SD = 0.5, 0.3
"""Autocorrelation of the noise from one example to the next, and spread of prompts' growth about 1."""
Curve = Callable[[Floats], Floats]

SHAPES: Mapping[str, Curve] = {
    "linear": lambda n: n,
    "power .9": lambda n: n**0.9,
    "power .75": lambda n: n**0.75,
    "power .5": lambda n: n**0.5,
    "hyperbolic 3": lambda n: n / (n + 3),
    "hyperbolic J": lambda n: n / (n + n[-1] + 1),
    "hyperbolic 2J": lambda n: n / (n + 2 * (n[-1] + 1)),
    "exponential": lambda n: -np.expm1(-4 * n / n[-1]),
    "early step": lambda n: (n >= 2).astype(float),
    "mid step": lambda n: (n >= n[-1] / 2).astype(float),
    "hinge": lambda n: np.maximum(0.0, n - n[-1] / 2),
    "plateau": lambda n: np.minimum(n, n[-1] / 2),
    "logistic": lambda n: 1 / (1 + np.exp(-(n - n[-1] / 2) / (n[-1] / 8))),
    "convex": lambda n: n**2,
    "decay": lambda n: np.exp(-3 * n / n[-1]),
    "null": lambda n: 0 * n,
}
"""Shapes by name; g over examples seen, scaled to a range of 1 when planted."""
ADDITIVE = ("linear", "power .9")
"""Shapes that an additive certificate may be given to: exponent inside (.8, 1.25)."""
WRONG = tuple(name for name in SHAPES if name not in ADDITIVE)
"""Shapes that it must not be given to."""


def curve(shape: str, n_examples: int) -> Floats:
    """g over examples seen, range 1, [example].

    Raises:
        TableError: naming the nearest shape.
    """
    if shape not in SHAPES:
        raise TableError(f"planted shape '{shape}'", "unknown", nearest(shape, tuple(SHAPES)) + ".")
    g = SHAPES[shape](np.arange(n_examples, dtype=float))
    return g / np.ptp(g) if np.ptp(g) > 0 else g


def noise(
    rng: np.random.Generator,
    n_latents: int,
    n_prompts: int,
    n_examples: int,
    common: float = 0.0,
    rho: float = RHO,
) -> Floats:
    """Autocorrelated noise of unit spread, [latent prompt example].

    Args:
        rng: source of randomness.
        n_latents: latents.
        n_prompts: prompts.
        n_examples: examples of each.
        common: share of the variance that all latents have in common.
        rho: correlation of one example's noise with the next.
    """
    shared = _autocorrelated(rng, rho, 1, n_prompts, n_examples)
    own = _autocorrelated(rng, rho, n_latents, n_prompts, n_examples)
    return np.sqrt(common) * shared + np.sqrt(1 - common) * own


def _autocorrelated(rng: np.random.Generator, rho: float, *shape: int) -> Floats:
    out = rng.standard_normal(shape)
    for j in range(1, shape[-1]):
        out[..., j] = rho * out[..., j - 1] + np.sqrt(1 - rho**2) * out[..., j]
    return out


def growth(
    rng: np.random.Generator,
    shape: str,
    n_latents: int,
    n_prompts: int,
    n_examples: int,
    snr: float,
    slope_sd: float = SLOPE_SD,
) -> Floats:
    """The planted rise of each prompt, [latent prompt example]; `slope_sd` is its spread over prompts."""
    own = 1 + slope_sd * rng.standard_normal((n_latents, n_prompts, 1))
    if shape == "own step":
        place = rng.integers(1, n_examples, (n_latents, n_prompts, 1))
        return snr * own * (np.arange(n_examples) >= place)
    if shape == "own bend":
        ramp = curve("linear", n_examples)
        late = rng.random((n_latents, n_prompts, 1)) < 0.5
        return snr * own * np.where(late, ramp**2, 2 * ramp - ramp**2)
    return snr * own * curve(shape, n_examples)


def plant(
    shape: str,
    *,
    n_latents: int,
    n_prompts: int,
    n_examples: int = 16,
    snr: float,
    seed: int,
    common: float = 0.0,
    rho: float = RHO,
    slope_sd: float = SLOPE_SD,
) -> tuple[Floats, Floats]:
    """Treated and control arm, [latent prompt example] each.

    Args:
        shape: a key of `SHAPES`, "drift" (both arms rise), "content" (labels in another order), "own step"
            (a step at another place in every prompt) or "own bend" (early in some prompts, late in others).
        n_latents: latents.
        n_prompts: prompts.
        n_examples: examples of each.
        snr: total growth ÷ standard deviation of one value.
        seed: of everything.
        common: share of the noise that all latents have in common.
        rho: correlation of one example's noise with the next.
        slope_sd: spread over prompts of a latent's growth, as a share of it.

    Raises:
        TableError: for an unknown shape.
    """
    rng = np.random.default_rng(seed)
    sizes = (n_latents, n_prompts, n_examples)
    one, other = (noise(rng, *sizes, common=common, rho=rho) for _ in range(2))
    if shape == "drift":
        rise = snr * curve("linear", n_examples)
        return one + rise, other + rise
    if shape == "content":
        moved = snr * rng.standard_normal(sizes)
        order = np.argsort(rng.random(sizes[1:]), axis=1)
        return moved, np.take_along_axis(moved, np.broadcast_to(order, sizes), axis=2)
    return one + growth(rng, shape, *sizes, snr, slope_sd), other


def as_latent_acts(values: Floats, *, role: str = "pre", threshold: float = -1.0) -> LatentActs:
    """Pre-activations as tracking would give them: what lies above a threshold, sparse.

    Args:
        values: [latent prompt example].
        role: for the table.
        threshold: of the gate.
    """
    d_sae, n_prompts, n_examples = values.shape
    rows = csr_array(np.maximum(values - threshold, 0).reshape(d_sae, -1).T)
    zeros = np.zeros((n_prompts, n_examples))
    return LatentActs(
        Site(0, "resid_post"), role, "planted", d_sae, n_prompts, n_examples,
        rows.indptr, rows.indices, np.asarray(rows.data, dtype=float), zeros, zeros,
    )  # fmt: skip


Q = 0.05
N_PROMPTS, N_EXAMPLES, N_LATENTS = 256, 16, 100
CLEAR = (12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 96.0)
"""snr·√N at which false certificates are looked for: from hardly seen to certain."""
SHAPED_PROMPTS = (102, 256)
"""Prompts that judge the shape: the shape split of a study of 256, and all of them."""
PLACE = (Site(0, "resid_post"), "pre")
NULLS = {"nothing": ("null", 0.0), "position only": ("drift", 3.0), "content only": ("content", 3.0)}
"""What is planted where nothing grows: shape and size."""
SIZES = {"n_prompts": N_PROMPTS, "n_examples": N_EXAMPLES}
SCREENED, SHAPED = 100, 200
"""Latents per run: of each wrong shape while the worst is looked for, and where a figure is measured."""
Cell = tuple[str, float, int]
"""A shape, its snr·√N and the number of prompts."""
FRESH = 1_000_000
"""Between the seeds of the search for the worst shape and those of its figure."""


def measure_nulls(seed: int, n_runs: int) -> list[CalibrationRow]:
    """The whole pipeline where nothing grows: no task, drift with position, content that only moves."""
    rows = []
    for name, (shape, snr) in NULLS.items():
        found = [discoveries(shape, snr, seed=seed + run) for run in range(n_runs)]
        hits, certified = (sum(run[i] > 0 for run in found) for i in (0, 1))
        said = f"{n_runs} whole pipelines; certified and confirmed in {certified}"
        rows.append(at_most(f"any discovery: {name}", 0.05, hits, n_runs, said))
    return rows


def discoveries(shape: str, snr: float, *, seed: int) -> tuple[int, int]:
    """Latents called on the discovery split, and those of them certified and confirmed on the others."""
    treated, control = (
        as_latent_acts(arm)
        for arm in plant(
            shape,
            n_latents=N_LATENTS,
            n_prompts=N_PROMPTS,
            n_examples=N_EXAMPLES,
            snr=snr,
            seed=seed,
            common=0.3,
        )
    )
    splits = split_prompts(N_PROMPTS, N_EXAMPLES, seed=seed)
    table = test_growth(*(select_prompts(arm, splits.discovery) for arm in (treated, control)), q=Q)
    called, grows = table.significant(Q), table.growing()
    if not len(grows):
        return len(called), 0
    ids = grows["latent"]
    paired = treated.dense(ids) - control.dense(ids)
    shapes = shapes_of(paired[:, splits.shape])
    claims = tuple(
        Claim(PLACE[0].short, PLACE[1], int(latent), float(slope), "grows")
        for latent, slope in zip(ids, grows["slope"], strict=True)
    )
    manifest = Manifest(claims, tuple(int(p) for p in splits.confirm), "planted")
    held = confirm(manifest, {PLACE: paired[:, splits.confirm]}, splits.confirm)
    return len(called), int((shapes["certified"] & (held["confirm_p"] <= Q)).sum())


def measure_discovery(seed: int, n_runs: int) -> list[CalibrationRow]:
    """False discovery rate with correlated latents, a fifth of which grow weakly; recall of 1 SD growth."""
    false, hits = [], 0
    for run in range(n_runs):
        n_grow = N_LATENTS // 5
        sizes = (N_LATENTS, N_PROMPTS, N_EXAMPLES)
        rng = np.random.default_rng([seed, run])
        treated, control = (noise(rng, *sizes, common=0.3) for _ in range(2))
        treated[:n_grow] += growth(rng, "linear", n_grow, N_PROMPTS, N_EXAMPLES, 0.35)
        called = test_growth(as_latent_acts(treated), as_latent_acts(control), q=Q).significant(Q)["latent"]
        false.append((called >= n_grow).mean() if len(called) else 0.0)
        full = plant("linear", n_latents=20, **SIZES, snr=1.0, seed=seed + run)
        hits += len(test_growth(*(as_latent_acts(arm) for arm in full), q=Q).growing())
    rate, error = float(np.mean(false)), float(np.std(false, ddof=1) / np.sqrt(n_runs))
    return [
        CalibrationRow("false discovery rate, correlated latents", "≤ .06", rate, error,
                       rate <= 0.06 + 2 * error, f"{n_runs} studies, a fifth of the latents grow by .35 SD"),
        at_least("recall of growth by 1 SD", 0.95, hits, 20 * n_runs, "256 prompts of 16 examples"),
    ]  # fmt: skip


def measure_certificates(seed: int, n_runs: int) -> list[CalibrationRow]:
    """False certificates of the worst wrong shape, and at snr·√N = 48 power and prompts' own shapes.

    The worst three of all shapes, sizes and numbers of prompts are looked for on some latents and measured on
    others: the largest of many noisy shares would be too large.
    """
    cells: list[Cell] = [
        (shape, clear, n)
        for shape in (*WRONG, "drift", "content")
        for clear in CLEAR
        for n in SHAPED_PROMPTS
    ]  # fmt: skip
    searched = [sum(_certified(cell, SCREENED, seed + run) for run in range(n_runs)) for cell in cells]
    worst = [cells[i] for i in np.argsort(searched, kind="stable")[-3:]]
    runs = range(seed + FRESH, seed + FRESH + 4 * n_runs)
    found = {cell: sum(_certified(cell, SHAPED, run) for run in runs) for cell in worst}
    shape, clear, n_prompts = max(found, key=lambda cell: found[cell])
    n = 4 * SHAPED * n_runs
    said = f"worst of {len(cells)}: {shape}, {n_prompts} prompts, snr·√N {clear:g}; on {n} other latents"
    rows = [at_most("false additive certificate", 0.05, max(found.values()), n, said)]
    n = SHAPED * n_runs
    for n_prompts in (256, 2304):
        linear, steps, bends = (
            sum(_certified((shape, 48.0, n_prompts), SHAPED, seed + run) for run in range(n_runs))
            for shape in ("linear", "own step", "own bend")
        )
        said = f"{n_prompts} prompts at snr {48 / n_prompts**0.5:g}"
        rows.append(at_least("power of the certificate", 0.80, linear, n, said))
        rows.append(at_most("certified, though each prompt steps by itself", 0.05, steps, n, said))
        rows.append(stated("certified, though prompts bend opposite ways", bends, n, said))
    return rows


def _certified(cell: Cell, n_latents: int, seed: int) -> int:
    """Latents of a shape that are certified."""
    shape, clear, n_prompts = cell
    treated, control = plant(
        shape,
        n_latents=n_latents,
        n_prompts=n_prompts,
        n_examples=N_EXAMPLES,
        snr=clear / np.sqrt(n_prompts),
        seed=seed,
    )
    # The planted noise stands for that of the difference, in which snr is told; these two are differences.
    values = treated - control if shape in ("drift", "content") else treated
    return int(shapes_of(values)["certified"].sum())


def shapes_of(values: Floats) -> ShapeTable:
    """Shapes of planted latents [latent prompt example]."""
    return fit_shapes(np.arange(values.shape[2]), values, place=PLACE, latent_ids=np.arange(len(values)))


def measure_coverage(seed: int, n_runs: int) -> list[CalibrationRow]:
    """Coverage of 95 % intervals: of the exponent p, and of LO_0 and λ."""
    rows = []
    for shape, truth in (("linear", 1.0), ("power .75", 0.75)):
        hits = 0
        for run in range(n_runs):
            values, _ = plant(shape, n_latents=SHAPED, **SIZES, snr=3.0, seed=seed + run)
            (_, means), *_ = means_of(values)[0]
            n = np.arange(N_EXAMPLES, dtype=float)
            power = distances(means, np.array([n**p for p in POWERS]))
            ends = profile_interval(means, N_EXAMPLES, power, 0.95)
            hits += int(((ends.low <= truth) & (truth <= ends.high)).sum())
        rows.append(coverage(f"coverage of p, {shape}", hits, SHAPED * n_runs, "256 prompts at snr 3"))
    inside = np.zeros(2, dtype=int)
    n_fits = 4 * n_runs * 25
    line = -3 + 6 * curve("linear", N_EXAMPLES)
    for run in range(n_fits):
        rng = np.random.default_rng([seed, 7, run])
        own = 1 + 0.2 * rng.standard_normal((N_PROMPTS, 1))
        values = noise(rng, 1, N_PROMPTS, N_EXAMPLES)[0] + own * line
        fit = fit_log_odds(
            np.arange(N_EXAMPLES), values, over=slice(0, N_EXAMPLES), n_resamples=400, seed=run
        )
        inside += [fit.lo_0_low <= -3 <= fit.lo_0_high, fit.lam_low <= 6 / (N_EXAMPLES - 1) <= fit.lam_high]
    rows += [coverage(f"coverage of {name}", int(hit), n_fits, "256 prompts") for name, hit in
             zip(("LO_0", "λ"), inside, strict=True)]  # fmt: skip
    return rows


Arm = Mapping[Place, LatentActs]


def null_discoveries(
    treated: Arm,
    control: Arm,
    *,
    prompts: tuple[PromptSet, PromptSet],
    n_runs: int,
    seed: int,
    q: float = 0.05,
) -> Ints:
    """Discoveries (growing or falling) of the whole test in each run with arms relabelled at random.

    Args:
        treated: (site, role) → arm T.
        control: (site, role) → arm S.
        prompts: the prompts of both arms.
        n_runs: number of relabellings.
        seed: of the relabelling.
        q: as in `test_arms`.

    Returns:
        [run]; at most a share q of the runs should have any, up to the error of counting n_runs of them.

    Raises:
        TableError: as `test_arms`.
    """
    rng = np.random.default_rng(seed)
    counts = []
    for _ in range(n_runs):
        swapped = rng.random(prompts[0].n_prompts) < 0.5
        table = test_arms(*relabelled(treated, control, swapped), prompts=prompts, q=q)
        counts.append(len(table.significant(q)))
    return np.array(counts)


def relabelled(
    treated: Arm, control: Arm, swapped: NDArray[np.bool_]
) -> tuple[dict[Place, LatentActs], dict[Place, LatentActs]]:
    """Both arms with the prompts marked in `swapped` [prompt] exchanged, at every site and role."""
    pairs = {place: (acts, control[place]) for place, acts in treated.items()}
    first = {place: _mixed(one, other, swapped) for place, (one, other) in pairs.items()}
    second = {place: _mixed(other, one, swapped) for place, (one, other) in pairs.items()}
    return first, second


def _mixed(own: LatentActs, other: LatentActs, swapped: NDArray[np.bool_]) -> LatentActs:
    """`own` with the marked prompts taken from `other`."""
    rows = np.arange(own.n_prompts * own.n_examples)
    both = csr_array(vstack([own.matrix, other.matrix], format="csr"))
    taken = csr_array(both[rows + len(rows) * np.repeat(swapped, own.n_examples)])
    error_sq, total_sq = (
        np.where(swapped[:, None], *both_of)
        for both_of in ((other.error_sq, own.error_sq), (other.total_sq, own.total_sq))
    )
    return own.with_rows(taken, own.n_prompts, own.n_examples, error_sq=error_sq, total_sq=total_sq)
