"""Single-latent patches: equal to the naive splice, exact where nothing differs, and honest controls."""

from collections.abc import Callable
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
from iclens.model.run import Edit, answer_probs, record, unembed
from iclens.patching.latents import best_single, matched, patch_ladder, patch_latents
from iclens.patching.receiver import DIRECTIONS, Direction, LatentRuns, gather, read_lent, up_to_query
from iclens.patching.runs import Runs, build_runs
from iclens.patching.sweep import sweep
from iclens.prompts.beliefs import AnswerProbs
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae

from ...conftest import InFloat64
from ..conftest import D_SAE, K, MakeRuns, MakeSae, same

HOOKS = ("L2.resid_post", "L2.mlp_out", "L3.resid_pre", "L2.resid_mid", "L1.attn_out")
SETTINGS = (
    {}, {"rescale_acts_by_decoder_norm": True}, {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale"},
)  # fmt: skip


def naive_splice(held: LatentRuns, latent: int) -> AnswerProbs:
    """Answers of the receiver when sae_lens decodes its latents, one set to its donor value."""
    tokens, here = up_to_query(held.receiver), held.place
    x = torch.as_tensor(record(held.model, tokens, [held.sae.site], here)[held.sae.site][:, 0])
    network = held.sae.network
    latents = network.encode(x)
    error = x - network.decode(latents)
    patched = network.encode(x)
    patched[:, latent] = held.donor_latents[:, latent]
    value = (network.decode(patched) + error)[:, None].numpy()
    end = np.array([tokens.shape[1] - 1])
    edit = Edit(held.sae.site, "resample", here, value)
    found = answer_probs(held.model, tokens, end, edits=[edit])
    return AnswerProbs(found.answers, found.log_prob[:, 0])


def compare_with_splices(held: LatentRuns, every: int = 9, least: int = 3) -> None:
    """Hold our patches of some latents to sae_lens' decoding, in every prompt.

    SAEs compute in float32: an activation of size 40 that is put back is rounded by 4e-6.
    """
    latents = np.flatnonzero((held.change != 0).any(axis=0))[::every]
    assert len(latents) >= least
    for latent in latents:
        spliced = naive_splice(held, int(latent))
        for prompt, tail in enumerate(held.tails):
            delta = held.pushes(prompt, np.array([latent]))
            ours = tail.added(held.sae.site, delta, positions=held.place).log_prob[0]
            np.testing.assert_allclose(ours, spliced.log_prob[prompt], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("site", HOOKS)
def test_a_latent_patch_equals_the_naive_splice(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae, site: str, settings: dict[str, Any]
) -> None:
    sae = make_sae(site, **settings)
    sae.network.W_dec.mul_(1.7)
    compare_with_splices(gather(exact_model, sae, make_runs()))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("role", ROLES)
def test_it_does_so_at_every_role_and_both_ways(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae, role: str, direction: Direction
) -> None:
    """The donor has two examples more than the recipient."""
    runs = build_runs(
        exact_model.tokenizer, parse_task("2x+3"), recipient="R arm", n_prompts=8, donor_examples=5,
        recipient_examples=3, seed=1,
    )  # fmt: skip
    held = gather(exact_model, make_sae("L3.mlp_out"), runs, role=role, direction=direction)
    where = ROLES.index(role) + (0 if role in ROLES[:4] else -6)
    assert held.place[0] == up_to_query(held.receiver).shape[1] - 1 - ROLES.index("pre") + where
    compare_with_splices(held, every=12, least=1)


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk", "matching_pursuit", "abstopk"])
@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
def test_every_architecture_with_an_affine_decoder_can_be_patched(
    exact_model: LanguageModel, make_runs: MakeRuns, kind: str, normalised: str
) -> None:
    compare_with_splices(gather(exact_model, any_sae(exact_model, kind, normalised), make_runs()), every=8)


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


def test_the_table_holds_the_naive_splices_effects(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    sae, runs = make_sae(), make_runs()
    held = gather(exact_model, sae, runs)
    table = patch_latents(held, n_tested=1, n_controls=3)
    latent = int(table["latent"][0])
    spliced = naive_splice(held, latent)
    each = [AnswerProbs(spliced.answers, spliced.log_prob[i : i + 1]) for i in held.test]
    wanted = np.concatenate(
        [read_lent(row, runs, i, held.lent[i]) for row, i in zip(each, held.test, strict=True)]
    ).mean(axis=0)
    rows = table.where(table["latent"] == latent)
    assert tuple(rows["belief"]) == BELIEFS
    np.testing.assert_allclose(rows["patched"], wanted, atol=1e-3)
    np.testing.assert_allclose(rows["patched"] - rows["base"], rows["effect"], atol=1e-9)


def test_a_donor_that_is_the_recipient_leaves_no_row_and_no_effect(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    sae, runs = make_sae(), same(make_runs())
    held = gather(exact_model, sae, runs, donor_value="instance")
    table = patch_latents(held)
    assert len(table) == 0
    ladder = patch_ladder(held, table)
    assert set(ladder["rung"]) == {"all latents", "error only", "full activation"}
    assert (ladder["effect"] == 0).all()


def test_the_ladders_top_is_the_sweeps_patch(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    sae, runs = make_sae(), make_runs()
    held = gather(exact_model, sae, runs, donor_value="instance")
    table = patch_latents(held, n_tested=2, n_controls=5)
    ladder = patch_ladder(held, table)
    parts = (runs.donor, runs.recipient, runs.target)
    half = Runs(runs.task, *(part.select(held.test) for part in parts))
    whole = sweep(exact_model, half, roles=["pre"], layers=[sae.site.layer + 1])
    for belief in BELIEFS:
        top = ladder.where((ladder["rung"] == "full activation") & (ladder["belief"] == belief))
        swept = whole.where(whole["metric"] == f"effect on {belief}")
        assert top["effect"][0] == pytest.approx(swept["value"][0], abs=1e-3)
        single = ladder.where((ladder["rung"] == "best single latent") & (ladder["belief"] == belief))
        assert single["latent"][0] == str(best_single(table, belief))
        alone = table.where((table["latent"] == int(single["latent"][0])) & (table["belief"] == belief))
        assert single["effect"][0] == pytest.approx(alone["effect"][0], abs=1e-4)


def test_only_latents_that_differ_get_rows_and_only_screened_ones_a_p_value(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    sae, runs = make_sae(), make_runs(n_prompts=16)
    held = gather(exact_model, sae, runs, seed=2)
    table = patch_latents(held, n_tested=3, n_controls=7, seed=2)
    differs = held.change[held.test] != 0
    assert set(table["latent"]) == set(np.flatnonzero(differs.any(axis=0)))
    np.testing.assert_array_equal(table["n_changed"], differs.sum(axis=0)[table["latent"]])
    tested = ~np.isnan(table["control_p"])
    assert len(set(table["latent"][tested])) <= 3
    assert set(table["n_controls"][tested]) == {7}
    assert (table["n_controls"][~tested] == 0).all()
    assert all("not tested" in reason for reason in table["reason"][~tested])
    p_value, q_value = table["control_p"][tested], table["q_value"][tested]
    np.testing.assert_allclose(p_value * 8, np.round(p_value * 8))
    assert (q_value >= p_value - 1e-12).all()


@pytest.mark.parametrize("task", ["2x+3", "word:size"])
def test_what_is_lent_never_saw_the_query_nor_its_answer(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae, task: str
) -> None:
    sae, runs = make_sae(), make_runs(n_prompts=24, task=task)
    held = gather(exact_model, sae, runs, seed=1)
    assert sorted([*held.screen, *held.test]) == list(range(24))
    own = gather(exact_model, sae, runs, donor_value="instance", seed=1).donor_held
    lending = held.mix.numpy() > 0
    for half in (held.screen, held.test):
        for prompt in half:
            lenders = np.flatnonzero(lending[prompt])
            assert len(lenders) and set(lenders) <= set(half)
            assert runs.x_B[prompt] not in runs.donor.x[lenders]
            assert runs.own[prompt] not in runs.donor.answer[lenders, -1]
            assert runs.donor.x[prompt, -1] not in runs.donor.x[lenders, -1]
            wanted = own[torch.as_tensor(lenders)].mean(dim=0)
            torch.testing.assert_close(held.donor_held[prompt], wanted, rtol=1e-5, atol=1e-4)
    refused = ~lending & (held.mix.numpy().sum(axis=1, keepdims=True) > 0)
    shown = (runs.donor.x[None] == runs.x_B[:, None, None]).any(axis=2)
    assert (refused & shown).any()


def test_copy_asks_for_the_answers_of_the_donors_that_lent(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    runs = make_runs(n_prompts=12)
    for value in ("task mean", "instance"):
        held = gather(exact_model, make_sae(), runs, donor_value=value)
        for prompt in (0, 7):
            probs = held.tails[prompt].base(held.sae.site)
            lenders = np.flatnonzero(held.mix[prompt].numpy())
            answers = sorted(set(runs.donor.answer[lenders, -1]))
            assert (value == "instance") == (answers == [runs.copied[prompt]])
            p = sum(float(probs.of(np.array([answer]))[0]) for answer in answers)
            assert held.base[prompt, BELIEFS.index("copy")] == pytest.approx(np.log(p / (1 - p)), abs=1e-3)


def test_a_belief_the_task_does_not_define_is_nan_with_a_reason(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = gather(exact_model, make_sae(), make_runs("zero examples", "word:opposite"))
    table = patch_latents(held, n_tested=2, n_controls=4)
    double = table.where(table["belief"] == "double")
    assert len(double)
    for name in ("effect", "normalised", "control_p", "q_value"):
        assert np.isnan(double[name]).all()
    assert all("undefined for this task" in reason for reason in double["reason"])


class Planted:
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


def test_a_planted_read_out_beats_every_control(tiny_model: LanguageModel, make_runs: MakeRuns) -> None:
    runs, site, d_sae = make_runs("zero examples", n_prompts=12), Site(5, "resid_post"), 60
    _, ids = tiny_model.answer_space()
    held = [
        torch.as_tensor(record(tiny_model, up_to_query(p), [site], p.positions("pre")[-1:])[site][:, 0])
        for p in (runs.donor, runs.recipient)
    ]
    middle, reads = (held[0].mean(0) + held[1].mean(0)) / 2, held[0].mean(0) - held[1].mean(0)
    resid = held[1].clone().requires_grad_(True)
    numbers = torch.log_softmax(unembed(tiny_model.network, resid), dim=-1)[:, ids].logsumexp(dim=-1)
    (numbers - torch.log1p(-numbers.exp())).sum().backward()
    assert resid.grad is not None
    network = Planted(resid.grad.mean(0), reads, float(middle @ reads), d_sae)
    sae = Sae(site, "0" * 16, tiny_model.d_model, d_sae, None, network, Path("."))
    table = patch_latents(gather(tiny_model, sae, runs), n_controls=1000)
    assert set(table["latent"]) == {0}
    numeric = table.where(table["belief"] == "numeric")
    assert numeric["n_controls"][0] == d_sae - 1
    assert numeric["control_p"][0] == pytest.approx(1 / d_sae)
    assert numeric["effect"][0] > numeric["ci_low"][0] > 0


def test_controls_are_live_alike_and_never_the_latent_itself() -> None:
    density = np.array([0.5, 0.5, 0.0, 0.49, 0.51, 0.001, 0.001, 0.001])
    mean_active = np.array([1.0, 1.0, np.nan, 1.0, 1.0, 50.0, 50.0, 50.0])
    rng = np.random.default_rng(0)
    assert set(matched(density, mean_active, 0, 100, rng)) == {1, 3, 4, 5, 6, 7}
    for _ in range(20):
        assert set(matched(density, mean_active, 0, 1, rng)) < {1, 3, 4}


def test_saes_whose_latents_cannot_be_moved_alone_are_refused(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    sae, runs = make_sae(), make_runs()
    for kind in ("covariance_whitening", "expected_average_only_in"):
        with pytest.raises(SaeError, match=kind):
            gather(exact_model, make_sae(normalize_activations=kind), runs)
    curved = SimpleNamespace(encode=sae.encode, decode=lambda a: (a @ sae.W_dec).relu(), W_dec=sae.W_dec)
    with pytest.raises(SaeError, match="not affine"):
        gather(exact_model, replace(sae, network=curved), runs)
    with pytest.raises(SaeError, match="width 64"):
        gather(exact_model, replace(sae, d_in=64), runs)
    with pytest.raises(SaeError, match=r"transcoder to L2\.mlp_out"):
        gather(exact_model, replace(sae, target=Site(2, "mlp_out")), runs)


def test_patches_that_cannot_be_made_are_refused(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    sae, runs = make_sae(), make_runs()
    for asked, error, said in (
        ({"donor_value": "median"}, EditError, "It must be 'task mean' or 'instance'"),
        ({"direction": "both"}, EditError, "It must be 'sufficiency' or 'necessity'"),
        ({"role": "label"}, SiteError, "Nearest: lab"),
    ):
        with pytest.raises(error, match=said):
            gather(exact_model, sae, runs, **asked)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EditError, match="no addition to the residual"):
        gather(exact_model, make_sae("L2.mlp_in"), runs)
    with pytest.raises(SiteError, match="blocks 0 to 5"):
        gather(exact_model, make_sae("L7.mlp_out"), runs)
    with pytest.raises(EditError, match="recipient='S arm'"):
        gather(exact_model, sae, make_runs("zero examples"), role="lab")
    with pytest.raises(EditError, match="n_prompts=4 or more"):
        gather(exact_model, sae, make_runs(n_prompts=2))
    with pytest.raises(EditError, match="every other shows its x"):
        gather(exact_model, sae, make_runs(n_prompts=4, donor_examples=41))
    with pytest.raises(SaeError, match=f"latent {D_SAE} of L2"):
        gather(exact_model, sae, runs).directions(np.array([D_SAE]))


def test_the_same_seed_gives_the_same_table(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    one, other = (
        patch_latents(
            gather(exact_model, make_sae(), make_runs(), seed=4), n_tested=2, n_controls=5, seed=4
        ).df
        for _ in range(2)
    )
    assert one.equals(other)
    assert 1 <= len(set(one["latent"])) <= D_SAE


@settings(max_examples=20)
@given(
    st.integers(0, 2**31), st.sampled_from([(2, 1), (4, 2), (4, 4)]), st.sampled_from(["sdpa", "eager"]),
    st.sampled_from(["mlp_out", "resid_post", "resid_pre", "attn_out"]), st.sampled_from(ROLES),
    st.sampled_from(DIRECTIONS), st.integers(2, 5), st.integers(2, 5),
)  # fmt: skip
def test_random_models_and_saes_of_every_role_and_length(
    tiny_model: LanguageModel, random_model: Callable[..., LanguageModel], in_float64: InFloat64,
    seed: int, heads: tuple[int, int], kind: str, hook: str, role: str, direction: Direction,
    shown: int, shown_to_B: int,
) -> None:  # fmt: skip
    """Donors and recipients of any two lengths; a whole splice through sae_lens in one full forward."""
    model = in_float64(random_model(tiny_model, seed, 3, *heads, kind))
    runs = build_runs(
        model.tokenizer, parse_task("2x+3"), recipient="R arm", n_prompts=6, donor_examples=shown,
        recipient_examples=shown_to_B, seed=seed % 1000,
    )  # fmt: skip
    torch.manual_seed(seed)
    network = TopKSAE(TopKSAEConfig(d_in=model.d_model, d_sae=40, k=8)).requires_grad_(False).eval()
    sae = Sae(Site(1, hook), "0" * 16, model.d_model, 40, 8, network, Path("."))
    held = gather(model, sae, runs, role=role, direction=direction, donor_value="instance")
    if (held.change != 0).any():
        compare_with_splices(held, every=11, least=1)
    np.testing.assert_array_equal(held.effects(0, torch.zeros(2, model.d_model)), 0 * held.base[[0, 0]])


@pytest.mark.parametrize("role", ["pre", "comma"])
def test_at_the_mlps_output_a_patch_is_that_at_the_end_of_its_block(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae, role: str
) -> None:
    sae = make_sae("L2.mlp_out")
    held = gather(exact_model, sae, make_runs(), role=role)
    latents = held.differing[:3]
    for i, tail in enumerate(held.tails):
        delta = held.pushes(i, latents)
        one, other = (
            tail.added(site, delta, positions=held.place).log_prob
            for site in (Site(2, "mlp_out"), Site(2, "resid_post"))
        )
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
