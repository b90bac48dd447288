"""A hand-built model whose causal latents, and what each carries, are known: effects come back as planted.

Block 0 attends evenly and writes, for the share of its context that are closing brackets, Σ_f c_f · d_f of
an orthonormal dictionary d; block 1 writes nothing. Logits read Σ_f α_f · d_f: those of all number tokens in
half of the cases, of odd numbers alone in the other half. Log-odds of `numeric`, or of `odd`, are then linear
in the residual up to the final norm, which a large constant holds nearly still: latent f carries
c_f α_f / Σ c α.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from iclens.core import Site
from iclens.model.load import LanguageModel
from iclens.patching.latents import linear_screen, patch_latents, single_effects
from iclens.patching.receiver import DIRECTIONS, Direction, gather
from iclens.patching.runs import build_runs
from iclens.patching.sets import ALL, FULL, GREEDY, patch_sets
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae

D_MODEL, D_SAE, CONSTANT, CASES = 64, 24, 40.0, 12
BIAS = 0.05


@dataclass(frozen=True)
class Case:
    """A model, its SAE, and the share of a belief's change that each latent carries, [latent]."""

    model: LanguageModel
    sae: Sae
    belief: str
    share: np.ndarray


def planted(like: LanguageModel, seed: int) -> Case:
    """A case with random dictionary, writes (15 of 24 latents) and reads (4 of these)."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D_MODEL - 2, D_MODEL - 2, generator=generator))[0]
    dictionary = torch.zeros(D_SAE, D_MODEL)
    dictionary[:, 2:] = basis[:D_SAE]
    writes, reads = torch.zeros(D_SAE), torch.zeros(D_SAE)
    writes[:15] = 1 + torch.rand(15, generator=generator)
    order = torch.randperm(15, generator=generator)
    reads[order[:4]] = 0.5 + torch.rand(4, generator=generator)
    belief = ("numeric", "odd")[seed % 2]
    model = built(like, writes @ dictionary, reads @ dictionary, belief, generator)
    network = SimpleNamespace(
        W_dec=dictionary,
        encode=lambda x: (x @ dictionary.T + 3.0).relu(),
        decode=lambda a: (a - 3.0) @ dictionary,
    )
    sae = Sae(Site(0, "resid_post"), "0" * 16, D_MODEL, D_SAE, None, network, Path("."))
    return Case(model, sae, belief, (writes * reads / (writes * reads).sum()).numpy())


def built(
    like: LanguageModel, written: Tensor, read: Tensor, belief: str, generator: torch.Generator
) -> LanguageModel:
    """The model: dimension 0 holds the constant, dimension 1 marks a closing bracket."""
    vocabulary = like.network.config.vocab_size
    network = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=D_MODEL, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=256,
    )).eval().requires_grad_(False)  # fmt: skip
    for block in network.model.layers:
        for part in (block.self_attn.q_proj, block.self_attn.o_proj, block.mlp.down_proj):
            part.weight.zero_()
    embedding, head = network.model.embed_tokens.weight, network.lm_head.weight
    embedding.copy_(0.02 * torch.randn(vocabulary, D_MODEL, generator=generator))
    embedding[:, 0], embedding[:, 1] = CONSTANT, 0.0
    embedding[like.tokenizer.convert_tokens_to_ids(")\n"), 1] = CONSTANT
    first = network.model.layers[0].self_attn
    first.v_proj.weight.zero_()
    first.v_proj.weight[0, 1] = 1.0
    first.o_proj.weight[:, 0] = 0.5 * written
    _, ids = like.answer_space()
    head.zero_()
    head[ids if belief == "numeric" else ids[1::2]] = 5.0 * read
    return LanguageModel("planted", network, like.tokenizer, 2, True)


@pytest.fixture(scope="module")
def cases(tiny_model: LanguageModel) -> list[Case]:
    return [planted(tiny_model, seed) for seed in range(CASES)]


def runs_of(model: LanguageModel):
    return build_runs(
        model.tokenizer, parse_task("2x+3"), recipient="zero examples", n_prompts=12, donor_examples=6, seed=3
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_planted_shares_come_back_without_bias(cases: list[Case], direction: Direction) -> None:
    misses = []
    for case in cases:
        held = gather(case.model, case.sae, runs_of(case.model), direction=direction)
        table = patch_latents(held, n_tested=4, n_controls=10)
        rows = table.where(table["belief"] == case.belief)
        truth = case.share[rows["latent"]]
        assert len(rows) >= 15 and (truth > 0).sum() == 4
        misses.append(rows["normalised"] - truth)
        assert (np.abs(rows["normalised"][truth == 0]) < 0.01).all()
    every = np.concatenate(misses)
    assert abs(every.mean()) <= 0.01
    assert np.abs(every).max() <= BIAS


def test_sets_add_up_and_the_greedy_order_finds_the_causal_latents_first(cases: list[Case]) -> None:
    for case in cases[:6]:
        held = gather(case.model, case.sae, runs_of(case.model))
        effects = single_effects(held, held.differing)
        table = patch_sets(held, effects, chosen_for=case.belief, n_controls=20)
        rows = table.where((table["belief"] == case.belief) & (table["kind"] == GREEDY))
        causal = set(np.flatnonzero(case.share).tolist())
        for size, members, share in zip(rows["size"], rows["members"], rows["share_of_full"], strict=True):
            ids = [int(i) for i in str(members).split()]
            assert len(ids) == size and (set(ids) <= causal or causal <= set(ids))
            assert share == pytest.approx(case.share[ids].sum(), abs=BIAS)
        whole = rows.where(rows["size"] == rows["size"].max())
        assert whole["control_high"][0] < whole["share_of_full"][0]
        assert whole["control_p"][0] == pytest.approx(1 / 21)
        for kind in (ALL, FULL):
            row = table.where((table["belief"] == case.belief) & (table["kind"] == kind))
            assert row["share_of_full"][0] == pytest.approx(1, abs=BIAS)
        screened = linear_screen(held, held.differing, effects)
        linear = screened.where(screened["belief"] == case.belief)
        assert linear["r2"][0] > 0.98 and linear["slope"][0] == pytest.approx(1, abs=0.1)
