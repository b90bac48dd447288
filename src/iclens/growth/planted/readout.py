"""G2: a planted linear read-out, in which what each latent does to the belief is known exactly.

    LO_i = b_i + Σ_f w_f · z_fi + e_i

Some latents grow and are read (w > 0), some grow and are not (w = 0), some are read and do not grow.
Directions of a model are not orthogonal to its read-out, so a push along any of them, a random one too, moves
LO a little: an unread grower has a slope, its interval may exclude 0, and only the matched random latents
tell it from one that is read. A push by k natural growths moves LO_i by k·s_f·(1 + u_i), s_f = δ_f·w_f + what
any direction does, u a prompt's own gain. A method should recover s, flag growers that are not read, and
close the sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.growth.dose import DOSES, causal_reasons, control_p, fit_doses, ratio_of_means
from iclens.growth.multiplicity import benjamini_hochberg
from iclens.growth.planted.rows import CalibrationRow, at_least, coverage
from iclens.tables.arrays import Floats

N_PROMPTS, N_CONTROLS = 48, 100
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


def plant_readout(seed: int, *, n_prompts: int = N_PROMPTS, curvature: float = 0.0) -> Readout:
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
        coverage("coverage of the dose slope", inside, n_slopes, f"{N_PROMPTS} prompts"),
        coverage("coverage of the normalised effect", covered, n_runs, "sum of slopes ÷ the belief's growth"),
        CalibrationRow("bias of the normalised effect", "≤ .05", bias, error,
                       bias <= 0.05 + 2 * error, f"{n_runs} runs"),
        at_least("growers without an effect flagged", 0.95, flagged, n, "unread growers"),
        at_least("growers with an effect called causal", 0.90, called, n, "read growers"),
    ]  # fmt: skip
