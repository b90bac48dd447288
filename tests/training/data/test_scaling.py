"""The units of training, by hand and in a stream."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import PADDING, ConfigError, Site
from iclens.saes.quality import LeftOut
from iclens.table import Ints
from iclens.training.data import Scaling, StreamingScaling, estimate_scalings

SITE, OTHER = Site(0, "resid_post"), Site(1, "mlp_out")


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
    seen = StreamingScaling()
    for part in [*parts, torch.ones(2, 3)]:
        seen.add(part)
    found = seen.scaling()
    assert seen.n_rows == sum(sizes) + 2
    torch.testing.assert_close(found.mean, whole.mean(dim=0).float(), rtol=1e-5, atol=1e-5)
    square = (whole - whole.mean(dim=0)).square().sum(dim=1).mean().clamp_min(1e-20)
    assert found.factor == pytest.approx(float((3 / square).sqrt()), rel=1e-4)


def test_a_small_spread_far_from_zero_is_not_lost() -> None:
    x = 1000 + torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
    seen = StreamingScaling()
    for part in x.split(100):
        seen.add(part)
    wanted = x.double() - x.double().mean(dim=0)
    factor = float((8 / wanted.square().sum(dim=1).mean()).sqrt())
    assert seen.scaling().factor == pytest.approx(factor, rel=1e-5)


def test_half_precision_rows_are_summed_exactly() -> None:
    x = (1 + torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))).bfloat16()
    torch.testing.assert_close(Scaling.of(x).mean, x.double().mean(dim=0).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "rows", [torch.empty(0, 2), torch.tensor([[1.0, torch.inf]]), torch.full((2, 2), torch.nan)]
)
def test_rows_without_a_size_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="scaling"):
        Scaling.of(rows)


class Counting:
    """A stream of blocks that say how many came before."""

    def __init__(self) -> None:
        self.given = 0

    def next(self) -> Ints:
        self.given += 1
        return torch.full((2, 4), self.given).numpy()

    def samples(self) -> list[Ints]:
        return [torch.zeros(2, 4, dtype=torch.int64).numpy()]

    def state(self) -> dict[str, int]:
        return {"given": self.given}

    def restore(self, state: dict[str, int]) -> None:
        self.given = state["given"]

    def facts(self) -> dict[str, int]:
        return {}


def test_an_estimate_sees_enough_rows_and_puts_the_stream_back() -> None:
    stream, asked = Counting(), []

    def record(tokens: Ints, sites: object) -> dict[Site, torch.Tensor]:
        asked.append(int(tokens[0, 0]))
        x = torch.arange(8.0).reshape(2, 4, 1) * torch.as_tensor(tokens)[..., None]
        return {SITE: x, OTHER: 2 * x + 1}

    stream.next()
    found = estimate_scalings(record, stream, [SITE, OTHER], LeftOut(positions=(0,)), 13)
    assert asked == [2, 3, 4] and stream.given == 1
    rows = torch.tensor([1.0, 2, 3, 5, 6, 7])
    seen = torch.cat([rows * n for n in asked])[:, None]
    torch.testing.assert_close(found[SITE].mean, seen.mean(dim=0))
    torch.testing.assert_close(found[OTHER].mean, 2 * seen.mean(dim=0) + 1)
    assert found[OTHER].factor == pytest.approx(found[SITE].factor / 2)
    assert estimate_scalings(record, stream, [], LeftOut(positions=(0,)), 13) == {}
    assert asked == [2, 3, 4] * 2 and stream.given == 1


def test_padding_and_bos_have_no_part_in_an_estimate() -> None:
    class Padded(Counting):
        def next(self) -> Ints:
            tokens = super().next() + 10
            tokens[0, 2:], tokens[1, 1] = PADDING, 3
            return tokens

    x = torch.tensor([[1.0, 2, 9, 9], [3, 9, 4, 5]])[..., None]
    found = estimate_scalings(lambda *_: {SITE: x}, Padded(), [SITE], LeftOut(ids=(3,)), 11)
    assert float(found[SITE].mean) == 3 and found[SITE].factor == pytest.approx(2**-0.5)
