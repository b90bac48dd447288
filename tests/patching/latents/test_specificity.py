"""The specificity matrix: planted read-outs are told apart, and every figure is what its column says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from iclens.core import BELIEFS, EditError, SaeError, Site
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, record
from iclens.patching.latents import single_effects
from iclens.patching.receiver import DIRECTIONS, LatentRuns, gather, read_lent, resamples, up_to_query
from iclens.patching.runs import Runs, build_runs
from iclens.patching.specificity import JOINT, additions, margin_of, specificity
from iclens.prompts.beliefs import AnswerProbs
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae
from iclens.schemas import SpecificityTable

from ...conftest import InFloat64
from ..conftest import D_SAE, MakeRuns, MakeSae
from .test_planted_latents import D_MODEL, built

OWN = {"double": "double", "odd": "odd", "numeric": "numeric"}
ODD, NUMERIC, DOUBLE, UNREAD, FAINT, SILENT, WRITTEN, ALL = 0, 1, 2, 3, 4, 20, 15, 24
"""Latents of the planted model: three that are read; one that is only written, one that is read more faintly
than float32 resolves, one that is never active; how many are written, and how many there are."""


@dataclass(frozen=True)
class Planted:
    """A model and its SAE: one latent raises odd numbers over even ones, one all numbers, one those < 500.

    Each 2x of the prompts lies below 500. Most other latents do all three a little, with random signs.
    """

    model: LanguageModel
    sae: Sae
    dictionary: torch.Tensor


def build(like: LanguageModel, strength: float = 1.0) -> Planted:
    """As `test_planted_latents.built`, its head read along three directions; latents are active above .1."""
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
    return Planted(model, sae, dictionary)


@pytest.fixture(scope="module")
def planted(tiny_model: LanguageModel, in_float64: InFloat64) -> Planted:
    made = build(tiny_model)
    return replace(made, model=in_float64(made.model))


def planted_runs(planted: Planted, recipient: str = "zero examples") -> Runs:
    return build_runs(
        planted.model.tokenizer, parse_task("2x+3"), recipient=recipient, n_prompts=12, donor_examples=6,
        seed=3,
    )  # fmt: skip


def both(model: LanguageModel, sae: Sae, runs: Runs, role: str = "pre") -> list[LatentRuns]:
    return [gather(model, sae, runs, direction=direction, role=role) for direction in DIRECTIONS]


def row(
    table: SpecificityTable, latent: int, concept: str, belief: str, way: str = "ablate"
) -> dict[str, Any]:
    chosen = (table["latent"] == latent) & (table["concept"] == concept)
    found = table.where(chosen & (table["belief"] == belief) & (table["way"] == way))
    assert len(found) == 1
    return {name: found[name][0] for name in found.COLUMNS}


CHOSEN = [
    (ODD, "odd", "odd"), (UNREAD, "odd", "candidate"), (NUMERIC, "numeric", "numeric"),
    (DOUBLE, "double", "double"), (FAINT, "odd", "candidate"),
    (ODD, "numeric", "candidate"), (SILENT, "numeric", "candidate"), (NUMERIC, "offset", "candidate"),
]  # fmt: skip


@pytest.fixture(scope="module")
def matrix(planted: Planted) -> SpecificityTable:
    return specificity(both(planted.model, planted.sae, planted_runs(planted)), CHOSEN, OWN)


@pytest.mark.parametrize("way", ["ablate", "patch"])
def test_planted_causes_are_specific_and_nothing_else_is(matrix: SpecificityTable, way: str) -> None:
    for latent, concept in ((ODD, "odd"), (NUMERIC, "numeric"), (DOUBLE, "double")):
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


def test_effects_are_the_closed_form_of_the_planted_model(planted: Planted, matrix: SpecificityTable) -> None:
    """Odd = 2u and numeric = log(1000 e^v cosh u cosh w / rest), of logits ±u + v ± w in four equal parts."""
    runs, (_, ids) = planted_runs(planted), planted.model.answer_space()
    tokens, head = up_to_query(runs.target), planted.model.network.lm_head.weight.double().numpy()
    h = record(planted.model, tokens, [planted.sae.site], np.array([tokens.shape[1] - 1]))[planted.sae.site]
    even, odd, large = head[[int(ids[n]) for n in (0, 1, 999)]]
    reads = np.stack([odd - even, large + even, odd - large]) / 2
    rest = len(head) - 1000

    def beliefs(x: np.ndarray) -> tuple[float, float]:
        u, v, w = reads @ (x / np.sqrt(np.square(x).mean(axis=1, keepdims=True))).T
        numeric = np.log(1000) + v + np.log(np.cosh(u) * np.cosh(w)) - np.log(rest)
        return (2 * u).mean(), numeric.mean()

    x = h[:, 0].astype(np.float64)
    before = beliefs(x)
    for latent, concept in ((ODD, "odd"), (NUMERIC, "numeric"), (DOUBLE, "double")):
        direction = planted.dictionary[latent].double().numpy()
        after = beliefs(x - (x @ direction)[:, None] * direction)
        for b, belief in enumerate(("odd", "numeric")):
            found = row(matrix, latent, concept, belief)
            assert found["base"] == pytest.approx(before[b], abs=1e-4)
            assert found["effect"] == pytest.approx(after[b] - before[b], abs=1e-4)


def test_a_latent_that_is_never_active_does_nothing_and_says_so(matrix: SpecificityTable) -> None:
    for way in ("ablate", "patch"):
        silent = row(matrix, SILENT, "numeric", "numeric", way)
        assert silent["effect"] == silent["ci_low"] == silent["ci_high"] == silent["margin"] == 0
        assert silent["n_active"] == 0 and silent["reason"] == "nothing is moved in any prompt"
        for name in ("control_sd", "standardised", "control_p", "margin_standardised"):
            assert np.isnan(silent[name])
    assert row(matrix, ODD, "odd", "odd")["n_active"] == row(matrix, ODD, "odd", "odd")["n_prompts"] == 12


def test_where_nothing_reads_a_token_no_latent_is_specific(planted: Planted) -> None:
    """The planted model's last block attends to nothing: what stands at `lab` cannot reach the answer."""
    held = both(planted.model, planted.sae, planted_runs(planted, "S arm"), role="lab")
    table = specificity(held, CHOSEN, OWN, n_controls=5)
    assert (table["n_active"] > 0).any()
    assert np.abs(table["effect"]).max() < 1e-5
    assert not table["specific"].any() and not table["specific_standardised"].any()


def test_effects_below_what_float32_resolves_are_neither_specific_nor_a_unit(
    tiny_model: LanguageModel, in_float64: InFloat64, matrix: SpecificityTable
) -> None:
    faint = row(matrix, FAINT, "odd", "odd", "patch")
    assert 0 < faint["margin_low"] < 1e-4 and faint["margin_standardised_low"] > 0
    assert not faint["specific"] and not faint["specific_standardised"]
    dull = build(tiny_model, strength=1e-4)
    held = gather(in_float64(dull.model), dull.sae, planted_runs(dull))
    own = row(specificity([held], CHOSEN, OWN, ways=["patch"]), ODD, "odd", "odd", "patch")
    assert 0 < own["margin_low"] < 1e-4 and not own["specific"]
    assert 0 < own["control_sd"] < 1e-4 and np.isnan(own["standardised"])
    assert own["reason"] == "no control moves this belief; no control moves a rival"


def test_all_latents_of_a_concept_move_together(planted: Planted, matrix: SpecificityTable) -> None:
    necessary = gather(planted.model, planted.sae, planted_runs(planted), direction="necessity")
    trio = np.array([ODD, UNREAD, FAINT])
    delta = additions(necessary, "ablate", trio)
    wanted = np.mean([necessary.effects(i, delta[i][None])[0] for i in range(12)], axis=0)
    for belief in ("odd", "numeric", "exact"):
        joint = row(matrix, JOINT, "odd", belief)
        assert joint["effect"] == pytest.approx(wanted[BELIEFS.index(belief)], abs=5e-5)
        assert joint["label"] == "joint"
    one, alone = (row(matrix, latent, "offset", "numeric") for latent in (JOINT, NUMERIC))
    assert {name for name in one if one[name] != alone[name] and one[name] == one[name]} == {
        "latent",
        "label",
    }


def test_a_concept_that_no_belief_reads_has_effects_and_no_margin(matrix: SpecificityTable) -> None:
    rows = matrix.where(matrix["concept"] == "offset")
    assert len(rows) == 2 * 2 * len(BELIEFS) and not rows["own"].any()
    assert np.isnan(rows["margin"]).all() and np.isnan(rows["margin_standardised_low"]).all()
    assert set(rows["reason"]) == {"no belief reads offset"}
    assert np.abs(rows["effect"]).max() > 0.3
    beside = matrix.where((matrix["concept"] == "odd") & ~matrix["own"])
    assert np.isnan(beside["margin"]).all()
    assert all("margins stand beside its own belief" in reason for reason in beside["reason"])


def test_the_control_unit_is_the_root_mean_square_of_what_equal_pushes_do(
    planted: Planted, matrix: SpecificityTable
) -> None:
    """With more controls asked for than are live, they are all live latents that were not chosen."""
    held = gather(planted.model, planted.sae, planted_runs(planted), direction="necessity")
    others = np.setdiff1d(np.arange(WRITTEN), [ODD, NUMERIC, DOUBLE, UNREAD, FAINT])
    own = row(matrix, NUMERIC, "numeric", "numeric")
    assert own["n_controls"] == len(others)
    pushed = [
        held.effects(i, -held.recipient_latents[i, NUMERIC] * planted.dictionary[others]) for i in range(12)
    ]
    each = np.mean(pushed, axis=0)
    for b, belief in enumerate(BELIEFS):
        unit = np.sqrt((each[:, b] ** 2).mean())
        found = row(matrix, NUMERIC, "numeric", belief)
        assert found["control_sd"] == pytest.approx(unit, rel=1e-3)
        assert found["standardised"] == pytest.approx(found["effect"] / unit, rel=1e-3)
    standing = {belief: abs(row(matrix, NUMERIC, "numeric", belief)["standardised"]) for belief in OWN}
    margin = standing["numeric"] - max(standing["odd"], standing["double"])
    assert own["margin_standardised"] == pytest.approx(margin)


def test_a_set_s_controls_are_pushed_as_far_as_the_set(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = gather(planted.model, planted.sae, planted_runs(planted), direction="necessity")
    seen: list[torch.Tensor] = []
    given = LatentRuns.effects_of

    def watched(self: LatentRuns, prompts: Sequence[int], deltas: Any) -> Any:
        rows = list(deltas)
        seen.extend(rows)
        return given(self, prompts, rows)

    monkeypatch.setattr(LatentRuns, "effects_of", watched)
    specificity([held], [(ODD, "odd", ""), (UNREAD, "odd", "")], OWN, ways=["ablate"], n_controls=6)
    assert len(seen) == 3 * 12
    for rows in seen:
        assert len(rows) == 7 and bool(rows[0].norm() > 0.1)
        torch.testing.assert_close(rows.norm(dim=1), rows[0].norm().expand(7), rtol=1e-5, atol=0)
        aligned = torch.nn.functional.normalize(rows, dim=1) @ planted.dictionary[[ODD, UNREAD]].T
        assert bool((aligned[1:].abs() < 1e-5).all()) and bool((aligned[0].abs() > 0.1).any())


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("site", ["L2.resid_post", "L1.mlp_out"])
def test_an_ablation_is_a_full_forward_pass_with_the_latent_silent(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae, site: str, normalised: str
) -> None:
    """sae_lens decodes the latents with one set to 0, its error added back; no part of the tail engine."""
    runs, sae = make_runs(n_prompts=6), make_sae(site, normalize_activations=normalised)
    sae.network.W_dec.mul_(1.7)
    held = gather(exact_model, sae, runs, direction="necessity")
    latent = int((held.recipient_latents != 0).sum(dim=0).argmax())
    table = specificity([held], [(latent, "odd", "odd")], OWN, ways=["ablate"], n_controls=3)
    tokens = up_to_query(runs.target)
    end, words = np.array([tokens.shape[1] - 1]), tuple(held.tails[0].answers[1000:])
    x = torch.as_tensor(record(exact_model, tokens, [sae.site], end)[sae.site][:, 0])
    error = x - sae.network.decode(sae.network.encode(x))
    silenced = sae.network.encode(x)
    silenced[:, latent] = 0
    edit = Edit(sae.site, "resample", end, (sae.network.decode(silenced) + error)[:, None].numpy())
    after, before = (
        answer_probs(exact_model, tokens, end, edits=edits, extra=words) for edits in ([edit], [])
    )

    def read(probs: AnswerProbs, i: int) -> np.ndarray:
        return read_lent(AnswerProbs(probs.answers, probs.log_prob[i]), runs, i, held.lent[i])[0]

    wanted = np.array([read(after, i) - read(before, i) for i in range(6)])
    delta = additions(held, "ablate", np.array([latent]))
    tails = zip(held.tails, delta, strict=True)
    ours = np.stack([tail.added(sae.site, own[None]).log_prob[0] for tail, own in tails])
    np.testing.assert_allclose(ours, after.log_prob[:, 0], rtol=1e-5, atol=1e-4)
    for b, belief in enumerate(BELIEFS):
        effect = row(table, latent, "odd", belief)["effect"]
        assert effect == pytest.approx(wanted[:, b].mean(), abs=2e-4)
    assert np.abs(wanted).max() > 0.01


def test_the_other_ways_are_the_patches_that_exist(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = both(exact_model, make_sae(), make_runs(n_prompts=8))
    latents = np.intersect1d(held[0].differing, held[1].differing)[:2]
    chosen = [(int(latent), "odd", "odd") for latent in latents]
    table = specificity(held, chosen, OWN, ways=["mean", "patch"], n_controls=2)
    for runs, way in zip(held, ("patch", "mean"), strict=True):
        wanted = single_effects(runs, latents).mean(axis=0)
        for k, latent in enumerate(latents):
            for b, belief in enumerate(BELIEFS):
                effect = row(table, int(latent), "odd", belief, way)["effect"]
                assert effect == pytest.approx(wanted[k, b], abs=1e-4)


def test_a_margin_by_hand() -> None:
    """Own −1 and −3 (mean −2), rivals 2 and 0 (mean 1) and 0 and .5: the rival differs between resamples."""
    effects = np.array([[-1.0, 2.0, 0.0, 50.0], [-3.0, 0.0, 0.5, 50.0]])
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])
    margin, low, high = margin_of(effects, weights, 0, np.array([1, 2]))
    assert margin == 2 - 1
    assert low == pytest.approx((1 - 2) + 0.025 * 3.5)  # resamples: 1 − 2 and 3 − .5
    assert high == pytest.approx((3 - 0.5) - 0.025 * 3.5)


def test_noise_about_zero_is_not_specific_however_still_its_rivals_are() -> None:
    """|mean| is above 0 in every resample of noise: its direction has to be the sample's own."""
    rng = np.random.default_rng(0)
    weights = resamples(60, 400, rng)
    called = 0
    for _ in range(400):
        effects = np.hstack([rng.normal(size=(60, 1)), 1e-3 * rng.normal(size=(60, 2))])
        called += margin_of(effects, weights, 0, np.array([1, 2]))[1] > 0
    assert called / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_rivals_are_named_and_undefined_beliefs_left_out(
    tiny_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = [gather(tiny_model, make_sae(), make_runs("zero examples", "word:opposite"))]
    latent = int(held[0].differing[0])
    chosen = [(latent, "odd", "odd"), (latent, "double", "double")]
    table = specificity(held, chosen, OWN, ways=["patch"], n_controls=3)
    assert set(table["belief"]) == {"numeric", "odd", "exact", "copy"}
    assert row(table, latent, "odd", "odd", "patch")["against"] == "numeric"
    lost = table.where(table["concept"] == "double")
    assert set(lost["reason"]) == {"double is undefined for this task"} and np.isnan(lost["margin"]).all()
    table = specificity(held, chosen, OWN, ways=["patch"], n_controls=3, against=["exact", "odd", "copy"])
    own = row(table, latent, "odd", "odd", "patch")
    assert own["against"] == "exact copy"
    sizes = {
        name: abs(row(table, latent, "odd", name, "patch")["effect"]) for name in ("odd", "exact", "copy")
    }
    assert own["margin"] == pytest.approx(sizes["odd"] - max(sizes["exact"], sizes["copy"]))
    assert own["rival"] == max(("exact", "copy"), key=lambda name: sizes[name])
    table = specificity(held, chosen, OWN, ways=["patch"], n_controls=3, against=["double"])
    alone = row(table, latent, "odd", "odd", "patch")
    assert np.isnan(alone["margin"]) and not alone["specific"]
    assert alone["reason"] == "no belief to compare with"


def test_no_live_control_leaves_raw_effects(planted: Planted) -> None:
    held = gather(planted.model, planted.sae, planted_runs(planted), direction="necessity")
    every = [(latent, "odd", "candidate") for latent in range(WRITTEN)]
    table = specificity([held], every, OWN, ways=["ablate"])
    own = row(table, ODD, "odd", "odd")
    assert own["n_controls"] == 0 and own["specific"] and not own["specific_standardised"]
    assert np.isnan(own["control_sd"]) and own["reason"] == "no live control"


def test_the_same_seed_gives_the_same_table(
    tiny_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = both(tiny_model, make_sae(), make_runs())
    chosen = [(int(latent), "odd", "odd") for latent in held[0].differing[:2]]
    one, same, other = (
        specificity(held, chosen, OWN, n_controls=4, n_resamples=50, seed=seed).df for seed in (1, 1, 2)
    )
    assert one.equals(same) and not one.equals(other)
    assert len(specificity(held, [], OWN)) == 0


def test_what_cannot_be_asked_is_refused(
    tiny_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    runs = make_runs()
    held = both(tiny_model, make_sae(), runs)
    one = [(0, "odd", "odd")]
    elsewhere = gather(tiny_model, make_sae("L3.mlp_out"), runs, direction="necessity")
    refused: list[tuple[Any, Any, Any, dict[str, Any], str]] = [
        (held, one, OWN, {"ways": ["ablated"]}, "Nearest: ablate"),
        (held[:1], one, OWN, {}, "no runs for necessity"),
        ([held[0], elsewhere], one, OWN, {}, "several places"),
        (held, one * 2, OWN, {}, "latent 0 for 'odd': it stands twice"),
        (held, one, {"odd": "parity"}, {}, "belief 'parity'"),
        (held, one, OWN, {"against": ["even"]}, "belief 'even'"),
    ]
    for given, chosen, own, settings, said in refused:
        with pytest.raises(EditError, match=said):
            specificity(given, chosen, own, **settings)
    for strange in (D_SAE, -1):
        with pytest.raises(SaeError, match=f"latent {strange} of L2"):
            specificity(held, [(strange, "odd", "odd")], OWN)
