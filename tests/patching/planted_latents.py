"""Hand-built models whose causal latents, and what each carries, are known: effects come back as planted.

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
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from iclens.core import Site
from iclens.model.load import LanguageModel
from iclens.patching.runs import Runs, build_runs
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae

D_MODEL, D_SAE, CONSTANT = 64, 24, 40.0
BIAS = 0.05
"""Of a planted share, at most."""


@dataclass(frozen=True)
class Case:
    """A model, its SAE, and the share of a belief's change that each latent carries, [latent]."""

    model: LanguageModel
    sae: Sae
    belief: str
    share: np.ndarray


def plant(like: LanguageModel, seed: int) -> Case:
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


NAMED = {"double": "double", "odd": "odd", "numeric": "numeric"}
ODD, NUMERIC, DOUBLE, UNREAD, FAINT, SILENT, WRITTEN, ALL = 0, 1, 2, 3, 4, 20, 15, 24
"""Latents of the planted model: three that are read; one that is only written, one that is read more faintly
than float32 resolves, one that is never active; how many are written, and how many there are."""


@dataclass(frozen=True)
class ReadOuts:
    """A model and its SAE: one latent raises odd numbers over even ones, one all numbers, one those < 500.

    Each 2x of the prompts lies below 500. Most other latents do all three a little, with random signs.
    """

    model: LanguageModel
    sae: Sae
    dictionary: torch.Tensor


def plant_read_outs(like: LanguageModel, strength: float = 1.0) -> ReadOuts:
    """As `built`, its head read along three directions; latents are active above .1."""
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(D_MODEL - 2, D_MODEL - 2, generator=generator))[0]
    dictionary = torch.zeros(ALL, D_MODEL)
    dictionary[:, 2:] = basis[:ALL]
    writes = torch.zeros(ALL)
    writes[:WRITTEN] = 1 + torch.rand(WRITTEN, generator=generator)
    model = built(like, writes @ dictionary, 0 * dictionary[0], "numeric", generator)
    reads = torch.zeros(3, ALL)
    reads[:, FAINT + 1 : WRITTEN] = 0.2 * torch.randn(3, WRITTEN - FAINT - 1, generator=generator)
    reads[0, ODD] = reads[1, NUMERIC] = reads[2, DOUBLE] = 4.0
    reads[0, FAINT] = 1e-4
    odd, small = (torch.arange(1000) % 2 * 2.0 - 1)[:, None], (torch.arange(1000) < 500)[:, None] * 2.0 - 1
    u, v, w = strength * reads @ dictionary
    model.network.lm_head.weight[model.answer_space()[1]] = odd * u + v + small * w
    network = SimpleNamespace(
        W_dec=dictionary,
        encode=lambda x: torch.where(x @ dictionary.T > 0.1, x @ dictionary.T, 0.0),
        decode=lambda a: a @ dictionary,
    )
    sae = Sae(Site(0, "resid_post"), "0" * 16, D_MODEL, ALL, None, network, Path("."))
    return ReadOuts(model, sae, dictionary)


def planted_runs(model: LanguageModel, recipient: str = "zero examples") -> Runs:
    return build_runs(
        model.tokenizer, parse_task("2x+3"), recipient=recipient, n_prompts=12, donor_examples=6, seed=3
    )
