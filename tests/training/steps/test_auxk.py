"""The auxiliary loss and its gradients, held to dense autograd."""

import pytest
import torch
from torch import Tensor

from iclens.training.topk import auxiliary


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    weights = {"encoder": normal(12, 5), "b_enc": normal(12) - 2, "decoder": normal(12, 4)}
    return normal(30, 5), normal(30, 4), weights


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("aux_k", [3, 12, 50])
@pytest.mark.parametrize("chunk", [None, 7])
def test_gradients_are_those_of_dense_autograd(
    dtype: torch.dtype, near: float, aux_k: int, chunk: int | None
) -> None:
    u, error, weights = inputs(dtype)
    loss, gradients = auxiliary(u, error, weights, aux_k, chunk)
    dense = {name: w.clone().requires_grad_() for name, w in weights.items()}
    z = u @ dense["encoder"].T + dense["b_enc"]
    top = z.topk(min(aux_k, 12), dim=1)
    a = torch.zeros_like(z).scatter(1, top.indices, top.values)
    want = (a @ dense["decoder"] - error).square().sum() / error.square().sum()
    want.backward()
    torch.testing.assert_close(loss, want.detach(), rtol=near, atol=near)
    for name, w in dense.items():
        torch.testing.assert_close(gradients[name], w.grad, rtol=near, atol=near)


def test_narrow_products_stay_close() -> None:
    u, error, weights = inputs(torch.float32)
    loss, gradients = auxiliary(u, error, weights, 12, 7)
    rough, roughly = auxiliary(u, error, weights, 12, 7, torch.bfloat16)
    torch.testing.assert_close(rough, loss, rtol=0.02, atol=0)
    for name, gradient in gradients.items():
        assert roughly[name].dtype == torch.float32
        assert float((roughly[name] - gradient).norm() / gradient.norm()) < 0.03


def test_latents_below_zero_get_a_gradient_on_both_sides() -> None:
    u, error, weights = inputs(torch.float64)
    weights["b_enc"] -= 1e3
    _, gradients = auxiliary(u, error, weights, 12, None)
    assert (gradients["encoder"].abs().amax(dim=1) > 0).all()
    assert (gradients["decoder"].abs().amax(dim=1) > 0).all()


def test_nothing_left_to_explain_gives_no_infinity() -> None:
    u, error, weights = inputs(torch.float32)
    loss, _ = auxiliary(u, torch.zeros_like(error), weights, 3, None)
    assert loss.isfinite()
