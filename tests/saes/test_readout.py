"""Logit effects against the unembedding written out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iclens.core import SiteError
from iclens.model.load import LanguageModel
from iclens.prompts.render import answer_ids
from iclens.saes.encode import logit_effects
from iclens.saes.load import load_sae

HOOK = "blocks.2.hook_resid_post"


def test_a_direction_built_from_a_token_names_it(
    write_sae: Callable[..., Path], model: LanguageModel
) -> None:
    head, gain = model.network.lm_head.weight, model.network.model.norm.weight
    wanted = int(answer_ids(model.tokenizer, ["42"])[0])
    W_dec = torch.zeros(24, 128)
    W_dec[5] = torch.linalg.lstsq((head - head.mean(dim=0)) * gain, torch.eye(len(head))[:, wanted]).solution
    W_dec[6] = -W_dec[5]
    sae = load_sae(write_sae(d_in=128, hook=HOOK, W_dec=W_dec))
    raised, lowered = logit_effects(model, sae, [5, 6], n=3)
    assert (raised.latent, lowered.latent) == (5, 6)
    assert raised.top[0][0] == "42" and lowered.bottom[0][0] == "42"
    assert raised.top[0][1] == pytest.approx(-lowered.bottom[0][1])
    (nothing,) = logit_effects(model, sae, [7], n=3)
    assert {value for _, value in nothing.top} == {0.0}


def test_effects_are_the_change_of_centred_logits(
    write_sae: Callable[..., Path], model: LanguageModel
) -> None:
    sae = load_sae(write_sae(d_in=128, hook=HOOK))
    (found,) = logit_effects(model, sae, [7], n=4)
    logits = (
        sae.W_dec[7] / sae.W_dec[7].norm() * model.network.model.norm.weight
    ) @ model.network.lm_head.weight.T
    expected = (logits - logits.mean()).sort(descending=True).values
    torch.testing.assert_close(torch.tensor([v for _, v in found.top]), expected[:4])
    torch.testing.assert_close(torch.tensor([v for _, v in found.bottom]), expected.flip(0)[:4])


def test_a_latent_outside_the_sae_is_refused(write_sae: Callable[..., Path], model: LanguageModel) -> None:
    sae = load_sae(write_sae(d_in=128, hook=HOOK))
    for latent in (24, -1):
        with pytest.raises(SiteError, match=f"latent {latent} of L2.resid_post: the SAE has 24"):
            logit_effects(model, sae, [latent])
