"""Pre-activations of chosen latents: what each would show if no gate cut it off.

    z = scale(x) · (W_encᵀ x̃ + b_enc),   x̃ the activation as the SAE takes it in

TopK and JumpReLU turn a ramp into a hinge; the shape of growth is judged before them, on the scale of the
gated activations of `saes.encode`. Of a gated SAE, z is the magnitude that its gate lets through. Only the
chosen columns of W_enc are multiplied. Enter a model, SAEs, a PromptSet and chosen latents; leave dense
trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from iclens.errors import SaeError
from iclens.models.forward import record
from iclens.models.load import LanguageModel, as_numpy
from iclens.names import Site
from iclens.saes.encode import refuse_transcoder
from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints
from iclens.tables.prompts import PromptSet

LINEAR = ("standard", "gated", "topk", "batchtopk", "jumprelu")
"""Architectures whose pre-activation is one linear map of the input."""


@torch.no_grad()
def latent_inputs(sae: Sae, values: Floats, latents: Ints) -> Floats:
    """Pre-activations of chosen latents, [row latent].

    Args:
        sae: the SAE of the site that `values` come from.
        values: raw activations, [row d_in].
        latents: [latent].

    Raises:
        SaeError: for a transcoder, an architecture without one linear pre-activation, or another width.
    """
    refuse_transcoder(sae)
    network = sae.network
    kind = network.cfg.architecture()
    if kind not in LINEAR:
        raise SaeError(
            f"pre-activations at {sae.site.short}",
            f"its architecture is {kind}",
            f"Only {', '.join(LINEAR)} have one linear pre-activation per latent.",
        )
    if values.shape[-1] != sae.d_in:
        raise SaeError(
            f"pre-activations at {sae.site.short}",
            f"rows of {values.shape[-1]}",
            f"Give activations of its own site, rows of {sae.d_in}.",
        )
    chosen = torch.as_tensor(np.asarray(latents), device=sae.W_dec.device)
    given = torch.as_tensor(values)
    z = sae.encoder_input(given) @ network.W_enc[:, chosen]
    if kind == "gated":
        z = z * network.r_mag[chosen].exp() + network.b_mag[chosen]
    else:
        z = z + network.b_enc[chosen]
    if getattr(network.cfg, "rescale_acts_by_decoder_norm", False):
        z = z * sae.W_dec[chosen].norm(dim=-1)
    return as_numpy(sae.scale(given)[:, None] * z)


def pre_activations(
    model: LanguageModel,
    saes: Mapping[Site, Sae],
    prompts: PromptSet,
    chosen: Mapping[tuple[Site, str], Ints],
    batch: int = 128,
) -> dict[tuple[Site, str], Floats]:
    """Pre-activations of chosen latents over the examples.

    Args:
        model: the model; only blocks up to the deepest site are run.
        saes: site → its SAE.
        prompts: one arm's prompts.
        chosen: (site, role) → latent ids, [latent].
        batch: prompts per forward pass.

    Returns:
        (site, role) → float32 [latent prompt example], in units of the latents.

    Raises:
        SaeError: when a site has no SAE, or as `latent_inputs`.
    """
    wanted = {place: np.asarray(latents) for place, latents in chosen.items() if len(latents)}
    missing = [site for site, _ in wanted if site not in saes]
    if missing:
        raise SaeError(
            f"pre-activations at {missing[0].short}",
            "no SAE is given",
            "Give `saes` an entry for every site of `chosen`.",
        )
    n_prompts, n_examples = prompts.x.shape
    out = {
        place: np.empty((len(latents), n_prompts, n_examples), np.float32)
        for place, latents in wanted.items()
    }
    sites, roles = (list(dict.fromkeys(part)) for part in zip(*wanted, strict=True)) if wanted else ([], [])
    for one in prompts.passes() if wanted else ():
        where = np.concatenate([one.positions(role) for role in roles])
        for start in range(0, n_prompts, batch):
            rows = np.arange(start, min(start + batch, n_prompts))
            held = record(model, one.tokens[rows], sites, where, batch=batch)
            for (site, role), latents in wanted.items():
                n = len(one.examples)
                at = held[site][:, roles.index(role) * n : (roles.index(role) + 1) * n]
                z = latent_inputs(saes[site], at.reshape(-1, model.d_model), latents)
                by_latent = z.reshape(len(rows), n, len(latents)).transpose(2, 0, 1)
                out[site, role][:, rows[:, None], one.examples] = by_latent
    return out
