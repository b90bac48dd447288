"""Which account of growth predicts a short-listed latent in all arms at once? Latents as read-outs.

1. Pre-activations before (or after) each example, arm by arm; after a label the design is that of the next
query, and probed arms, whose next query has another context, are left out. 2. Accounts as for the belief;
the exact account is the posterior of the task, and the model's own log-odds of the answer stand beside it,
frozen: an account of a latent that follows what the model believes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iclens.growth.accounts import Compared, compare_all
from iclens.growth.design import Design, design_of
from iclens.study.bench import Bench, beliefs_file
from iclens.study.growth_inputs import Place, exact_task
from iclens.tables.arrays import Floats, Ints
from iclens.tables.evidence import LatentAccountTable
from iclens.tables.trajectories import examples_seen
from iclens.tasks.beliefs import belief_index

Arms = Mapping[str, Floats]


def account_designs(bench: Bench, prompts: Ints) -> dict[str, Design]:
    """Arm → what was shown, with the exact task log-odds and the model's own of the answer.

    Where the exact posterior of some arms is known throughout, these arms alone; all of them otherwise.
    """
    found = {}
    for arm in bench.config.prompts.arms:
        exact = exact_task(bench, arm, prompts)
        own = bench.arrays("track", beliefs_file(arm))["model"][prompts][..., belief_index("exact")]
        known = exact if np.isfinite(exact).all() else None
        found[arm] = design_of(bench.prompts(arm).select(prompts), known, own)
    exactly = {arm: design for arm, design in found.items() if design.exact is not None}
    return exactly if len(exactly) > 1 else found


def latent_accounts(
    bench: Bench, place: Place, latents: Ints, held: Arms, designs: Mapping[str, Design]
) -> LatentAccountTable:
    """Accounts of the short-listed latents of one site and role; no rows where two arms cannot be compared.

    Args:
        bench: the run.
        place: site and role.
        latents: [latent].
        held: arm → pre-activations, [latent prompt example].
        designs: arm → what was shown, of the same prompts.
    """
    after = int(examples_seen(place[1], 1)[0])
    arms = [arm for arm in designs if not (after and bench.prompts(arm).probed)]
    if len(arms) < 2:
        return LatentAccountTable.concat([])
    shown = {arm: designs[arm].after_labels() if after else designs[arm] for arm in arms}
    responses = {arm: held[arm][:, :, : held[arm].shape[2] - after] for arm in arms}
    found = compare_all(responses, shown, seed=bench.config.growth.split_seed)
    return LatentAccountTable.concat(
        [_rows(place, int(latent), compared) for latent, compared in zip(latents, found, strict=True)]
    )


def _rows(place: Place, latent: int, compared: Compared) -> LatentAccountTable:
    table = compared.table
    n = len(table)
    kept = ("account", "behind", "behind_low", "behind_high", "parameter", "r2")
    return LatentAccountTable(
        {
            "site": [str(place[0])] * n,
            "role": [place[1]] * n,
            "latent": np.full(n, latent),
            **{name: table[name] for name in kept},
            "named": table["account"] == compared.best,
            "arms": [", ".join(compared.arms)] * n,
        }
    )
