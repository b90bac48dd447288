"""Quality: goldens by hand, and identities on the shipped model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from iclens.errors import SaeError
from iclens.models.load import LanguageModel, load_model
from iclens.names import Site, position
from iclens.saes.load import Sae, load_sae
from iclens.saes.quality import ErrorShare, fvu, measure_quality, recovered
from iclens.tasks.prompts import build_prompts
from iclens.tasks.spec import parse_task

X = np.array([[1.0, 0], [1, 0], [4, 0]])
X_HAT = np.array([[2.0, 0], [1, 0], [4, 0]])
Write = Callable[..., Path]


def test_fvu_by_hand() -> None:
    # mean (2, 0); Σ‖x − x̄‖² = 1 + 1 + 4 = 6; Σ‖x − x̂‖² = 1. Means of ratios, variance per dimension and
    # Σ‖x‖² in the denominator would give 1/3, 1/9, 1/18 or −1/9.
    assert fvu(X, X_HAT) == pytest.approx(1 / 6)


def test_fvu_of_exact_mean_and_constant() -> None:
    assert fvu(X, X) == 0
    assert fvu(X, np.tile(X.mean(axis=0), (3, 1))) == pytest.approx(1)
    assert np.isnan(fvu(np.ones((3, 2)), X_HAT))
    assert np.isnan(ErrorShare().fvu)


def test_fvu_is_the_same_in_batches_and_far_from_zero() -> None:
    share = ErrorShare()
    share.add(X[:1], X_HAT[:1])
    share.add(X[1:], X_HAT[1:])
    assert share.fvu == pytest.approx(1 / 6)
    assert fvu(X + 1000, X_HAT + 1000) == pytest.approx(1 / 6)


def test_recovered_by_hand() -> None:
    assert recovered(base=1.0, spliced=1.5, zeroed=3.0) == pytest.approx(0.75)
    assert recovered(1.0, 1.0, 3.0) == 1 and recovered(1.0, 3.0, 3.0) == 0
    assert np.isnan(recovered(1.0, 1.2, 1.0)) and np.isnan(recovered(1.0, 1.2, 0.9))


@pytest.fixture(scope="module")
def tokens(model: LanguageModel) -> np.ndarray:
    task = parse_task("2x+3")
    return build_prompts(model.tokenizer, task, arm="T", n_prompts=6, n_examples=5, seed=0).tokens


PRE = [position("pre", j) for j in range(5)]


def exact(write_sae: Write, hook: str) -> Sae:
    """x̂ = x: latents are the positive and the negative parts of every dimension."""
    eye = torch.eye(128)
    both = torch.cat([eye, -eye])
    zero, half = torch.zeros(128), torch.zeros(256)
    return load_sae(
        write_sae(
            hook, d_in=128, d_sae=256, k=128, hook=hook, W_enc=both.T, W_dec=both, b_dec=zero, b_enc=half
        )
    )


def nothing(write_sae: Write, hook: str) -> Sae:
    """x̂ = 0, no latent ever active."""
    weights = {"W_dec": torch.zeros(24, 128), "b_dec": torch.zeros(128), "b_enc": torch.full((24,), -1e6)}
    return load_sae(write_sae(hook, d_in=128, hook=hook, **weights))


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_an_exact_sae_recovers_everything(
    write_sae: Write, model: LanguageModel, tokens: np.ndarray, hook: str
) -> None:
    site = Site(2, hook)
    table = measure_quality(model, {site: exact(write_sae, str(site))}, tokens, pre=PRE)
    row = table.df.iloc[0]
    assert row.site == str(site) and row.reason == "" and row.n_tokens == 6 * 31
    assert row.l0 == pytest.approx(128, abs=0.5)
    assert row.fvu == row.fvu_pre == 0
    assert row.ce_recovered == pytest.approx(1, abs=1e-4)
    assert row.ce_recovered_pre == pytest.approx(1, abs=1e-4)
    assert row.ce_base < row.ce_zeroed


def test_an_empty_sae_recovers_nothing(write_sae: Write, model: LanguageModel, tokens: np.ndarray) -> None:
    site = Site(3, "mlp_out")
    row = measure_quality(model, {site: nothing(write_sae, str(site))}, tokens, pre=PRE).df.iloc[0]
    assert row.l0 == 0 and row.dead == 1 and row.k == 4
    assert row.fvu > 1
    assert row.ce_recovered == pytest.approx(0, abs=1e-4) and row.ce_recovered_pre == pytest.approx(
        0, abs=1e-4
    )


def test_losses_are_the_models_own(write_sae: Write, model: LanguageModel, tokens: np.ndarray) -> None:
    site = Site(1, "resid_post")
    row = measure_quality(model, {site: exact(write_sae, str(site))}, tokens, pre=PRE).df.iloc[0]
    ids = torch.as_tensor(tokens)
    with torch.no_grad():
        logits = model.network(ids).logits
    every = F.cross_entropy(logits[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten())
    assert row.ce_base == pytest.approx(float(every), rel=1e-5)


def test_order_and_batches_do_not_matter(write_sae: Write, model: LanguageModel, tokens: np.ndarray) -> None:
    site = Site(2, "resid_post")
    saes = {site: load_sae(write_sae(d_in=128, hook=str(site)))}
    one = measure_quality(model, saes, tokens, pre=PRE).df
    other = measure_quality(model, saes, tokens[::-1].copy(), pre=PRE, batch=4).df
    numbers = one.select_dtypes("number").columns
    np.testing.assert_allclose(one[numbers], other[numbers], rtol=1e-4)


def test_part_of_a_model_gives_no_ce_and_says_why(
    write_sae: Write, model: LanguageModel, tokens: np.ndarray
) -> None:
    site = Site(1, "resid_post")
    part = load_model(model.name, blocks=2)
    row = measure_quality(part, {site: exact(write_sae, str(site))}, tokens).df.iloc[0]
    assert row.fvu == 0 and np.isnan(row.ce_recovered) and np.isnan(row.ce_recovered_pre)
    assert "all blocks" in row.reason and "`pre`" in row.reason


def test_nothing_to_measure_is_refused(write_sae: Write, model: LanguageModel, tokens: np.ndarray) -> None:
    site = Site(1, "resid_post")
    saes = {site: exact(write_sae, str(site))}
    with pytest.raises(SaeError, match="0 positions"):
        measure_quality(model, saes, tokens, excluded=range(32))
    with pytest.raises(SaeError, match="0 prompts"):
        measure_quality(model, saes, tokens[:0])
