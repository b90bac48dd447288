"""Ablation at a token of every example: against forwards made by hand, and latents planted at `lab`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from iclens.errors import EditError, IclensError, ModelError, SaeError, SiteError
from iclens.models.forward import answer_probs, record
from iclens.models.load import LanguageModel
from iclens.names import BELIEFS, Site
from iclens.patching.effects import belief_log_odds
from iclens.patching.latents import everywhere
from iclens.patching.latents.everywhere import ABLATE_ALL, ablate_everywhere
from iclens.patching.latents.gather import gather
from iclens.patching.latents.specificity import JOINT, specificity
from iclens.patching.residual import up_to_query
from iclens.patching.runs import Runs, build_runs
from iclens.saes.load import Sae
from iclens.tables.answers import AnswerProbs
from iclens.tables.edits import Edit
from iclens.tables.specificity import SpecificityTable
from iclens.tasks.spec import parse_task

from ..conftest import D_SAE, MakeRuns, MakeSae
from .test_planted_latents import CONSTANT, D_MODEL
from .test_specificity import (
    DOUBLE,
    NUMERIC,
    ODD,
    OWN,
    SILENT,
    UNREAD,
    WRITTEN,
    Planted,
    build,
    planted_runs,
)

N_SEEN, CARRIED = 6, 40.0
"""Examples before the query of the planted runs; by how much block 1 of the planted model enlarges a read."""


def row(table: SpecificityTable, latent: int, concept: str, belief: str) -> dict[str, Any]:
    chosen = (table["latent"] == latent) & (table["concept"] == concept)
    found = table.where(chosen & (table["belief"] == belief) & (table["way"] == ABLATE_ALL))
    assert len(found) == 1
    return {name: found[name][0] for name in found.COLUMNS}


def runs_of(model: LanguageModel, **settings: Any) -> Runs:
    given: dict[str, Any] = {"n_prompts": 3, "donor_examples": 4, "seed": 7} | settings
    return build_runs(model.tokenizer, parse_task("2x+3"), **given)


def forward(model: LanguageModel, runs: Runs, edits: Sequence[Edit] = ()) -> np.ndarray:
    """Log-odds of A*'s beliefs under edits, [prompt belief]."""
    tokens = up_to_query(runs.target)
    probs = answer_probs(model, tokens, np.array([tokens.shape[1] - 1]), extra=runs.words, edits=edits)
    rows = AnswerProbs(probs.answers, probs.log_prob[:, 0])
    return belief_log_odds(rows, runs, np.arange(len(tokens)))


def encoded(model: LanguageModel, sae: Sae, runs: Runs, where: np.ndarray) -> tuple[torch.Tensor, ...]:
    """A*'s activations [prompt example d_in] at `where`, and what the SAE makes of them."""
    x = torch.as_tensor(record(model, up_to_query(runs.target), [sae.site], where)[sae.site])
    return x, torch.stack([sae.encode(x[:, j]) for j in range(x.shape[1])], dim=1)


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize(("site", "role"), [("L1.mlp_out", "lab"), ("L2.resid_post", "pre")])
def test_one_prompt_is_a_forward_pass_with_the_latent_silent_at_every_example(
    tiny_model: LanguageModel, make_sae: MakeSae, site: str, role: str, normalised: str
) -> None:
    """sae_lens decodes the latents with one set to 0, its error added back, at each token in turn."""
    runs, sae = runs_of(tiny_model, n_prompts=1), make_sae(site, normalize_activations=normalised)
    sae.network.W_dec.mul_(1.7)
    where = runs.target.positions(role)[: 4 if role == "lab" else 5]
    x, latents = encoded(tiny_model, sae, runs, where)
    count = (latents != 0).sum(dim=1)[0]
    latent, partial = int(count.argmax()), int(((count > 0) & (count < len(where))).nonzero()[0])
    value = torch.empty_like(x)
    for j in range(len(where)):
        sae.network.decode(sae.network.encode(x[:, j]))
        error = x[:, j] - sae.network.decode(sae.network.encode(x[:, j]))
        for f in (latent, partial):
            silenced = sae.network.encode(x[:, j])
            silenced[:, f] = 0
            if f == latent:
                value[:, j] = sae.network.decode(silenced) + error
    base = forward(tiny_model, runs)
    wanted = forward(tiny_model, runs, [Edit(sae.site, "resample", where, value.numpy())]) - base
    table = ablate_everywhere(
        tiny_model, sae, runs, [(latent, "odd", ""), (partial, "odd", "")], OWN, role=role, n_controls=3
    )
    for b, belief in enumerate(BELIEFS):
        found = row(table, latent, "odd", belief)
        assert found["effect"] == pytest.approx(wanted[0, b], abs=1e-4)
        assert found["base"] == pytest.approx(base[0, b], abs=1e-5)
    assert np.abs(wanted).max() > 0.01 and row(table, partial, "odd", "odd")["n_active"] == 1
