"""Contributions: what each example adds, through each head, to a latent's pre-activation at a query.

With its attention pattern held, a head's output at `pre` is a sum over the tokens that it looks at:

    out_h = Σ_t α_h(pre, t) W_O,h v_h(t) + bias,    v_h(t) = W_V,h norm(resid_pre(t)) + its bias

The pre-activation of a latent is linear in the residual that its SAE reads, and the residual is the sum of
the embedding and of what heads and MLPs write. So it splits exactly into a part for every example, block and
head, and a rest: the embedding, the MLPs and constants. Nothing is said of how the patterns came about, nor
of what examples do through the MLPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from iclens.core import ModelError, SaeError, Site, SiteError, check_latent
from iclens.model.attention import attention_patterns, output_weights
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import record
from iclens.prompts.build import PromptSet
from iclens.saes.load import Sae
from iclens.table import Floats, Ints
from iclens.tracking import latent_inputs

SUMMED = {"resid_pre": 0, "resid_mid": 1, "resid_post": 1}
"""Hooks whose activation is a sum of what blocks wrote, and how many of the site's own heads are in it."""


@dataclass(frozen=True)
class Contributions:
    """Parts of the pre-activations of some latents at one query."""

    latents: Ints  # [latent]
    layers: Ints  # blocks whose heads write to the site, [layer]
    # units of the latents, [latent prompt layer head part]; part 0 is what stands before the first example,
    # part 1 + j example j, the last one the query itself up to `pre`
    parts: Floats
    rest: Floats  # embedding, MLPs, biases, [latent prompt]
    total: Floats  # the pre-activation, [latent prompt]

    @property
    def examples(self) -> Floats:
        """What each example adds through all heads, [latent prompt example]; the query is left out."""
        return self.parts.sum(axis=(2, 3))[:, :, 1:-1]


def contributions(
    model: LanguageModel, sae: Sae, latents: Sequence[int], prompts: PromptSet, *, example: int = -1,
    batch: int = 8,
) -> Contributions:  # fmt: skip
    """What each example adds to pre-activations at the query's `pre`, through each head of each block below.

    Held are batch × columns × blocks × d_model activations.

    Args:
        sae: of a residual site, with a linear pre-activation (`tracking.LINEAR`), that normalises no input.
        prompts: of an inline arm.
        example: the query, an example of the prompts; the last by default.

    Raises:
        SaeError: when the SAE normalises its input, or its pre-activation is not linear.
        SiteError: when its site is no residual, for a latent that it does not have.
        ModelError: where a norm stands between heads and the residual.
    """
    site = sae.site
    if site.hook not in SUMMED:
        raise SiteError(
            f"contributions at {site.short}", "it is no sum of what heads write",
            f"Give an SAE of {', '.join(SUMMED)}.",
        )  # fmt: skip
    if sae.normalisation != "none":
        raise SaeError(
            f"contributions to the SAE at {site.short}", f"it normalises inputs ({sae.normalisation})",
            "Give an SAE that normalises none: its pre-activations are sums of parts.",
        )  # fmt: skip
    for latent in latents:
        check_latent(site, latent, sae.d_sae)
    chosen, where = np.asarray(latents), prompts.positions("pre")[[example]]
    layers = np.arange(site.layer + SUMMED[site.hook])
    basis = np.eye(model.d_model, dtype=np.float32)
    along = latent_inputs(sae, basis, chosen) - latent_inputs(sae, 0 * basis[:1], chosen)  # [d_model latent]
    tokens = prompts.tokens[:, : int(where[0]) + 1]
    of_part = _parts(prompts, tokens.shape[1])
    found, totals = [], []
    for start in range(0, len(tokens), batch):
        rows = tokens[start : start + batch]
        acts = record(
            model, rows, [Site(int(layer), "resid_pre") for layer in layers], np.arange(rows.shape[1])
        )
        patterns = attention_patterns(model, rows, layers.tolist(), where)
        of_layers = [
            _of_layer(
                model, int(layer), acts[Site(int(layer), "resid_pre")], patterns[int(layer)][:, :, 0], along
            )
            for layer in layers
        ]  # [latent row head column] each
        found.append(np.stack([part @ of_part for part in of_layers], axis=2))
        at_query = record(model, rows, [site], where)[site][:, 0]
        totals.append(latent_inputs(sae, at_query, chosen).T.astype(np.float64))
    parts, total = np.concatenate(found, axis=1), np.concatenate(totals, axis=1)
    return Contributions(chosen, layers, parts, total - parts.sum(axis=(2, 3, 4)), total)


def _of_layer(model: LanguageModel, layer: int, entered: Floats, pattern: Floats, along: Floats) -> Floats:
    """What a block's heads write along directions for each token that they look at, [latent row head column].

    `entered` is the block's resid_pre [row column d_model], `pattern` [row head column].
    """
    adapter = model.adapter
    block = adapter.layers[layer]
    if reason := adapter.not_carried:
        raise ModelError(f"contributions of heads of '{model.name}'", reason, "Choose another model.")
    norm = adapter.norm(block, adapter.before_attention)
    weight, bias = adapter.head_weights(block, "v")
    like = weight.device
    with torch.no_grad():
        read = norm(torch.as_tensor(entered, device=like).to(weight.dtype)).float()
    values = torch.einsum("rcm,kdm->rckd", read, weight.detach().float())
    if bias is not None:
        values = values + bias.detach().float()
    values = values.repeat_interleave(model.n_heads // values.shape[2], dim=2)  # [row column head d_head]
    seen = torch.einsum("hdm,ml->lhd", output_weights(model, layer), torch.as_tensor(along, device=like))
    written = as_numpy(torch.einsum("rchd,lhd->lrhc", values, seen)).astype(np.float64)
    return written * pattern


def _parts(prompts: PromptSet, n_columns: int) -> Floats:
    """Which part each column belongs to, one-hot [column part]."""
    columns = np.arange(n_columns)
    part = np.where(
        columns < prompts.layout.prefix, 0, 1 + (columns - prompts.layout.prefix) // prompts.layout.example
    )
    return np.eye(int(part.max()) + 1)[part]
