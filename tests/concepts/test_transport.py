"""What heads take from labels adds up exactly; a planted code is transported whole, with slope 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from iclens.concepts.transport import (
    ATTENTION,
    EQUAL,
    MEAN_SIZE,
    OTHER_SIZES,
    WEIGHTS,
    flow,
    lenders,
    regressed,
    transport,
)
from iclens.core import SaeError, Site, SiteError, TableError
from iclens.model.architectures import Adapter
from iclens.model.attention import attention_patterns, carried, head_outputs
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.prompts.build import PromptSet, build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae
from iclens.schemas import TransportTable

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"
HEADS, KV_HEADS, WIDTH = 4, 2, 32
AFTER_0 = Site(0, "resid_post")


@pytest.fixture(scope="module")
def like() -> LanguageModel:
    return load_model(FOLDER)


@pytest.fixture
def model(random_model: Callable[..., LanguageModel], like: LanguageModel) -> LanguageModel:
    """Two random blocks, several heads to a key and value, norms that weigh dimensions apart."""
    made = random_model(like, seed=0, blocks=2, heads=HEADS, kv_heads=KV_HEADS, kind="sdpa")
    generator = torch.Generator().manual_seed(1)
    for block in made.network.model.layers:
        gain = block.input_layernorm.weight
        gain.copy_(0.5 + torch.rand(gain.shape, generator=generator))
    return made


def prompts_of(like: LanguageModel, task: str, n_prompts: int = 24, n_examples: int = 8) -> PromptSet:
    return build_prompts(
        like.tokenizer, parse_task(task), arm="T", n_prompts=n_prompts, n_examples=n_examples, seed=4
    )


def as_sae(network: Any, site: Site = AFTER_0) -> Sae:
    network.requires_grad_(False).eval()
    d_in, d_sae = network.W_enc.shape
    return Sae(site, "0" * 16, d_in, d_sae, None, network, Path("."))


def signed_sae(basis: torch.Tensor) -> Sae:
    """Latents ReLU(±⟨x, b⟩) that decode to ±b: exact for an orthonormal `basis` [latent d_in]."""
    both = torch.cat([basis, -basis])
    network = StandardSAE(StandardSAEConfig(d_in=basis.shape[1], d_sae=len(both)))
    network.load_state_dict({
        "W_enc": both.T.contiguous(), "b_enc": torch.zeros(len(both)),
        "W_dec": both, "b_dec": torch.zeros(basis.shape[1]),
    })  # fmt: skip
    return as_sae(network)


def test_a_heads_output_is_what_it_carries_from_every_position(model, like) -> None:
    tokens, layer = prompts_of(like, "2x+3", 3).tokens, 1
    every, queries = np.arange(tokens.shape[1]), np.array([9, 21, 45])
    held = record(model, tokens, [Site(layer, "resid_pre")], every)[Site(layer, "resid_pre")]
    epsilon = model.network.model.layers[layer].input_layernorm.variance_epsilon
    normed = held / np.sqrt((held**2).mean(axis=-1, keepdims=True) + epsilon)
    written = carried(model, layer, normed.reshape(-1, WIDTH)).unflatten(0, normed.shape[:2])
    pattern = torch.as_tensor(attention_patterns(model, tokens, (layer,), queries)[layer])
    found = torch.einsum("phqk,pkhm->pqhm", pattern, written)
    z = record(model, tokens, [Site(layer, "z")], queries)[Site(layer, "z")]
    wanted = head_outputs(model, layer, z.reshape(-1, z.shape[-1])).unflatten(0, z.shape[:2])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert wanted.std() > 1e-2


def test_latents_of_a_complete_basis_carry_the_labels_part_of_every_head(model, like) -> None:
    prompts = prompts_of(like, "2x+3", 5)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)))[0]
    sae, labels = signed_sae(basis), prompts.positions("lab")
    latents = [(AFTER_0, latent) for latent in range(sae.d_sae)]
    held = flow(model, {AFTER_0: sae}, prompts, latents, 2)
    images = carried(model, 1, sae.W_dec).double().numpy()
    parts = np.einsum("phqj,lpj,lhm->pqhm", held.patterns, held.amounts, images)
    at_labels = record(model, prompts.tokens, [AFTER_0], labels)[AFTER_0].astype(np.float64)
    epsilon = model.network.model.layers[1].input_layernorm.variance_epsilon
    normed = at_labels / np.sqrt((at_labels**2).mean(axis=-1, keepdims=True) + epsilon)
    whole = carried(model, 1, normed.reshape(-1, WIDTH)).unflatten(0, normed.shape[:2]).numpy()
    wanted = np.einsum("phqj,pjhm->pqhm", held.patterns, whole)
    np.testing.assert_allclose(parts, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), held.lengths, rtol=1e-4)
    # what is measured is the whole output, other positions included, along each latent's own image
    z = record(model, prompts.tokens, [Site(1, "z")], prompts.positions("pre")[2:])[Site(1, "z")]
    outputs = head_outputs(model, 1, z.reshape(-1, z.shape[-1])).unflatten(0, z.shape[:2]).numpy()
    unit = images / np.linalg.norm(images, axis=-1, keepdims=True)
    np.testing.assert_allclose(held.actual, np.einsum("pqhm,lhm->lpq", outputs, unit), atol=1e-4)


@pytest.fixture
def planted(model: LanguageModel, like: LanguageModel) -> tuple[LanguageModel, Sae, PromptSet]:
    """A model whose second block reads, through its values, nothing but one code of the label words.

    Block 0 writes nothing. Every token's embedding lies where no value of block 1 reads (heads share values,
    so such a space is left), at a length of its own, which moves keys, queries and the root mean square; the
    words `odd` and `even` hold the code d besides, in different sizes. Latent 0 is that code.
    """
    network = model.network.model
    for part in (network.layers[0].self_attn.o_proj, network.layers[0].mlp.down_proj):
        part.weight.zero_()
    reader = network.layers[1]
    for part in (reader.self_attn.q_proj, reader.self_attn.k_proj):
        part.weight.mul_(3)
    read = reader.self_attn.v_proj.weight * reader.input_layernorm.weight
    _, _, axes = torch.linalg.svd(read)
    code, hidden = axes[0], axes[KV_HEADS * 8 :]
    generator = torch.Generator().manual_seed(3)
    vocabulary = network.embed_tokens.weight.shape[0]
    lengths = 0.5 + 2 * torch.rand(vocabulary, 1, generator=generator)
    network.embed_tokens.weight.copy_(
        lengths * torch.randn(vocabulary, len(hidden), generator=generator) @ hidden / 4
    )
    for word, size in (("odd", 2.0), ("even", 0.5)):
        network.embed_tokens.weight[like.tokenizer.convert_tokens_to_ids(word)] += size * code
    return model, signed_sae(code[None]), prompts_of(like, "word:parity")


def of(table: TransportTable, weights: str) -> dict[str, Any]:
    found = table.where(table["weights"] == weights)
    return {key: found[key][0] for key in found.COLUMNS}


def test_a_planted_code_is_transported_whole(planted: tuple[LanguageModel, Sae, PromptSet]) -> None:
    model, sae, prompts = planted
    table = transport(model, {AFTER_0: sae}, prompts, [(AFTER_0, 0, "odd")], seed=0, batch=7)
    assert table["weights"].tolist() == list(WEIGHTS) and set(table["layer"]) == {1}
    attention = of(table, ATTENTION)
    # the slope is exactly 1: norm weight, root mean square, shared values and every head's length are in it
    assert attention["slope"] == pytest.approx(1, abs=1e-4)
    assert attention["r2"] == pytest.approx(1, abs=1e-6) and attention["r2_low"] > 0.999
    assert attention["attention_minus_equal_low"] > 0.1
    assert attention["attention_minus_equal"] == pytest.approx(1 - of(table, EQUAL)["r2"], abs=1e-6)
    assert 0.05 < attention["lab_attention"] < 0.95
    for weights in (EQUAL, MEAN_SIZE, OTHER_SIZES):
        row = of(table, weights)
        assert row["r2_low"] <= row["r2"] <= row["r2_high"] < 0.9
        assert np.isnan(row["attention_minus_equal"])
    assert set(table["n_rows"]) == {24 * 6} and set(table["n_prompts"]) == {24}


def test_equal_weights_are_exact_where_heads_look_at_all_alike(planted) -> None:
    model, sae, prompts = planted
    model.network.model.layers[1].self_attn.q_proj.weight.zero_()
    held = flow(model, {AFTER_0: sae}, prompts, [(AFTER_0, 0)], 32)
    # every key weighs 1 / (keys so far), so that the labels together weigh their number over it
    keys, labels = prompts.positions("pre")[2:] + 1, np.arange(2, prompts.n_examples)
    np.testing.assert_allclose(held.actual, held.equal() * labels / keys, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(held.mass(), (labels / keys).mean(), rtol=1e-4)


def test_sizes_that_are_all_alike_leave_it_to_attention(planted, like) -> None:
    model, sae, prompts = planted
    odd, even = (like.tokenizer.convert_tokens_to_ids(word) for word in ("odd", "even"))
    embedded = model.network.model.embed_tokens.weight
    embedded[even] = embedded[odd]
    table = transport(model, {AFTER_0: sae}, prompts, [(AFTER_0, 0, "odd")], seed=0)
    for weights in (ATTENTION, MEAN_SIZE, OTHER_SIZES):
        assert of(table, weights)["r2"] == pytest.approx(1, abs=1e-6)
    assert of(table, EQUAL)["reason"] == "the predicted or the actual part is the same at every query"


def test_queries_that_do_not_look_at_labels_are_named(planted: tuple[LanguageModel, Sae, PromptSet]) -> None:
    model, sae, prompts = planted
    network = model.network.model
    pre = network.embed_tokens.weight[int(prompts.tokens[0, prompts.positions("pre")[0]])]
    attention = network.layers[1].self_attn
    # in the dimension that positions turn least, `pre` asks for what is not the code
    for part, row in ((attention.q_proj, pre / pre.norm()), (attention.k_proj, -10 * sae.W_dec[0])):
        part.weight.zero_()
        part.weight[3::8] = row
    table = transport(model, {AFTER_0: sae}, prompts, [(AFTER_0, 0, "odd")], seed=0)
    said = "queries look at labels with less than 0.001 of their attention"
    assert of(table, ATTENTION)["reason"] == of(table, OTHER_SIZES)["reason"] == said
    assert of(table, ATTENTION)["lab_attention"] < 1e-4


def test_input_normalisation_is_undone(planted: tuple[LanguageModel, Sae, PromptSet]) -> None:
    model, sae, prompts = planted
    scaled = StandardSAE(
        StandardSAEConfig(d_in=WIDTH, d_sae=2, normalize_activations="constant_norm_rescale")
    )
    scaled.load_state_dict(sae.network.state_dict())
    table = transport(model, {AFTER_0: as_sae(scaled)}, prompts, [(AFTER_0, 0, "odd")], seed=0)
    assert of(table, ATTENTION)["slope"] == pytest.approx(1, abs=1e-4)


def test_undefined_rows_say_why(planted: tuple[LanguageModel, Sae, PromptSet]) -> None:
    model, sae, prompts = planted
    last = Site(1, "mlp_out")
    chosen = [(last, 0, "odd"), (AFTER_0, 1, "even"), (AFTER_0, 0, "odd")]
    saes = {AFTER_0: sae, last: sae}
    table = transport(model, saes, prompts, chosen, seed=0)
    assert table["reason"].tolist() == (
        ["no later block reads it"] * 4 + ["never active at a label"] * 4 + [""] * 4
    )
    assert np.isnan(table["r2"][:8]).all() and np.isfinite(table["r2"][8:]).all()
    assert table["concept"].tolist() == ["odd"] * 4 + ["even"] * 4 + ["odd"] * 4
    few = transport(model, saes, prompts.select(np.arange(9)), chosen[2:], seed=0)
    assert set(few["reason"]) == {"9 prompts, 10 needed"}


def test_where_heads_write_through_a_norm_nothing_is_transported(
    planted: tuple[LanguageModel, Sae, PromptSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sae, prompts = planted
    monkeypatch.setattr(Adapter, "not_carried", "a norm stands between")
    table = transport(model, {AFTER_0: sae}, prompts, [(AFTER_0, 0, "odd")], seed=0)
    assert set(table["reason"]) == {"a norm stands between"} and np.isnan(table["r2"]).all()


def test_prompts_lend_within_their_task_and_never_to_themselves() -> None:
    task = np.array(["a", "b", "a", "c", "b", "a", "a"])
    found = lenders(task, np.random.default_rng(0))
    assert (task[found] == task).all() and sorted(found) == list(range(7))
    assert (found == np.arange(7)).tolist() == [name == "c" for name in task]


def test_slope_and_r2_golden() -> None:
    predicted = np.array([[0.0, 1.0], [2.0, 3.0], [10.0, 0.0]])
    actual = np.array([[1.0, 2.0], [5.0, 6.0], [0.0, 0.0]])
    times = np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 0]])
    slope, r2 = regressed(actual, predicted, times[:2])
    for draw, rows in enumerate(([0, 1, 2], [0, 0, 1])):
        p, a = predicted[rows].ravel(), actual[rows].ravel()
        assert slope[draw] == pytest.approx(np.polyfit(p, a, 1)[0])
        assert r2[draw] == pytest.approx(np.corrcoef(p, a)[0, 1] ** 2)
    still = np.full_like(actual, 7.0)
    for pair in ((actual, still), (still, predicted)):
        assert np.isnan(regressed(*pair, times[:2])).all()


def test_what_does_not_fit_is_refused(model: LanguageModel, like: LanguageModel) -> None:
    prompts, sae = prompts_of(like, "2x+3"), signed_sae(torch.eye(WIDTH))
    saes = {AFTER_0: sae, Site(0, "mlp_in"): sae}

    def asked(site: Site, latent: int, shown: PromptSet = prompts, held: dict[Site, Sae] = saes) -> None:
        transport(model, held, shown, [(site, latent, "odd")], seed=0)

    with pytest.raises(SiteError, match=r"L0\.attn_out: SAEs of L0\.resid_post"):
        asked(Site(0, "attn_out"), 0)
    with pytest.raises(SiteError, match="not added to what the next block reads"):
        asked(Site(0, "mlp_in"), 0)
    with pytest.raises(SiteError, match="latent 64 of"):
        asked(AFTER_0, 64)
    with pytest.raises(SiteError, match="blocks 0 to 1"):
        asked(Site(2, "resid_post"), 0)
    narrow = as_sae(TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2)))
    with pytest.raises(SaeError, match="width 8, not 32"):
        asked(AFTER_0, 0, held={AFTER_0: narrow})
    with pytest.raises(TableError, match="no query has two earlier labels"):
        asked(AFTER_0, 0, shown=prompts_of(like, "2x+3", 12, 2))
