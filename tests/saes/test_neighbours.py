"""Which latents write almost the same, and which are active together?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array

from iclens.model.load import LanguageModel
from iclens.saes.encode import by_activation, by_decoder
from iclens.saes.load import load_sae


def test_decoder_rows_are_compared_by_angle_and_not_by_length(
    write_sae: Callable[..., Path], model: LanguageModel
) -> None:
    rows = torch.zeros(24, 8)
    rows[:, 7] = 1.0
    rows[0] = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
    rows[5] = torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 0])
    rows[9] = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    rows[3] = 0.0
    sae = load_sae(write_sae(hook="blocks.1.hook_resid_post", W_dec=rows))
    (near,) = by_decoder(sae, [0], n=3)
    assert near.latents.tolist() == [5, 9]
    np.testing.assert_allclose(near.values, [1.0, np.sqrt(0.5)], rtol=1e-5)


def test_activations_are_compared_by_pearsons_r_over_all_tokens() -> None:
    rng = np.random.default_rng(0)
    dense = rng.gamma(1.0, size=(50, 6)) * (rng.random((50, 6)) < 0.5)
    dense[:, 1] = 3.0 * dense[:, 4]
    dense[:, 2] = 0.0
    (near,) = by_activation(csr_array(dense), [4], n=9)
    r = np.corrcoef(dense[:, [0, 1, 3, 4, 5]].T)[3]
    expected = {0: r[0], 1: r[1], 3: r[2], 5: r[4]}
    assert near.latents[0] == 1
    assert set(near.latents.tolist()) == {f for f, value in expected.items() if value > 0}
    np.testing.assert_allclose(near.values, [expected[f] for f in near.latents.tolist()], rtol=1e-9)
    assert (np.diff(near.values) <= 0).all()


def test_latents_that_do_not_vary_and_those_that_exclude_each_other_are_no_neighbours() -> None:
    dense = np.zeros((6, 5))
    dense[:, 1] = dense[:, 2] = 0.1
    dense[:3, 3], dense[3:, 4] = 1.0, 1.0
    for near in by_activation(csr_array(dense), [0, 1, 3]):
        assert len(near.latents) == 0
