"""Trajectories: chosen latents against the number of examples seen, with the beliefs beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from iclens.errors import SiteError, TableError
from iclens.names import BELIEFS, ROLES, Site, check_role
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Floats, Ints, expect_shape
from iclens.tables.bands import prompt_band

if TYPE_CHECKING:
    import pandas as pd


def examples_seen(role: str, n_examples: int) -> Ints:
    """How many labels the model has read at `role` of each example, [example].

    At `open`, `x`, `comma` and `pre` of example j it has read j; at `lab` and `close`, j + 1.

    Raises:
        SiteError: for an unknown role.
    """
    own_label = ROLES.index(check_role(role)) >= ROLES.index("lab")
    return np.arange(n_examples) + int(own_label)


@dataclass(frozen=True)
class Trajectories:
    """Chosen latents of one site, role and arm against evidence.

    Args:
        site: where.
        role: which token of each example.
        arm: which arm the prompts belong to ("T", "S", …).
        latent_ids: [latent].
        values: gated activation × decoder norm, [latent prompt example].
        n_seen: labels read at this role, [example].
        beliefs: log-odds in nats at `pre` of the same example, [prompt example belief]; NaN where a belief is
            undefined.
        belief_names: [belief].
    """

    site: Site
    role: str
    arm: str
    latent_ids: Ints
    values: Floats
    n_seen: Ints
    beliefs: Floats
    belief_names: tuple[str, ...] = BELIEFS

    def __post_init__(self) -> None:
        check_role(self.role)
        expect_shape(
            "Trajectories",
            latent_ids=(self.latent_ids, ("latent",)),
            values=(self.values, ("latent", "prompt", "example")),
            n_seen=(self.n_seen, ("example",)),
            beliefs=(self.beliefs, ("prompt", "example", len(self.belief_names))),
        )
        if len(np.unique(self.latent_ids)) != len(self.latent_ids):
            raise TableError("Trajectories.latent_ids", "a latent stands twice", "List each latent once.")

    @classmethod
    def of(
        cls,
        latents: LatentActs,
        latent_ids: Ints,
        *,
        arm: str,
        beliefs: Floats,
        belief_names: tuple[str, ...] = BELIEFS,
        decoder_norm: Floats | None = None,
    ) -> Trajectories:
        """The trajectories of some of a site's latents.

        Args:
            latents: the active latents of one site, role and arm.
            latent_ids: [latent] which to follow.
            arm: their arm.
            beliefs: log-odds in nats, [prompt example belief].
            belief_names: [belief].
            decoder_norm: length that one unit of each latent adds, [d_sae]; 1 when not given.

        Raises:
            SiteError: for a latent outside the SAE.
        """
        chosen = np.asarray(latent_ids, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= latents.d_sae):
            strange = chosen[(chosen < 0) | (chosen >= latents.d_sae)][0]
            raise SiteError(
                f"latent {strange} of {latents.site.short}",
                f"the SAE has latents 0 to {latents.d_sae - 1}",
                "Choose one of these.",
            )
        values = latents.dense(chosen)
        if decoder_norm is not None:
            values = values * decoder_norm[chosen][:, None, None]
        n_seen = examples_seen(latents.role, latents.n_examples)
        return cls(latents.site, latents.role, arm, chosen, values, n_seen, beliefs, belief_names)

    @property
    def df(self) -> pd.DataFrame:
        """One row per latent, prompt and example: activation, and the beliefs' log-odds (nats) at `pre`."""
        import pandas as pd

        n_latents, n_prompts, n_examples = self.values.shape
        latent, prompt, example = np.indices(self.values.shape).reshape(3, -1)
        frame = pd.DataFrame(
            {
                "site": str(self.site),
                "role": self.role,
                "arm": self.arm,
                "latent": self.latent_ids[latent],
                "prompt": prompt,
                "n_seen": self.n_seen[example],
                "activation": self.values.reshape(-1),
            }
        )
        names = self.belief_names
        beliefs = np.broadcast_to(self.beliefs, (n_latents, n_prompts, n_examples, len(names)))
        return frame.assign(**{name: beliefs[..., i].reshape(-1) for i, name in enumerate(names)})

    def summary(self, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Mean activation by examples seen, with a 95 % band that bootstraps prompts.

        Args:
            n_resamples: number of bootstrap resamples.
            seed: of the resampling.

        Returns:
            One row per latent and n_seen: site, role, arm, latent, n_seen, mean, ci_low, ci_high, n_prompts.
        """
        import pandas as pd

        band = prompt_band(self.values.transpose(1, 0, 2), np.random.default_rng(seed), n_resamples)
        n_latents, _, n_examples = self.values.shape
        return pd.DataFrame(
            {
                "site": str(self.site),
                "role": self.role,
                "arm": self.arm,
                "latent": np.repeat(self.latent_ids, n_examples),
                "n_seen": np.tile(self.n_seen, n_latents),
                "mean": band.mean.reshape(-1),
                "ci_low": band.low.reshape(-1),
                "ci_high": band.high.reshape(-1),
                "n_prompts": band.n_prompts.reshape(-1),
            }
        )
