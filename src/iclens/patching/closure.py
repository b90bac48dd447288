"""Does a site's whole growth move the belief as the examples do, and which part of it?

    Δh = mean over other prompts of h after the last example − h after n examples        at `pre`
       = decoded change of all latents + change of the SAE's error

1. The parts are taken from prompts of the same arm that are not pushed. 2. Each is added at the query's `pre`
of the prepared prompts. 3. Its effect is set against the belief's own growth there: what the full
activation's mean growth does not do, no sum over latents can. The growth is the arm's own, as the belief's
is. Its paired difference to a control arm is another thing: the control moves as well, towards "no task",
often further, and taking that away from a prompt that has a task breaks its answer.
Enter an arm and prepared prompts; leaves an InjectionTable.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from iclens.errors import EditError
from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.patching.dose import Bed
from iclens.patching.effects import means, normalised_effects, resamples
from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints
from iclens.tables.dose import InjectionTable
from iclens.tables.prompts import PromptSet


def natural_parts(
    model: LanguageModel, sae: Sae, prompts: PromptSet, n_examples: int, batch: int = 128
) -> dict[str, Floats]:
    """A site's mean growth from `n_examples` to the last example, and its two parts.

    Args:
        model: the model.
        sae: the SAE of the site.
        prompts: the arm, inline; prompts other than those to be pushed.
        n_examples: examples in context where the push will be.
        batch: prompts per forward pass.

    Returns:
        "all latents", "error only" and "full activation", the sum of the two, each [d_model].

    Raises:
        EditError: when the prompts have no later example.
        TableError: for a probed arm.
    """
    if not 0 <= n_examples < prompts.n_examples - 1:
        raise EditError(
            f"growth from {n_examples} examples on",
            f"prompts have {prompts.n_examples}",
            f"Choose n_examples from 0 to {prompts.n_examples - 2}.",
        )
    where = prompts.positions("pre")[[n_examples, -1]]
    held = torch.as_tensor(record(model, prompts.tokens, [sae.site], where, batch=batch)[sae.site])
    whole, decoded = np.zeros(model.d_model), np.zeros(model.d_model)
    for rows in held.split(batch):
        before, after = rows.unbind(dim=1)
        whole += (after.double() - before).sum(dim=0).numpy() / len(held)
        change = sae.reconstruct(after, sae.encode(after)) - sae.reconstruct(before, sae.encode(before))
        decoded += change.double().sum(dim=0).cpu().numpy() / len(held)
    return {"all latents": decoded, "error only": whole - decoded, "full activation": whole}


def joint_push(bed: Bed, latents: Ints, growth: Floats) -> Floats:
    """All latents pushed by their natural growth at once, Σ_f δ_f · d_f, [d_model].

    Args:
        bed: the prompts.
        latents: [latent].
        growth: natural growth of each, gated activation [latent].
    """
    return np.asarray(growth) @ bed.directions(latents).double().cpu().numpy()


def injection_table(
    bed: Bed, parts: Mapping[str, Floats], *, seed: int = 0, draws: int = 1000
) -> InjectionTable:
    """Effect of every part on every belief.

    Args:
        bed: the prompts.
        parts: name → what is added at `pre`, [d_model].
        seed: of the bootstrap.
        draws: bootstrap resamples.

    Returns:
        A row per part and belief.
    """
    delta = torch.as_tensor(np.stack(list(parts.values()))).to(bed.sae.W_dec)
    effects = bed.effects(delta)
    weights = resamples(bed.prompts.n_prompts, draws, np.random.default_rng(seed))
    tables = []
    for name, found in zip(parts, effects, strict=True):
        effect, share = means(found, weights), normalised_effects(found, bed.natural, weights)
        tables.append(InjectionTable({
            "site": [str(bed.sae.site)] * len(bed.names), "injected": [name] * len(bed.names),
            "belief": np.array(bed.names), "n_examples": [bed.n_examples] * len(bed.names),
            "n_prompts": [len(found)] * len(bed.names), "effect": effect.value, "ci_low": effect.low,
            "ci_high": effect.high, "share": share.value, "share_low": share.low, "share_high": share.high,
            "reason": [_reason(*why) for why in zip(effect.reason, share.reason, strict=True)],
        }))  # fmt: skip
    return InjectionTable.concat(tables)


def _reason(effect: str, share: str) -> str:
    """Why a value is NaN, where `normalised_effects` speaks of A* and B in place of the belief's growth."""
    why = effect or share
    return why.replace("A* and B differ", "the belief grows").replace("A* − B", "the belief's growth")
