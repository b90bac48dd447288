"""Direct effects: equal to one edit of the last residual, and recovered where heads were planted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from iclens.core import BELIEFS, EditError, Site
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, record
from iclens.patching.heads import SUMS, Ablation, ablation_edits, direct_by_prompt, direct_effects
from iclens.patching.receiver import up_to_query
from iclens.patching.runs import ZERO, Runs, build_runs
from iclens.patching.sweep import effects, readouts
from iclens.prompts.tasks import parse_task
from iclens.schemas import DirectTable

from .planted import BELIEF, Planted, build, plant, plant_causal

Make = Callable[..., Runs]
BIAS = 0.05
"""Of the true effect; effects below `SMALL` nats by as many nats."""
SMALL = 0.2


def log_odds(model: LanguageModel, runs: Runs, edits: tuple[Edit, ...]) -> np.ndarray:
    """Every belief of A* under edits, [prompt belief]."""
    tokens = up_to_query(runs.target)
    probs = answer_probs(model, tokens, np.array([tokens.shape[1] - 1]), extra=runs.words, edits=edits)
    read = readouts(replace(probs, log_prob=probs.log_prob[:, 0]), runs)
    return np.stack([read[name] for name in effects(runs)], axis=1)


def planted_runs(model: LanguageModel) -> Runs:
    return build_runs(model.tokenizer, parse_task("2x+3"), n_prompts=12, donor_examples=6, seed=3)


def written(model: LanguageModel, runs: Runs, edits: tuple[Edit, ...]) -> dict[str, np.ndarray]:
    """What each head and MLP writes at `pre`, [prompt d_model], from matrix products of our own."""
    tokens = up_to_query(runs.target)
    sites = [Site(layer, hook) for layer in range(model.n_blocks) for hook in ("z", "mlp_out")]
    held = record(model, tokens, sites, np.array([tokens.shape[1] - 1]), edits=edits)
    found = {}
    for layer in range(model.n_blocks):
        found[f"L{layer}.mlp"] = held[Site(layer, "mlp_out")][:, 0]
        weight = model.network.model.layers[layer].self_attn.o_proj.weight.numpy()
        for head in range(model.n_heads):
            part = slice(head * model.d_head, (head + 1) * model.d_head)
            found[f"L{layer}H{head}"] = held[Site(layer, "z")][:, 0, part] @ weight[:, part].T
    return found


@pytest.mark.parametrize("place", ["pre", "all positions"])
def test_a_direct_effect_is_one_addition_to_the_last_residual(
    exact_model: LanguageModel, make_runs: Make, place: str
) -> None:
    runs, ablation = make_runs("S arm"), Ablation.parse("L2H2 L3", kind="mean", place=place)
    edits = ablation_edits(exact_model, runs, ablation)
    before, after = written(exact_model, runs, ()), written(exact_model, runs, edits)
    base, end = log_odds(exact_model, runs, ()), np.array([up_to_query(runs.target).shape[1] - 1])
    found = direct_by_prompt(exact_model, runs, ablation)

    def effect(names: list[str]) -> np.ndarray:
        delta = sum(after[name] - before[name] for name in names)
        add = Edit(Site(5, "resid_post"), "add", end, np.asarray(delta)[:, None])
        return log_odds(exact_model, runs, (add,)) - base

    for i, component in enumerate(found.components):
        np.testing.assert_allclose(found.singles[:, i], effect([component.name]), atol=2e-3)
    for part, chosen in (
        ("ablated", [c for c in found.components if c.part == "ablated head"]),
        ("later heads", [c for c in found.components if c.part == "later head"]),
        ("later MLPs", [c for c in found.components if c.part == "later MLP"]),
        ("later", [c for c in found.components if c.part != "ablated head"]),
    ):
        np.testing.assert_allclose(found.sums[part], effect([c.name for c in chosen]), atol=2e-3)
    everything = effect([c.name for c in found.components])
    others = effect([c.name for c in found.components if c.part != "later head"])
    np.testing.assert_allclose(found.sums["later heads, given the loss"], everything - others, atol=5e-3)
    np.testing.assert_allclose(found.sums["total"], everything, atol=5e-3)
    np.testing.assert_allclose(found.sums["total"], log_odds(exact_model, runs, edits) - base, atol=1e-4)
    names = {c.name for c in found.components}
    assert {"L2H2", "L3H0", "L2.mlp", "L5H3"} <= names and "L2H1" not in names and "L1.mlp" not in names


def test_a_reader_below_the_end_reads_through_the_blocks_above(
    exact_model: LanguageModel, make_runs: Make
) -> None:
    """Block 2's heads act through its own MLP, whose output the final norm alone can hardly read."""
    runs, ablation = make_runs(ZERO, donor_examples=12), Ablation.parse("L1H0 L2H2")
    edits = ablation_edits(exact_model, runs, ablation)
    before, after = written(exact_model, runs, ()), written(exact_model, runs, edits)
    found = direct_by_prompt(exact_model, runs, ablation, reader=3)
    end = np.array([up_to_query(runs.target).shape[1] - 1])
    for part, names in (("ablated", ["L1H0", "L2H2"]), ("later MLPs", ["L1.mlp", "L2.mlp"])):
        delta = sum(after[name] - before[name] for name in names)
        add = Edit(Site(3, "resid_pre"), "add", end, np.asarray(delta)[:, None])
        wanted = log_odds(exact_model, runs, (add,)) - log_odds(exact_model, runs, ())
        # In float32 a number is too sure here for its log-odds to be exact: the first belief is left out.
        np.testing.assert_allclose(found.sums[part][:, 1:], wanted[:, 1:], atol=2e-3)
    assert max(c.layer for c in found.components) == 2
    exact, at_end = BELIEFS.index("exact"), direct_by_prompt(exact_model, runs, ablation)
    assert found.sums["later MLPs"][:, exact].mean() < -5
    first_mlps = [c.name in ("L1.mlp", "L2.mlp") for c in at_end.components]
    assert np.abs(at_end.singles[:, first_mlps, exact].mean(axis=0)).max() < 1


def test_nothing_replaced_has_no_effect(exact_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm")
    same = replace(runs, recipient=runs.target)
    table = direct_effects(exact_model, same, Ablation.parse("L0 L2H1", kind="resample"), draws=50)
    np.testing.assert_allclose(table["effect"], 0, atol=1e-4)
    assert np.isnan(table["ratio"]).all() and set(table["reason"]) == {
        "the ablated heads' direct effect is less than 1 nat"
    }


def sums(table: DirectTable) -> dict[str, float]:
    rows = table.where(table["layer"] == -1)
    return dict(zip(rows["part"], rows["effect"], strict=True))


def test_the_table_adds_up(exact_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs(ZERO, donor_examples=12)
    table = direct_effects(exact_model, runs, Ablation.parse("L2"), beliefs=["exact"], reader=3, draws=200)
    found = sums(table)
    assert tuple(found) == SUMS
    assert found["compensation"] == pytest.approx(found["total"] - found["ablated"])
    assert (table["ci_low"] <= table["effect"] + 1e-9).all() and (
        table["effect"] <= table["ci_high"] + 1e-9
    ).all()
    assert len(table) == len(SUMS) + exact_model.n_heads + 1  # block 2's own heads and MLP


def close(found: float, true: float) -> bool:
    return abs(found - true) <= (BIAS * abs(true) if abs(true) > SMALL else BIAS * SMALL)


def check(planted: Planted, model: LanguageModel) -> None:
    """Every effect of a planted model against what its plan says."""
    runs = planted_runs(model)
    table = direct_effects(model, runs, Ablation(planted.ablated), beliefs=[BELIEF], draws=50)
    found, places = sums(table), {(h.layer, h.head) for h in planted.heads}
    first = min(layer for layer, _ in planted.ablated)
    later = [p for p in places if p not in planted.ablated and p[0] > first]
    mlps = [(layer, -1) for layer in range(first, planted.n_blocks)]
    total = planted.total(runs, planted.ablated).mean()
    direct = planted.direct(runs, list(planted.ablated)).mean()
    for part, true in (
        ("total", total), ("ablated", direct), ("compensation", total - direct),
        ("later heads", planted.direct(runs, later).mean()),
        ("later MLPs", planted.direct(runs, mlps).mean()),
        ("later", planted.direct(runs, [*later, *mlps]).mean()),
        ("later heads, given the loss", planted.given(runs, later).mean()),
        ("later, given the loss", planted.given(runs, [*later, *mlps]).mean()),
    ):  # fmt: skip
        assert close(found[part], true), (part, found[part], true)
    single = table.where(table["layer"] >= 0)
    for layer, head, effect in zip(single["layer"], single["head"], single["effect"], strict=True):
        true = planted.direct(runs, [(int(layer), int(head))]).mean()
        assert close(effect, true), (layer, head, effect, true)
    assert all((p in places) or abs(e) < 0.01 for p, e in _heads(single))


def _heads(table: DirectTable) -> list[tuple[tuple[int, int], float]]:
    rows = table.where(table["head"] >= 0)
    return [
        ((int(a), int(b)), float(e))
        for a, b, e in zip(rows["layer"], rows["head"], rows["effect"], strict=True)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_planted_effects_are_recovered(exact_model: LanguageModel, seed: int) -> None:
    planted = plant_causal(seed)
    check(planted, build(planted, exact_model.tokenizer))


@pytest.mark.parametrize("seed", range(4))
def test_a_backups_direct_effect_is_recovered(exact_model: LanguageModel, seed: int) -> None:
    planted = plant("backup", seed)
    model = build(planted, exact_model.tokenizer)
    check(planted, model)
    table = direct_effects(model, planted_runs(model), Ablation(planted.ablated), beliefs=[BELIEF], draws=50)
    own = table.where(table["part"] == "ablated")
    assert [own[name][0] for name in ("ratio", "ratio_low", "ratio_high")] == pytest.approx([1, 1, 1])
    row = table.where(table["part"] == "compensation")
    backup = planted.heads[2]
    share = backup.amount / planted.heads[0].amount
    assert row["ratio"][0] == pytest.approx(-share, abs=0.3) and row["ratio_high"][0] < 0
    singles = table.where(table["part"] == "later head")
    assert singles["component"][singles["effect"].argmax()] == f"L{backup.layer}H{backup.head}"


def test_what_cannot_be_read_is_one_line(exact_model: LanguageModel, make_runs: Make) -> None:
    runs, heads = make_runs(ZERO), Ablation.parse("L3H1")
    for asked, said in (
        ({"beliefs": ["even"]}, "Nearest"),
        ({"reader": 3}, "Read at one of 4 to 6"),
        ({"reader": 7}, "Read at one of 4 to 6"),
    ):
        with pytest.raises(EditError, match=said):
            direct_effects(exact_model, runs, heads, **asked)  # pyright: ignore[reportArgumentType]
    assert set(direct_effects(exact_model, runs, heads, draws=20)["belief"]) == set(BELIEFS)
