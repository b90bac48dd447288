"""The training step and the buffer that feeds it."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from iclens.names import Site
from iclens.training.buffer import ShuffleBuffer
from iclens.training.config import Optimisation
from iclens.training.step import Scaling, TopKStep

SITES = (Site(0, "resid_post"), Site(1, "mlp_out"))


def settings(**changes: float) -> Optimisation:
    return Optimisation.model_validate({"tokens": 1, "lr": 0.01} | changes)


def build(x: Tensor, d_sae: int = 32, k: int = 4, **changes: float) -> TopKStep:
    return TopKStep(Scaling.of(x), d_sae, k, settings(**changes), x, torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> Tensor:
    """Sparse sums of twelve directions far from the origin, in large units, [row d_in]."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(12, 8, generator=generator)
    amounts = torch.rand(2048, 12, generator=generator) * (torch.rand(2048, 12, generator=generator) < 0.2)
    return 300 + 50 * amounts @ directions


def test_scaling_gives_mean_zero_and_mean_square_d_in(x: Tensor) -> None:
    u = Scaling.of(x).apply(x)
    torch.testing.assert_close(u.mean(dim=0), torch.zeros(8), atol=1e-4, rtol=0)
    assert float(u.square().sum(dim=1).mean()) == pytest.approx(8, rel=1e-4)


def test_exported_weights_say_the_same_of_raw_activations(x: Tensor) -> None:
    step = build(x)
    for _ in range(30):
        step.update(x, 1.0)
    weights, s = step.export(), step.scaling.factor
    z_raw = (x - weights.b_dec) @ weights.W_enc + weights.b_enc
    u = step.scaling.apply(x)
    z = u @ step.W_enc + step.b_enc
    torch.testing.assert_close(z_raw * s, z.detach(), rtol=1e-3, atol=1e-3)
    top = z_raw.topk(4, dim=1)
    a = torch.zeros_like(z_raw).scatter(1, top.indices, top.values.relu())
    fvu = (x - a @ weights.W_dec - weights.b_dec).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert float(fvu) == pytest.approx(step.update(x, 0.0)["fvu"], rel=1e-3)
    torch.testing.assert_close(weights.W_dec.norm(dim=1), torch.ones(32))


def test_training_finds_sparse_structure(x: Tensor) -> None:
    step = build(x)
    first = step.update(x, 1.0)
    last = [step.update(x, 1.0) for _ in range(100)][-1]
    assert last["fvu"] < 0.2 * first["fvu"] and last["l0"] <= 4


def test_one_step_moves_along_the_dense_gradient(x: Tensor) -> None:
    step = build(x, k=3)
    W_enc, W_dec, b_enc, b_dec = (
        t.detach().clone().requires_grad_() for t in (step.W_enc, step.W_dec, step.b_enc, step.b_dec)
    )
    u = step.scaling.apply(x)
    z = u @ W_enc + b_enc
    kept = z >= z.topk(3, dim=1).values[:, -1:]
    loss = (u - (z * kept).relu() @ W_dec - b_dec).square().sum(dim=1).mean() / 8
    loss.backward()
    assert W_enc.grad is not None and b_dec.grad is not None
    before = step.W_enc.detach().clone(), step.b_dec.detach().clone()
    step.update(x, 1.0)
    # Adam's first step is lr · sign(gradient).
    for gradient, old, new in ((W_enc.grad, before[0], step.W_enc), (b_dec.grad, before[1], step.b_dec)):
        large = gradient.abs() > 1e-4
        torch.testing.assert_close(
            (new - old)[large].detach(), -0.01 * gradient[large].sign(), rtol=1e-2, atol=0
        )


def test_dead_latents_are_counted_and_learn_the_error_through_their_encoder(x: Tensor) -> None:
    step = build(x, dead_after_tokens=4096, aux_coefficient=1.0, lr=0.03)
    with torch.no_grad():
        step.b_enc[:8] = -4
    assert not step.dead.any()
    metrics = [step.update(x, 0.0) for _ in range(3)]
    assert metrics[0]["dead"] == metrics[1]["dead"] == 0 and metrics[2]["dead"] >= 0.25
    assert step.dead[:8].all() and metrics[2]["aux"] > 0
    before = step.W_enc.detach()[:, :8].clone()
    last = [step.update(x, 1.0) for _ in range(60)][-1]
    assert (step.W_enc[:, :8] - before).abs().sum(dim=0).min() > 0
    assert last["aux"] < 0.5 * metrics[2]["aux"]


def test_without_auxiliary_loss_dead_latents_stay(x: Tensor) -> None:
    step = build(x, dead_after_tokens=2048, aux_coefficient=0.0)
    with torch.no_grad():
        step.b_enc[:8] = -1e4
    found = [step.update(x, 1.0) for _ in range(10)][-1]
    assert found["aux"] == 0 and step.dead[:8].all()


def blocks() -> Iterator[dict[Site, Tensor]]:
    """Blocks of 7 rows that count upwards; the second site holds the negative of the first."""
    start = 0
    while True:
        rows = torch.arange(start, start + 7, dtype=torch.float32)[:, None]
        yield {SITES[0]: rows, SITES[1]: -rows}
        start += 7


def served(n: int) -> list[dict[Site, Tensor]]:
    buffer = ShuffleBuffer(blocks(), capacity=40, batch=8, generator=torch.Generator().manual_seed(0))
    return list(islice(buffer.batches(), n))


def test_the_buffer_serves_every_row_at_most_once_and_the_same_at_every_site() -> None:
    batches = served(60)
    rows = torch.cat([batch[SITES[0]][:, 0] for batch in batches])
    assert len(rows.unique()) == len(rows) == 480
    for batch in batches:
        assert batch[SITES[0]].shape == (8, 1)
        torch.testing.assert_close(batch[SITES[0]], -batch[SITES[1]])
    assert rows.max() < 480 + 40 + 7


def test_the_buffer_mixes_contexts() -> None:
    spread = [float(batch[SITES[0]].max() - batch[SITES[0]].min()) for batch in served(10)]
    assert min(spread) > 14
    torch.testing.assert_close(served(3)[2][SITES[0]], served(3)[2][SITES[0]])
