"""G3: hand-built attention heads whose way of pooling examples is known.

One head reads the labels of the context. Its value at a label is +1 where it is the task's own and −1
otherwise; its scores say which labels it looks at:

    sum pool      Σ v                       softmax with sink   Σ v e^0 / (n e^0 + κ)
    recency       Σ v r^(examples since)    latch               1 once a right label was seen

A method that names mechanisms should name each of these from its outputs in several arms.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iclens.growth.accounts import compare
from iclens.growth.design import Design
from iclens.growth.planted.rows import CalibrationRow, at_least
from iclens.tables.arrays import Floats

NAMES: Mapping[str, str] = {
    "sum pool": "counting",
    "softmax with sink": "attention pooling",
    "recency": "recency",
    "latch": "latch",
}
"""Head → the account that it is an instance of."""
ARMS = ("T", "D", "C3", "W")
SINK, RATE = 3.0, 0.6
N_EXAMPLES = 16


def contexts(arm: str, n_prompts: int, n_examples: int = N_EXAMPLES) -> Design:
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
        noise = 0.7 * level + 0.7 * rng.standard_normal((n_prompts, N_EXAMPLES))
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
