"""Does pushing a latent move a belief, linearly, and as nothing like it does?

From responses r(k) − r(0) of one belief at doses k of a latent's natural growth, prompt by prompt:

    r(k) − r(0) = s·k + c·k²        s: nats per natural growth; its interval is over prompts

*causal*: the interval of s lies above 0 (the belief rises with the task's evidence), the k² term makes up at
most `MOST_QUADRATIC` of the variance over −1..1, and no more matched random latents than q allows move it as
far. The share is taken over −1..1, where it does not depend on the sign of c. Over the doses themselves,
which reach further up than down, a line takes up most of an upward curve: k + k²/2 would share .08, k − k²/2
would share .65.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from iclens.errors import TableError
from iclens.tables.arrays import Floats, expect_shape
from iclens.tables.bands import resample_prompts

DOSES: Floats = np.array([-1.0, -0.5, 0.5, 1.0, 1.5, 2.0])
"""Doses in natural growths; 0 is the base."""
MOST_QUADRATIC = 0.1
"""Largest share of a dose-response's variance that curvature may make up for it to count as linear: the k²
term is then at most .43 of the line at one natural growth."""
NATURAL_SQUARE, NATURAL_FOURTH = 1 / 3, 1 / 5
"""Means of k² and k⁴ over the natural range −1..1, on which k and k² are orthogonal."""
LEVEL = 0.05
UNDECIDED = "beyond all its matched random latents, which are too few for so many pushed ones"
"""Why a latent whose p is as small as its controls allow is not called."""
RESAMPLES = 1000


@dataclass(frozen=True)
class DoseFit:
    """Dose-responses of several latents, [latent] each; `slopes` is [latent prompt]."""

    slope: Floats
    low: Floats
    high: Floats
    quadratic_share: Floats
    slopes: Floats


@dataclass(frozen=True)
class Ratio:
    """A ratio of means over prompts with its 95 % interval."""

    value: float
    low: float
    high: float


def fit_doses(responses: Floats, doses: Floats = DOSES) -> DoseFit:
    """Slope, interval and curvature of each latent's dose-response.

    Args:
        responses: r(k) − r(0) in nats, [latent prompt dose].
        doses: k, [dose], without 0.

    Raises:
        TableError: when the axes do not agree, or fewer than two prompts or three doses are given.
    """
    sizes = expect_shape(
        "dose-responses", responses=(responses, ("latent", "prompt", "dose")), doses=(doses, ("dose",))
    )
    if sizes["prompt"] < 2 or sizes["dose"] < 3:
        raise TableError(
            "dose-responses",
            f"{sizes['prompt']} prompts at {sizes['dose']} doses",
            "Give at least 2 prompts and 3 doses.",
        )
    design = np.stack([doses, doses**2], axis=1)
    slopes = responses @ np.linalg.pinv(design)[0]
    mean = responses.mean(axis=1) @ np.linalg.pinv(design).T
    linear, quadratic = np.square(mean * np.sqrt([NATURAL_SQUARE, NATURAL_FOURTH])).T
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(linear + quadratic > 0, quadratic / (linear + quadratic), 0.0)
    n = sizes["prompt"]
    half = stats.t.ppf(0.975, n - 1) * slopes.std(axis=1, ddof=1) / np.sqrt(n)
    middle = slopes.mean(axis=1)
    return DoseFit(middle, middle - half, middle + half, share, slopes)


def ratio_of_means(top: Floats, bottom: Floats, seed: int = 0) -> Ratio:
    """Mean of `top` ÷ mean of `bottom` [prompt], resampling prompts; NaN where the bottom's sign is unclear.

    Args:
        top: [prompt].
        bottom: [prompt].
        seed: of the resampling.
    """
    draws = resample_prompts(len(top), RESAMPLES, np.random.default_rng(seed))
    below = draws @ bottom
    if np.quantile(below, 0.025) <= 0 <= np.quantile(below, 0.975):
        return Ratio(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile((draws @ top) / below, [0.025, 0.975])
    return Ratio(float(top.sum() / bottom.sum()), float(low), float(high))


def control_p(effect: Floats, controls: Floats) -> Floats:
    """(1 + controls that raise the belief at least as much) / (1 + their number), [latent].

    One-sided, as the claim is: a long push in a random direction mostly breaks the answer, and lowers the
    belief by more than any latent raises it.

    Args:
        effect: of each latent, [latent].
        controls: of its matched random latents, [latent control].
    """
    beaten = (controls >= effect[:, None]).sum(axis=1)
    return (1 + beaten) / (1 + controls.shape[1])


def causal_reasons(
    low: Floats, high: Floats, quadratic_share: Floats, q_value: Floats, unbeaten: np.ndarray | None = None
) -> list[str]:
    """Why each latent is not causal, [latent]; empty where it is.

    Args:
        low: lower end of the slope's interval, [latent].
        high: upper end, [latent].
        quadratic_share: [latent].
        q_value: of the comparison with matched latents, [latent]; NaN where there were none.
        unbeaten: whether no matched latent raises the belief as much, [latent]; nobody when not given.
    """
    reasons, first = [], np.zeros(len(low), dtype=bool) if unbeaten is None else unbeaten
    for least, most, curved, q, best in zip(low, high, quadratic_share, q_value, first, strict=True):
        shown = f"[{least:.3g}, {most:.3g}] nats"
        if not np.isfinite(least):
            reasons.append("its effect is undefined")
        elif least <= 0:
            reasons.append(f"pushing it does not raise the belief: {shown}")
        elif curved > MOST_QUADRATIC:
            reasons.append(f"its dose-response is not linear: k² makes up {curved:.0%}")
        elif not q <= LEVEL and best:
            reasons.append(f"{UNDECIDED} (q {q:.2g}): more controls would tell")
        elif not q <= LEVEL:
            reasons.append(f"not beyond matched random latents (q {q:.2g})")
        else:
            reasons.append("")
    return reasons
