"""What a latent patch needs of run A and run B, gathered once per SAE.

1. The site is recorded at every `pre` of A and B, and encoded; at the query this gives a^A and a^B, over all
examples how often and how strongly each latent is active. 2. The donor value of each prompt is the mean over
*other* A prompts (never one that asks about x_A or x_B, so neither query leaks), or the prompt's own.
3. Prompts are halved: one half screens latents, the other tests them, and donor means stay within a half.
4. The tail engine gives every belief after any addition at the site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError, SaeError
from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.models.tail import Tail, tails_of
from iclens.patching.effects import belief_log_odds
from iclens.patching.residual import query_answers, up_to_query
from iclens.patching.runs import Runs
from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints
from iclens.tables.prompts import PromptSet

DONOR_VALUES = ("task mean", "instance")
_ONE_HOT_ROWS = 256


@dataclass(frozen=True)
class LatentRuns:
    """Runs A and B as one SAE sees them at the query's `pre`.

    Args:
        sae: the SAE.
        runs: the prompts.
        tails: run B of each prompt, ready for additions at its `pre`.
        recipient_held: the site's activation in B, [prompt d_in].
        donor_held: its donor value, [prompt d_in].
        recipient_latents: gated activations in B, [prompt d_sae].
        donor_latents: their donor values, [prompt d_sae].
        density: share of `pre` positions of A and B at which a latent is active, [d_sae].
        mean_active: its mean activation there, NaN where never active, [d_sae].
        screen, test: the two halves of the prompts.
        base, target: every belief's log-odds in B and in A*, [prompt belief].
    """

    sae: Sae
    runs: Runs
    tails: list[Tail]
    recipient_held: Tensor
    donor_held: Tensor
    recipient_latents: Tensor
    donor_latents: Tensor
    density: Floats
    mean_active: Floats
    screen: Ints
    test: Ints
    base: Floats
    target: Floats

    @property
    def change(self) -> Floats:
        """Donor value minus B's own activation of each latent, [prompt d_sae]."""
        return (self.donor_latents - self.recipient_latents).cpu().numpy()

    @property
    def everything(self) -> Tensor:
        """What stands between the donor's activation and B's, h^A − h^B, [prompt d_in]."""
        return self.donor_held - self.recipient_held

    @property
    def all_latents(self) -> Tensor:
        """The part of it that the latents carry, decode(a^A) − decode(a^B), [prompt d_in]."""
        return self.sae.decode(self.donor_latents) - self.sae.decode(self.recipient_latents)

    def effects(self, prompt: int, delta: Tensor, batch: int = 256) -> Floats:
        """Rise of each belief's log-odds when `delta` [row d_in] is added, [row belief]; 0 for a zero row."""
        found = np.tile(0 * self.base[prompt], (len(delta), 1))
        rows = (delta != 0).any(dim=1)
        if rows.any():
            probs = self.tails[prompt].added(self.sae.site, delta[rows], batch)
            held = belief_log_odds(probs, self.runs, np.full(int(rows.sum()), prompt))
            found[rows.cpu().numpy()] = held - self.base[prompt]
        return found

    def directions(self, latents: Ints) -> Tensor:
        """What one unit of each latent adds to the reconstruction, decode(e_f) − decode(0), [latent d_in]."""
        return decoder_directions(self.sae, latents)


def decoder_directions(sae: Sae, latents: Ints) -> Tensor:
    """What one unit of each latent adds to the reconstruction, decode(e_f) − decode(0), [latent d_in]."""
    ids = torch.as_tensor(np.asarray(latents), device=sae.W_dec.device)
    nothing = sae.decode(sae.W_dec.new_zeros(1, sae.d_sae))
    parts = [nothing[:0]]
    for some in ids.split(_ONE_HOT_ROWS):
        one_hot = sae.W_dec.new_zeros(len(some), sae.d_sae)
        one_hot[torch.arange(len(some)), some] = 1.0
        parts.append(sae.decode(one_hot) - nothing)
    return torch.cat(parts)


def gather(
    model: LanguageModel, sae: Sae, runs: Runs, *, donor_value: str, seed: int, batch: int = 128
) -> LatentRuns:
    """Record, encode and split; see the module's steps.

    Args:
        model: a whole model.
        sae: an SAE of one of its resid_pre, resid_post or mlp_out sites.
        runs: donor and recipient prompts.
        donor_value: one of `DONOR_VALUES`.
        seed: of the split into halves.
        batch: rows per forward pass.

    Raises:
        EditError: for an unknown donor value, too few prompts, or a site that the tail cannot add to.
        SaeError: when the SAE has another width, normalises its input, or its decoder is not affine.
    """
    if donor_value not in DONOR_VALUES:
        raise EditError(f"donor value '{donor_value}'", "unknown", f"One of {', '.join(DONOR_VALUES)}.")
    if sae.d_in != model.d_model:
        raise SaeError(
            f"SAE at {sae.site.short}", f"width {sae.d_in}, not {model.d_model}", "Use this model's SAEs."
        )
    order = np.random.default_rng(seed).permutation(runs.donor.n_prompts)
    screen, test = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    tails = tails_of(model, up_to_query(runs.recipient), runs.words)
    tails[0].entry(sae.site)
    held = [_recorded(model, sae, prompts, batch) for prompts in (runs.donor, runs.recipient)]
    latents = [sae.encode(rows[:, -1]) for rows in held]
    check_decoder(sae, latents[0], latents[1])
    weights = _donor_weights(runs, (screen, test), donor_value)
    mix = torch.as_tensor(weights, dtype=latents[0].dtype, device=latents[0].device)
    density, mean_active = _activity(sae, held)
    everyone = np.arange(runs.donor.n_prompts)
    base = [tail.run(tail.resid_pre(tail.entry(sae.site))[None], tail.entry(sae.site)) for tail in tails]
    return LatentRuns(
        sae,
        runs,
        tails,
        recipient_held=held[1][:, -1],
        donor_held=_mixed(mix, held[0][:, -1]),
        recipient_latents=latents[1],
        donor_latents=_mixed(mix, latents[0]),
        density=density,
        mean_active=mean_active,
        screen=screen,
        test=test,
        base=np.concatenate([belief_log_odds(found, runs, [i]) for i, found in enumerate(base)]),
        target=belief_log_odds(query_answers(model, runs.target, runs.words), runs, everyone),
    )


def _mixed(mix: Tensor, rows: Tensor) -> Tensor:
    """mix @ rows, or the rows themselves, untouched by rounding, when each prompt is its own donor."""
    return rows if torch.equal(mix, torch.eye(len(mix), dtype=mix.dtype, device=mix.device)) else mix @ rows


def _recorded(model: LanguageModel, sae: Sae, prompts: PromptSet, batch: int) -> Tensor:
    """The site at every `pre`, [prompt example d_in]."""
    found = record(model, up_to_query(prompts), [sae.site], prompts.positions("pre"), batch=batch)[sae.site]
    return torch.as_tensor(found, dtype=sae.W_dec.dtype, device=sae.W_dec.device)


def _activity(sae: Sae, held: list[Tensor]) -> tuple[Floats, Floats]:
    """Density and mean activation of every latent over all recorded positions."""
    count, total, rows = np.zeros(sae.d_sae), np.zeros(sae.d_sae), 0
    for part in held:
        for example in part.unbind(dim=1):
            values = sae.encode(example).cpu().numpy()
            count, total, rows = (
                count + (values > 0).sum(axis=0),
                total + values.sum(axis=0),
                rows + len(values),
            )
    with np.errstate(invalid="ignore", divide="ignore"):
        return count / rows, total / count


def _donor_weights(runs: Runs, halves: tuple[Ints, Ints], donor_value: str) -> Floats:
    """Weight of each A prompt in each prompt's donor value, [prompt prompt]; rows sum to 1."""
    n = runs.donor.n_prompts
    if donor_value == "instance":
        return np.eye(n)
    x_A = runs.donor.x[:, -1]
    allowed = (x_A[None] != x_A[:, None]) & (x_A[None] != runs.x_B[:, None])
    same_half = np.zeros((n, n), dtype=bool)
    for half in halves:
        same_half[np.ix_(half, half)] = True
    weights = (allowed & same_half).astype(float)
    if not weights.any(axis=1).all():
        raise EditError(
            f"task means over {n} prompts", "one has no other prompt to average", "Give more prompts."
        )
    return weights / weights.sum(axis=1, keepdims=True)


def check_decoder(sae: Sae, first: Tensor, second: Tensor) -> None:
    """Refuse an SAE for which adding Δa · d_f is not the same as changing the latent by Δa.

    Args:
        sae: the SAE.
        first: gated activations on which this is tried, [row d_sae].
        second: others.

    Raises:
        SaeError: when it normalises its input, or its decoder is not affine.
    """
    settings: Any = getattr(sae.network, "cfg", None)
    normalises = getattr(settings, "normalize_activations", "none")
    if normalises != "none":
        raise SaeError(
            f"patching with the SAE at {sae.site.short}",
            f"it normalises inputs ({normalises})",
            "Fold it first.",
        )
    nothing = sae.decode(torch.zeros_like(first))
    one, other, both = sae.decode(first), sae.decode(second), sae.decode(first + second)
    excess = (both - one - other + nothing).abs().max()
    if not bool(excess <= 1e-3 * (one.abs().max() + other.abs().max())):
        raise SaeError(
            f"patching with the SAE at {sae.site.short}", "its decoder is not affine", "Use another SAE."
        )
