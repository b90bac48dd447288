"""The buffer: every row once, the same rows of every site, memory taken once, and exact continuation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from iclens.core import PADDING, ConfigError, Site
from iclens.model.load import LanguageModel
from iclens.saes.quality import LeftOut
from iclens.table import Ints
from iclens.training.config import parse_train_config
from iclens.training.data import ActivationBuffer, build_stream, recorder

Declare = Callable[..., dict[str, Any]]
SITE, OTHER = Site(0, "resid_post"), Site(1, "mlp_out")


class Numbered:
    """Blocks of 5 contexts of 4 or 7 tokens in turn; every token has a number of its own."""

    def __init__(self) -> None:
        self.blocks = self.tokens = 0

    def next(self) -> Ints:
        size = (4, 7)[self.blocks % 2]
        found = np.arange(self.tokens, self.tokens + 5 * size).reshape(5, size)
        self.blocks, self.tokens = self.blocks + 1, self.tokens + 5 * size
        return found

    def samples(self) -> list[Ints]:
        raise AssertionError("the buffer has no use for them")

    def state(self) -> dict[str, int]:
        return {"blocks": self.blocks, "tokens": self.tokens}

    def restore(self, state: dict[str, int]) -> None:
        self.blocks, self.tokens = state["blocks"], state["tokens"]

    def facts(self) -> dict[str, int]:
        return {}


def numbers(tokens: Ints, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
    """Activations that name their token, at each site in its own way."""
    x = torch.as_tensor(tokens).double()[..., None]
    every = {SITE: torch.cat([x, -x], dim=2), OTHER: torch.cat([x + 0.5, x, x], dim=2)}
    return {site: every[site] for site in sites}


def numbered(sites: Sequence[Site] = (SITE, OTHER), **asked: Any) -> ActivationBuffer:
    sizes = {"capacity": 48, "batch": 8, "seed": 0, **asked}
    return ActivationBuffer(numbers, Numbered(), sites, LeftOut(positions=(0, 5)), **sizes)


def served(buffer: ActivationBuffer, n_batches: int) -> list[int]:
    """Numbers of the tokens that are served, checked to be the same at both sites."""
    found: list[int] = []
    for _ in range(n_batches):
        batch = buffer.next()
        assert torch.equal(batch[SITE][:, 0] + 0.5, batch[OTHER][:, 0])
        assert batch[SITE].shape == (8, 2) and batch[OTHER].shape == (8, 3)
        found += [int(n) for n in batch[SITE][:, 0]]
    return found


def test_every_kept_token_is_served_at_most_once_and_soon() -> None:
    buffer = numbered()
    found = served(buffer, 300)
    assert len(set(found)) == len(found) == 2400
    everything = kept_numbers(2400 + 48)
    assert set(found) < set(everything)
    assert set(found) | {int(n) for n in buffer.rows(SITE)[:, 0]} >= set(everything[:2400])


def kept_numbers(n_rows: int) -> list[int]:
    """The first tokens of the stream that are not excluded."""
    stream, found = Numbered(), []
    while len(found) < n_rows:
        tokens = stream.next()
        found += tokens[:, [p for p in range(tokens.shape[1]) if p not in (0, 5)]].ravel().tolist()
    return found[:n_rows]


def test_batches_mix_contexts() -> None:
    found = np.array(served(numbered(capacity=480), 200)).reshape(200, 8)
    assert (np.ptp(found, axis=1) > 100).mean() > 0.9


def test_memory_is_taken_once() -> None:
    buffer = numbered()
    places = {site: buffer.rows(site).data_ptr() for site in (SITE, OTHER)}
    served(buffer, 50)
    assert places == {site: buffer.rows(site).data_ptr() for site in (SITE, OTHER)}
    assert buffer.rows(SITE).shape == (48, 2)


def test_what_is_served_is_not_changed_later() -> None:
    buffer = numbered()
    batch = buffer.next()[SITE]
    before = batch.clone()
    served(buffer, 20)
    assert torch.equal(batch, before)


def test_nothing_runs_before_it_is_asked_for_and_the_order_follows_the_seed() -> None:
    def refuse(*_: object) -> dict[Site, torch.Tensor]:
        raise AssertionError

    ActivationBuffer(refuse, Numbered(), [SITE], LeftOut(), capacity=16, batch=8, seed=0)
    assert served(numbered(), 5) == served(numbered(), 5) != served(numbered(seed=1), 5)


@pytest.mark.parametrize("capacity", [16, 17, 48, 100])
def test_it_goes_on_bit_for_bit_from_any_batch(capacity: int) -> None:
    buffer = numbered(capacity=capacity)
    for _ in range(30):
        tensors, state = load(save(buffer.tensors())), buffer.state()
        again = numbered(capacity=capacity)
        served(again, 3)
        again.restore(tensors, state)
        following = served(again, 20)
        assert following == served(buffer, 20)
        assert again.facts() == buffer.facts()
        buffer.restore(tensors, state)
        served(buffer, 1)


def test_one_process_goes_on_from_the_rows_of_two() -> None:
    one, two, both = numbered([SITE]), numbered([OTHER]), numbered()
    for _ in range(11):
        for buffer in (one, two, both):
            buffer.next()
    assert one.state() == two.state() == both.state()
    again = numbered()
    again.restore(one.tensors() | two.tensors(), two.state())
    assert served(again, 20) == served(both, 20)


def test_a_buffer_of_no_site_keeps_in_step() -> None:
    none, both = numbered([]), numbered()
    for _ in range(11):
        assert none.next() == {}
        both.next()
    assert none.state() == both.state() and none.tensors() == {}
    again = numbered([])
    again.restore({}, none.state())
    again.next()
    both.next()
    assert again.state() == both.state()


class Padded(Numbered):
    """The same blocks, whose contexts end in more and more padding, and hold BOS at position 1."""

    def next(self) -> Ints:
        found = super().next()
        found[np.arange(found.shape[1]) >= found.shape[1] - np.arange(5)[:, None]] = PADDING
        found[:, 1] = np.where(found[:, 1] == PADDING, PADDING, 0)
        return found


def test_padding_and_bos_are_never_served_wherever_they_stand() -> None:
    buffer = ActivationBuffer(
        numbers, Padded(), (SITE, OTHER), LeftOut(ids=(0,)), capacity=48, batch=8, seed=0
    )
    found = served(buffer, 100)
    assert min(found) > 0 and len(set(found)) == len(found) == 800
    stream, wanted = Padded(), []
    while len(wanted) < 800:
        wanted += [n for n in stream.next().ravel().tolist() if n > 0]
    assert set(found) <= set(wanted) | set(range(max(wanted), max(wanted) + 300))


class Failing(Numbered):
    """The same blocks, of which number `bad` cannot be had the first time."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.bad = bad

    def next(self) -> Ints:
        found = super().next()
        if self.blocks == self.bad:
            self.bad = -1
            raise ValueError("a bad row")
        return found


@pytest.mark.parametrize("bad", [4, 5, 6, 7, 20])
@pytest.mark.parametrize("capacity", [17, 48])
def test_it_goes_on_bit_for_bit_after_a_block_that_could_not_be_had(bad: int, capacity: int) -> None:
    def make(stream: Numbered) -> ActivationBuffer:
        return ActivationBuffer(
            numbers, stream, (SITE, OTHER), LeftOut(positions=(0, 5)), capacity=capacity, batch=8, seed=0
        )

    whole = served(make(Numbered()), 60)
    broken, found = make(Failing(bad)), []
    with pytest.raises(ValueError, match="a bad row"):
        while True:
            found += served(broken, 1)
    assert 0 < len(found) < 480
    again = make(Numbered())
    again.restore(load(save(broken.tensors())), broken.state())
    assert found + served(again, 60 - len(found) // 8) == whole


def test_another_buffer_is_not_gone_on_with() -> None:
    buffer = numbered()
    buffer.next()
    for other in (numbered(capacity=64), numbered(batch=4), numbered([SITE, Site(3, "mlp_in")])):
        with pytest.raises(ConfigError, match="other sites or sizes"):
            other.restore(buffer.tensors(), buffer.state())


def test_it_reports_what_is_left_out() -> None:
    buffer = numbered()
    assert buffer.facts() == {"tokens left out": 0}
    buffer.next()
    # Blocks of 4 tokens keep 3 of each context, those of 7 keep 5: 15 + 25 + 15 fill 48 rows.
    assert buffer.facts() == {"tokens left out": 5 + 10 + 5}


def test_a_buffer_of_less_than_two_batches_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than two batches"):
        numbered(capacity=15)


def test_on_the_model_a_continued_buffer_is_the_same(small: Declare, model: LanguageModel) -> None:
    config = parse_train_config(small(training={"forward_contexts": 4}))
    sites = config.saes.recorded

    def make() -> ActivationBuffer:
        stream = build_stream(config, model.tokenizer)
        return ActivationBuffer(
            recorder(model), stream, sites, LeftOut(ids=(0,)), capacity=512, batch=64, seed=3
        )

    buffer, again = make(), make()
    for _ in range(7):
        buffer.next()
    again.restore(load(save(buffer.tensors())), buffer.state())
    for _ in range(12):
        one, two = buffer.next(), again.next()
        assert all(torch.equal(one[site], two[site]) for site in sites)
