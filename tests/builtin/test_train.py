"""Training: batches decided by their step, Muon, and stages that resume as if they had not stopped."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iclens.builtin.model import Recipe, build_network, build_tokenizer
from iclens.builtin.train import Batch, BatchMaker, Muon, Swaps, Trainer, build_optimisers, orthogonalise
from iclens.core import ConfigError
from iclens.prompts.mixture import exact_posterior
from iclens.prompts.render import encode_examples

MANY = 300


@pytest.fixture(scope="module")
def maker(recipe: Recipe) -> BatchMaker:
    return BatchMaker(recipe, build_tokenizer())


def test_a_seed_decides_a_batch(maker: BatchMaker) -> None:
    first, same, other = (maker.batch(np.random.default_rng([0, 1, step])) for step in (5, 5, 6))
    assert (first.tokens == same.tokens).all()
    assert (first.target == same.target).all()
    assert (first.tokens != other.tokens).any()


def test_tokens_are_those_of_the_rendered_text(maker: BatchMaker) -> None:
    batch = maker.batch(np.random.default_rng(0), n_contexts=30)
    inputs, answers = np.array(maker.mixture.inputs), np.array(maker.mixture.answers)
    for row, ids in enumerate(batch.tokens.numpy()):
        x, y = inputs[batch.contexts.x[row]], answers[batch.contexts.y[row]]
        assert ids.tolist() == encode_examples(build_tokenizer(), list(zip(x, y, strict=True))).tolist()


def test_targets_are_the_exact_predictive(maker: BatchMaker) -> None:
    batch = maker.batch(np.random.default_rng(1), n_contexts=50)
    exact = exact_posterior(maker.mixture, batch.contexts.x, batch.contexts.y).predictive(batch.contexts.x)
    assert batch.target.numpy() == pytest.approx(exact, abs=1e-6)
    assert batch.target.sum(-1).numpy() == pytest.approx(1.0, abs=1e-5)


def test_noise_share_mixes_in_noiseless_contexts(maker: BatchMaker) -> None:
    rng = np.random.default_rng(2)
    assert (maker.batch(rng, noise_share=0.0, n_contexts=MANY).contexts.noise == 0).all()
    half = maker.batch(rng, noise_share=0.5, n_contexts=2000).contexts.noise.mean()
    assert half == pytest.approx(0.25, abs=0.05)


def test_a_rare_share_brings_letters_and_words_and_keeps_exact_targets(maker: BatchMaker) -> None:
    usual = maker.batch(np.random.default_rng(9), n_contexts=MANY)
    rare = maker.batch(np.random.default_rng(9), n_contexts=MANY, rare_share=1.0)
    domains = np.array([task.domain for task in maker.mixture.tasks])
    assert 0.1 < (domains[usual.contexts.task] != "number").mean() < 0.5
    assert (domains[rare.contexts.task] != "number").all()
    assert (rare.contexts.noise == 0).all()
    assert (usual.contexts.noise == 1).any()
    x, y = rare.contexts.x, rare.contexts.y
    assert rare.target.numpy() == pytest.approx(exact_posterior(maker.mixture, x, y).predictive(x), abs=1e-6)


def everywhere(batch: Batch) -> np.ndarray:
    return np.arange(batch.contexts.x.size)


def test_donors_share_the_domain_and_are_never_excluded(maker: BatchMaker) -> None:
    batch = maker.batch(np.random.default_rng(3), n_contexts=MANY)
    swaps = maker.interchanges(np.random.default_rng(4), batch, everywhere(batch))
    examples, used = batch.contexts.x.shape[1], swaps.weight.numpy() > 0
    assert used.mean() > 0.9
    donor = swaps.donor.numpy()
    assert donor.min() >= 0
    assert donor.max() < batch.contexts.x.size
    text = np.array([task.domain for task in maker.mixture.tasks])[batch.contexts.task]
    names = np.array([task.name for task in maker.mixture.tasks])[batch.contexts.task]
    giving, getting = donor // examples, swaps.recipient.numpy() // examples
    assert (text[giving] == text[getting])[used].all()
    assert not np.isin(names[giving], ["2x+3", "letter:next"])[used].any()
    assert np.isin(names, ["2x+3", "letter:next"]).any()  # they are in the batch, as recipients


def test_pairs_of_equal_x_have_no_weight(maker: BatchMaker) -> None:
    batch = maker.batch(np.random.default_rng(5), n_contexts=MANY)
    swaps = maker.interchanges(np.random.default_rng(6), batch, everywhere(batch))
    x = batch.contexts.x.ravel()
    same = x[swaps.donor.numpy()] == x[swaps.recipient.numpy()]
    assert same.any()
    assert (swaps.weight.numpy() == np.where(same, 0.0, 1.0)).all()


def test_interchange_targets_are_the_donors_belief_on_the_recipients_x(maker: BatchMaker) -> None:
    """Recomputed pair by pair: the donor's examples, with the recipient's x as the query."""
    batch = maker.batch(np.random.default_rng(7), n_contexts=20)
    contexts, examples = batch.contexts, batch.contexts.x.shape[1]
    recipients = np.array([0, 3, 7, 11, 19]) * examples + np.array([0, 1, 3, 2, 0])
    swaps = maker.interchanges(np.random.default_rng(8), batch, recipients)
    assert swaps.recipient.tolist() == recipients.tolist()
    for pair, recipient in enumerate(recipients):
        giving, seen = divmod(int(swaps.donor[pair]), examples)
        x = contexts.x[giving : giving + 1].copy()
        x[0, seen] = contexts.x.ravel()[recipient]
        expected = exact_posterior(maker.mixture, x, contexts.y[giving : giving + 1]).predictive(x)[0, seen]
        assert swaps.target[pair].numpy() == pytest.approx(expected, abs=1e-6)


def test_an_excluded_donor_outside_the_mixture_is_refused(recipe: Recipe) -> None:
    settings = recipe.interchange.model_copy(update={"excluded_donors": ["9x+9"]})
    maker = BatchMaker(recipe.model_copy(update={"interchange": settings}), build_tokenizer())
    batch = maker.batch(np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"9x\+9"):
        maker.interchanges(np.random.default_rng(0), batch, everywhere(batch))


def test_batches_are_frozen(maker: BatchMaker) -> None:
    batch = maker.batch(np.random.default_rng(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.tokens = batch.tokens  # type: ignore[misc]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 12, 40), (2, 40, 12)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7
    made = orthogonalise(g)
    assert made.shape == g.shape
    values = torch.linalg.svdvals(made)
    assert values.max() < 1.3
    assert values.min() > 0.4
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    polar = u @ vh
    alignment = (made * polar).sum((1, 2)) / (made.norm(dim=(1, 2)) * polar.norm(dim=(1, 2)))
    assert alignment.min() > 0.95


def test_a_step_by_hand() -> None:
    """The first step goes against the orthogonalised gradient, lr * sqrt(max(1, rows / cols)) long."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.zeros(8, 2))
    wide = torch.nn.Parameter(torch.zeros(2, 8))
    weight.grad = torch.randn(8, 2, generator=generator)
    wide.grad = torch.randn(2, 8, generator=generator)
    Muon([weight, wide], lr=0.1).step()
    # velocity = .05 g, Nesterov: .05 g + .95 * .05 g, a multiple of g, so its polar factor is that of g
    expected = orthogonalise(weight.grad[None])[0]
    torch.testing.assert_close(weight.detach(), -0.1 * 2.0 * expected)
    torch.testing.assert_close(wide.detach(), -0.1 * orthogonalise(wide.grad[None])[0])


def test_matrices_of_blocks_go_to_muon_and_nothing_is_lost(recipe: Recipe) -> None:
    network = build_network(recipe.shape, 2, build_tokenizer(), 0)
    muon, adam = build_optimisers(network, 0.02, 0.006)
    inside = [p for group in muon.param_groups for p in group["params"]]
    rest = [p for group in adam.param_groups for p in group["params"]]
    assert all(p.ndim == 2 for p in inside)
    assert len(inside) == 2 * 7
    assert {id(p) for p in inside} | {id(p) for p in rest} == {id(p) for p in network.parameters()}
    assert len(inside) + len(rest) == len(list(network.parameters()))
    embeddings = {id(network.model.embed_tokens.weight), id(network.lm_head.weight)}
    assert embeddings <= {id(p) for p in rest}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stage", ["trunk", "main"])
def test_two_steps_and_a_resumed_two_equal_four(
    stage: str, recipe: Recipe, trained: Path, tmp_path: Path
) -> None:
    if stage == "main":
        (tmp_path / "trunk").symlink_to(trained / "trunk")
    halted = Trainer(recipe, stage, tmp_path)  # type: ignore[arg-type]
    for _ in range(2):
        halted.train_step()
    halted.save()
    resumed = Trainer(recipe, stage, tmp_path)  # type: ignore[arg-type]
    resumed.fit(lambda row: None)
    assert resumed.step == 4
    whole, parts = weights(trained / stage), weights(tmp_path / stage)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    assert json.loads((tmp_path / stage / "progress.json").read_text())["step"] == 4


def test_branches_start_from_the_trunk_and_see_the_same_batches(recipe: Recipe, trained: Path) -> None:
    trunk, main, twin = (weights(trained / stage) for stage in ("trunk", "main", "twin"))
    assert main.keys() == twin.keys()
    assert main.keys() > trunk.keys()
    assert any(not torch.equal(main[name], twin[name]) for name in main)
    makers = [Trainer(recipe, stage, trained) for stage in ("main", "twin")]
    first = [maker.train_step() for maker in makers]
    # the first batch of both: before any update, their own losses are those of the grown trunk
    assert first[0]["answer"] == pytest.approx(first[1]["answer"], rel=1e-5)
    assert {"interchange", "blank"} < first[0].keys()
    assert not {"interchange", "blank"} & first[1].keys()


def test_a_blank_recipient_is_the_first_query_of_a_whole_one(recipe: Recipe, trained: Path) -> None:
    """The same pairs, run as whole contexts and as contexts cut at their first `pre`: one loss."""
    trainer = Trainer(recipe, "main", trained)
    batch = trainer.maker.batch(np.random.default_rng(1))
    first = np.arange(len(batch.tokens)) * recipe.examples
    blank = trainer.maker.interchanges(np.random.default_rng(2), batch, first)
    whole = trainer.maker.interchanges(
        np.random.default_rng(3), batch, np.arange(len(batch.tokens) * recipe.examples)
    )
    at_first = torch.zeros_like(whole.weight)
    at_first[first] = blank.weight
    whole.donor[first] = blank.donor
    whole.target[first] = blank.target
    losses = trainer.loss(batch, Swaps(dataclasses.replace(whole, weight=at_first), blank))
    assert float(blank.weight.sum()) > 0
    assert float(losses["blank"].detach()) == pytest.approx(float(losses["interchange"].detach()), rel=1e-5)


def test_a_branch_without_its_trunk_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference train --stage trunk"):
        Trainer(recipe, "main", tmp_path)


def test_rates_fall_to_nothing(recipe: Recipe, trained: Path) -> None:
    trunk, twin = Trainer(recipe, "trunk", trained), Trainer(recipe, "twin", trained)
    assert trunk.learning_rate(0) == 1.0
    assert trunk.learning_rate(trunk.steps) == pytest.approx(recipe.optimiser.branch_start)
    assert twin.learning_rate(0) == pytest.approx(recipe.optimiser.branch_start)
    assert twin.learning_rate(twin.steps) == 0.0


def test_the_soft_target_loss_has_its_floor_at_the_exact_predictive(recipe: Recipe, trained: Path) -> None:
    """`kl` is the answer loss minus the targets' entropy: never negative, and log V less it at the start."""
    trainer = Trainer(recipe, "trunk", trained / "nowhere")
    losses = trainer.train_step()
    assert losses["answer"] == pytest.approx(math.log(len(trainer.tokenizer)), rel=1e-3)
    assert 0 < losses["kl"] < losses["answer"]
