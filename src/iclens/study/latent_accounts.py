"""Which account of growth predicts a short-listed latent in all arms at once? Latents as read-outs.

Accounts as for the belief, on pre-activations. The exact account is the posterior of the task; beside it
stands the model's own log-odds of the answer in each prompt, which has no parameter either: the account of a
latent that follows what the model believes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iclens.growth.accounts import Compared, Design, compare_all
from iclens.schemas import LatentAccountTable
from iclens.study.growth_inputs import Place
from iclens.table import Floats, Ints


def latent_accounts(
    place: Place, latents: Ints, held: Mapping[str, Floats], designs: Mapping[str, Design], *, seed: int
) -> LatentAccountTable:
    """Accounts of the latents of one site and role; no rows where no two arms can be compared.

    Args:
        place: site and role.
        latents: [latent].
        held: arm → pre-activations, [latent prompt example].
        designs: arm → what was shown before them, of the same prompts.
        seed: of the split into halves and of the bootstrap.
    """
    if len(designs) < 2:
        return LatentAccountTable.concat([])
    found = compare_all({arm: held[arm] for arm in designs}, designs, seed=seed)
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
