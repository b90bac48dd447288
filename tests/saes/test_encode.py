"""Encoding, the error that it leaves, logit effects against the unembedding, and neighbours."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from iclens.activations import Activations
from iclens.core import SaeError, Site, SiteError
from iclens.model.load import LanguageModel
from iclens.prompts.render import answer_ids
from iclens.saes.encode import (
    by_activation,
    by_decoder,
    encode,
    encode_rows,
    largest_entries,
    largest_on_cpu,
    logit_effects,
)
from iclens.saes.load import Sae, load_sae

SITE = Site(1, "mlp_out")


@pytest.fixture
def sae(write_sae: Callable[..., Path]) -> Sae:
    return load_sae(write_sae(hook=str(SITE)))


def test_latents_and_error_add_up_to_the_activation(sae: Sae) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    found = encode(sae, Activations(SITE, "pre", values))
    x_hat = found.matrix @ sae.W_dec.numpy() + sae.network.b_dec.numpy()
    error_sq = np.square(values.reshape(-1, 8) - x_hat).sum(axis=1).reshape(5, 3)
    np.testing.assert_allclose(found.error_sq, error_sq, rtol=1e-4)
    np.testing.assert_allclose(
        found.dense()[:, 4, 2], sae.encode(torch.tensor(values[4, 2])[None])[0].numpy(), rtol=1e-5
    )
    assert (np.diff(found.indptr) <= 4).all() and (found.value > 0).all()
    assert (found.role, found.sae_id, found.d_sae) == ("pre", sae.sae_id, 24)


def test_total_is_the_squared_length(sae: Sae) -> None:
    values = np.zeros((3, 1, 8), np.float32)
    values[:, 0, 0] = 1, 1, 4
    found = encode(sae, Activations(SITE, "pre", values))
    np.testing.assert_allclose(found.total_sq[:, 0], [1, 1, 16])


def test_batches_do_not_matter(sae: Sae) -> None:
    values = np.random.default_rng(1).normal(size=(17, 8)).astype(np.float32)
    whole, parts = encode_rows(sae, values), encode_rows(sae, values, batch=5)
    np.testing.assert_allclose(whole.latents.toarray(), parts.latents.toarray(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.error_sq, parts.error_sq, rtol=1e-5)
    assert encode_rows(sae, values[:0]).latents.shape == (0, 24)


def test_another_site_or_width_or_a_transcoder_is_refused(sae: Sae) -> None:
    with pytest.raises(SaeError, match=r"it is a transcoder to L2\.mlp_out"):
        encode(replace(sae, target=Site(2, "mlp_out")), Activations(SITE, "pre", np.zeros((1, 1, 8))))
    with pytest.raises(SaeError, match=r"L2\.mlp_out: the SAE is of L1\.mlp_out"):
        encode(sae, Activations(Site(2, "mlp_out"), "pre", np.zeros((1, 1, 8))))
    with pytest.raises(SaeError, match="The SAE reads 8"):
        encode(sae, Activations(SITE, "pre", np.zeros((1, 1, 9))))


@pytest.mark.parametrize(("width", "k"), [(24, 4), (30, 8), (257, 8), (1024, 24), (5, 5)])
@pytest.mark.parametrize("shift", [0.0, -1.5, -9.0])
def test_the_largest_on_the_cpu_are_those_of_topk(width: int, k: int, shift: float) -> None:
    """Also where groups are of one latent, do not come out even, or where few or none are positive."""
    pre = torch.randn(40, width, generator=torch.Generator().manual_seed(0)) + shift
    for found, expected in zip(largest_on_cpu(pre, k), largest_entries(pre, k), strict=True):
        assert torch.equal(found, expected)
    dense = torch.zeros_like(pre)
    count, latent, strength = largest_on_cpu(pre, k)
    dense[torch.arange(40).repeat_interleave(count), latent] = strength
    kth = pre.sort(dim=1).values[:, -k, None]
    assert torch.equal(dense, torch.where(pre >= kth, pre, 0).relu())


def test_equal_entries_do_not_make_more_than_k() -> None:
    pre = torch.tensor([[3.0, 1, 1, 1, 0, 0, 0, 0], [8, 7, 6, 5, 4, 3, 2, 1], [2, 2, 0, 0, -1, -1, -1, -1]])
    count, latent, strength = largest_on_cpu(pre, 2)
    assert count.tolist() == [2, 2, 2]
    assert strength.reshape(3, 2).sort(dim=1).values.tolist() == [[1, 3], [7, 8], [2, 2]]
    assert latent[2:].tolist() == [0, 1, 0, 1]


def test_topk_entries_are_those_of_the_saes_own_encoder(sae: Sae) -> None:
    values = np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)
    expected = sae.encode(torch.from_numpy(values)).numpy()
    for given in (values, torch.from_numpy(values)):
        found = encode_rows(sae, given)
        np.testing.assert_allclose(found.latents.toarray(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.total_sq, np.square(values).sum(axis=1), rtol=1e-5)
        assert found.latents.has_sorted_indices


HOOK = "blocks.2.hook_resid_post"


def test_a_direction_built_from_a_token_names_it(
    write_sae: Callable[..., Path], model: LanguageModel
) -> None:
    head, gain = model.network.lm_head.weight, model.network.model.norm.weight
    wanted = int(answer_ids(model.tokenizer, ["42"])[0])
    W_dec = torch.zeros(24, 128)
    W_dec[5] = torch.linalg.lstsq((head - head.mean(dim=0)) * gain, torch.eye(len(head))[:, wanted]).solution
    W_dec[6] = -W_dec[5]
    sae = load_sae(write_sae(d_in=128, hook=HOOK, W_dec=W_dec))
    raised, lowered = logit_effects(model, sae, [5, 6], n=3)
    assert (raised.latent, lowered.latent) == (5, 6)
    assert raised.top[0][0] == "42" and lowered.bottom[0][0] == "42"
    assert raised.top[0][1] == pytest.approx(-lowered.bottom[0][1])
    (nothing,) = logit_effects(model, sae, [7], n=3)
    assert {value for _, value in nothing.top} == {0.0}


def test_effects_are_the_change_of_centred_logits(
    write_sae: Callable[..., Path], model: LanguageModel
) -> None:
    sae = load_sae(write_sae(d_in=128, hook=HOOK))
    (found,) = logit_effects(model, sae, [7], n=4)
    logits = (
        sae.W_dec[7] / sae.W_dec[7].norm() * model.network.model.norm.weight
    ) @ model.network.lm_head.weight.T
    expected = (logits - logits.mean()).sort(descending=True).values
    torch.testing.assert_close(torch.tensor([v for _, v in found.top]), expected[:4])
    torch.testing.assert_close(torch.tensor([v for _, v in found.bottom]), expected.flip(0)[:4])


def test_a_latent_outside_the_sae_is_refused(write_sae: Callable[..., Path], model: LanguageModel) -> None:
    sae = load_sae(write_sae(d_in=128, hook=HOOK))
    for latent in (24, -1):
        with pytest.raises(SiteError, match=f"latent {latent} of L2.resid_post: the SAE has 24"):
            logit_effects(model, sae, [latent])


def test_decoder_rows_are_compared_by_angle_and_not_by_length(
    write_sae: Callable[..., Path], model: LanguageModel
) -> None:
    rows = torch.zeros(24, 8)
    rows[:, 7] = 1.0
    rows[0] = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
    rows[5] = torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 0])
    rows[9] = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    rows[3] = 0.0
    sae = load_sae(write_sae(hook="blocks.1.hook_resid_post", W_dec=rows))
    (near,) = by_decoder(sae, [0], n=3)
    assert near.latents.tolist() == [5, 9]
    np.testing.assert_allclose(near.values, [1.0, np.sqrt(0.5)], rtol=1e-5)


def test_activations_are_compared_by_pearsons_r_over_all_tokens() -> None:
    rng = np.random.default_rng(0)
    dense = rng.gamma(1.0, size=(50, 6)) * (rng.random((50, 6)) < 0.5)
    dense[:, 1] = 3.0 * dense[:, 4]
    dense[:, 2] = 0.0
    (near,) = by_activation(csr_array(dense), [4], n=9)
    r = np.corrcoef(dense[:, [0, 1, 3, 4, 5]].T)[3]
    expected = {0: r[0], 1: r[1], 3: r[2], 5: r[4]}
    assert near.latents[0] == 1
    assert set(near.latents.tolist()) == {f for f, value in expected.items() if value > 0}
    np.testing.assert_allclose(near.values, [expected[f] for f in near.latents.tolist()], rtol=1e-9)
    assert (np.diff(near.values) <= 0).all()


def test_latents_that_do_not_vary_and_those_that_exclude_each_other_are_no_neighbours() -> None:
    dense = np.zeros((6, 5))
    dense[:, 1] = dense[:, 2] = 0.1
    dense[:3, 3], dense[3:, 4] = 1.0, 1.0
    for near in by_activation(csr_array(dense), [0, 1, 3]):
        assert len(near.latents) == 0
