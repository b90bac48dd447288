"""Sparse selection and sums, held to their dense definitions."""

import pytest
import torch
from torch import Tensor

from iclens.training.topk import (
    Active,
    Encoder,
    by_latent,
    choose_batch_topk,
    choose_topk,
    decode,
    dots,
    gather,
    top_latents,
    total,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(active: Active, d_sae: int) -> Tensor:
    """Activations as [row d_sae]."""
    a = torch.zeros(len(active.start), d_sae, dtype=active.value.dtype)
    return a.index_put((active.row, active.latent), active.value, accumulate=True)


def batch_topk(z: Tensor, k: int) -> Tensor:
    """relu(z) at the k·row largest of all, 0 elsewhere, [row latent]."""
    a = z.relu().flatten()
    top = a.topk(k * len(z))
    return torch.zeros_like(a).scatter(0, top.indices, top.values).view_as(z)


@pytest.mark.parametrize("n", [7, 64, 96, 1000, 2048])
def test_top_latents_are_the_largest(n: int) -> None:
    z = normal(33, n)
    values, columns = top_latents(z, 5)
    torch.testing.assert_close(values.sort(descending=True).values, z.topk(5).values)
    torch.testing.assert_close(z.gather(1, columns), values)


def test_top_latents_holds_when_the_largest_share_a_group() -> None:
    z = torch.zeros(1, 256)
    z[0, 3::32] = torch.arange(1.0, 9.0)
    assert top_latents(z, 8)[1].sort().values.tolist() == [list(range(3, 256, 32))]


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
def test_topk_takes_each_rows_largest_whatever_the_chunk(chunk: int | None) -> None:
    u, matrix, bias = normal(20, 6), normal(64, 6, seed=1), normal(64, seed=2)
    active = choose_topk(Encoder(matrix, bias, chunk), u, 4)
    z = u @ matrix.T + bias
    top = z.topk(4)
    want = torch.zeros_like(z).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(dense(active, 64), want)
    assert active.row.tolist() == [row for row in range(20) for _ in range(4)]


def test_topk_sets_negative_values_to_zero() -> None:
    active = choose_topk(Encoder(-torch.ones(8, 2), torch.zeros(8)), torch.ones(3, 2), 4)
    assert len(active.value) == 12 and not active.value.any()


@pytest.mark.parametrize("least", [0.0, 1e-9, 0.5, 1e6])
@pytest.mark.parametrize("chunk", [None, 7])
def test_batch_topk_takes_the_batchs_largest_whatever_is_guessed(least: float, chunk: int | None) -> None:
    u, matrix, bias = normal(20, 6), normal(64, 6, seed=1), normal(64, seed=2)
    u[3] *= 20  # one row with far more than its share
    active = choose_batch_topk(Encoder(matrix, bias, chunk), u, 4, least)
    torch.testing.assert_close(dense(active, 64), batch_topk(u @ matrix.T + bias, 4))
    assert int((active.row == 3).sum()) > 12
    assert (active.row.diff() >= 0).all()
    assert active.start.tolist() == [int((active.row < row).sum()) for row in range(20)]


def test_batch_topk_keeps_what_is_positive_when_too_little_is() -> None:
    u, matrix = normal(10, 4), normal(15, 4, seed=1)
    bias = torch.full((15,), -3.0, dtype=torch.float64)
    active = choose_batch_topk(Encoder(matrix, bias), u, 8, 0.0)
    torch.testing.assert_close(dense(active, 15), (u @ matrix.T + bias).relu())
    nothing = choose_batch_topk(Encoder(matrix, bias - 1e3), u, 8, 0.0)
    assert not len(nothing.value)
    assert not decode(nothing, normal(15, 3)).any()


@pytest.mark.parametrize("choose", ["topk", "batchtopk"])
def test_a_narrow_product_chooses_and_full_precision_computes(choose: str) -> None:
    u, matrix = normal(50, 16, dtype=torch.float32), normal(64, 16, seed=1, dtype=torch.float32)
    bias = normal(64, seed=2, dtype=torch.float32)
    encoder = Encoder(matrix, bias, 16, torch.bfloat16)
    active = choose_topk(encoder, u, 4) if choose == "topk" else choose_batch_topk(encoder, u, 4, 0.0)
    z = u @ matrix.T + bias
    torch.testing.assert_close(active.value, z[active.row, active.latent].relu())
    want = torch.zeros_like(z).scatter(1, z.topk(4).indices, 1) if choose == "topk" else batch_topk(z, 4) > 0
    assert float(want.bool()[active.row, active.latent].float().mean()) > 0.95


def ragged() -> Active:
    """Entries of four rows, the second without any, latent 2 in two of them."""
    row = torch.tensor([0, 0, 2, 3, 3, 3])
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    return Active(value, row, torch.tensor([2, 0, 1, 4, 2, 0]), torch.tensor([0, 2, 2, 3]))


def test_sums_over_entries_are_the_dense_products() -> None:
    active, weights, x = ragged(), normal(5, 3), normal(4, 3, seed=1)
    a = dense(active, 5)
    torch.testing.assert_close(decode(active, weights), a @ weights)
    torch.testing.assert_close(
        dots(x, weights, active.latent, active.start), (x @ weights.T)[active.row, active.latent]
    )
    order = by_latent(active, 5)
    torch.testing.assert_close(gather(order, active.value, x), a.T @ x)
    torch.testing.assert_close(total(order, active.value), a.sum(dim=0))
    assert order.bounds.tolist() == [0, 2, 3, 5, 5, 6]
