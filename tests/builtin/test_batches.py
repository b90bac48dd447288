"""Batches are decided by their step, targets are exact, and donors keep to the rules."""

import dataclasses

import numpy as np
import pytest

from iclens.builtin.model import Recipe, build_tokenizer
from iclens.builtin.train import Batch, BatchMaker
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
