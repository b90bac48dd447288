"""Specificity: planted read-outs are told apart, and every figure is what its column says."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from iclens.core import BELIEFS, EditError, ModelError, SaeError, Site, SiteError
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, record
from iclens.patching import specificity as module
from iclens.patching.latents import single_effects
from iclens.patching.receiver import DIRECTIONS, PatchReceiver, prepare_patch, query_answers, up_to_query
from iclens.patching.runs import Runs, build_runs
from iclens.patching.specificity import (
    ABLATE_ALL,
    JOINT,
    AllExamples,
    ablate_all_examples,
    additions,
    margin_of,
    specificity,
    stand_ins,
)
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae
from iclens.schemas import SpecificityTable
from iclens.stats import prompt_weights

from ..conftest import EXACT
from .conftest import D_SAE
from .planted_latents import (
    DOUBLE,
    FAINT,
    NAMED,
    NUMERIC,
    ODD,
    SILENT,
    UNREAD,
    WRITTEN,
    ReadOuts,
    plant_read_outs,
    planted_runs,
)

CAUSES = ((ODD, "odd"), (NUMERIC, "numeric"), (DOUBLE, "double"))
CHOSEN = [
    (ODD, "odd", "odd"), (UNREAD, "odd", "candidate"), (NUMERIC, "numeric", "numeric"),
    (DOUBLE, "double", "double"), (FAINT, "odd", "candidate"),
    (ODD, "numeric", "candidate"), (SILENT, "numeric", "candidate"), (NUMERIC, "offset", "candidate"),
]  # fmt: skip
CHOSEN_AT_LABS = [
    (ODD, "odd", "odd"), (UNREAD, "odd", "candidate"), (NUMERIC, "numeric", "numeric"),
    (DOUBLE, "double", "double"), (ODD, "numeric", "candidate"), (SILENT, "offset", "candidate"),
]  # fmt: skip


@pytest.fixture(scope="module")
def planted(tiny_model, in_float64):
    made = plant_read_outs(tiny_model)
    return replace(made, model=in_float64(made.model))


@pytest.fixture(scope="module")
def necessary(planted):
    return prepare_patch(planted.model, planted.sae, planted_runs(planted.model), direction="necessity")


@pytest.fixture(scope="module")
def matrix(planted):
    return specificity(both(planted.model, planted.sae, planted_runs(planted.model)), CHOSEN, NAMED)


def both(model: LanguageModel, sae: Sae, runs: Runs, role: str = "pre") -> list[PatchReceiver]:
    return [prepare_patch(model, sae, runs, direction=direction, role=role) for direction in DIRECTIONS]


def row(
    table: SpecificityTable, latent: int, concept: str, belief: str, way: str = "ablate"
) -> dict[str, Any]:
    chosen = (table["latent"] == latent) & (table["concept"] == concept)
    found = table.where(chosen & (table["belief"] == belief) & (table["way"] == way))
    assert len(found) == 1
    return {name: found[name][0] for name in found.COLUMNS}


def all_row(table: SpecificityTable, latent: int, concept: str, belief: str) -> dict[str, Any]:
    return row(table, latent, concept, belief, ABLATE_ALL)


def log_odds(model: LanguageModel, runs: Runs, edits: Sequence[Edit] = ()) -> np.ndarray:
    """A*'s beliefs under edits in full forward passes, [prompt belief]."""
    return runs.reader.log_odds(query_answers(model, runs.target, runs.words, edits))


def recorded(model: LanguageModel, sae: Sae, runs: Runs, where: np.ndarray) -> torch.Tensor:
    """A*'s activations at `where`, [prompt example d_in]."""
    return torch.as_tensor(record(model, up_to_query(runs.target), [sae.site], where)[sae.site])


def silenced(sae: Sae, x: torch.Tensor, latents: Sequence[int]) -> np.ndarray:
    """x [prompt example d_in] as sae_lens decodes it with latents set to 0, its error added back."""
    parts = []
    for example in x.unbind(dim=1):
        error = example - sae.network.decode(sae.network.encode(example))
        values = sae.network.encode(example)
        values[:, list(latents)] = 0
        parts.append(sae.network.decode(values) + error)
    return torch.stack(parts, dim=1).numpy()


@pytest.mark.parametrize("way", ["ablate", "patch"])
def test_planted_causes_are_specific_and_nothing_else_is(matrix, way):
    for latent, concept in CAUSES:
        own = row(matrix, latent, concept, concept, way)
        assert own["own"] and own["specific"] and own["specific_standardised"]
        assert own["margin_low"] > 0.1 and own["margin_standardised_low"] > 5
        assert np.sign(own["effect"]) == (-1 if way == "ablate" else 1)
        assert own["control_p"] == pytest.approx(1 / (1 + own["n_controls"]))
    wrong = ((UNREAD, "odd"), (ODD, "numeric"), (SILENT, "numeric"), (FAINT, "odd"))
    others = [row(matrix, latent, concept, concept, way) for latent, concept in wrong]
    assert not any(own["specific"] or own["specific_standardised"] for own in others)
    assert others[1]["margin_high"] < -0.3 and others[1]["rival"] == "odd"
    assert abs(others[0]["effect"]) < 0.02
    assert matrix["specific"].sum() == 2 * 5  # three causes, and those of odd and of double moved together


def test_effects_are_the_closed_form_of_the_planted_model(planted, matrix):
    """Odd = 2u and numeric = log(1000 e^v cosh u cosh w / rest), of logits ±u + v ± w in four equal parts."""
    runs, (_, ids) = planted_runs(planted.model), planted.model.answer_space()
    head = planted.model.network.lm_head.weight.double().numpy()
    x = recorded(planted.model, planted.sae, runs, runs.target.positions("pre")[-1:])[:, 0].double().numpy()
    even, odd, large = head[[int(ids[n]) for n in (0, 1, 999)]]
    reads = np.stack([odd - even, large + even, odd - large]) / 2

    def beliefs(x: np.ndarray) -> tuple[float, float]:
        u, v, w = reads @ (x / np.sqrt(np.square(x).mean(axis=1, keepdims=True))).T
        numeric = np.log(1000) + v + np.log(np.cosh(u) * np.cosh(w)) - np.log(len(head) - 1000)
        return (2 * u).mean(), numeric.mean()

    before = beliefs(x)
    for latent, concept in CAUSES:
        direction = planted.dictionary[latent].double().numpy()
        after = beliefs(x - (x @ direction)[:, None] * direction)
        for b, belief in enumerate(("odd", "numeric")):
            found = row(matrix, latent, concept, belief)
            assert found["base"] == pytest.approx(before[b], abs=1e-4)
            assert found["effect"] == pytest.approx(after[b] - before[b], abs=1e-4)


@pytest.mark.parametrize("way", ["ablate", "patch"])
def test_a_latent_that_is_never_active_does_nothing_and_says_so(matrix, way):
    silent = row(matrix, SILENT, "numeric", "numeric", way)
    assert silent["effect"] == silent["ci_low"] == silent["ci_high"] == silent["margin"] == 0
    assert silent["n_active"] == 0 and silent["reason"] == "nothing is moved in any prompt"
    for name in ("control_sd", "standardised", "control_p", "margin_standardised"):
        assert np.isnan(silent[name])
    assert row(matrix, ODD, "odd", "odd")["n_active"] == row(matrix, ODD, "odd", "odd")["n_prompts"] == 12


def test_where_nothing_reads_a_token_no_latent_is_specific(planted):
    """The planted model's last block attends to nothing: what stands at `lab` cannot reach the answer."""
    receivers = both(planted.model, planted.sae, planted_runs(planted.model, "S arm"), role="lab")
    table = specificity(receivers, CHOSEN, NAMED, n_controls=5)
    assert (table["n_active"] > 0).any() and np.abs(table["effect"]).max() < 1e-5
    assert not table["specific"].any() and not table["specific_standardised"].any()


def test_effects_below_what_float32_resolves_are_neither_specific_nor_a_unit(tiny_model, in_float64, matrix):
    faint = row(matrix, FAINT, "odd", "odd", "patch")
    assert 0 < faint["margin_low"] < 1e-4 and faint["margin_standardised_low"] > 0
    assert not faint["specific"] and not faint["specific_standardised"]
    dull = plant_read_outs(tiny_model, strength=1e-4)
    receiver = prepare_patch(in_float64(dull.model), dull.sae, planted_runs(dull.model))
    own = row(specificity([receiver], CHOSEN, NAMED, ways=["patch"]), ODD, "odd", "odd", "patch")
    assert 0 < own["margin_low"] < 1e-4 and not own["specific"]
    assert 0 < own["control_sd"] < 1e-4 and np.isnan(own["standardised"])
    assert own["reason"] == "no control moves this belief; no control moves a rival"


def test_all_latents_of_a_concept_move_together(necessary, matrix):
    delta, _ = additions(necessary, "ablate", np.array([ODD, UNREAD, FAINT]))
    wanted = np.mean([necessary.effects(i, delta[i][None])[0] for i in range(12)], axis=0)
    for belief in ("odd", "numeric", "exact"):
        joint = row(matrix, JOINT, "odd", belief)
        assert joint["effect"] == pytest.approx(wanted[BELIEFS.index(belief)], abs=5e-5)
        assert joint["label"] == "joint"
    one, alone = (row(matrix, latent, "offset", "numeric") for latent in (JOINT, NUMERIC))
    assert {name for name in one if one[name] != alone[name] == alone[name]} == {"latent", "label"}


def test_a_concept_that_no_belief_reads_has_effects_and_no_margin(matrix):
    rows = matrix.where(matrix["concept"] == "offset")
    assert len(rows) == 2 * 2 * len(BELIEFS) and not rows["own"].any()
    assert np.isnan(rows["margin"]).all() and np.isnan(rows["margin_standardised_low"]).all()
    assert set(rows["reason"]) == {"no belief reads offset"} and np.abs(rows["effect"]).max() > 0.3
    others = matrix.where((matrix["concept"] == "odd") & ~matrix["own"])
    assert np.isnan(others["margin"]).all()
    assert all("margins stand beside its own belief" in reason for reason in others["reason"])


def test_the_control_unit_is_the_root_mean_square_of_what_equal_pushes_do(planted, necessary, matrix):
    """With more controls asked for than are live, they are all live latents that were not chosen."""
    others = np.setdiff1d(np.arange(WRITTEN), [ODD, NUMERIC, DOUBLE, UNREAD, FAINT])
    own = row(matrix, NUMERIC, "numeric", "numeric")
    assert own["n_controls"] == len(others)
    pushes = (-necessary.latents[i, NUMERIC] * planted.dictionary[others] for i in range(12))
    each = np.mean([necessary.effects(i, push) for i, push in enumerate(pushes)], axis=0)
    for b, belief in enumerate(BELIEFS):
        unit = np.sqrt((each[:, b] ** 2).mean())
        found = row(matrix, NUMERIC, "numeric", belief)
        assert found["control_sd"] == pytest.approx(unit, rel=1e-3)
        assert found["standardised"] == pytest.approx(found["effect"] / unit, rel=1e-3)
    standing = {belief: abs(row(matrix, NUMERIC, "numeric", belief)["standardised"]) for belief in NAMED}
    margin = standing["numeric"] - max(standing["odd"], standing["double"])
    assert own["margin_standardised"] == pytest.approx(margin)


def test_a_set_s_controls_are_pushed_as_far_as_the_set(planted, necessary, monkeypatch):
    pushed: list[torch.Tensor] = []
    effects_of = PatchReceiver.effects_of

    def watched(self: PatchReceiver, prompts: Sequence[int], deltas: Any) -> Any:
        rows = list(deltas)
        pushed.extend(rows)
        return effects_of(self, prompts, rows)

    monkeypatch.setattr(PatchReceiver, "effects_of", watched)
    specificity([necessary], [(ODD, "odd", ""), (UNREAD, "odd", "")], NAMED, ways=["ablate"], n_controls=6)
    assert len(pushed) == 3 * 12
    for rows in pushed:
        assert len(rows) == 7 and bool(rows[0].norm() > 0.1)
        torch.testing.assert_close(rows.norm(dim=1), rows[0].norm().expand(7), rtol=1e-5, atol=0)
        aligned = torch.nn.functional.normalize(rows, dim=1) @ planted.dictionary[[ODD, UNREAD]].T
        assert bool((aligned[1:].abs() < 1e-5).all()) and bool((aligned[0].abs() > 0.1).any())


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("site", ["L2.resid_post", "L1.mlp_out"])
def test_an_ablation_is_a_forward_pass_with_the_latent_silent(
    exact_model, make_runs, make_sae, site, normalised
):
    """sae_lens decodes the latents with one set to 0, its error added back; no part of the tail engine."""
    runs, sae = make_runs(n_prompts=6), make_sae(site, normalize_activations=normalised)
    sae.network.W_dec.mul_(1.7)
    receiver = prepare_patch(exact_model, sae, runs, direction="necessity")
    latent = int((receiver.latents != 0).sum(dim=0).argmax())
    table = specificity([receiver], [(latent, "odd", "odd")], NAMED, ways=["ablate"], n_controls=3)
    x = recorded(exact_model, sae, runs, receiver.position)
    edit = Edit(sae.site, "resample", receiver.position, silenced(sae, x, [latent]))
    after, before = (query_answers(exact_model, runs.target, runs.words, edits) for edits in ([edit], []))
    wanted = receiver.reader.log_odds(after) - receiver.reader.log_odds(before)
    delta, _ = additions(receiver, "ablate", np.array([latent]))
    tails = zip(receiver.tails, delta, strict=True)
    ours = np.stack([tail.added(sae.site, added[None]).log_prob[0] for tail, added in tails])
    np.testing.assert_allclose(ours, after.log_prob, rtol=1e-5, atol=1e-4)
    for b, belief in enumerate(BELIEFS):
        effect = row(table, latent, "odd", belief)["effect"]
        assert effect == pytest.approx(wanted[:, b].mean(), abs=2e-4)
    assert np.abs(wanted).max() > 0.01


def test_the_other_ways_are_the_patches_that_exist(exact_model, make_runs, make_sae):
    receivers = both(exact_model, make_sae(), make_runs(n_prompts=8))
    latents = np.intersect1d(receivers[0].differing, receivers[1].differing)[:2]
    chosen = [(int(latent), "odd", "odd") for latent in latents]
    table = specificity(receivers, chosen, NAMED, ways=["mean", "patch"], n_controls=2)
    for receiver, way in zip(receivers, ("patch", "mean"), strict=True):
        wanted = single_effects(receiver, latents).mean(axis=0)
        for k, latent in enumerate(latents):
            for b, belief in enumerate(BELIEFS):
                effect = row(table, int(latent), "odd", belief, way)["effect"]
                assert effect == pytest.approx(wanted[k, b], abs=1e-4)


def test_a_margin_by_hand():
    """Own −1 and −3 (mean −2), rivals 2 and 0 (mean 1) and 0 and .5: the rival differs between resamples."""
    effects = np.array([[-1.0, 2.0, 0.0, 50.0], [-3.0, 0.0, 0.5, 50.0]])
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])
    margin, low, high = margin_of(effects, weights, 0, np.array([1, 2]))
    assert margin == 2 - 1
    assert low == pytest.approx((1 - 2) + 0.025 * 3.5)  # resamples: 1 − 2 and 3 − .5
    assert high == pytest.approx((3 - 0.5) - 0.025 * 3.5)


def test_noise_about_zero_is_not_specific_however_still_its_rivals_are():
    """|mean| is above 0 in every resample of noise: its direction has to be the sample's own."""
    rng = np.random.default_rng(0)
    weights, called = prompt_weights(60, 400, rng), 0
    for _ in range(400):
        effects = np.hstack([rng.normal(size=(60, 1)), 1e-3 * rng.normal(size=(60, 2))])
        called += margin_of(effects, weights, 0, np.array([1, 2]))[1] > 0
    assert called / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_rivals_are_named_and_undefined_beliefs_left_out(tiny_model, make_runs, make_sae):
    receiver = prepare_patch(tiny_model, make_sae(), make_runs("zero examples", "word:opposite"))
    latent = int(receiver.differing[0])
    chosen = [(latent, "odd", "odd"), (latent, "double", "double")]

    def table(against: list[str] | None) -> SpecificityTable:
        return specificity([receiver], chosen, NAMED, ways=["patch"], n_controls=3, against=against)

    plain, named = table(None), table(["exact", "odd", "copy"])
    assert set(plain["belief"]) == {"numeric", "odd", "exact", "copy"}
    assert row(plain, latent, "odd", "odd", "patch")["against"] == "numeric"
    lost = plain.where(plain["concept"] == "double")
    assert set(lost["reason"]) == {"double is undefined for this task"} and np.isnan(lost["margin"]).all()
    own = row(named, latent, "odd", "odd", "patch")
    sizes = {
        name: abs(row(named, latent, "odd", name, "patch")["effect"]) for name in ("odd", "exact", "copy")
    }
    assert own["against"] == "exact copy"
    assert own["margin"] == pytest.approx(sizes["odd"] - max(sizes["exact"], sizes["copy"]))
    assert own["rival"] == max(("exact", "copy"), key=lambda name: sizes[name])
    alone = row(table(["double"]), latent, "odd", "odd", "patch")
    assert np.isnan(alone["margin"]) and not alone["specific"]
    assert alone["reason"] == "no belief to compare with"


def test_no_live_control_leaves_raw_effects(necessary):
    every = [(latent, "odd", "candidate") for latent in range(WRITTEN)]
    own = row(specificity([necessary], every, NAMED, ways=["ablate"]), ODD, "odd", "odd")
    assert own["n_controls"] == 0 and own["specific"] and not own["specific_standardised"]
    assert np.isnan(own["control_sd"]) and own["reason"] == "no live control"


def test_what_cannot_be_asked_of_receivers_is_refused(tiny_model, make_runs, make_sae):
    runs, one = make_runs(), [(0, "odd", "odd")]
    receivers = both(tiny_model, make_sae(), runs)
    elsewhere = prepare_patch(tiny_model, make_sae("L3.mlp_out"), runs, direction="necessity")
    usual = {"receivers": receivers, "chosen": one, "named": NAMED}
    for given, error, said in (
        ({"ways": ["ablated"]}, EditError, "Nearest: ablate"),
        ({"receivers": receivers[:1]}, EditError, "no receiver for necessity"),
        ({"receivers": [receivers[0], elsewhere]}, EditError, "several places"),
        ({"chosen": one * 2}, EditError, "latent 0 for 'odd': it stands twice"),
        ({"named": {"odd": "parity"}}, EditError, "belief 'parity'"),
        ({"against": ["even"]}, EditError, "belief 'even'"),
        ({"chosen": [(D_SAE, "odd", "odd")]}, SiteError, f"latent {D_SAE} of L2"),
        ({"chosen": [(-1, "odd", "odd")]}, SiteError, "latent -1 of L2"),
    ):
        with pytest.raises(error, match=said):
            specificity(**(usual | given))
    assert len(specificity(receivers, [], NAMED)) == 0


# ----------------------------------------------------------------------------- ablation at every example


def runs_of(model: LanguageModel, **settings: Any) -> Runs:
    given: dict[str, Any] = {"n_prompts": 3, "donor_examples": 4, "seed": 7} | settings
    return build_runs(model.tokenizer, parse_task("2x+3"), **given)


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize(("site", "role", "n"), [("L1.mlp_out", "lab", 4), ("L2.resid_post", "pre", 5)])
def test_at_every_example_it_is_a_forward_pass_as_well(exact_model, make_sae, site, role, n, normalised):
    """No part of ours makes the edit. One latent is active at some of these tokens and silent at others."""
    runs, sae = runs_of(exact_model, n_prompts=1), make_sae(site, normalize_activations=normalised)
    sae.network.W_dec.mul_(1.7)
    where = runs.target.positions(role)[:n]
    x = recorded(exact_model, sae, runs, where)
    count = sum((sae.encode(example)[0] != 0).int() for example in x.unbind(dim=1))
    latents = [int(count.argmax()), int(((count > 0) & (count < n)).nonzero()[0])]
    chosen = [(latent, "odd", "odd") for latent in latents]
    table = ablate_all_examples(exact_model, sae, runs, chosen, NAMED, role=role, n_controls=3)
    base = log_odds(exact_model, runs)[0]
    for latent, members in ((latents[0], latents[:1]), (latents[1], latents[1:]), (JOINT, latents)):
        edit = Edit(sae.site, "resample", where, silenced(sae, x, members))
        wanted = log_odds(exact_model, runs, [edit])[0] - base
        assert np.abs(wanted).max() > 0.02
        for b, belief in enumerate(BELIEFS):
            found = all_row(table, latent, "odd", belief)
            assert found["effect"] == pytest.approx(wanted[b], abs=1e-4)  # the SAE is in float32
            assert found["base"] == pytest.approx(base[b], abs=EXACT)
            assert found["n_active"] == found["n_prompts"] == 1


@pytest.mark.parametrize("normalised", ["none", "layer_norm"])
def test_controls_are_ablation_like_pushes_as_far_at_each_example(exact_model, make_sae, normalised):
    """With more controls asked for than are live, they are all live latents that were not chosen."""
    runs, sae = runs_of(exact_model), make_sae("L1.mlp_out", normalize_activations=normalised)
    sae.network.W_dec.mul_(torch.linspace(0.5, 3.0, D_SAE)[:, None])
    where = runs.target.positions("lab")[:4]
    x = recorded(exact_model, sae, runs, where)
    values = torch.stack([sae.encode(example) for example in x.unbind(dim=1)], dim=1)
    latent, other = (int(f) for f in (values != 0).sum(dim=(0, 1)).argsort(descending=True)[:2])
    scale = torch.stack([sae.scale(example) for example in x.unbind(dim=1)], dim=1)
    length = (values[..., latent] * scale * sae.W_dec[latent].norm())[..., None]
    live = np.setdiff1d((values != 0).any(dim=0).any(dim=0).nonzero()[:, 0], [latent, other])
    base, pushed = log_odds(exact_model, runs), []
    for control in live:
        push = -length * sae.W_dec[control] / sae.W_dec[control].norm()
        edit = Edit(sae.site, "add", where, push.numpy())
        pushed.append((log_odds(exact_model, runs, [edit]) - base).mean(axis=0))
    chosen = [(latent, "odd", "odd"), (other, "double", "double")]
    table = ablate_all_examples(exact_model, sae, runs, chosen, NAMED, role="lab", n_controls=1000)
    for b, belief in enumerate(BELIEFS):
        found, each = all_row(table, latent, "odd", belief), np.array(pushed)[:, b]
        assert found["n_controls"] == len(live) >= 20
        assert found["control_sd"] == pytest.approx(np.sqrt(np.square(each).mean()), rel=2e-3)
        larger = (np.abs(each) >= abs(found["effect"])).sum()
        assert found["control_p"] == pytest.approx((1 + larger) / (1 + len(live)))


def test_a_set_and_its_controls_are_pushed_as_far_at_each_example(
    tiny_model, make_runs, make_sae, monkeypatch
):
    """Each is in proportion to −a_f · ‖d_f‖ of what it stands in for, and matched over all examples."""
    pushed: list[torch.Tensor] = []
    drawn: list[tuple[np.ndarray, np.ndarray, torch.Tensor]] = []
    effects_of = AllExamples.effects_of

    def watched(self: AllExamples, jobs: Any, batch: int) -> Any:
        given = list(jobs)
        pushed.extend(rows for _, rows in given)
        return effects_of(self, given, batch)

    def draw(sae: Sae, density: np.ndarray, mean_active: np.ndarray, *others: Any) -> torch.Tensor:
        along = stand_ins(sae, density, mean_active, *others)
        drawn.append((density, mean_active, along))
        return along

    monkeypatch.setattr(AllExamples, "effects_of", watched)
    monkeypatch.setattr(module, "stand_ins", draw)
    runs, sae = make_runs(), make_sae("L1.mlp_out")
    sae.network.W_dec.mul_(torch.linspace(0.5, 3.0, D_SAE)[:, None])
    x = recorded(tiny_model, sae, runs, runs.target.positions("lab")[:4])
    values = sae.encode(x.flatten(0, 1))
    order = values.sum(dim=0).argsort(descending=True)[:3].tolist()
    chosen = [(latent, "odd", "odd") for latent in order]
    table = ablate_all_examples(tiny_model, sae, runs, chosen, NAMED, role="lab", n_controls=5)
    active = [table.where(table["latent"] == latent)["n_active"][0] for latent in (*order, JOINT)]
    assert len(pushed) == sum(active) and active[-1] == 8
    for rows in pushed:
        assert rows.shape == (6, 4, tiny_model.d_model)
        lengths = rows.norm(dim=-1)
        torch.testing.assert_close(lengths, lengths[:1].expand(6, 4), rtol=1e-5, atol=0)
        assert bool((lengths[0] > 0).any())
    for density, mean_active, _ in drawn:
        np.testing.assert_allclose(density, (values != 0).double().mean(dim=0))
        live = density > 0
        sizes = (values * sae.W_dec.norm(dim=1)).sum(dim=0)[live] / (values != 0).sum(dim=0)[live]
        np.testing.assert_allclose(mean_active[live], sizes, rtol=1e-5)
        assert np.isnan(mean_active[~live]).all()
    weights = -values.view(8, 4, D_SAE)[..., order] * sae.W_dec[order].norm(dim=1)
    for i, rows in enumerate(pushed[-8:]):
        along = torch.einsum("jm,mcd->cjd", weights[i][:, np.argsort(order).tolist()], drawn[-1][2])
        aligned = torch.nn.functional.cosine_similarity(rows[1:], along, dim=-1)
        torch.testing.assert_close(aligned, torch.ones_like(aligned), rtol=1e-5, atol=0)


@pytest.mark.parametrize("role", ["lab", "close"])
def test_in_a_context_of_one_example_it_is_the_ablation_at_one_token(exact_model, make_sae, role):
    runs, sae = runs_of(exact_model, n_prompts=8, donor_examples=1, recipient="R arm"), make_sae("L1.mlp_out")
    receiver = prepare_patch(exact_model, sae, runs, direction="necessity", role=role)
    order = receiver.latents.mean(dim=0).argsort(descending=True)[:2]
    chosen = [(int(latent), "odd", "odd") for latent in order]
    single = specificity([receiver], chosen, NAMED, ways=["ablate"], n_controls=2)
    table = ablate_all_examples(exact_model, sae, runs, chosen, NAMED, role=role, n_controls=2)
    same = ["concept", "label", "latent", "belief", "own"]
    assert table.df[same].equals(single.df[same])
    alike = table["belief"] != "copy"  # there about what B's prompts would give, here about f(x_A)
    for name in ("base", "effect", "ci_low", "ci_high", "margin", "margin_low", "n_active", "n_prompts"):
        np.testing.assert_allclose(table[name][alike], single[name][alike], atol=1e-4)
    assert np.abs(table["effect"]).max() > 0.005
    assert set(table["role"]) == {role} and set(table["way"]) == {ABLATE_ALL}


@pytest.fixture(scope="module")
def context(tiny_model, in_float64):
    """The planted latents, read from the context alone, and how, [3 d_model].

    Block 1 attends evenly and writes what it finds of each read, less about as much as there is before any
    ablation, along three directions that no latent has; the head reads these.
    """
    planted = plant_read_outs(tiny_model)
    network, (_, ids) = planted.model.network, planted.model.answer_space()
    even, odd, large = network.lm_head.weight[[int(ids[n]) for n in (0, 1, 999)]]
    reads = torch.stack([odd - even, large + even, odd - large]) / 2
    runs = planted_runs(planted.model)
    h = recorded(planted.model, planted.sae, runs, np.arange(up_to_query(runs.target).shape[1]))
    middle = (h / h.square().mean(dim=-1, keepdim=True).sqrt()).mean(dim=(0, 1))
    reads[:, 0] -= reads @ middle / middle[0]
    free = torch.zeros(3, h.shape[-1])
    free[:, 2:] = torch.linalg.qr(planted.dictionary[:, 2:].T, mode="complete")[0][:, -3:].T
    attention = network.model.layers[1].self_attn
    attention.v_proj.weight.zero_()
    attention.v_proj.weight[:3] = 40 * reads
    attention.o_proj.weight[:, :3] = free.T
    parity, small = torch.arange(1000) % 2 * 2.0 - 1, (torch.arange(1000) < 500) * 2.0 - 1
    network.lm_head.weight[ids] = torch.stack([parity, torch.ones(1000), small], dim=1) @ free
    return replace(planted, model=in_float64(planted.model)), 40 * reads.T @ free


@pytest.fixture(scope="module")
def all_matrix(context):
    made: ReadOuts = context[0]
    return ablate_all_examples(
        made.model, made.sae, planted_runs(made.model), CHOSEN_AT_LABS, NAMED, role="lab"
    )


def test_planted_causes_are_specific_at_every_example(all_matrix):
    for latent, concept in CAUSES:
        own = all_row(all_matrix, latent, concept, concept)
        assert own["own"] and own["specific"] and own["specific_standardised"]
        assert own["effect"] < -0.3 and own["margin_low"] > 0.2
        assert own["n_controls"] == 10 and own["control_p"] == pytest.approx(1 / 11)
    for latent, concept in ((UNREAD, "odd"), (ODD, "numeric")):
        other = all_row(all_matrix, latent, concept, concept)
        assert not other["specific"] and not other["specific_standardised"]
    assert abs(all_row(all_matrix, UNREAD, "odd", "odd")["effect"]) < 0.02
    assert all_row(all_matrix, ODD, "numeric", "numeric")["rival"] == "odd"
    assert all_matrix["specific"].sum() == 3 + 2  # and those of odd, and of double, moved together
    for latent in (SILENT, JOINT):
        silent = all_row(all_matrix, latent, "offset", "numeric")
        assert silent["effect"] == silent["ci_low"] == silent["ci_high"] == 0 and silent["n_active"] == 0
        assert silent["reason"] == "nothing is moved in any prompt; no belief reads offset"
        assert all(np.isnan(silent[name]) for name in ("control_sd", "standardised", "control_p", "margin"))
    assert all_row(all_matrix, ODD, "odd", "odd")["n_active"] == 12


def test_effects_at_every_example_are_those_worked_out_by_hand(context, all_matrix):
    """x = h_query + mean over tokens of (h / rms h) carried along; one latent is taken out of h at labs."""
    planted, carry = context
    runs, (_, ids) = planted_runs(planted.model), planted.model.answer_space()
    head = planted.model.network.lm_head.weight.double().numpy()
    every = np.arange(up_to_query(runs.target).shape[1])
    h = recorded(planted.model, planted.sae, runs, every).double().numpy()
    labs = runs.target.positions("lab")[:6]

    def beliefs(values: np.ndarray) -> tuple[float, float]:
        unit = values / np.sqrt(np.square(values).mean(axis=-1, keepdims=True))
        x = h[:, -1] + unit.mean(axis=1) @ carry.double().numpy()
        mass = np.exp(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True)) @ head.T)
        numbers = mass[:, ids.numpy()]
        odd, every = numbers[:, 1::2].sum(axis=1), numbers.sum(axis=1)
        numeric = np.log(every / (mass.sum(axis=1) - every))
        return float(np.log(odd / (every - odd)).mean()), float(numeric.mean())

    before = beliefs(h)
    for latent, concept in (*CAUSES, (UNREAD, "odd")):
        direction, silent = planted.dictionary[latent].double().numpy(), h.copy()
        read = silent[:, labs] @ direction
        silent[:, labs] -= np.where(read > 0.1, read, 0)[..., None] * direction
        after = beliefs(silent)
        for b, belief in enumerate(("odd", "numeric")):
            found = all_row(all_matrix, latent, concept, belief)
            assert found["base"] == pytest.approx(before[b], abs=2e-4)
            assert found["effect"] == pytest.approx(after[b] - before[b], abs=2e-4)


def test_at_the_last_example_alone_the_others_make_up_for_it(context, all_matrix):
    planted, runs = context[0], planted_runs(context[0].model, "S arm")
    receiver = prepare_patch(planted.model, planted.sae, runs, direction="necessity", role="lab")
    last = specificity([receiver], CHOSEN_AT_LABS, NAMED, ways=["ablate"], n_controls=5)
    for latent, concept in CAUSES:
        alone = row(last, latent, concept, concept)["effect"]
        assert 3 < all_row(all_matrix, latent, concept, concept)["effect"] / alone < 6


def test_a_prompt_in_which_it_is_silent_counts_as_no_effect(exact_model, make_sae):
    runs, sae = runs_of(exact_model, n_prompts=8), make_sae("L1.mlp_out")
    where = runs.target.positions("lab")[:4]
    x = recorded(exact_model, sae, runs, where)
    active = (sae.encode(x.flatten(0, 1)).view(8, 4, -1) != 0).any(dim=1).sum(dim=0)
    latent = int(((active > 1) & (active < 6)).nonzero()[0])
    table = ablate_all_examples(
        exact_model, sae, runs, [(latent, "odd", "")], NAMED, role="lab", n_controls=2
    )
    edit = Edit(sae.site, "resample", where, silenced(sae, x, [latent]))
    wanted = (log_odds(exact_model, runs, [edit]) - log_odds(exact_model, runs)).mean(axis=0)
    for b, belief in enumerate(BELIEFS):
        found = all_row(table, latent, "odd", belief)
        assert found["n_active"] == active[latent] and found["n_prompts"] == 8
        assert found["effect"] == pytest.approx(wanted[b], abs=1e-4)


def test_batches_and_seeds(exact_model, make_runs, make_sae):
    """A seed gives one table, another other controls and resamples; the size of a batch changes nothing."""
    runs, sae = make_runs(), make_sae("L1.mlp_out")
    x = recorded(exact_model, sae, runs, runs.target.positions("lab")[:4])
    order = sae.encode(x.flatten(0, 1)).sum(dim=0).argsort(descending=True)[:3].tolist()
    chosen = [(latent, concept, "") for latent, concept in zip(order, ("odd", "odd", "double"), strict=True)]

    def table(**settings: int) -> SpecificityTable:
        given = {"n_controls": 3, "n_resamples": 50} | settings
        return ablate_all_examples(exact_model, sae, runs, chosen, NAMED, role="lab", **given)

    one, small, other = table(seed=1), table(seed=1, batch=5), table(seed=2)
    assert one.df.equals(table(seed=1).df)
    assert all((one[name] != other[name]).any() for name in ("ci_low", "control_sd"))
    for name in ("effect", "ci_low", "control_sd", "margin_high"):
        np.testing.assert_allclose(small[name], one[name], atol=1e-4)
    assert len(ablate_all_examples(exact_model, sae, runs, [], NAMED, role="lab")) == 0


def test_what_cannot_be_ablated_is_refused(tiny_model, make_runs, make_sae):
    runs, sae, one = make_runs(), make_sae("L1.mlp_out"), [(0, "odd", "odd")]
    elsewhere = replace(runs, **{
        name: replace(getattr(runs, name), tokenizer="other") for name in ("donor", "recipient", "target")
    })  # fmt: skip
    curved = SimpleNamespace(encode=sae.encode, decode=lambda a: (a @ sae.W_dec).relu(), W_dec=sae.W_dec)
    usual = {"model": tiny_model, "sae": sae, "runs": runs, "chosen": one, "named": NAMED, "role": "lab"}
    for settings, kind, said in (
        ({"role": "label"}, SiteError, "role 'label'"),
        ({"sae": make_sae("L9.mlp_out")}, SiteError, "L9|9"),
        ({"runs": runs_of(tiny_model, donor_examples=0)}, EditError, "no example before its query"),
        ({"runs": elsewhere}, EditError, "runs of tokenizer other"),
        ({"chosen": one * 2}, EditError, "latent 0 for 'odd': it stands twice"),
        ({"chosen": [(D_SAE, "odd", "odd")]}, SiteError, f"latent {D_SAE} of L1"),
        ({"chosen": [(-1, "odd", "odd")]}, SiteError, "latent -1 of L1"),
        ({"named": {"odd": "parity"}}, EditError, "belief 'parity'"),
        ({"against": ["even"]}, EditError, "belief 'even'"),
        ({"sae": replace(sae, d_in=7)}, SaeError, "width 7, not"),
        ({"sae": replace(sae, target=Site(2, "mlp_out"))}, SaeError, "transcoder"),
        ({"sae": replace(sae, network=curved)}, SaeError, "not affine"),
        ({"model": replace(tiny_model, whole=False)}, ModelError, "logits"),
    ):
        with pytest.raises(kind, match=said):
            ablate_all_examples(**(usual | settings))
