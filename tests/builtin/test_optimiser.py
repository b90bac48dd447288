"""Muon: updates are nearly semi-orthogonal, and parameters go to the right optimiser."""

import pytest
import torch

from iclens.builtin.model import Recipe, build_network, build_tokenizer
from iclens.builtin.train import Muon, build_optimisers, orthogonalise


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
