"""Our Adam is torch's."""

import pytest
import torch
from torch import Tensor

from iclens.training.topk import Adam, clip


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(n, 3, generator=generator, dtype=dtype) for name, n in (("a", 5), ("b", 2))}


def gradients(step: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Half of the rows of `a` get no gradient after the third step."""
    generator = torch.Generator().manual_seed(100 + step)
    found = {name: torch.randn(p.shape, generator=generator, dtype=dtype) for name, p in parameters().items()}
    if step > 2:
        found["a"][2:] = 0
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_is_that_of_torch(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), [p.requires_grad_() for p in parameters(dtype).values()]
    own = Adam(ours, torch.float32)
    reference = torch.optim.Adam(theirs, betas=(0.9, 0.99), foreach=False, fused=False)
    for step in range(20):
        lr = 0.1 / (1 + step)
        reference.param_groups[0]["lr"] = lr
        for p, g in zip(theirs, gradients(step, dtype).values(), strict=True):
            p.grad = g
        reference.step()
        own.step(gradients(step, dtype), lr)
        for p, q in zip(ours.values(), theirs, strict=True):
            torch.testing.assert_close(
                p, q.detach(), rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-7
            )


def test_the_first_step_by_hand() -> None:
    p = torch.tensor([1.0, 1.0, 1.0])
    Adam({"p": p}, torch.float32).step({"p": torch.tensor([2.0, -0.5, 0.0])}, 0.1)
    torch.testing.assert_close(p, torch.tensor([0.9, 1.1, 1.0]))


def test_narrow_moments_stay_close_and_still_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclens.training.topk._BLOCK", 4)
    wide, narrow = parameters(), parameters()
    exact, rounded = Adam(wide, torch.float32), Adam(narrow, torch.bfloat16)
    for step in range(30):
        exact.step(gradients(step), 0.01)
        rounded.step(gradients(step), 0.01)
    assert rounded.moments["exp_avg.a"].dtype == torch.bfloat16
    for name, start in parameters().items():
        torch.testing.assert_close(narrow[name] - start, wide[name] - start, rtol=0.1, atol=0.01)
    before = rounded.moments["exp_avg_sq.a"].clone()
    for _ in range(60):
        rounded.step({name: torch.zeros_like(p) for name, p in narrow.items()}, 0.0)
    assert (rounded.moments["exp_avg_sq.a"] < 0.6 * before).all()


def test_clip_shortens_all_by_one_factor() -> None:
    found = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    clip(found, 10.0)
    assert found["a"].item() == 3 and found["b"].item() == 4
    clip(found, 1.0)
    torch.testing.assert_close(torch.cat([found["a"], found["b"][0]]), torch.tensor([0.6, 0.8]))
