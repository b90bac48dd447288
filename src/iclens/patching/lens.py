"""What would the model answer if it ended after this block? The logit lens over layers and roles.

1. A* shows the task's examples and asks B's query; the residual entering each block, and the last one, is
taken at a role of the query. 2. It goes through the model's own final norm and unembedding. 3. The
distribution is read as any answer is. At the last layer and `pre` this is the model's answer. A lens without
the norm's division (`unnormalised_logits`) orders tokens alike, but its probabilities are not the model's.
Enter a model and runs; leaves a LensTable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iclens.models.forward import read_answers, record, refuse_part
from iclens.models.load import LanguageModel, as_numpy
from iclens.names import check_role, position
from iclens.patching.effects import means, resamples
from iclens.patching.residual import layer_site
from iclens.patching.runs import Runs, check_tokenizer
from iclens.patching.sweep import PROBABILITIES, effects, readouts
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats
from iclens.tables.heads import LensTable

_VOCABULARY = 2**14
"""Rows of the unembedding that are held in float32 at a time."""


def logit_lens(
    model: LanguageModel, runs: Runs, *, roles: Sequence[str] = ("pre",), layers: Sequence[int] | None = None,
    seed: int = 0, draws: int = 1000, batch: int = 128,
) -> LensTable:  # fmt: skip
    """What the residual at each layer and role of A*'s query answers through the final norm and unembedding.

    Args:
        model: a whole model.
        runs: A* is read, f(x_B) and f(x_A) are its and the donor's answers.
        roles: tokens of the query.
        layers: blocks whose resid_pre is read, n_blocks for the last resid_post; all by default.
        seed: of the bootstrap.
        draws: bootstrap resamples.
        batch: rows per forward pass.

    Raises:
        ModelError: when only some blocks are loaded.
        EditError: for a layer that does not exist.
        SiteError: for an unknown role.
    """
    refuse_part(model)
    check_tokenizer(model.tokenizer, runs)
    chosen = tuple(range(model.n_blocks + 1)) if layers is None else tuple(layers)
    sites = {layer: layer_site(model, layer) for layer in chosen}
    query = runs.target.n_examples - 1
    where = np.array([position(check_role(role), query) for role in roles])
    tokens = runs.target.tokens[:, : where.max() + 1]
    held = record(model, tokens, list(sites.values()), where, batch=batch)
    weights = resamples(len(tokens), draws, np.random.default_rng(seed))
    parts = []
    for i, role in enumerate(roles):
        for layer, site in sites.items():
            found = readouts(lens_answers(model, held[site][:, i], runs.words), runs)
            parts.append(_rows(runs, role, layer, found, weights))
    return LensTable.concat(parts)


@torch.no_grad()
def lens_answers(model: LanguageModel, resid: Floats, extra: tuple[str, ...] = ()) -> AnswerProbs:
    """Answers of residuals [... d_model] that skip the blocks still to come, [... answer].

    Args:
        model: a whole model.
        resid: residuals.
        extra: word answers to read besides the numbers.
    """
    answers, ids = model.answer_space(extra)
    like = model.network.lm_head.weight
    held = torch.as_tensor(resid, dtype=like.dtype, device=like.device)
    return AnswerProbs(answers, read_answers(model, held, ids).cpu().numpy())


@torch.no_grad()
def lens_logits(model: LanguageModel, resid: Floats) -> Floats:
    """Logits [row token] of residuals [row d_model] over the whole vocabulary, in float32 for any weights.

    In bfloat16 the largest logits tie; the products are therefore summed in float32, a part of the vocabulary
    at a time.
    """
    return as_numpy(_unembedded(model, model.network.model.norm(_float(model, resid))))


@torch.no_grad()
def unnormalised_logits(model: LanguageModel, resid: Floats) -> Floats:
    """Logits [row token] of residuals [row d_model] times the final norm's weight, without its division."""
    return as_numpy(_unembedded(model, _float(model, resid) * model.network.model.norm.weight.float()))


def _float(model: LanguageModel, resid: Floats) -> Tensor:
    return torch.as_tensor(resid, dtype=torch.float32, device=model.device())


def _unembedded(model: LanguageModel, normed: Tensor) -> Tensor:
    parts = [normed @ rows.float().T for rows in model.network.lm_head.weight.split(_VOCABULARY)]
    return torch.cat(parts, dim=-1)


def _rows(runs: Runs, role: str, layer: int, found: dict[str, Floats], weights: Floats) -> LensTable:
    read = means(np.stack([found[name] for name in (*PROBABILITIES, *effects(runs))], axis=1), weights)
    n = len(read.value)
    return LensTable({
        "role": [role] * n, "layer": [layer] * n, "n_seen": [runs.n_seen] * n,
        "metric": [*PROBABILITIES, *(f"log-odds of {belief}" for belief in runs.beliefs)],
        "scale": ["probability"] * len(PROBABILITIES) + ["nats"] * len(runs.beliefs),
        "value": read.value, "ci_low": read.low, "ci_high": read.high,
        "n_prompts": [runs.target.n_prompts] * n,
    })  # fmt: skip
