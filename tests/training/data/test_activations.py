"""Recording, and the positions that are left out: found by their length, and told."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from iclens.core import HOOKS, PADDING, ConfigError, Site
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.saes.quality import LeftOut
from iclens.table import Ints
from iclens.training.config import MixtureContexts, parse_train_config
from iclens.training.data import TokenStream, build_stream, find_left_out, kept_rows, recorder

Declare = Callable[..., dict[str, Any]]
SITE, OTHER = Site(0, "resid_post"), Site(1, "mlp_out")


@pytest.fixture
def stream(small: Declare, model: LanguageModel) -> TokenStream:
    return build_stream(parse_train_config(small(training={"forward_contexts": 3})), model.tokenizer)


def settings(**asked: Any) -> MixtureContexts:
    return MixtureContexts.model_validate({"kind": "mixture", **asked})


def test_recorded_sites_are_those_of_the_model(stream: TokenStream, model: LanguageModel) -> None:
    sites = [Site(layer, hook) for layer in (0, 2) for hook in HOOKS]
    tokens = stream.next()
    ours = recorder(load_model(model.name, blocks=3))(tokens, sites)
    theirs = record(model, tokens, sites, np.arange(tokens.shape[1]))
    assert list(ours) and set(ours) == set(sites)
    for site in sites:
        np.testing.assert_array_equal(ours[site].numpy(), theirs[site])


def test_kept_rows_leave_out_tokens_wherever_they_stand() -> None:
    x = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    tokens = np.array([[7, 7, 9, 7, PADDING], [9, 9, 7, 7, 7]])
    rows = kept_rows(
        lambda *_: {SITE: x, OTHER: -x}, tokens, [SITE, OTHER], LeftOut((9,), (3, 17)).kept(tokens)
    )
    wanted = torch.cat([x[0, [0, 1]], x[1, [2, 4]]])
    assert torch.equal(rows[SITE], wanted) and torch.equal(rows[OTHER], -wanted)


def test_padding_changes_no_token_before_it(model: LanguageModel) -> None:
    tokens = np.array([[0, 1002, 10, 1004], [0, 1002, PADDING, PADDING]])
    padded, alone = recorder(model)(tokens, [OTHER])[OTHER], recorder(model)(tokens[1:, :2], [OTHER])[OTHER]
    torch.testing.assert_close(padded[1:, :2], alone, rtol=1e-4, atol=1e-4)


def test_nothing_left_is_refused(stream: TokenStream, model: LanguageModel) -> None:
    tokens = stream.next()
    with pytest.raises(ConfigError, match="it leaves none of the 50 tokens of a context"):
        kept_rows(recorder(model), tokens, [SITE], LeftOut(positions=tuple(range(50))).kept(tokens))


def lengths(by_site: dict[Site, list[float]]) -> Callable[..., dict[Site, torch.Tensor]]:
    """Activations of two contexts whose lengths average to those given; the first is half of them."""

    def record(tokens: Ints, sites: object) -> dict[Site, torch.Tensor]:
        size = tokens.shape[1]
        x = {site: torch.zeros(2, size, 4) for site in by_site}
        for site, values in by_site.items():
            x[site][0, :, 1], x[site][1, :, 2] = (
                torch.tensor(values[:size]) * share for share in (-0.5, 1.5)
            )
        return x

    return record


class TwoLengths:
    """A stream with blocks of six and of four tokens."""

    def next(self) -> Ints:
        raise AssertionError("only its samples are asked for")

    def samples(self) -> list[Ints]:
        return [np.ones((2, 6), dtype=int), np.ones((2, 4), dtype=int)]

    def state(self) -> dict[str, int]:
        return {}

    def restore(self, state: dict[str, int]) -> None:
        raise AssertionError("it stays where it is")

    def facts(self) -> dict[str, int]:
        return {}


class OneLength(TwoLengths):
    """The longer blocks alone."""

    def samples(self) -> list[Ints]:
        return super().samples()[:1]


def test_massive_positions_are_left_out_with_the_worst_site_as_the_reason() -> None:
    found = find_left_out(
        settings(excluded_positions=[5], massive={"ratio": 10}), 9,
        lengths({SITE: [900.0, 1, 1, 1, 1, 1], OTHER: [60.0, 60, 2, 2, 2, 2]}),
        TwoLengths(), [SITE, OTHER],
    )  # fmt: skip
    assert found["tokens"] == {"9": "BOS"} and list(found["positions"]) == ["0", "5"]
    assert found["positions"]["0"] == "massive: 900 times the usual length at L0.resid_post"
    assert found["positions"]["5"] == "listed in data.excluded_positions"


def test_a_role_that_is_long_everywhere_is_not_massive() -> None:
    recorded = lengths({SITE: [500.0, 1, 20, 1, 20, 1]})
    assert find_left_out(settings(), None, recorded, OneLength(), [SITE]) == {
        "tokens": {}, "positions": {"0": "massive: 25 times the usual length at L0.resid_post"}
    }  # fmt: skip


class Ragged(OneLength):
    """Contexts of which one has BOS in front, the other padding behind; BOS and padding are massive."""

    def samples(self) -> list[Ints]:
        return [np.array([[9, 1, 1, 1, 1, 1], [1, 1, 1, 1, PADDING, PADDING]])]


def test_bos_and_padding_make_no_position_massive() -> None:
    x = torch.ones(2, 6, 1)
    x[0, 0] = x[1, 4:] = 1e6
    assert find_left_out(settings(), 9, lambda *_: {SITE: x}, Ragged(), [SITE])["positions"] == {}
    x[:, 1] = 40
    found = find_left_out(settings(), 9, lambda *_: {SITE: x}, Ragged(), [SITE])
    assert found["positions"] == {"1": "massive: 40 times the usual length at L0.resid_post"}


def test_null_leaves_out_only_what_is_listed() -> None:
    asked = settings(massive=None, excluded_positions=[2])
    recorded = lengths({SITE: [900.0, 1, 1, 1, 1, 1]})
    assert list(find_left_out(asked, None, recorded, TwoLengths(), [SITE])["positions"]) == ["2"]


def test_a_planted_position_of_the_real_model_is_found(stream: TokenStream, model: LanguageModel) -> None:
    plain = recorder(model)

    def planted(tokens: Ints, sites: Any) -> dict[Site, torch.Tensor]:
        found = plain(tokens, sites)
        found[SITE][:, 1] *= 200
        return found

    bos = model.tokenizer.bos_token_id
    assert find_left_out(settings(), bos, plain, stream, [SITE, OTHER])["positions"] == {}
    found = find_left_out(settings(), bos, planted, stream, [SITE, OTHER])["positions"]
    assert list(found) == ["1"] and "L0.resid_post" in found["1"]
