"""Single latents: equal to the naive splice, planted shares found, honest controls and donor values."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.registry import get_sae_class
from torch import Tensor

from iclens.core import BELIEFS, ROLES, EditError, SaeError, Site, SiteError
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, record, unembed
from iclens.patching.latents import (
    best_single,
    carry_levels,
    linear_screen,
    matched,
    patch_latents,
    single_effects,
)
from iclens.patching.receiver import DIRECTIONS, PatchReceiver, prepare_patch, query_answers, up_to_query
from iclens.patching.runs import Runs, build_runs
from iclens.patching.sweep import sweep
from iclens.prompts.beliefs import AnswerProbs
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae

from .conftest import D_SAE, K
from .planted_latents import BIAS, plant, planted_runs

HOOKS = ("L2.resid_post", "L2.mlp_out", "L3.resid_pre", "L2.resid_mid", "L1.attn_out")
SETTINGS = (
    {}, {"rescale_acts_by_decoder_norm": True}, {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale"},
)  # fmt: skip


def naive_splice(receiver: PatchReceiver, latent: int) -> AnswerProbs:
    """Answers of the receiver when sae_lens decodes its latents, one set to its donor value."""
    tokens, here, site = up_to_query(receiver.prompts), receiver.position, receiver.sae.site
    x = torch.as_tensor(record(receiver.model, tokens, [site], here)[site][:, 0])
    network = receiver.sae.network
    error = x - network.decode(network.encode(x))
    latents = network.encode(x)
    latents[:, latent] = receiver.donor_latents[:, latent]
    edit = Edit(site, "resample", here, (network.decode(latents) + error)[:, None].numpy())
    return query_answers(receiver.model, receiver.prompts, (), (edit,))


def compare_with_splices(receiver: PatchReceiver, every: int = 9, least: int = 3) -> None:
    """Hold our patches of some latents to sae_lens' decoding, in every prompt.

    SAEs compute in float32: an activation of size 40 that is put back is rounded by 4e-6.
    """
    latents = np.flatnonzero((receiver.change != 0).any(axis=0))[::every]
    assert len(latents) >= least
    for latent in latents:
        spliced = naive_splice(receiver, int(latent))
        for prompt, tail in enumerate(receiver.tails):
            delta = receiver.pushes(prompt, np.array([latent]))
            ours = tail.added(receiver.sae.site, delta, positions=receiver.position).log_prob[0]
            np.testing.assert_allclose(ours, spliced.log_prob[prompt], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("site", HOOKS)
def test_a_latent_patch_equals_the_naive_splice(exact_model, make_runs, make_sae, site, settings):
    sae = make_sae(site, **settings)
    sae.network.W_dec.mul_(1.7)
    compare_with_splices(prepare_patch(exact_model, sae, make_runs()))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("role", ROLES)
def test_it_does_so_at_every_role_and_both_ways(exact_model, make_sae, role, direction):
    """The donor has two examples more than the recipient."""
    runs = build_runs(
        exact_model.tokenizer, parse_task("2x+3"), recipient="R arm", n_prompts=8, donor_examples=5,
        recipient_examples=3, seed=1,
    )  # fmt: skip
    receiver = prepare_patch(exact_model, make_sae("L3.mlp_out"), runs, role=role, direction=direction)
    where = ROLES.index(role) + (0 if role in ROLES[:4] else -6)
    end = up_to_query(receiver.prompts).shape[1] - 1
    assert receiver.position[0] == end - ROLES.index("pre") + where
    compare_with_splices(receiver, every=12, least=1)


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk", "matching_pursuit", "abstopk"])
@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
def test_every_architecture_with_an_affine_decoder_can_be_patched(exact_model, make_runs, kind, normalised):
    sae = any_sae(exact_model, kind, normalised)
    compare_with_splices(prepare_patch(exact_model, sae, make_runs()), every=8)


def any_sae(model: LanguageModel, kind: str, normalised: str) -> Sae:
    """An SAE of one of sae_lens' architectures, random weights."""
    torch.manual_seed(1)
    network_class, config_class = get_sae_class(kind)
    more = {"k": K} if "topk" in kind else {"max_iterations": 6} if kind == "matching_pursuit" else {}
    network: Any = network_class(
        config_class(d_in=model.d_model, d_sae=D_SAE, normalize_activations=normalised, **more)
    )
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if name.startswith("b") else 0.3))
    network.requires_grad_(False).eval()
    return Sae(Site.parse("L2.resid_post"), "0" * 16, model.d_model, D_SAE, None, network, Path("."))


@settings(max_examples=20)
@given(
    st.integers(0, 2**31), st.sampled_from([(2, 1), (4, 2), (4, 4)]), st.sampled_from(["sdpa", "eager"]),
    st.sampled_from(["mlp_out", "resid_post", "resid_pre", "attn_out"]), st.sampled_from(ROLES),
    st.sampled_from(DIRECTIONS), st.integers(2, 5), st.integers(2, 5),
)  # fmt: skip
def test_random_models_and_saes_of_every_role_and_length(
    tiny_model, random_model, in_float64, seed, heads, kind, hook, role, direction, shown, shown_to_B
):
    """Donors and recipients of any two lengths; a whole splice through sae_lens in one full forward."""
    model = in_float64(random_model(tiny_model, seed, 3, *heads, kind))
    runs = build_runs(
        model.tokenizer, parse_task("2x+3"), recipient="R arm", n_prompts=6, donor_examples=shown,
        recipient_examples=shown_to_B, seed=seed % 1000,
    )  # fmt: skip
    torch.manual_seed(seed)
    network = TopKSAE(TopKSAEConfig(d_in=model.d_model, d_sae=40, k=8)).requires_grad_(False).eval()
    sae = Sae(Site(1, hook), "0" * 16, model.d_model, 40, 8, network, Path("."))
    receiver = prepare_patch(model, sae, runs, role=role, direction=direction, donor_value="instance")
    if (receiver.change != 0).any():
        compare_with_splices(receiver, every=11, least=1)
    still = receiver.effects(0, torch.zeros(2, model.d_model))
    np.testing.assert_array_equal(still, 0 * receiver.base[[0, 0]])


@pytest.mark.parametrize("role", ["pre", "comma"])
def test_at_the_mlps_output_a_patch_is_that_at_the_end_of_its_block(exact_model, make_runs, make_sae, role):
    receiver = prepare_patch(exact_model, make_sae("L2.mlp_out"), make_runs(), role=role)
    for i, tail in enumerate(receiver.tails):
        delta = receiver.pushes(i, receiver.differing[:3])
        one, other = (
            tail.added(Site(2, hook), delta, positions=receiver.position).log_prob
            for hook in ("mlp_out", "resid_post")
        )
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_the_table_holds_the_naive_splices_effects(exact_model, make_runs, make_sae):
    receiver = prepare_patch(exact_model, make_sae(), make_runs())
    table = patch_latents(receiver, n_tested=1, n_controls=3)
    latent = int(table["latent"][0])
    wanted = receiver.reader.log_odds(naive_splice(receiver, latent))[receiver.test].mean(axis=0)
    rows = table.where(table["latent"] == latent)
    assert tuple(rows["belief"]) == BELIEFS
    np.testing.assert_allclose(rows["patched"], wanted, atol=1e-3)
    np.testing.assert_allclose(rows["patched"] - rows["base"], rows["effect"], atol=1e-9)


def test_carry_levels_end_with_the_sweeps_patch_and_begin_with_a_single_latent(
    exact_model, make_runs, make_sae
):
    sae, runs = make_sae(), make_runs()
    receiver = prepare_patch(exact_model, sae, runs, donor_value="instance")
    table = patch_latents(receiver, n_tested=2, n_controls=5)
    levels = carry_levels(receiver, table)
    half = Runs(
        runs.task, *(part.select(receiver.test) for part in (runs.donor, runs.recipient, runs.target))
    )
    whole = sweep(exact_model, half, roles=["pre"], layers=[sae.site.layer + 1])
    for belief in BELIEFS:
        top, single = (
            levels.where((levels["rung"] == level) & (levels["belief"] == belief))
            for level in ("full activation", "best single latent")
        )
        swept = whole.where(whole["metric"] == f"effect on {belief}")
        assert top["effect"][0] == pytest.approx(swept["value"][0], abs=1e-3)
        assert single["latent"][0] == str(best_single(table, belief))
        alone = table.where((table["latent"] == int(single["latent"][0])) & (table["belief"] == belief))
        assert single["effect"][0] == pytest.approx(alone["effect"][0], abs=1e-4)


def test_only_latents_that_differ_get_rows_and_only_screened_ones_a_p_value(exact_model, make_runs, make_sae):
    receiver = prepare_patch(exact_model, make_sae(), make_runs(n_prompts=16), seed=2)
    table, again = (patch_latents(receiver, n_tested=3, n_controls=7, seed=2) for _ in range(2))
    assert table.df.equals(again.df)
    differs = receiver.change[receiver.test] != 0
    assert set(table["latent"]) == set(np.flatnonzero(differs.any(axis=0)))
    np.testing.assert_array_equal(table["n_changed"], differs.sum(axis=0)[table["latent"]])
    tested = ~np.isnan(table["control_p"])
    assert len(set(table["latent"][tested])) <= 3 and set(table["n_controls"][tested]) == {7}
    assert (table["n_controls"][~tested] == 0).all()
    assert all("not tested" in reason for reason in table["reason"][~tested])
    p_value, q_value = table["control_p"][tested], table["q_value"][tested]
    np.testing.assert_allclose(p_value * 8, np.round(p_value * 8))
    assert (q_value >= p_value - 1e-12).all()


@pytest.mark.parametrize("task", ["2x+3", "word:size"])
def test_donor_values_never_saw_the_query_nor_its_answer(exact_model, make_runs, make_sae, task):
    sae, runs = make_sae(), make_runs(n_prompts=24, task=task)
    receiver = prepare_patch(exact_model, sae, runs, seed=1)
    assert sorted([*receiver.screen, *receiver.test]) == list(range(24))
    acts = prepare_patch(exact_model, sae, runs, donor_value="instance", seed=1).donor_acts
    gives = receiver.mix.numpy() > 0
    for half in (receiver.screen, receiver.test):
        for prompt in half:
            donors = np.flatnonzero(gives[prompt])
            assert len(donors) and set(donors) <= set(half)
            assert runs.x_B[prompt] not in runs.donor.x[donors]
            assert runs.answer[prompt] not in runs.donor.answer[donors, -1]
            assert runs.donor.x[prompt, -1] not in runs.donor.x[donors, -1]
            wanted = acts[torch.as_tensor(donors)].mean(dim=0)
            torch.testing.assert_close(receiver.donor_acts[prompt], wanted, rtol=1e-5, atol=1e-4)
    refused = ~gives & (receiver.mix.numpy().sum(axis=1, keepdims=True) > 0)
    shown = (runs.donor.x[None] == runs.x_B[:, None, None]).any(axis=2)
    assert (refused & shown).any()


@pytest.mark.parametrize("value", ["task mean", "instance"])
def test_copy_asks_for_the_answers_of_the_donors(exact_model, make_runs, make_sae, value):
    runs = make_runs(n_prompts=12)
    receiver = prepare_patch(exact_model, make_sae(), runs, donor_value=value)
    for prompt in (0, 7):
        probs = receiver.tails[prompt].base(receiver.sae.site)
        donors = np.flatnonzero(receiver.mix[prompt].numpy())
        answers = sorted(set(runs.donor.answer[donors, -1]))
        assert (value == "instance") == (answers == [runs.donor_answer[prompt]])
        p = sum(float(probs.of(np.array([answer]))[0]) for answer in answers)
        assert receiver.base[prompt, BELIEFS.index("copy")] == pytest.approx(np.log(p / (1 - p)), abs=1e-3)


def test_a_belief_the_task_does_not_define_is_nan_with_a_reason(exact_model, make_runs, make_sae):
    receiver = prepare_patch(exact_model, make_sae(), make_runs("zero examples", "word:opposite"))
    table = patch_latents(receiver, n_tested=2, n_controls=4)
    double = table.where(table["belief"] == "double")
    assert len(double)
    for name in ("effect", "normalised", "control_p", "q_value"):
        assert np.isnan(double[name]).all()
    assert all("undefined for this task" in reason for reason in double["reason"])


class ReadOut:
    """Latent 0 writes up the gradient of `numeric` and is on in A only; all the others are always on."""

    def __init__(self, writes: Tensor, reads: Tensor, cut: float, d_sae: int) -> None:
        rows = torch.randn(d_sae, len(writes), generator=torch.Generator().manual_seed(0))
        rows[0] = writes
        self.W_dec, self.reads, self.cut = torch.nn.functional.normalize(rows, dim=1), reads, cut

    def encode(self, x: Tensor) -> Tensor:
        latents = torch.ones(*x.shape[:-1], len(self.W_dec))
        latents[..., 0] = 2.0 * (x @ self.reads > self.cut)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec


def test_a_planted_read_out_beats_every_control(tiny_model, make_runs):
    runs, site, d_sae = make_runs("zero examples", n_prompts=12), Site(5, "resid_post"), 60
    _, ids = tiny_model.answer_space()
    donor, recipient = (
        torch.as_tensor(record(tiny_model, up_to_query(p), [site], p.positions("pre")[-1:])[site][:, 0])
        for p in (runs.donor, runs.recipient)
    )
    middle, reads = (donor.mean(0) + recipient.mean(0)) / 2, donor.mean(0) - recipient.mean(0)
    resid = recipient.clone().requires_grad_(True)
    numbers = torch.log_softmax(unembed(tiny_model.network, resid), dim=-1)[:, ids].logsumexp(dim=-1)
    (numbers - torch.log1p(-numbers.exp())).sum().backward()
    assert resid.grad is not None
    network = ReadOut(resid.grad.mean(0), reads, float(middle @ reads), d_sae)
    sae = Sae(site, "0" * 16, tiny_model.d_model, d_sae, None, network, Path("."))
    table = patch_latents(prepare_patch(tiny_model, sae, runs), n_controls=1000)
    assert set(table["latent"]) == {0}
    numeric = table.where(table["belief"] == "numeric")
    assert numeric["n_controls"][0] == d_sae - 1
    assert numeric["control_p"][0] == pytest.approx(1 / d_sae)
    assert numeric["effect"][0] > numeric["ci_low"][0] > 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_planted_shares_come_back_without_bias(tiny_model, direction):
    misses = []
    for case in (plant(tiny_model, seed) for seed in range(12)):
        receiver = prepare_patch(case.model, case.sae, planted_runs(case.model), direction=direction)
        table = patch_latents(receiver, n_tested=4, n_controls=10)
        rows = table.where(table["belief"] == case.belief)
        truth = case.share[rows["latent"]]
        assert len(rows) >= 15 and (truth > 0).sum() == 4
        misses.append(rows["normalised"] - truth)
        assert (np.abs(rows["normalised"][truth == 0]) < 0.01).all()
    every = np.concatenate(misses)
    assert abs(every.mean()) <= 0.01 and np.abs(every).max() <= BIAS


def test_controls_are_live_alike_and_never_the_latent_itself():
    density = np.array([0.5, 0.5, 0.0, 0.49, 0.51, 0.001, 0.001, 0.001])
    mean_active = np.array([1.0, 1.0, np.nan, 1.0, 1.0, 50.0, 50.0, 50.0])
    rng = np.random.default_rng(0)
    assert set(matched(density, mean_active, 0, 100, rng)) == {1, 3, 4, 5, 6, 7}
    for _ in range(20):
        assert set(matched(density, mean_active, 0, 1, rng)) < {1, 3, 4}


def test_the_linear_screen_says_where_it_misses(exact_model, make_runs, make_sae):
    receiver = prepare_patch(exact_model, make_sae(), make_runs(n_prompts=12))
    effects = single_effects(receiver, receiver.differing)
    screened = linear_screen(receiver, receiver.differing, effects)
    row, tested = screened.where(screened["belief"] == "exact"), effects[receiver.test]
    assert row["r2"][0] < 1 and row["n_effects"][0] == tested[..., 3].size
    exact = row["worst_exact"][0]
    column = list(receiver.differing).index(int(row["worst_latent"][0]))
    assert np.abs(tested[:, column, 3] - exact).min() < 1e-9
    assert row["worst_miss"][0] == pytest.approx(abs(exact - row["worst_linear"][0]))


def test_saes_and_patches_that_cannot_be_made_are_refused(exact_model, make_runs, make_sae):
    sae, runs = make_sae(), make_runs()
    curved = SimpleNamespace(encode=sae.encode, decode=lambda a: (a @ sae.W_dec).relu(), W_dec=sae.W_dec)
    usual = {"model": exact_model, "sae": sae, "runs": runs}
    for changed, error, said in (
        ({"sae": make_sae(normalize_activations="covariance_whitening")}, SaeError, "covariance_whitening"),
        ({"sae": make_sae(normalize_activations="expected_average_only_in")}, SaeError, "expected_average"),
        ({"sae": replace(sae, network=curved)}, SaeError, "not affine"),
        ({"sae": replace(sae, d_in=64)}, SaeError, "width 64"),
        ({"sae": replace(sae, target=Site(2, "mlp_out"))}, SaeError, r"transcoder to L2\.mlp_out"),
        ({"donor_value": "median"}, EditError, "It must be 'task mean' or 'instance'"),
        ({"direction": "both"}, EditError, "It must be 'sufficiency' or 'necessity'"),
        ({"role": "label"}, SiteError, "Nearest: lab"),
        ({"sae": make_sae("L2.mlp_in")}, EditError, "no addition to the residual"),
        ({"sae": make_sae("L7.mlp_out")}, SiteError, "blocks 0 to 5"),
        ({"runs": make_runs("zero examples"), "role": "lab"}, EditError, "recipient='S arm'"),
        ({"runs": make_runs(n_prompts=2)}, EditError, "n_prompts=4 or more"),
        ({"runs": make_runs(n_prompts=4, donor_examples=41)}, EditError, "every other shows its x"),
    ):
        with pytest.raises(error, match=said):
            prepare_patch(**(usual | changed))
    receiver = prepare_patch(exact_model, sae, runs)
    with pytest.raises(SiteError, match=f"latent {D_SAE} of L2"):
        receiver.directions(np.array([D_SAE]))
    with pytest.raises(EditError, match="single effects of shape"):
        patch_latents(receiver, effects=np.zeros((2, 1, 5)))
