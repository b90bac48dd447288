"""Contexts, activations, scaling, buffer: exact shares, every row once, and continued to the bit."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from iclens.core import PADDING, ConfigError, Site, position
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.quality import LeftOut
from iclens.table import Ints
from iclens.training.config import MixtureContexts, Prompts, TrainConfig, parse_train_config
from iclens.training.data import (
    ActivationBuffer,
    PromptSource,
    Scaling,
    StreamingScaling,
    TokenStream,
    build_stream,
    estimate_scalings,
    find_left_out,
    furthest_behind,
    held_out,
    kept_rows,
    read_mixture,
    recorder,
)

Declare = Callable[..., dict[str, Any]]
Configure = Callable[..., TrainConfig]
KINDS = pytest.mark.parametrize("kind", ["mixture", "text", "tokens"])
LABELS = [position("lab", j) for j in range(8)]
SITE, OTHER = Site(0, "resid_post"), Site(1, "mlp_out")


# --------------------------------------------------------------------------------------- contexts


@pytest.fixture
def configure(small: Declare, tmp_path: Path) -> Configure:
    """A configuration of a kind of data, small blocks, with the prompts given."""
    (tmp_path / "a.txt").write_text("".join(f"({x}, {x + y})\n" for x in range(60) for y in (0, 17)))
    np.save(tmp_path / "ids.npy", np.arange(60 * 12).reshape(60, 12))
    kinds: dict[str, dict[str, Any]] = {
        "mixture": {"kind": "mixture"},
        "text": {"kind": "text", "dataset": str(tmp_path / "a.txt"), "context_tokens": 12},
        "tokens": {"kind": "tokens", "path": str(tmp_path / "ids.npy")},
    }

    def make(kind: str, *prompts: tuple[str, float], contexts: int = 4) -> TrainConfig:
        listed = [{"task": task, "weight": weight} for task, weight in prompts]
        declared = small(training={"forward_contexts": contexts}, held_out={"contexts": 5})
        declared["data"] = {**kinds[kind], "examples": 8, "prompts": listed}
        return parse_train_config(declared)

    return make


def as_set(tokens: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(row) for row in tokens.tolist()}


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(1, 300))
def test_nobody_falls_a_whole_turn_behind_its_weight(weights: list[float], turns: int) -> None:
    given_so_far = [0] * len(weights)
    for _ in range(turns):
        given_so_far[furthest_behind(weights, given_so_far)] += 1
    share = np.array(weights) / sum(weights)
    ahead = np.array(given_so_far) - share * turns
    assert ahead.max() < 1 and ahead.min() > -max(1, len(weights) - 1)


@KINDS
def test_prompts_are_mixed_in_by_weight_exactly(
    kind: str, configure: Configure, model: LanguageModel
) -> None:
    stream = build_stream(configure(kind, ("7", 0.25), ("9", 0.125)), model.tokenizer)
    answers = {word: model.tokenizer.convert_tokens_to_ids(word) for word in "79"}
    blocks = [stream.next() for _ in range(64)]
    assert all(len(block) == 4 for block in blocks)
    # Sources of one length share a block, so that each of them has its prompt of "7".
    if kind == "mixture":
        assert all((block[:, LABELS] == answers["7"]).all(axis=1).sum() == 1 for block in blocks)
    prompts = np.concatenate([block for block in blocks if block.shape[1] == 50])
    counts = {word: int((prompts[:, LABELS] == i).all(axis=1).sum()) for word, i in answers.items()}
    assert counts["7"] == pytest.approx(64, abs=2) and counts["9"] == pytest.approx(32, abs=2)


def test_prompts_alone_can_be_all_contexts(configure: Configure, model: LanguageModel) -> None:
    stream = build_stream(configure("text", ("7", 0.9), ("9", 0.1)), model.tokenizer)
    assert [block.shape for block in stream.samples()] == [(4, 50)]
    assert all(stream.next().shape == (4, 50) for _ in range(20))


@KINDS
def test_after_restore_the_blocks_are_the_same(kind: str, configure: Configure, model: LanguageModel) -> None:
    config = configure(kind, ("2x+3", 0.3))
    stream = build_stream(config, model.tokenizer)
    for used in range(10):
        state = json.loads(json.dumps(stream.state()))
        again = build_stream(config, model.tokenizer)
        for _ in range(used):
            again.next()
        again.restore(state)
        following = [stream.next() for _ in range(5)]
        for block in following:
            np.testing.assert_array_equal(again.next(), block)
        stream.restore(state)
        stream.next()


@KINDS
def test_held_out_contexts_repeat_and_are_never_streamed(
    kind: str, configure: Configure, model: LanguageModel
) -> None:
    config = configure(kind)
    aside = held_out(config, model.tokenizer)
    assert aside.shape == (5, 50 if kind == "mixture" else 12)
    np.testing.assert_array_equal(aside, held_out(config, model.tokenizer))
    stream = build_stream(config, model.tokenizer)
    assert not as_set(aside) & as_set(np.concatenate([stream.next() for _ in range(40)]))


@KINDS
def test_samples_show_every_length_and_move_nothing(
    kind: str, configure: Configure, model: LanguageModel
) -> None:
    config = configure(kind, ("2x+3", 0.2))
    stream, other = (build_stream(config, model.tokenizer) for _ in range(2))
    stream.next()
    other.next()
    lengths = {block.shape[1] for block in stream.samples()}
    assert lengths == ({50} if kind == "mixture" else {12, 50})
    np.testing.assert_array_equal(stream.next(), other.next())


def test_prompts_are_of_their_task_and_fresh_each_time(model: LanguageModel) -> None:
    source, other = (
        PromptSource(Prompts(task="7", weight=0.5), model.tokenizer, 8, 0, index) for index in (0, 1)
    )
    seven = model.tokenizer.convert_tokens_to_ids("7")
    taken = np.concatenate([source.take(5), source.take(5)])
    assert (taken[:, LABELS] == seven).all() and len(as_set(taken)) == 10
    assert not as_set(taken) & as_set(other.take(10))


@pytest.mark.parametrize(("task", "arm"), [("2x+3", "S"), ("odd", "R"), ("word:opposite", "T")])
def test_prompts_are_those_of_the_study(task: str, arm: str, model: LanguageModel) -> None:
    source = PromptSource(Prompts(task=task, arm=arm, weight=1), model.tokenizer, 6, 3, 1)
    seed = int(np.random.default_rng([3, 2, 1, 1]).integers(2**31))
    built = build_prompts(model.tokenizer, parse_task(task), arm=arm, n_prompts=9, n_examples=6, seed=seed)
    np.testing.assert_array_equal(source.take(9), built.tokens)


def test_prompts_with_too_few_inputs_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="30 examples of 26 inputs"):
        PromptSource(Prompts(task="letter:next", weight=0.1), model.tokenizer, 30, 0, 0)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [", b"\xff\xfe\x00"])
def test_a_damaged_mixture_is_refused(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match="mixture"):
        read_mixture(MixtureContexts(kind="mixture", mixture=path), "any")
    with pytest.raises(ConfigError, match="no such file"):
        read_mixture(MixtureContexts(kind="mixture", mixture=tmp_path / "no.yaml"), "any")


# ------------------------------------------------------------------------------------ activations


@pytest.fixture
def stream(small: Declare, model: LanguageModel) -> TokenStream:
    return build_stream(parse_train_config(small(training={"forward_contexts": 3})), model.tokenizer)


class Fixed:
    """A stream that only shows samples: a block of each of these shapes, or these blocks."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = [np.ones(block, int) if isinstance(block, tuple) else block for block in blocks]

    def samples(self) -> list[Ints]:
        return self.blocks


def settings(**asked: Any) -> MixtureContexts:
    return MixtureContexts.model_validate({"kind": "mixture", **asked})


def lengths(by_site: dict[Site, list[float]]) -> Callable[..., dict[Site, torch.Tensor]]:
    """Activations of two contexts whose lengths average to those given; the first is half of them."""

    def recorded(tokens: Ints, sites: object) -> dict[Site, torch.Tensor]:
        size = tokens.shape[1]
        x = {site: torch.zeros(2, size, 4) for site in by_site}
        for site, values in by_site.items():
            x[site][0, :, 1], x[site][1, :, 2] = (
                torch.tensor(values[:size]) * share for share in (-0.5, 1.5)
            )
        return x

    return recorded


def test_recorded_sites_are_those_of_the_model(stream: TokenStream, model: LanguageModel) -> None:
    sites = [Site(layer, hook) for layer in (0, 2) for hook in ("resid_pre", "mlp_in", "z", "resid_post")]
    tokens = stream.next()
    ours = recorder(load_model(model.name, blocks=3))(tokens, sites)
    theirs = record(model, tokens, sites, np.arange(tokens.shape[1]))
    assert set(ours) == set(sites)
    for site in sites:
        np.testing.assert_array_equal(ours[site].numpy(), theirs[site])


def test_kept_rows_leave_out_tokens_wherever_they_stand() -> None:
    x = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    tokens = np.array([[7, 7, 9, 7, PADDING], [9, 9, 7, 7, 7]])
    kept = LeftOut((9,), (3, 17)).kept(tokens)
    rows = kept_rows(lambda *_: {SITE: x, OTHER: -x}, tokens, [SITE, OTHER], kept)
    wanted = torch.cat([x[0, [0, 1]], x[1, [2, 4]]])
    assert torch.equal(rows[SITE], wanted) and torch.equal(rows[OTHER], -wanted)
    with pytest.raises(ConfigError, match="it leaves none of the 5 tokens of a context"):
        kept_rows(lambda *_: {SITE: x}, tokens, [SITE], np.zeros_like(kept))


def test_padding_changes_no_token_before_it(model: LanguageModel) -> None:
    tokens = np.array([[0, 1002, 10, 1004], [0, 1002, PADDING, PADDING]])
    padded, alone = recorder(model)(tokens, [OTHER])[OTHER], recorder(model)(tokens[1:, :2], [OTHER])[OTHER]
    torch.testing.assert_close(padded[1:, :2], alone, rtol=1e-4, atol=1e-4)


def test_massive_positions_are_left_out_with_the_worst_site_as_the_reason() -> None:
    recorded = lengths({SITE: [900.0, 1, 1, 1, 1, 1], OTHER: [60.0, 60, 2, 2, 2, 2]})
    asked = settings(excluded_positions=[5], massive={"ratio": 10})
    found = find_left_out(asked, 9, recorded, Fixed((2, 6), (2, 4)), [SITE, OTHER])  # type: ignore[arg-type]
    assert found["tokens"] == {"9": "BOS"} and found["positions"] == {
        "0": "massive: 900 times the usual length at L0.resid_post",
        "5": "listed in data.excluded_positions",
    }
    asked = settings(massive=None, excluded_positions=[2])  # null leaves out only what is listed
    found = find_left_out(asked, None, recorded, Fixed((2, 6)), [SITE])  # type: ignore[arg-type]
    assert found["tokens"] == {} and list(found["positions"]) == ["2"]


def test_a_role_that_is_long_everywhere_is_not_massive() -> None:
    recorded = lengths({SITE: [500.0, 1, 20, 1, 20, 1]})
    found = find_left_out(settings(), None, recorded, Fixed((2, 6)), [SITE])  # type: ignore[arg-type]
    assert found["positions"] == {"0": "massive: 25 times the usual length at L0.resid_post"}


def test_bos_and_padding_make_no_position_massive() -> None:
    ragged: Any = Fixed(np.array([[9, 1, 1, 1, 1, 1], [1, 1, 1, 1, PADDING, PADDING]]))
    x = torch.ones(2, 6, 1)
    x[0, 0] = x[1, 4:] = 1e6
    assert find_left_out(settings(), 9, lambda *_: {SITE: x}, ragged, [SITE])["positions"] == {}
    x[:, 1] = 40
    found = find_left_out(settings(), 9, lambda *_: {SITE: x}, ragged, [SITE])
    assert found["positions"] == {"1": "massive: 40 times the usual length at L0.resid_post"}


def test_a_planted_position_of_the_real_model_is_found(stream: TokenStream, model: LanguageModel) -> None:
    plain = recorder(model)

    def planted(tokens: Ints, sites: Any) -> dict[Site, torch.Tensor]:
        recorded = plain(tokens, sites)
        recorded[SITE][:, 1] *= 200
        return recorded

    bos = model.tokenizer.bos_token_id
    assert find_left_out(settings(), bos, plain, stream, [SITE, OTHER])["positions"] == {}
    found = find_left_out(settings(), bos, planted, stream, [SITE, OTHER])["positions"]
    assert list(found) == ["1"] and "L0.resid_post" in found["1"]


# ---------------------------------------------------------------------------------------- scaling


def test_scaling_by_hand() -> None:
    # mean (2, 1); squared distances 1 + 0, 1 + 0, 0 + 4, 0 + 4: mean 2.5; s = sqrt(2 / 2.5)
    x = torch.tensor([[1.0, 1.0], [3.0, 1.0], [2.0, 3.0], [2.0, -1.0]])
    scaling = Scaling.of(x)
    torch.testing.assert_close(scaling.mean, torch.tensor([2.0, 1.0]))
    assert scaling.factor == pytest.approx(0.8**0.5, rel=1e-12)
    u = scaling.apply(x)
    torch.testing.assert_close(u.mean(dim=0), torch.zeros(2))
    assert float(u.square().sum(dim=1).mean()) == pytest.approx(2, rel=1e-6)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_parts_in_any_sizes_give_the_whole(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 3, generator=generator) * 5 + 100 * i for i, n in enumerate(sizes)]
    whole = torch.cat([*parts, torch.ones(2, 3)]).double()
    moments = StreamingScaling()
    for part in [*parts, torch.ones(2, 3)]:
        moments.add(part)
    found = moments.scaling()
    assert moments.n_rows == sum(sizes) + 2
    torch.testing.assert_close(found.mean, whole.mean(dim=0).float(), rtol=1e-5, atol=1e-5)
    square = (whole - whole.mean(dim=0)).square().sum(dim=1).mean().clamp_min(1e-20)
    assert found.factor == pytest.approx(float((3 / square).sqrt()), rel=1e-4)


def test_a_small_spread_far_from_zero_and_half_precision_are_summed_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(4096, 8, generator=generator)
    moments = StreamingScaling()
    for part in x.split(100):
        moments.add(part)
    wanted = x.double() - x.double().mean(dim=0)
    factor = float((8 / wanted.square().sum(dim=1).mean()).sqrt())
    assert moments.scaling().factor == pytest.approx(factor, rel=1e-5)
    x = (1 + torch.randn(50_000, 2, generator=generator)).bfloat16()
    torch.testing.assert_close(Scaling.of(x).mean, x.double().mean(dim=0).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "rows", [torch.empty(0, 2), torch.tensor([[1.0, torch.inf]]), torch.full((2, 2), torch.nan)]
)
def test_rows_without_a_size_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="scaling"):
        Scaling.of(rows)


class Counting:
    """A stream of blocks that say how many came before; of which some tokens may be padding and BOS (3)."""

    def __init__(self, padded: bool = False) -> None:
        self.given, self.padded = 0, padded

    def next(self) -> Ints:
        self.given += 1
        tokens = torch.full((2, 4), self.given).numpy()
        if self.padded:
            tokens += 10
            tokens[0, 2:], tokens[1, 1] = PADDING, 3
        return tokens

    def state(self) -> dict[str, int]:
        return {"given": self.given}

    def restore(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def test_an_estimate_sees_enough_rows_and_puts_the_stream_back() -> None:
    stream: Any = Counting()
    asked: list[int] = []

    def recorded(tokens: Ints, sites: object) -> dict[Site, torch.Tensor]:
        asked.append(int(tokens[0, 0]))
        x = torch.arange(8.0).reshape(2, 4, 1) * torch.as_tensor(tokens)[..., None]
        return {SITE: x, OTHER: 2 * x + 1}

    stream.next()
    found = estimate_scalings(recorded, stream, [SITE, OTHER], LeftOut(positions=(0,)), 13)
    assert asked == [2, 3, 4] and stream.given == 1
    rows = torch.tensor([1.0, 2, 3, 5, 6, 7])
    whole = torch.cat([rows * n for n in asked])[:, None]
    torch.testing.assert_close(found[SITE].mean, whole.mean(dim=0))
    torch.testing.assert_close(found[OTHER].mean, 2 * whole.mean(dim=0) + 1)
    assert found[OTHER].factor == pytest.approx(found[SITE].factor / 2)
    assert estimate_scalings(recorded, stream, [], LeftOut(positions=(0,)), 13) == {}
    assert asked == [2, 3, 4] * 2 and stream.given == 1


def test_padding_and_bos_have_no_part_in_an_estimate() -> None:
    x, padded = torch.tensor([[1.0, 2, 9, 9], [3, 9, 4, 5]])[..., None], Counting(padded=True)
    found = estimate_scalings(lambda *_: {SITE: x}, padded, [SITE], LeftOut(ids=(3,)), 11)  # type: ignore[arg-type]
    assert float(found[SITE].mean) == 3 and found[SITE].factor == pytest.approx(2**-0.5)


# ----------------------------------------------------------------------------------------- buffer


class Numbered:
    """Blocks of 5 contexts of 4 or 7 tokens in turn, each token a number of its own; `bad` fails once."""

    def __init__(self, bad: int = -1, padded: bool = False) -> None:
        self.blocks = self.tokens = 0
        self.bad, self.padded = bad, padded

    def next(self) -> Ints:
        size = (4, 7)[self.blocks % 2]
        tokens = np.arange(self.tokens, self.tokens + 5 * size).reshape(5, size)
        self.blocks, self.tokens = self.blocks + 1, self.tokens + 5 * size
        if self.blocks == self.bad:
            self.bad = -1
            raise ValueError("a bad row")
        if self.padded:  # contexts end in more and more padding, and hold BOS at position 1
            tokens[np.arange(size) >= size - np.arange(5)[:, None]] = PADDING
            tokens[:, 1] = np.where(tokens[:, 1] == PADDING, PADDING, 0)
        return tokens

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


def numbered(
    sites: Sequence[Site] = (SITE, OTHER), stream: Numbered | None = None, left_out: LeftOut | None = None,
    **asked: Any,
) -> ActivationBuffer:  # fmt: skip
    sizes = {"capacity": 48, "batch": 8, "seed": 0, **asked}
    source: Any = stream or Numbered()
    return ActivationBuffer(numbers, source, sites, left_out or LeftOut(positions=(0, 5)), **sizes)


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
    buffer, stream = numbered(), Numbered()
    found, everything = served(buffer, 300), []
    while len(everything) < 2448:
        tokens = stream.next()
        everything += tokens[:, [p for p in range(tokens.shape[1]) if p not in (0, 5)]].ravel().tolist()
    assert len(set(found)) == len(found) == 2400
    assert set(found) < set(everything[:2448])
    assert set(found) | {int(n) for n in buffer.rows(SITE)[:, 0]} >= set(everything[:2400])


def test_batches_mix_contexts_in_an_order_that_follows_the_seed() -> None:
    found = np.array(served(numbered(capacity=480), 200)).reshape(200, 8)
    assert (np.ptp(found, axis=1) > 100).mean() > 0.9
    assert served(numbered(), 5) == served(numbered(), 5) != served(numbered(seed=1), 5)


def test_memory_is_taken_once_and_what_is_served_is_not_changed_later() -> None:
    buffer = numbered()
    places = {site: buffer.rows(site).data_ptr() for site in (SITE, OTHER)}
    batch = buffer.next()[SITE]
    before = batch.clone()
    served(buffer, 50)
    assert places == {site: buffer.rows(site).data_ptr() for site in (SITE, OTHER)}
    assert buffer.rows(SITE).shape == (48, 2) and torch.equal(batch, before)


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


def test_processes_keep_in_step_and_one_goes_on_from_the_rows_of_several() -> None:
    one, two, none, both = numbered([SITE]), numbered([OTHER]), numbered([]), numbered()
    for _ in range(11):
        for buffer in (one, two, none, both):
            buffer.next()
    assert one.state() == two.state() == none.state() == both.state() and none.tensors() == {}
    again = numbered()
    again.restore(one.tensors() | two.tensors(), two.state())
    assert served(again, 20) == served(both, 20)
    empty = numbered([])
    empty.restore({}, none.state())
    for _ in range(20):
        assert empty.next() == {}
    assert empty.state() == both.state()


def test_padding_and_bos_are_never_served_wherever_they_stand() -> None:
    found = served(numbered(stream=Numbered(padded=True), left_out=LeftOut(ids=(0,))), 100)
    assert min(found) > 0 and len(set(found)) == len(found) == 800
    stream, wanted = Numbered(padded=True), []
    while len(wanted) < 800:
        wanted += [n for n in stream.next().ravel().tolist() if n > 0]
    assert set(found) <= set(wanted) | set(range(max(wanted), max(wanted) + 300))


@pytest.mark.parametrize("bad", [4, 5, 6, 7, 20])
@pytest.mark.parametrize("capacity", [17, 48])
def test_it_goes_on_bit_for_bit_after_a_block_that_could_not_be_had(bad: int, capacity: int) -> None:
    whole = served(numbered(capacity=capacity), 60)
    broken, found = numbered(stream=Numbered(bad), capacity=capacity), []
    with pytest.raises(ValueError, match="a bad row"):
        while True:
            found += served(broken, 1)
    assert 0 < len(found) < 480
    again = numbered(capacity=capacity)
    again.restore(load(save(broken.tensors())), broken.state())
    assert found + served(again, 60 - len(found) // 8) == whole


def test_another_buffer_is_not_gone_on_with() -> None:
    buffer = numbered()
    buffer.next()
    for other in (numbered(capacity=64), numbered(batch=4), numbered([SITE, Site(3, "mlp_in")])):
        with pytest.raises(ConfigError, match="other sites or sizes"):
            other.restore(buffer.tensors(), buffer.state())
    with pytest.raises(ConfigError, match="less than two batches"):
        numbered(capacity=15)


def test_it_reports_what_is_left_out_and_runs_nothing_before_it_is_asked() -> None:
    buffer = numbered()
    assert buffer.facts() == {"tokens left out": 0}
    buffer.next()
    # Blocks of 4 tokens keep 3 of each context, those of 7 keep 5: 15 + 25 + 15 fill 48 rows.
    assert buffer.facts() == {"tokens left out": 5 + 10 + 5}
