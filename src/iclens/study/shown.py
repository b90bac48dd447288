"""What do the arms show on some prompts, and what of it has a read-out at a role seen?

Before an example's label is read (`open` to `pre`), a read-out at example j stands before example j, as the
belief does. At `lab` and `close` it stands before example j + 1: evidence and designs move on by one example,
the last read-out has nothing to be compared with, and probed arms are left out, because their next query has
another context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from iclens.activations import examples_seen
from iclens.growth.accounts import Design, design_of
from iclens.prompts.arms import HINTED
from iclens.prompts.beliefs import belief_index
from iclens.study.bench import Bench, beliefs_file
from iclens.study.growth_inputs import comparable, exact_task, label_evidence, similarities
from iclens.table import Floats, Ints

QUERY_READ = ("x", "comma", "pre")
"""Roles before the label at which the query is known, so that an example's similarity to it can count."""


@dataclass(frozen=True)
class Shown:
    """Arm by arm, for one set of prompts, as of before each read-out.

    Args:
        llr: evidence of each example, nats [prompt example]; NaN where unknown.
        similarity: of each example to the query after it, [prompt example]; None where it cannot count.
        designs: contexts, of the arms whose accounts are compared.
        hinted: how many examples of arms Q- and Q0 are the hint.
    """

    llr: Mapping[str, Floats]
    similarity: Mapping[str, Floats] | None
    designs: Mapping[str, Design]
    hinted: int = HINTED


def shown_in(bench: Bench, prompts: Ints) -> Shown:
    """What every arm shows before each query; designs hold the exact task log-odds and the model's own."""
    arms = {arm: bench.prompts(arm).select(prompts) for arm in bench.config.prompts.arms}
    exact = {arm: exact_task(bench, arm, prompts) for arm in arms}
    designs = {}
    for arm in comparable(exact):
        own = bench.arrays("track", beliefs_file(arm))["model"][prompts][..., belief_index("exact")]
        known = exact[arm] if np.isfinite(exact[arm]).all() else None
        designs[arm] = design_of(arms[arm], known, own)
    return Shown(
        {arm: label_evidence(bench, arm, prompts) for arm in arms},
        similarities(bench, prompts),
        designs,
    )


def seen_at(
    bench: Bench, role: str, shown: Shown, held: Mapping[str, Floats]
) -> tuple[Shown, dict[str, Floats]]:
    """What a read-out at `role` has seen, and the read-outs that it can be set against.

    Args:
        bench: the run, for which arms are probed.
        role: token of each example.
        shown: what the arms show before each query.
        held: arm → read-outs at the role, [readout prompt example].
    """
    if not examples_seen(role, 1)[0]:
        return (shown if role in QUERY_READ else Shown(shown.llr, None, shown.designs)), dict(held)
    inline = [arm for arm in held if not bench.prompts(arm).probed]
    after = Shown(
        {arm: shown.llr[arm][:, 1:] for arm in inline},
        None,
        {arm: design.after_labels() for arm, design in shown.designs.items() if arm in inline},
        shown.hinted - 1,
    )
    return after, {arm: held[arm][:, :, :-1] for arm in inline}
