"""Quality: goldens by hand, and identities on the shipped model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SkipTranscoder, SkipTranscoderConfig, Transcoder, TranscoderConfig
from sae_lens.saes.sae import SAEMetadata
from torch.nn import functional as F

from iclens.core import PADDING, SaeError, Site, position
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae, load_sae
from iclens.saes.quality import (
    ErrorShare,
    LeftOut,
    density_histogram,
    density_table,
    fidelity_table,
    fvu,
    measure_quality,
    quality_table,
    recovered,
    tally,
)

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


def test_padding_and_bos_inside_are_no_tokens_to_measure(
    write_sae: Write, model: LanguageModel, tokens: np.ndarray
) -> None:
    site, sizes = Site(2, "mlp_out"), (32, 30, 17, 9, 3, 2)
    padded = np.where(np.arange(32) < np.array(sizes)[:, None], tokens, PADDING)
    padded[0, 10] = model.tokenizer.bos_token_id
    random = load_sae(write_sae(d_in=128, hook=str(site)))
    found = measure_quality(model, {site: random}, padded).df.iloc[0]
    losses, shares, l0 = [], ErrorShare(), 0.0
    for row, size in zip(padded, sizes, strict=True):
        ids = torch.as_tensor(row[None, :size])
        with torch.no_grad():
            logits = model.network(ids).logits[0]
        every = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        counts = (ids[0] != 0).numpy()
        losses += every[counts[:-1] & counts[1:]].tolist()
        x = torch.as_tensor(record(model, row[None, :size], [site], np.flatnonzero(counts))[site][0])
        shares.add(x.numpy(), random.decode(random.encode(x)).numpy())
        l0 += float((random.encode(x) > 0).sum())
    n_tokens = sum(sizes) - 7
    assert found.n_tokens == n_tokens and len(losses) == n_tokens - 6 - 1
    assert found.ce_base == pytest.approx(np.mean(losses), rel=1e-4)
    assert found.fvu == pytest.approx(shares.fvu, rel=1e-4) and found.l0 == pytest.approx(l0 / n_tokens)
    perfect = measure_quality(model, {site: exact(write_sae, str(site))}, padded).df.iloc[0]
    assert perfect.ce_recovered == pytest.approx(1, abs=1e-4) and perfect.kl == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("metadata", "ids", "positions"),
    [
        ({}, (0,), ()),
        ({"exclude_special_tokens": [3, 5]}, (0, 3, 5), ()),
        ({"exclude_special_tokens": True}, (0, 1), ()),
        ({"exclude_special_tokens": False, "exclude_positions": [0, 2]}, (0,), (0, 2)),
    ],
)
def test_what_an_sae_was_not_trained_on_is_not_measured(
    write_sae: Write, model: LanguageModel, metadata: dict, ids: tuple[int, ...], positions: tuple[int, ...]
) -> None:
    sae = load_sae(write_sae(d_in=128, hook="blocks.2.hook_mlp_out"))
    for name, value in metadata.items():
        setattr(sae.network.cfg.metadata, name, value)
    assert LeftOut.of(model, [sae]) == LeftOut(ids, positions)


def test_nothing_to_measure_is_refused(write_sae: Write, model: LanguageModel, tokens: np.ndarray) -> None:
    site = Site(1, "resid_post")
    saes = {site: exact(write_sae, str(site))}
    with pytest.raises(SaeError, match="no token of 6 prompts is left"):
        measure_quality(model, saes, tokens, left_out=LeftOut(positions=tuple(range(32))))
    with pytest.raises(SaeError, match="no token of 0 prompts is left"):
        measure_quality(model, saes, tokens[:0])


def test_kl_and_losses_are_those_of_the_whole_model(
    write_sae: Write, model: LanguageModel, tokens: np.ndarray
) -> None:
    site = Site(2, "resid_post")
    sae = load_sae(write_sae(d_in=128, hook=str(site)))
    row = measure_quality(model, {site: sae}, tokens, pre=PRE).df.iloc[0]
    ids = torch.as_tensor(tokens)

    def splice(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        new = output.clone()
        new[:, 1:] = sae.decode(sae.encode(output[:, 1:].flatten(0, 1))).view_as(output[:, 1:])
        return new

    with torch.no_grad():
        base = model.network(ids).logits.log_softmax(-1)
        handle = model.network.model.layers[2].register_forward_hook(splice)
        spliced = model.network(ids).logits.log_softmax(-1)
        handle.remove()
    kl = F.kl_div(spliced, base, log_target=True, reduction="none").sum(-1)
    assert row.kl == pytest.approx(float(kl[:, 1:-1].mean()), rel=1e-4)
    assert row.kl_pre == pytest.approx(float(kl[:, PRE].mean()), rel=1e-4)
    assert row.kl > 0.01
    every = F.cross_entropy(spliced[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten())
    assert row.ce_spliced == pytest.approx(float(every), rel=1e-4)


def test_an_exact_sae_has_no_divergence(write_sae: Write, model: LanguageModel, tokens: np.ndarray) -> None:
    site = Site(2, "resid_post")
    row = measure_quality(model, {site: exact(write_sae, str(site))}, tokens, pre=PRE).df.iloc[0]
    assert row.kl == pytest.approx(0, abs=1e-5) and row.kl_pre == pytest.approx(0, abs=1e-5)


def test_density_histogram_by_hand() -> None:
    # 1000 tokens: never, once (1e-3), twice, 100 times (0.1), 101, always.
    bins = density_histogram(np.array([0, 1, 2, 100, 101, 1000]), 1000)
    held = [(round(low, 6), round(high, 6), n) for (low, high), n in bins.items() if n]
    assert held == [
        (0, 0, 1), (0.000316, 0.001, 1), (0.001, 0.003162, 1), (0.031623, 0.1, 1), (0.1, 0.316228, 1),
        (0.316228, 1, 1),
    ]  # fmt: skip
    assert sum(bins.values()) == 6


def test_roles_are_measured_about_their_own_mean(
    write_sae: Write, model: LanguageModel, tokens: np.ndarray
) -> None:
    sites = (Site(1, "resid_post"), Site(2, "mlp_out"))
    saes = {site: load_sae(write_sae(site.short, d_in=128, hook=str(site))) for site in sites}
    groups = {role: [position(role, j) for j in range(5)] for role in ("pre", "lab")}
    counted = tally(model, saes, tokens, groups)
    table = fidelity_table(counted.values()).df.set_index(["site", "role"])
    quality = quality_table(counted.values()).df.set_index("site")
    for site, sae in saes.items():
        seen = record(model, tokens, [site], np.array(groups["lab"]))[site].reshape(-1, 128)
        latents = sae.encode(torch.tensor(seen))
        row = table.loc[(str(site), "lab")]
        assert row.fvu == pytest.approx(fvu(seen, sae.decode(latents).numpy()), rel=1e-4)
        assert row.l0 == pytest.approx(float((latents > 0).sum(dim=1).float().mean()))
        assert row.n_tokens == 30
        assert quality.loc[str(site)].fvu_pre == table.loc[(str(site), "pre")].fvu
        assert quality.loc[str(site)].kl == table.loc[(str(site), "all")].kl
    assert len(table) == 2 * 3
    density = density_table(counted.values()).df
    assert (density.groupby("site")["n_latents"].sum() == 24).all()


def test_a_transcoder_is_measured_against_what_it_writes(
    tmp_path: Path, model: LanguageModel, tokens: np.ndarray
) -> None:
    """One that ignores its input and always writes the mean output leaves exactly the variance."""
    site, target = Site(2, "mlp_in"), Site(2, "mlp_out")
    mean = record(model, tokens, [target], np.arange(1, 32))[target].mean(axis=(0, 1))
    metadata = SAEMetadata(hook_name=str(site), hook_name_out=str(target))
    network = Transcoder(
        TranscoderConfig(d_in=128, d_out=128, d_sae=16, apply_b_dec_to_input=False, metadata=metadata)
    )
    with torch.no_grad():
        network.W_dec.zero_()
        network.b_dec.copy_(torch.tensor(mean))
    network.save_model(tmp_path / "transcoder")
    row = measure_quality(model, {site: load_sae(tmp_path / "transcoder")}, tokens, pre=PRE).df.iloc[0]
    assert row.fvu == pytest.approx(1, rel=1e-4)
    assert row.site == str(site) and 0 < row.ce_recovered < 1


def test_a_skip_connection_counts_as_reconstruction(
    tmp_path: Path, model: LanguageModel, tokens: np.ndarray
) -> None:
    """Latents that write nothing and a skip by the identity: mlp_in predicts itself without an error."""
    site = Site(2, "mlp_in")
    metadata = SAEMetadata(hook_name=str(site))
    config = SkipTranscoderConfig(
        d_in=128, d_out=128, d_sae=16, apply_b_dec_to_input=False, metadata=metadata
    )
    network = SkipTranscoder(config)
    with torch.no_grad():
        network.W_dec.zero_()
        network.W_skip.copy_(torch.eye(128))
    network.save_model(tmp_path / "skip")
    row = measure_quality(model, {site: load_sae(tmp_path / "skip")}, tokens, pre=PRE).df.iloc[0]
    assert row.fvu == pytest.approx(0, abs=1e-9) and row.ce_recovered == pytest.approx(1, abs=1e-4)


def test_a_recorded_mismatch_stands_in_the_table(
    write_sae: Write, model: LanguageModel, tokens: np.ndarray
) -> None:
    site = Site(1, "resid_post")
    sae = replace(load_sae(write_sae(d_in=128, hook=str(site))), mismatches=("L0 is 1", "FVU is 2"))
    assert list(measure_quality(model, {site: sae}, tokens)["mismatch"]) == ["L0 is 1; FVU is 2"]
